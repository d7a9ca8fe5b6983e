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
mod network;
mod process;
mod resources;
mod rootfs;
mod seccomp;
mod spaces;
mod tuning;

use std::io::Write as _;
use std::process::{Command, ExitCode};

/// A named check.
pub(crate) type Case = (&'static str, fn());

/// Set in the passes that [`main`] starts.
const PASS: &str = "GANTRY_TEST_PASS";

/// Runs everything three times: as the host is, where it has version 1 of the cgroups also in a view with version 2
/// only, and with all fallbacks for older kernels.
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut out = std::io::stdout();
    if let Some(reason) = fixture::missing() {
        let _ = writeln!(out, "SKIP containers: {reason}");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(PASS).is_some() {
        return cases(&words);
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
    code
}

fn cases(words: &[String]) -> ExitCode {
    let wanted: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let mut out = std::io::stdout();
    let cases = [
        basic::CASES,
        spaces::CASES,
        rootfs::CASES,
        process::CASES,
        hooks::CASES,
        resources::CASES,
        seccomp::CASES,
        tuning::CASES,
        network::CASES,
    ]
    .concat();
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
