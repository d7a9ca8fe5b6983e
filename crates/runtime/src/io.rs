use std::os::fd::OwnedFd;

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
    /// A new pseudo terminal of the container's own devpts; its master comes back as `take_console()`.
    Console {
        /// Initial size; `None` leaves the size of the spec's `process.consoleSize`, or none.
        size: Option<ConsoleSize>,
    },
}
