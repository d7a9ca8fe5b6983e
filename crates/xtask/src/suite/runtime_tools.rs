use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::room::Room;
use crate::{dist, root, run};

/// Longer than any of them takes.
const TIMEOUT_SECONDS: &str = "120";

const WITHOUT_V2: &str = "--without-v2";

/// Runs the validation programs of opencontainers/runtime-tools in `directory`, a checkout, with our gantry-oci; every
/// program that is not clean must have its reason in the skip file, and none that is clean may. With another `runtime`
/// only the results are printed. `words` are `--without-v2` (see [`Room::new`]) and names of programs; none means all.
pub(super) fn runtime_tools(directory: &Path, runtime: Option<&str>, words: &[&str]) -> Result<()> {
    let (options, only): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| word.starts_with("--"));
    if let Some(option) = options.iter().find(|option| **option != WITHOUT_V2) {
        bail!("no option {option:?}");
    }
    let without_v2 = !options.is_empty();
    let directory = fs::canonicalize(directory).with_context(|| format!("find {}", directory.display()))?;
    let programs = programs(&directory)?;
    let chosen: Vec<&String> =
        programs.iter().filter(|name| only.is_empty() || only.contains(&name.as_str())).collect();
    let missing = |name: &String| !program(&directory, name).exists();
    if !directory.join("runtimetest").exists() || programs.iter().any(missing) {
        run(Command::new("make").args(["runtimetest", "validation-executables"]).current_dir(&directory))?;
    }
    let binary = match runtime {
        Some(path) => fs::canonicalize(path).with_context(|| format!("find {path}"))?,
        None => {
            dist::dist()?;
            dist::directory().join("gantry-oci")
        }
    };
    let scratch = std::env::temp_dir().join(format!("gantry-runtime-tools-{}", std::process::id()));
    fs::create_dir_all(scratch.join("tmp"))?;
    let results =
        Room::new("runtime-tools", without_v2).and_then(|room| run_all(&room, &directory, &binary, &scratch, &chosen));
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    let results = results?;
    let clean = results.values().filter(|result| result.is_clean()).count();
    println!("runtime-tools: {clean} of {} clean", results.len());
    if runtime.is_some() { Ok(()) } else { compare(&results, &skips()?) }
}

