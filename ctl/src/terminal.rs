//! The caller's own terminal while a container's terminal is connected to it.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode: keys go to the container as they are, `^C` included. Dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Switches standard input to raw mode.
    pub(crate) fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            bail!("-t needs a terminal on standard input");
        }
        let before = tcgetattr(&stdin).context("read the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("switch the terminal to raw mode")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Columns and rows of the terminal; none where there is no terminal.
pub(crate) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_col > 0).then(|| (u32::from(size.ws_col), u32::from(size.ws_row)))
}
