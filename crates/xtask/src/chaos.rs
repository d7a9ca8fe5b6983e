//! The chaos suite of `tests/chaos`, on binaries that can be made to die at named points.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, dist, run, setup};

/// What the suite runs.
const BINARIES: &[&str] = &["gantryd", "gantryctl", "containerd-shim-gantry-v2"];

/// Runs the suite with these words: `--kills N --shim-kills N --seed N --round N`; without any its short form.
pub(crate) fn chaos(arguments: &[&str]) -> Result<()> {
    setup::for_tests()?;
    let directory = build()?;
    run(cargo()
        .args(["test", "--locked", "--quiet", "-p", "blackbox", "--test", "chaos", "--"])
        .args(arguments)
        .env("GANTRY_BIN_DIR", directory))
}

/// Builds gantryd and the shim with crash points; gives the directory where they are, outside of `dist/bin`.
pub(crate) fn build() -> Result<PathBuf> {
    let features = "gantryd/crash-points,shim/crash-points";
    run(cargo().args([
        "build",
        "--locked",
        "--quiet",
        "-p",
        "gantryd",
        "-p",
        "gantryctl",
        "-p",
        "shim",
        "--features",
        features,
    ]))?;
    let directory = dist::target_directory().join("chaos-bin");
    fs::create_dir_all(&directory)?;
    for name in BINARIES {
        let built = dist::target_directory().join("debug").join(name);
        let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
        ensure!(
            *name == "gantryctl" || dist::has_crash_points(&bytes),
            "{}: the mark of the build with crash points is missing: the check of dist would find nothing",
            built.display()
        );
        dist::install(&built, &directory.join(name))?;
    }
    Ok(directory)
}
