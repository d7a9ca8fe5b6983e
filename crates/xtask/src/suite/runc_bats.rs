//! runc's own integration tests (bats), unmodified, on any binary that is called like runc.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::results::{Outcome, Results, compare, skips, watch};
use super::room::Room;
use crate::{dist, root, run, setup};

const SUITE: &str = "runc-bats";

/// No test is silent for that long. One that is has a container that waits for input or for ever.
const PATIENCE: Duration = Duration::from_secs(150);

/// The helper programs of the suite, made from Go by its makefile.
const PROGRAMS: [&str; 7] =
    ["recvtty", "sd-helper", "seccompagent", "pidfd-kill", "remap-rootfs", "key_label", "fs-idmap"];

/// Runs the suite of `directory`, a checkout of opencontainers/runc, with our gantry-oci under the name `runc`; every
/// test that does not pass must have its reason in the skip file, and none that passes may. With `--runtime PATH` only
/// the results are printed. The other words name files of tests without `.bats`; none means all.
pub(super) fn runc_bats(directory: &Path, words: &[&str]) -> Result<()> {
    let (runtime, only) = match words {
        ["--runtime", runtime, only @ ..] => (Some(*runtime), only),
        only => (None, only),
    };
    setup::for_runc_bats()?;
    let directory = fs::canonicalize(directory).with_context(|| format!("find {}", directory.display()))?;
    if PROGRAMS.iter().any(|name| !directory.join("tests/cmd/_bin").join(name).exists()) {
        run(Command::new("make").arg("BUILDTAGS=seccomp").args(PROGRAMS).current_dir(&directory))?;
    }
    let binary = match runtime {
        Some(path) => fs::canonicalize(path).with_context(|| format!("find {path}"))?,
        None => {
            dist::dist()?;
            dist::directory().join("gantry-oci")
        }
    };
    let scratch = std::env::temp_dir().join(format!("gantry-runc-bats-{}", std::process::id()));
    let results = prepare(&directory, &binary, &scratch).and_then(|()| run_all(&scratch, only));
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    let results = results?;
    let count = |wanted: Outcome| results.values().filter(|outcome| **outcome == wanted).count();
    println!(
        "runc-bats: {} passed, {} failed, {} skipped of {}",
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::Skipped),
        results.len()
    );
    if runtime.is_some() { Ok(()) } else { compare(SUITE, &results, &skips(SUITE)?) }
}

/// Copies the tests, puts the images where their script would download them to, and names the binary `runc`.
fn prepare(directory: &Path, binary: &Path, scratch: &Path) -> Result<()> {
    for name in ["bin", "tmp", "tests"] {
        fs::create_dir_all(scratch.join(name))?;
    }
    // Containers with user namespaces look at their bundles as other users.
    fs::set_permissions(scratch.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    std::os::unix::fs::symlink(binary, scratch.join("bin/runc"))?;
    let tests = scratch.join("tests");
    run(Command::new("cp").arg("-a").arg(directory.join("tests/integration")).arg(&tests))?;
    run(Command::new("cp").arg("-a").arg(directory.join("tests/cmd")).arg(&tests))?;
    fs::copy(directory.join("go.mod"), scratch.join("go.mod"))?;
    let go = Command::new("go").args(["env", "GOARCH"]).output().context("run go, which the suite calls")?;
    let arch = String::from_utf8_lossy(&go.stdout).trim().to_owned();
    for (name, image) in [("busybox", busybox_image(scratch)?), ("debian", debian_image()?)] {
        // The name is the suite's; tar looks at the content.
        fs::copy(image, tests.join(format!("integration/testdata/{name}-{arch}.tar.xz")))?;
    }
    Ok(())
}

/// A root file system with the static busybox under every name it has.
fn busybox_image(scratch: &Path) -> Result<PathBuf> {
    let tree = scratch.join("busybox");
    for name in ["bin", "dev", "etc", "home", "lib", "root", "sbin", "tmp", "usr/bin", "usr/sbin", "var/spool/mail"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(tree.join("root"), fs::Permissions::from_mode(0o700))?;
    let busybox = tree.join("bin/busybox");
    fs::write(&busybox, testkit::requires_busybox()?)?;
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755))?;
    let names = Command::new(&busybox).arg("--list").output().context("list what busybox can do")?;
    for name in String::from_utf8_lossy(&names.stdout).lines().filter(|name| *name != "busybox") {
        fs::hard_link(&busybox, tree.join("bin").join(name))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    fs::write(tree.join("etc/group"), "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n")?;
    let image = scratch.join("busybox.tar");
    archive(&tree, &image)?;
    Ok(image)
}

/// A small Debian, made once per build directory.
fn debian_image() -> Result<PathBuf> {
    let image = root().join("target/suites/debian.tar");
    if image.exists() {
        return Ok(image);
    }
    let tree = root().join("target/suites/debian");
    fs::create_dir_all(&tree)?;
    println!("making a Debian for the tests");
    let release = ["--variant=minbase", "stable"];
    run(Command::new("debootstrap").args(release).arg(&tree).stdout(Stdio::null()))?;
    for part in ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"] {
        // Nothing that a test looks at; each unpacks the image.
        let _ = fs::remove_dir_all(tree.join(part));
    }
    archive(&tree, &image)?;
    fs::remove_dir_all(&tree)?;
    Ok(image)
}

