//! What the shim has to say. It is little: clients get errors as answers.
//!
//! Under gantryd standard error is a file in the bundle. A foreign daemon makes a FIFO `log` in the bundle and reads
//! it; the FIFO is opened for each line, so a daemon that restarts, or is not there, neither blocks nor kills us
//!.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// Where lines go.
#[derive(Debug)]
pub(crate) enum Log {
    /// Standard error.
    Stderr,
    /// A FIFO that may or may not have a reader.
    Fifo(PathBuf),
}

impl Log {
    /// The log of a foreign daemon, in its bundle.
    pub(crate) fn in_bundle(bundle: &Path) -> Self {
        Self::Fifo(bundle.join("log"))
    }

    /// Writes one line; it is lost if nobody can take it now.
    pub(crate) fn error(&self, what: &str, error: &dyn model::Coded) {
        self.line(&format!("{what}: {}", model::render(error)));
    }

    /// Writes one line; it is lost if nobody can take it now.
    pub(crate) fn line(&self, text: &str) {
        let line = format!("level=error msg={text:?}\n");
        match self {
            // There is no one to tell that the log is full.
            Self::Stderr => drop(std::io::stderr().write_all(line.as_bytes())),
            Self::Fifo(path) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                if let Ok(fifo) = rustix::fs::openat(CWD, path, flags, Mode::empty()) {
                    let _ = rustix::io::write(&fifo, line.as_bytes());
                }
            }
        }
    }
}
