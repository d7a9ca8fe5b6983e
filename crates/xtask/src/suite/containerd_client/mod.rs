//! containerd's own client integration tests, unmodified, on gantryd under the name `containerd`.

mod images;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::registry::Registry;
use super::results::{Outcome, Results, compare, skips, watch};
use super::room::Room;
use crate::{dist, root, run, setup};

const SUITE: &str = "containerd-client";

/// No test is silent for that long.
const PATIENCE: Duration = Duration::from_secs(300);

/// How the suite finds its daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It starts `containerd` itself, and restarts it.
    Own,
    /// It is given the address of one that runs.
    Address,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Address => "address",
        }
    }
}

/// Tests that need the suite's own daemon. Given an address two of them crash, which ends the whole run.
const OWN_DAEMON_ONLY: &str = "^(TestShimDoesNotLeakPipes|TestShimOOMScore|TestDaemonRestart|\
    TestDaemonRestartWithRunningShim|TestDaemonReconnectsToShimIOPipesOnRestart)$";

/// Gives the suite a network with the registry alone in it, processes of its own, and fresh directories where it expects
/// fixed ones. Words: the scratch directory, the directory of the tests, the mode, then the command.
const ENTER: &str = r#"
set -e
scratch=$1 directory=$2 mode=$3; shift 3
ip link set lo up
mount --bind "$scratch/registry/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mount --bind "$scratch/lib" /var/lib
docker-registry serve "$scratch/registry/registry.yml" >"$scratch/registry.log" 2>&1 &
tries=0; until curl -sk https://127.9.9.9/v2/ >/dev/null; do tries=$((tries + 1)); test $tries -lt 200; sleep 0.1; done
mount --bind "$scratch/tmp" /tmp
if [ "$mode" = address ]; then
    mkdir -p /run/containerd-test
    containerd --root /var/lib/containerd-test --state /run/containerd-test --log-level debug \
        --address /run/containerd-test/containerd.sock >"$scratch/daemon.log" 2>&1 &
    tries=0; until [ -S /run/containerd-test/containerd.sock ]; do tries=$((tries + 1)); test $tries -lt 200; sleep 0.1; done
fi
cd "$directory"
"$@"
"#;

/// Runs the suite of `directory`, a checkout of containerd, in both modes; every test that does not pass must have its
/// reason in the skip file, and none that passes may. Words: `--binaries DIR` names the directory of other programs
/// (`containerd`, `containerd-shim-runc-v2`, `runc`), whose results are only printed; `--mode own|address` chooses one
/// mode; further words are patterns of tests, as `go test -run` takes them.
pub(super) fn containerd_client(directory: &Path, words: &[&str]) -> Result<()> {
    setup::for_containerd_client()?;
    let directory = fs::canonicalize(directory).with_context(|| format!("find {}", directory.display()))?;
    let options = Options::parse(words)?;
    // Not below /tmp, which the suite sees as another directory.
    let scratch = root().join("target/suites").join(format!("{SUITE}-{}", std::process::id()));
    let results = prepare(&directory, &scratch, options.binaries.as_deref()).and_then(|()| {
        let mut results = Results::new();
        for mode in &options.modes {
            run_mode(&directory, &scratch, *mode, &options.patterns, &mut results)?;
        }
        Ok(results)
    });
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    let results = results?;
    for mode in options.modes {
        let of = |wanted| {
            let those = results
                .iter()
                .filter(|((group, name), outcome)| group == mode.name() && !name.contains('/') && **outcome == wanted);
            those.count()
        };
        println!(
            "{SUITE} ({} daemon): {} passed, {} failed, {} skipped",
            mode.name(),
            of(Outcome::Passed),
            of(Outcome::Failed),
            of(Outcome::Skipped)
        );
    }
    if options.binaries.is_some() { Ok(()) } else { compare(SUITE, &leaves(results), &skips(SUITE)?) }
}

