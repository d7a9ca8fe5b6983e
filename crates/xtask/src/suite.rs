//! Foreign suites on a checkout that is given, and benchmarks beside their peers.

use anyhow::{Result, bail};

pub(crate) fn bench(_arguments: &[&str]) -> Result<()> {
    bail!("no benchmark of that name")
}

pub(crate) fn suite(_arguments: &[&str]) -> Result<()> {
    bail!("no suite of that name")
}
