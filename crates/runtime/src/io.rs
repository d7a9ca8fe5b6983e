use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::Error;

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The standard streams of a process.
#[derive(Debug)]
pub enum ProcessIo {
    /// Three descriptors, which become 0, 1 and 2 of the process.
    Streams {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// Those of this process, as they are.
    Inherited,
    /// A new pseudo terminal of the container's own devpts; its master comes back as `take_console()`.
    Console {
        /// Initial size; `None` leaves the size of the spec's `process.consoleSize`, or none.
        size: Option<ConsoleSize>,
    },
}

impl ProcessIo {
    /// The same with descriptors that can be given away.
    pub(crate) fn owned(self) -> Result<Self, Error> {
        let Self::Inherited = self else { return Ok(self) };
        let copy = |stream: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(stream, 3).map_err(|errno| Error::host("copying a standard stream", errno))
        };
        Ok(Self::Streams {
            stdin: copy(std::io::stdin().as_fd())?,
            stdout: copy(std::io::stdout().as_fd())?,
            stderr: copy(std::io::stderr().as_fd())?,
        })
    }
}