#[derive(Debug)]
struct Options {
    binaries: Option<PathBuf>,
    modes: Vec<Mode>,
    patterns: Vec<String>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { binaries: None, modes: vec![Mode::Own, Mode::Address], patterns: Vec::new() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--binaries" => options.binaries = Some(fs::canonicalize(value()?)?),
                "--mode" => {
                    options.modes = match *value()? {
                        "own" => vec![Mode::Own],
                        "address" => vec![Mode::Address],
                        other => bail!("no mode {other:?}"),
                    }
                }
                option if option.starts_with("--") => bail!("no option {option:?}"),
                pattern => options.patterns.push(pattern.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Builds the tests, gathers the programs under the names by which the suite calls them, and fills the registry.
fn prepare(directory: &Path, scratch: &Path, binaries: Option<&Path>) -> Result<()> {
    for name in ["bin", "tmp", "lib"] {
        fs::create_dir_all(scratch.join(name))?;
    }
    let go = |output: &str, words: &[&str]| {
        let mut command = Command::new("go");
        command.args(words).arg("-o").arg(scratch.join(output)).current_dir(directory);
        command
    };
    run(go("client.test", &["test", "-c"]).arg("./integration/client"))?;
    run(go("bin/runc-fp", &["build"]).arg("./integration/failpoint/cmd/runc-fp"))?;
    let names = ["containerd", "containerd-shim-runc-v2", "runc"];
    if let Some(binaries) = binaries {
        for name in names {
            fs::copy(binaries.join(name), scratch.join("bin").join(name)).with_context(|| format!("copy {name}"))?;
        }
    } else {
        dist::dist()?;
        for (name, ours) in names.into_iter().zip(["gantryd", "containerd-shim-gantry-v2", "gantry-oci"]) {
            fs::copy(dist::directory().join(ours), scratch.join("bin").join(name))
                .with_context(|| format!("copy {ours}"))?;
        }
        let shim = "containerd-shim-gantry-v2";
        fs::copy(dist::directory().join(shim), scratch.join("bin").join(shim))?;
    }
    Registry::prepare(&scratch.join("registry")).map(drop)
}

fn run_mode(directory: &Path, scratch: &Path, mode: Mode, patterns: &[String], results: &mut Results) -> Result<()> {
    let room = Room::new(SUITE, false)?;
    let logs = root().join("target/suites");
    let log = logs.join(format!("{SUITE}-{}.log", mode.name()));
    let mut command = room.command(Path::new("unshare"));
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "sh", "-c", ENTER, "sh"]);
    command.arg(scratch).arg(directory.join("integration/client")).arg(mode.name());
    command.arg(scratch.join("client.test"));
    command.args(["-test.root", "-test.v", "-no-criu", "-test.parallel=8", "-test.timeout=25m"]);
    if mode == Mode::Address {
        command.args(["-no-daemon", "-test.skip", OWN_DAEMON_ONLY]);
    }
    if !patterns.is_empty() {
        command.arg("-test.run").arg(patterns.join("|"));
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = command
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", scratch.join("bin").display()))
        .env("SSL_CERT_FILE", scratch.join("registry/authority.pem"))
        .env_remove("TMPDIR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).with_context(|| format!("write {}", log.display()))?)
        .spawn()
        .context("run the suite")?;
    let mut silent = false;
    let mut output = String::new();
    watch(&mut child, PATIENCE, |line| match line {
        Some(line) => {
            output.push_str(line);
            output.push('\n');
            if let Some((name, outcome)) = parse(line) {
                println!("{outcome:<7} {}: {name}", mode.name());
                results.insert((mode.name().to_owned(), name), outcome);
            }
        }
        None => {
            silent = true;
            room.kill_below();
        }
    })?;
    let status = child.wait()?;
    fs::write(logs.join(format!("{SUITE}-{}.out", mode.name())), output)?;
    let daemon_log = scratch.join("daemon.log");
    if mode == Mode::Address && daemon_log.exists() {
        fs::copy(daemon_log, logs.join(format!("{SUITE}-daemon.log")))?;
    }
    println!("the output of the tests and the logs of the daemon are in {}", logs.display());
    if silent {
        bail!("the suite was silent for {PATIENCE:?} and was ended");
    }
    if !results.keys().any(|(group, _)| group == mode.name()) {
        bail!("the suite ran no test: {status}");
    }
    if !status.success() && !results.values().any(|outcome| *outcome == Outcome::Failed) {
        bail!("no test failed, but the suite did: {status}");
    }
    Ok(())
}

/// A result as `go test -v` prints it, of a test or a part of one.
fn parse(line: &str) -> Option<(String, Outcome)> {
    let (word, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    let outcome = match word {
        "PASS" => Outcome::Passed,
        "FAIL" => Outcome::Failed,
        "SKIP" => Outcome::Skipped,
        _ => return None,
    };
    Some((rest.rsplit_once(" (")?.0.to_owned(), outcome))
}

/// A test fails with any of its parts: where those have results, they say why, and it is left out.
fn leaves(results: Results) -> Results {
    let parts: Vec<(String, String)> =
        results.iter().filter(|(_, outcome)| **outcome == Outcome::Failed).map(|(key, _)| key.clone()).collect();
    let blames_a_part = |group: &str, test: &str| {
        parts
            .iter()
            .any(|(other, part)| other == group && part.strip_prefix(test).is_some_and(|rest| rest.starts_with('/')))
    };
    results.into_iter().filter(|((group, test), _)| !blames_a_part(group, test)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        for (line, want) in [
            ("--- PASS: TestA (0.01s)", Some(("TestA", Outcome::Passed))),
            ("    --- FAIL: TestA/b_(c) (12.00s)", Some(("TestA/b_(c)", Outcome::Failed))),
            ("--- SKIP: TestB (0.00s)", Some(("TestB", Outcome::Skipped))),
            ("=== RUN   TestA", None),
            ("--- PASS", None),
        ] {
            assert_eq!(parse(line), want.map(|(name, outcome)| (name.to_owned(), outcome)), "{line}");
        }
    }

    #[test]
    fn parts_stand_for_the_test_that_fails_by_them() {
        let key = |test: &str| ("own".to_owned(), test.to_owned());
        let left = leaves(Results::from([
            (key("A"), Outcome::Failed),
            (key("A/b"), Outcome::Failed),
            (key("A/c"), Outcome::Passed),
            (key("AB"), Outcome::Failed),
        ]));
        assert_eq!(left.into_keys().map(|(_, test)| test).collect::<Vec<_>>(), ["A/b", "A/c", "AB"]);
    }

    #[test]
    fn words() {
        let options = Options::parse(&["--mode", "own", "TestA", "TestB"]).unwrap();
        assert_eq!((options.modes, options.patterns.join("|")), (vec![Mode::Own], "TestA|TestB".to_owned()));
        assert!(Options::parse(&["--mode"]).is_err() && Options::parse(&["--fast"]).is_err());
    }

    #[test]
    fn every_entry_of_the_skip_file_has_a_reason() {
        assert!(!skips(SUITE).unwrap().is_empty());
    }
}
