//! Automation of the project: `cargo xtask COMMAND`.
//!
//! **Invariant:** `demo` and `test` need nothing but a Debian machine with root and Rust; whatever else they use they
//! install or build themselves.

mod chaos;
mod demo;
mod dist;
mod fuzz;
mod layers;
mod setup;
mod suite;
mod test;
mod tidy;

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo              build everything, run real containers, show the result, clean up
  test [FILTER]     install what the tests need, build, run every test
  check             formatting, lints, layers, tidiness; under a minute once built
  ci                what CI runs: check, then test
  dist              build the four release binaries into dist/bin
  layers            the order of the crates and what the programs may not contain
  tidy              rules about files that no compiler checks
  bench NAME        a benchmark beside its peers; without NAME: the list
  chaos [--kills N] [--shim-kills N] [--seed N] [--round N]
                    deaths of the daemon and its shims under load, on binaries with crash points;
                    the short form of the tests without words
  fuzz NAME [--seconds N]
                    a fuzz target of the runtime for ten minutes or N seconds; without NAME: the list
  suite NAME --src DIR
                    a foreign suite on a checkout that is given; without NAME: the list
  suite attacks [--runtime [LABEL=]PATH]...
                    attacks on our runtime, on its build without defences and on others";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let rest: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match arguments.first().map(String::as_str) {
        Some("demo") => demo::demo(),
        Some("test") => test::test(&rest),
        Some("check") => check(),
        Some("ci") => check().and_then(|()| test::test(&[])),
        Some("dist") => dist::dist(),
        Some("layers") => layers::layers(),
        Some("tidy") => tidy::tidy(),
        Some("bench") => suite::bench(&rest),
        Some("chaos") => chaos::chaos(&rest),
        Some("fuzz") => fuzz::fuzz(&rest),
        Some("suite") => suite::suite(&rest),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    layers::layers()?;
    tidy::tidy()?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]))?;
    println!("check: formatting, layers, tidiness and lints are in order");
    Ok(())
}

/// The workspace's directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_owned()
}

/// The cargo that runs this program, in the workspace's directory.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end; anything but success is an error that names it.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| anyhow::anyhow!("{command:?}: {error}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
