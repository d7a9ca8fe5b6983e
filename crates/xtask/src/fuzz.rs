//! Fuzz targets of the runtime, by cargo-fuzz.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, root, run, setup};

/// Targets: name and what they look for.
const TARGETS: &[(&str, &str)] = &[
    ("spec", "a config.json, arbitrary or changed: parse, validate, plan"),
    ("process", "the document of an exec, arbitrary or changed: parse, validate, plan"),
    ("seccomp", "a compiled system call filter beside libseccomp's and a plain reading of the profile"),
    ("cgroup_path", "a cgroup path: stays below the hierarchies, and is itself when read again"),
];

/// How long a target runs unless told otherwise.
const SECONDS: &str = "600";

/// Runs a target; without a name: the list.
pub(crate) fn fuzz(arguments: &[&str]) -> Result<()> {
    let (name, seconds) = match arguments {
        [] => {
            for (name, what) in TARGETS {
                println!("{name:<14} {what}");
            }
            return Ok(());
        }
        [name] => (*name, SECONDS),
        [name, "--seconds", seconds] => (*name, *seconds),
        _ => bail!("usage: cargo xtask fuzz NAME [--seconds N]"),
    };
    if !TARGETS.iter().any(|(known, _)| *known == name) {
        bail!("no fuzz target {name:?}: `cargo xtask fuzz` lists them");
    }
    let seconds: u32 = seconds.parse().context("--seconds needs a number")?;
    setup::for_tests()?;
    let installed = cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    if !installed {
        println!("installing cargo-fuzz");
        run(cargo().args(["install", "--locked", "cargo-fuzz"]))?;
    }
    run(&mut command(name, seconds))
}

fn command(name: &str, seconds: u32) -> Command {
    let mut command = cargo();
    // Coverage instrumentation is not stable; the code is safe Rust, so that no sanitizer would find more.
    command
        .current_dir(root().join("crates/runtime/fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", "run", "--fuzz-dir", ".", "--sanitizer", "none", name, "--"])
        .arg(format!("-max_total_time={seconds}"))
        .args(["-len_control=0", "-print_final_stats=1", "-timeout=60", "-max_len=2048", "-rss_limit_mb=2048"]);
    command
}
