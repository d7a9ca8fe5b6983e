//! Opening what a client named. Nothing here waits for the other side: a FIFO is opened at both ends, so neither end
//! needs a partner.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;

/// What an output's name led to.
#[derive(Debug)]
pub(super) enum Sink {
    /// A FIFO. The read end is ours to hold: with it a writer never gets EPIPE, and what it wrote stays.
    Fifo { reader: OwnedFd, writer: OwnedFd },
    /// Something else that can be written to.
    Other(OwnedFd),
}

/// What an input's name led to.
#[derive(Debug)]
pub(super) enum Source {
    /// A FIFO. The write end is ours to hold: with it a reader sees no end of file when a client goes away.
    Fifo { reader: OwnedFd, writer: OwnedFd },
    /// Something else that can be read.
    Other(OwnedFd),
}

/// Opens an existing output. The descriptors for writing block when the FIFO is full, as a process expects; the read
/// end never blocks.
pub(super) fn open_sink(path: &Path) -> Result<Sink, Error> {
    open_sink_at(path).map_err(|source| open_error(path, source))
}

fn open_sink_at(path: &Path) -> io::Result<Sink> {
    let (named, kind) = look(path)?;
    if kind == FileType::Fifo {
        // The read end first: opening the write end of a FIFO without a reader would block.
        let reader = reopen(&named, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let writer = reopen(&named, OFlags::WRONLY)?;
        return Ok(Sink::Fifo { reader, writer });
    }
    Ok(Sink::Other(reopen(&named, OFlags::WRONLY | OFlags::APPEND)?))
}

/// Opens an existing input. The read end blocks when there is nothing to read, as a process expects.
pub(super) fn open_source(path: &Path) -> Result<Source, Error> {
    open_source_at(path).map_err(|source| open_error(path, source))
}

fn open_source_at(path: &Path) -> io::Result<Source> {
    let (named, kind) = look(path)?;
    if kind == FileType::Fifo {
        let reader = reopen(&named, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let writer = reopen(&named, OFlags::WRONLY | OFlags::NONBLOCK)?;
        // NONBLOCK was only for opening without a writer. The open file is the process's alone.
        rustix::fs::fcntl_setfl(&reader, OFlags::RDONLY)?;
        return Ok(Source::Fifo { reader, writer });
    }
    Ok(Source::Other(reopen(&named, OFlags::RDONLY)?))
}

/// Opens a file to append to, making it and its directory where they are missing.
pub(super) fn open_append(path: &Path) -> Result<OwnedFd, Error> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| open_error(path, source))?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644)).map_err(|errno| open_error(path, errno.into()))
}

/// `/dev/null`.
pub(super) fn open_null() -> Result<OwnedFd, Error> {
    rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::system("open /dev/null", errno))
}

/// Another open file of the same FIFO, that does not block.
pub(super) fn reopen_nonblocking(fifo: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    Ok(reopen(fifo, access | OFlags::NONBLOCK)?)
}

/// Bytes in a FIFO that nobody has read.
pub(super) fn unread(reader: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(reader).unwrap_or(0)
}

/// Looks what a name leads to, without any effect of opening it; the result is reopened, so that nobody can put
/// another thing under the name in between.
fn look(path: &Path) -> Result<(OwnedFd, FileType), Errno> {
    let named = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&named)?.st_mode);
    Ok((named, kind))
}

fn reopen(named: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = sys::fs::proc_path(named.as_fd());
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

fn open_error(path: &Path, source: io::Error) -> Error {
    Error::OpenStdio { uri: path.display().to_string(), source }
}
