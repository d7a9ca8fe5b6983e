//! Every test: unit tests of all crates, then the scenarios against the binaries of `dist`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{cargo, chaos, dist, setup};

/// What the runners said, added up.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skips: Vec<String>,
    broken: Vec<String>,
}

/// Runs everything, or what matches the filter. The last line counts passes and failures; anything that failed, or no
/// test at all, is an error.
pub(crate) fn test(arguments: &[&str]) -> Result<()> {
    let began = Instant::now();
    setup::for_tests()?;
    dist::dist()?;
    let filter: Vec<&str> = arguments.to_vec();
    let mut tally = Tally::default();
    let everything = ["--workspace", "--exclude", "blackbox"];
    step(&mut tally, "unit tests", &everything, &filter, &[])?;
    step(&mut tally, "scenarios", &["-p", "blackbox"], &filter, &[])?;
    let directory = chaos::build()?;
    let with_points = [("GANTRY_BIN_DIR", directory.to_str().context("the target directory's name")?)];
    step(&mut tally, "chaos at named points", &["-p", "blackbox", "--test", "chaos"], &filter, &with_points)?;
    // The kernel floor is 5.15: the same engines without the system calls that came later.
    let floor = [("GANTRY_FORCE_FALLBACKS", "1")];
    step(
        &mut tally,
        "unit tests on the kernel floor",
        &["-p", "sys", "-p", "mount", "-p", "cgroups", "-p", "runtime"],
        &filter,
        &floor,
    )?;
    step(
        &mut tally,
        "scenarios on the kernel floor",
        &["-p", "blackbox", "-p", "shim", "--test", "ctr", "--test", "gantry_oci"],
        &filter,
        &floor,
    )?;
    for skip in &tally.skips {
        println!("{skip}");
    }
    for broken in &tally.broken {
        println!("FAILED {broken}");
    }
    println!("test: {} s in all", began.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skips.len());
    if tally.failed > 0 || !tally.broken.is_empty() || (tally.passed == 0 && filter.is_empty()) {
        bail!("the tests did not pass");
    }
    Ok(())
}

/// Runs `cargo test` on some packages, shows its output and adds it up.
fn step(tally: &mut Tally, name: &str, packages: &[&str], filter: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    println!("=== {name}");
    let began = Instant::now();
    let mut command = cargo();
    command.args(["test", "--locked", "--quiet", "--no-fail-fast"]).args(packages).args(filter);
    command.args(["--", "--show-output"]);
    command.env("GANTRY_BIN_DIR", dist::directory()).envs(environment.iter().copied());
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut captured = false;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if line.starts_with("SKIP ") {
            tally.skips.push(line);
            continue;
        }
        // Tests that run themselves in a process of their own print a runner's lines too; those are their output.
        match line.as_str() {
            "successes:" | "failures:" => captured = false,
            _ if line.starts_with("---- ") && line.ends_with(" stdout ----") => captured = true,
            _ => {}
        }
        if let (Some(counts), false) = (line.strip_prefix("test result: "), captured) {
            tally.passed += count(counts, " passed");
            tally.failed += count(counts, " failed");
        }
        println!("{line}");
    }
    if !child.wait()?.success() {
        tally.broken.push(name.to_owned());
    }
    println!("=== {name}: {} s", began.elapsed().as_secs());
    Ok(())
}

/// The number before `word` in a runner's closing line.
fn count(line: &str, word: &str) -> u64 {
    line.split(word).next().and_then(|left| left.rsplit(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}
