//! The attacks of `tests/attacks` on our runtime, on its build without defences, and on whatever else is given.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, dist, run, setup};

/// Runtimes of Debian that are attacked where nobody names others.
const PEERS: &[&str] = &["/usr/sbin/runc", "/usr/bin/crun"];

/// Arguments: `--runtime [LABEL=]PATH` any number of times, and words that choose attacks.
pub(crate) fn attacks(arguments: &[&str]) -> Result<()> {
    let mut runtimes: Vec<String> = Vec::new();
    let mut rest: Vec<&str> = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--runtime" => runtimes.push((*words.next().context("--runtime needs a path")?).to_owned()),
            word => rest.push(word),
        }
    }
    setup::for_tests()?;
    dist::dist()?;
    let undefended = undefended()?;
    let ours = dist::directory().join("gantry-oci");
    let mut command = cargo();
    command.args(["test", "--locked", "--quiet", "-p", "blackbox", "--test", "attacks", "--", "--cgroup2"]);
    command.arg("--runtime").arg(format!("gantry-oci={}", ours.display()));
    command.arg("--undefended").arg(&undefended);
    if runtimes.is_empty() {
        runtimes = PEERS.iter().filter(|path| Path::new(path).exists()).map(|path| (*path).to_owned()).collect();
    }
    for runtime in &runtimes {
        command.args(["--runtime", runtime]);
    }
    run(command.args(rest))
}

/// Builds gantry-oci with the feature that lets one defence be left out. The result lies outside of `dist/bin`.
fn undefended() -> Result<PathBuf> {
    run(cargo().args([
        "build",
        "--locked",
        "--quiet",
        "-p",
        "shim",
        "--bin",
        "gantry-oci",
        "--features",
        "undefended",
    ]))?;
    let built = dist::target_directory().join("debug/gantry-oci");
    let bytes = std::fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if !dist::is_undefended(&bytes) {
        bail!("{}: the mark of the undefended build is missing: the check of dist would find nothing", built.display());
    }
    // Another build of the same profile takes its place.
    let place = dist::target_directory().join("gantry-oci-undefended");
    std::fs::copy(&built, &place).with_context(|| format!("write {}", place.display()))?;
    Ok(place)
}