fn archive(tree: &Path, image: &Path) -> Result<()> {
    run(Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(image).arg("."))
}

fn run_all(scratch: &Path, only: &[&str]) -> Result<Results> {
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch.join("tests/integration"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        files.extend(name.strip_suffix(".bats").map(str::to_owned));
    }
    files.sort();
    if let Some(unknown) = only.iter().find(|name| !files.iter().any(|file| file == *name)) {
        bail!("no file {unknown}.bats in the suite");
    }
    let room = Room::new(SUITE, false)?;
    let mut results = Results::new();
    for file in files.iter().filter(|file| only.is_empty() || only.contains(&file.as_str())) {
        for (name, outcome) in run_file(scratch, &room, file)? {
            results.insert((file.clone(), name), outcome);
        }
    }
    Ok(results)
}

/// Runs one file. The tests get a terminal, as they have in a person's shell, on which nobody writes.
fn run_file(scratch: &Path, room: &Room, file: &str) -> Result<Vec<(String, Outcome)>> {
    let line = format!(
        "stty -echo -onlcr; exec bats --tap --print-output-on-failure '{}'",
        scratch.join(format!("tests/integration/{file}.bats")).display()
    );
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut child = room
        .command(Path::new("script"))
        .args(["-qfec", &line, "/dev/null"])
        .env("RUNC", scratch.join("bin/runc"))
        .env("TMPDIR", scratch.join("tmp"))
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {file}.bats"))?;
    // Not the null device, and no end of the file either: `script` would pass that on.
    let input = child.stdin.take();
    let mut results = Vec::new();
    watch(&mut child, PATIENCE, |line| match line {
        Some(line) => {
            if let Some((name, outcome)) = parse(line) {
                println!("{outcome:<7} {file}: {name}");
                results.push((name, outcome));
            } else if line.starts_with('#') {
                println!("    {line}");
            }
        }
        None => {
            println!("    {file}.bats is silent: its containers are killed");
            room.kill_below();
        }
    })?;
    drop(input);
    child.wait()?;
    Ok(results)
}

/// A result in the Test Anything Protocol.
fn parse(line: &str) -> Option<(String, Outcome)> {
    let (failed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("ok ")?),
    };
    let (number, name) = rest.trim_end().split_once(' ')?;
    number.parse::<u32>().ok()?;
    match name.split_once(" # skip") {
        Some((name, _)) => Some((name.trim().to_owned(), Outcome::Skipped)),
        None => Some((name.trim().to_owned(), if failed { Outcome::Failed } else { Outcome::Passed })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        for (line, want) in [
            ("ok 1 runc run", Some(("runc run", Outcome::Passed))),
            ("not ok 12 runc run [x]\r", Some(("runc run [x]", Outcome::Failed))),
            ("ok 3 a b # skip test requires root", Some(("a b", Outcome::Skipped))),
            ("ok then", None),
            ("# not ok 1 x", None),
            ("1..4", None),
        ] {
            assert_eq!(parse(line), want.map(|(name, outcome)| (name.to_owned(), outcome)), "{line}");
        }
    }

    #[test]
    fn every_entry_of_the_skip_file_has_a_reason() {
        assert!(!skips(SUITE).unwrap().is_empty());
    }
}
