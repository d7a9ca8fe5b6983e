//! What a foreign shim has to say: it writes to a FIFO in its bundle, and the lines go into the daemon's own log.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::net::unix::pipe::Receiver;

use crate::Error;
use crate::pidfd::Pidfd;

/// Name of the FIFO in the bundle.
const FIFO: &str = "log";

/// A longer line is told in parts.
const LINE_MAX_BYTES: usize = 4096;

/// Makes the FIFO.
pub(crate) fn make(bundle: &Path) -> Result<(), Error> {
    let path = bundle.join(FIFO);
    let made = rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o700), 0);
    made.map_err(|errno| Error::Bundle { operation: "make FIFO", path, source: errno.into() })
}

/// Opens both ends, so that a shim that opens it neither waits for us nor is told that we went away. Needs a runtime.
pub(crate) fn open(bundle: &Path) -> Result<Receiver, Error> {
    let path = bundle.join(FIFO);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(io::Error::from);
    opened.and_then(|fifo: OwnedFd| Receiver::from_owned_fd(fifo)).map_err(|source| Error::Bundle {
        operation: "open",
        path,
        source,
    })
}

/// Copies lines until the shim ends. `log` is what [`open`] gave.
pub(crate) fn follow(log: Receiver, namespace: &str, id: &str, shim: Arc<Pidfd>) {
    let (namespace, id) = (namespace.to_owned(), id.to_owned());
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = copy(&log, &namespace, &id) => {}
            () = shim.ended() => {}
        }
    });
}

async fn copy(log: &Receiver, namespace: &str, id: &str) {
    let mut line = Vec::new();
    let mut buffer = [0; LINE_MAX_BYTES];
    while log.readable().await.is_ok() {
        let count = match log.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        for byte in buffer.iter().take(count) {
            if *byte != b'\n' {
                line.push(*byte);
            }
            if !line.is_empty() && (*byte == b'\n' || line.len() >= LINE_MAX_BYTES) {
                tracing::info!(namespace, id, "shim: {}", String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }
}
