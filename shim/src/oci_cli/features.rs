//! `features`: what this runtime can do, for engines to ask.

use super::args::Words;
use super::{Command, Result, print};

pub(crate) const FEATURES: Command = Command {
    name: "features",
    about: "print what this runtime supports as JSON",
    usage: "features",
    flags: &[],
    rest_is_command: false,
    run: |_, words| features(words),
};

fn features(_: Words) -> Result {
    print(&(serde_json::to_string_pretty(&runtime::features()).unwrap_or_default() + "\n"))
}
