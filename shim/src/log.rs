//! What the shim has to say. It is little: clients get errors as answers.
//!
//! A daemon makes a FIFO `log` in the bundle, or a link to one that our shims share, and reads it. It is opened for each
//! line, so a daemon that restarts, or is not there, neither blocks nor kills us. Under gantryd the lines go to standard
//! error as well, which is a file in the bundle: what a daemon that is not there has not read is still told by `why`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Log {
    /// A FIFO that may or may not have a reader.
    fifo: PathBuf,
    /// Whose lines they are, for a FIFO of many.
    id: String,
    /// Whether standard error takes them, too.
    stderr: bool,
}

impl Log {
    /// The log of a daemon that made `bundle`; that of a `foreign` one keeps nothing of standard error.
    pub(crate) fn in_bundle(bundle: &Path, id: &str, foreign: bool) -> Self {
        Self { fifo: bundle.join("log"), id: id.to_owned(), stderr: !foreign }
    }

    /// Writes one line; it is lost if nobody can take it now.
    pub(crate) fn error(&self, what: &str, error: &dyn model::Coded) {
        self.line(&format!("{what}: {}", model::render(error)));
    }

    /// Writes one line; it is lost if nobody can take it now.
    pub(crate) fn line(&self, text: &str) {
        let line = format!("level=error id={} msg={text:?}\n", self.id);
        if self.stderr {
            // There is no one to tell that the log is full.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(fifo) = rustix::fs::openat(CWD, &self.fifo, flags, Mode::empty()) {
            let _ = rustix::io::write(&fifo, line.as_bytes());
        }
    }
}
