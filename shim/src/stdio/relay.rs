//! Bytes that have to pass through the shim: those of a terminal, and those of a process whose user could not open
//! the client's FIFO again.
//!
//! **Invariant:** a relay reads only what it can hand on, so a client that does not read stops the process and never
//! fills our memory; and no call of it blocks.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fifo;
use crate::watch::watch;

/// As much as a terminal hands out at once.
const CHUNK_BYTES: usize = 4096;
/// Most that one splice moves: the size of a pipe.
const SPLICE_BYTES: usize = 64 * 1024;

/// Moves everything from one pipe to another, in the kernel, until the source ends or the sink is gone.
pub(super) async fn splice(source: OwnedFd, sink: OwnedFd) -> io::Result<()> {
    let source = watch(source, Interest::READABLE)?;
    let sink = watch(sink, Interest::WRITABLE)?;
    loop {
        let mut readable = source.readable().await?;
        match splice_once(&source, &sink) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::AGAIN) if fifo::unread(source.get_ref()) == 0 => {
                // A full sink hides the end of the source from splice, and that readiness is never cleared.
                if readable.ready().is_read_closed() {
                    return Ok(());
                }
                readable.clear_ready();
            }
            Err(Errno::AGAIN) => {
                let mut writable = sink.writable().await?;
                if splice_once(&source, &sink) == Err(Errno::AGAIN) {
                    writable.clear_ready();
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn splice_once(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> Result<usize, Errno> {
    rustix::pipe::splice(source.get_ref(), None, sink.get_ref(), None, SPLICE_BYTES, SpliceFlags::NONBLOCK)
}

/// Where the output of a terminal goes.
#[derive(Debug)]
pub(super) enum TerminalSink {
    /// Nowhere.
    Null,
    /// To a client, who may be slow or away.
    Fifo(OwnedFd),
    /// To a file, which takes everything at once.
    File(OwnedFd),
}

/// Copies what a terminal says, until no process has the terminal open.
pub(super) async fn from_terminal(master: Arc<AsyncFd<OwnedFd>>, sink: TerminalSink) -> io::Result<()> {
    let (fifo, mut file) = match sink {
        TerminalSink::Null => (None, None),
        TerminalSink::Fifo(fd) => (Some(watch(fd, Interest::WRITABLE)?), None),
        TerminalSink::File(fd) => (None, Some(File::from(fd))),
    };
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        let read = master.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await;
        let bytes = match read {
            Ok(0) => return Ok(()),
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            // What a master says when the last process closed the other side.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(fifo) = &fifo {
            write_all(fifo, bytes).await?;
        }
        if let Some(file) = &mut file {
            file.write_all(bytes)?;
        }
    }
}

/// Copies what a client types to a terminal, until the client has closed its end and asked for CloseIO.
pub(super) async fn to_terminal(source: OwnedFd, master: Arc<AsyncFd<OwnedFd>>) -> io::Result<()> {
    let source = watch(source, Interest::READABLE)?;
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        let count = source.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await?;
        if count == 0 {
            return Ok(());
        }
        write_all(&master, buffer.get(..count).unwrap_or_default()).await?;
    }
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = sink.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Keeps a FIFO's write end open while it holds bytes that nobody has read: a reader that opens the FIFO only now
/// would otherwise wait forever for a writer. A reader that is there sees the end of file right after the last byte.
///
/// The kernel tells nobody that a FIFO became empty, so this looks again and again: soon while someone reads, once a
/// second while nobody does.
pub(super) async fn linger(reader: &OwnedFd) {
    let mut left = fifo::unread(reader);
    if left == 0 {
        return;
    }
    let Ok(_writer) = fifo::reopen_nonblocking(reader, rustix::fs::OFlags::WRONLY) else { return };
    let mut pause = Duration::from_millis(1);
    while left > 0 {
        tokio::time::sleep(pause).await;
        let now = fifo::unread(reader);
        pause = if now == left { (pause * 2).min(Duration::from_secs(1)) } else { Duration::from_millis(1) };
        left = now;
    }
}