/// The names of the programs.
fn programs(directory: &Path) -> Result<Vec<String>> {
    let validation = directory.join("validation");
    let mut names = Vec::new();
    for entry in fs::read_dir(&validation).with_context(|| format!("read {}", validation.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if validation.join(&name).join(format!("{name}.go")).exists() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn program(directory: &Path, name: &str) -> PathBuf {
    directory.join("validation").join(name).join(format!("{name}.t"))
}

fn run_all(
    room: &Room,
    directory: &Path,
    binary: &Path,
    scratch: &Path,
    names: &[&String],
) -> Result<BTreeMap<String, Outcome>> {
    use std::os::unix::fs::PermissionsExt as _;
    // The suite takes a path and no options; containers of others are nothing to it.
    let wrapper = scratch.join("runtime");
    let script = format!("#!/bin/sh\nexec '{}' --root '{}/containers' \"$@\"\n", binary.display(), scratch.display());
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut results = BTreeMap::new();
    for name in names {
        let output = room
            .command(Path::new("timeout"))
            .arg(TIMEOUT_SECONDS)
            .arg(program(directory, name))
            .current_dir(directory)
            .env("RUNTIME", &wrapper)
            .env("TMPDIR", scratch.join("tmp"))
            .stdin(std::process::Stdio::null())
            .output()
            .with_context(|| format!("run {name}"))?;
        let result = Outcome::read(&String::from_utf8_lossy(&output.stdout), output.status.success());
        println!("{} {name} ({result})", if result.is_clean() { "clean    " } else { "NOT CLEAN" });
        results.insert((*name).clone(), result);
    }
    Ok(results)
}

/// What a program said in the Test Anything Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    skipped: usize,
    failed: usize,
    /// Whether at least as many results came as were announced; some programs announce none, or only part of them.
    complete: bool,
    succeeded: bool,
}

impl Outcome {
    fn read(output: &str, succeeded: bool) -> Self {
        let mut outcome = Self { passed: 0, skipped: 0, failed: 0, complete: false, succeeded };
        let mut planned = None;
        for line in output.lines() {
            if line.starts_with("not ok") {
                outcome.failed += 1;
            } else if line.starts_with("ok") {
                let skipped = line.split_once('#').is_some_and(|(_, why)| why.trim_start().starts_with("SKIP"));
                *(if skipped { &mut outcome.skipped } else { &mut outcome.passed }) += 1;
            } else if let Some(plan) = line.strip_prefix("1..") {
                planned = plan.split(' ').next().and_then(|count| count.parse().ok());
            }
        }
        outcome.complete =
            planned.is_none_or(|count: usize| outcome.passed + outcome.skipped + outcome.failed >= count);
        outcome
    }

    /// A program that only skips has shown nothing wrong.
    fn is_clean(self) -> bool {
        self.succeeded && self.failed == 0 && self.complete && self.passed + self.skipped > 0
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ok, {} skipped, {} not ok", self.passed, self.skipped, self.failed)?;
        f.write_str(if self.complete { "" } else { ", not as many as planned" })?;
        f.write_str(if self.succeeded { "" } else { ", failed" })
    }
}

/// The skip file: the reason for each program that is not clean.
fn skips() -> Result<BTreeMap<String, String>> {
    let path = root().join("tests/suites/runtime-tools.skip");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse_skips(&text)
}

fn parse_skips(text: &str) -> Result<BTreeMap<String, String>> {
    let mut skips = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(": ") {
            Some((name, reason)) if !reason.trim().is_empty() => skips.insert(name.to_owned(), reason.to_owned()),
            _ => bail!("{line:?} in the skip file is not `program: reason`"),
        };
    }
    Ok(skips)
}

fn compare(results: &BTreeMap<String, Outcome>, skips: &BTreeMap<String, String>) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, result) in results {
        match (result.is_clean(), skips.get(name)) {
            (true, Some(_)) => wrong.push(format!("{name}: is clean and must leave the skip file")),
            (false, None) => wrong.push(format!("{name}: is not clean ({result}) and has no reason in the skip file")),
            (false, Some(reason)) => println!("skip {name}: {reason}"),
            (true, None) => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("runtime-tools:\n  {}", wrong.join("\n  ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        for (output, clean) in [
            ("TAP version 13\nok 1 - a\n  ---\n  stdout: |-\n    not ok inside\n  ...\n1..1\n", true),
            ("ok 1 # SKIP no such thing\n1..1\n", true),
            ("ok 1\nnot ok 2\n1..2\n", false),
            ("ok 1\n1..2\n", false),
            ("ok 1\n", true),
            ("1..0\n", false),
            ("", false),
        ] {
            assert_eq!(Outcome::read(output, true).is_clean(), clean, "{output}");
            assert!(!Outcome::read(output, false).is_clean());
        }
    }

    #[test]
    fn every_entry_of_the_skip_file_has_a_reason() {
        assert!(!skips().unwrap().is_empty());
        assert!(parse_skips("a:\n").is_err() && parse_skips("a\n").is_err());
    }

    #[test]
    fn skips_and_results_must_agree() {
        let results = |clean: bool| {
            BTreeMap::from([("a".to_owned(), Outcome::read(if clean { "ok 1\n1..1" } else { "not ok 1\n1..1" }, true))])
        };
        let skips = BTreeMap::from([("a".to_owned(), "why".to_owned())]);
        assert!(compare(&results(false), &skips).is_ok() && compare(&results(true), &BTreeMap::new()).is_ok());
        assert!(compare(&results(true), &skips).is_err() && compare(&results(false), &BTreeMap::new()).is_err());
    }
}
