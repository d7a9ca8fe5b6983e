//! Real containers on the real kernel, from a root file system made of a static busybox.
//!
//! Without the standard harness, because the runtime must run in a process with one thread. Arguments are substrings
//! of the names of the cases to run.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a check that fails panics; without the harness this is no test to clippy"
)]

mod agent;
mod basic;
mod fixture;
mod hooks;
mod hostile;
mod mounts;
mod network;
mod process;
mod resources;
mod rootfs;
mod rootless;
mod seccomp;
mod spaces;
mod tuning;

use std::io::Write as _;
use std::process::{Command, ExitCode};

/// A named check.
pub(crate) type Case = (&'static str, fn());

/// Set in the passes that [`main`] starts.
const PASS: &str = "GANTRY_TEST_PASS";

/// The pass of a user who is not root.
const ROOTLESS: &str = "rootless";

/// Runs everything three times: as the host is, where it has version 1 of the cgroups also in a view with version 2
/// only, and with all fallbacks for older kernels. Then the cases of a user who is not root, with and without those.
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut out = std::io::stdout();
    if std::env::var_os(PASS).is_some() {
        return cases(&words);
    }
    if let Some(reason) = fixture::missing() {
        let _ = writeln!(out, "SKIP containers: {reason}");
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().unwrap();
    let mut code = ExitCode::SUCCESS;
    let mut pass = |name: &str, mut command: Command| {
        let _ = writeln!(out, "pass {name}");
        if !command.args(&words).env(PASS, name).status().unwrap().success() {
            code = ExitCode::FAILURE;
        }
    };
    pass("host", Command::new(&program));
    if !cgroups::Host::detect().unwrap().is_v2() {
        let mut command = Command::new("unshare");
        let view = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"";
        command.args(["--mount", "--cgroup", "sh", "-c", view]).arg(&program);
        pass("cgroup version 2", command);
    }
    if !sys::features().forced_fallbacks {
        let mut command = Command::new(&program);
        command.env(sys::FORCE_FALLBACKS_VARIABLE, "1");
        pass("fallbacks", command);
    }
    match rootless_directory(&program) {
        Err(reason) => {
            let _ = writeln!(std::io::stdout(), "SKIP rootless: {reason}");
        }
        Ok(directory) => {
            pass(ROOTLESS, rootless_command(directory.path()));
            if !sys::features().forced_fallbacks {
                let mut command = rootless_command(directory.path());
                command.env(sys::FORCE_FALLBACKS_VARIABLE, "1");
                pass(ROOTLESS, command);
            }
        }
    }
    code
}

/// A directory with this program and the files that a user with ranges of ids has in `/etc`.
fn rootless_directory(program: &std::path::Path) -> Result<tempfile::TempDir, &'static str> {
    use std::os::unix::fs::PermissionsExt as _;
    for helper in ["/usr/bin/newuidmap", "/usr/bin/newgidmap", "/usr/bin/setpriv", "/etc/subuid", "/etc/subgid"] {
        if !std::path::Path::new(helper).exists() {
            return Err("newuidmap and newgidmap (package uidmap), setpriv or /etc/subuid is missing");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(program, at("containers")).unwrap();
    let (user, (first, count)) = (rootless::USER, rootless::RANGE);
    std::fs::write(at("passwd"), format!("root:x:0:0::/root:/bin/sh\nuser:x:{user}:{user}::/tmp:/bin/sh\n")).unwrap();
    std::fs::write(at("group"), format!("root:x:0:\nuser:x:{user}:\n")).unwrap();
    for name in ["subuid", "subgid"] {
        std::fs::write(at(name), format!("user:{first}:{count}\n")).unwrap();
    }
    Ok(directory)
}

/// This program as that user. The files of `/etc` are covered, not changed.
fn rootless_command(directory: &std::path::Path) -> Command {
    const ENTER: &str = "user=$1; shift; \
        for f in passwd group subuid subgid; do mount --bind \"$0/$f\" /etc/$f || exit 1; done; \
        exec setpriv --reuid=$user --regid=$user --clear-groups \"$0/containers\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]);
    command.arg(directory).arg(rootless::USER.to_string()).env("TMPDIR", "/tmp");
    command
}

fn cases(words: &[String]) -> ExitCode {
    let wanted: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let mut out = std::io::stdout();
    let everything = [
        basic::CASES,
        spaces::CASES,
        rootfs::CASES,
        mounts::CASES,
        process::CASES,
        hooks::CASES,
        hostile::CASES,
        resources::CASES,
        seccomp::CASES,
        tuning::CASES,
        network::CASES,
    ];
    let rootless = std::env::var(PASS).is_ok_and(|name| name == ROOTLESS);
    let cases = if rootless { rootless::CASES.to_vec() } else { everything.concat() };
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begin = std::time::Instant::now();
        let result = std::panic::catch_unwind(case);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        let _ = writeln!(out, "case {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        let _ = writeln!(out, "failed: {failed:?}");
        ExitCode::FAILURE
    }
}
