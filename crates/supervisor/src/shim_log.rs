//! What shims have to say: they write to `log` in their bundles, and the lines go into the daemon's own log.
//!
//! For a foreign shim `log` is a FIFO of its own, as with containerd. For our own shims it is a link to one FIFO that
//! they share, because a descriptor per container is dear; they name themselves in each line.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::net::unix::pipe::Receiver;

use crate::Error;
use crate::pidfd::Pidfd;

/// Name of the FIFO in the bundle, or of the link.
pub(crate) const FIFO: &str = "log";

/// A longer line is told in parts.
const LINE_MAX_BYTES: usize = 4096;

/// Makes a FIFO.
pub(crate) fn make(path: &Path) -> Result<(), Error> {
    let made = rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o700), 0);
    made.map_err(|errno| Error::Bundle { operation: "make FIFO", path: path.to_owned(), source: errno.into() })
}

/// Makes the FIFO that our shims share, unless it is there: that of an earlier daemon has the links of living bundles. What
/// else is there came by a write through such a link while there was no FIFO, and would keep the daemon from starting.
pub(crate) fn prepare(path: &Path) -> Result<(), Error> {
    let failed = |operation| move |source| Error::Bundle { operation, path: path.to_owned(), source };
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_fifo() => return Ok(()),
        Ok(_) => std::fs::remove_file(path).map_err(failed("remove what is in the place of"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("examine")(source)),
    }
    make(path)
}

/// Opens both ends, so that a shim that opens it neither waits for us nor is told that we went away. Needs a runtime.
pub(crate) fn open(path: &Path) -> Result<Receiver, Error> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from);
    opened.and_then(|fifo: OwnedFd| Receiver::from_owned_fd(fifo)).map_err(|source| Error::Bundle {
        operation: "open",
        path: path.to_owned(),
        source,
    })
}

/// Copies lines until the shim ends. `log` is what [`open`] gave.
pub(crate) fn follow(log: Receiver, namespace: &str, id: &str, shim: Arc<Pidfd>) {
    let (namespace, id) = (namespace.to_owned(), id.to_owned());
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = copy(&log, |line| tracing::info!(namespace, id, "shim: {line}")) => {}
            () = shim.ended() => {}
        }
    });
}

/// Copies the lines of all our own shims for as long as the runtime runs. `log` is what [`open`] gave.
pub(crate) fn follow_all(log: Receiver) {
    tokio::spawn(async move { copy(&log, |line| tracing::info!("shim: {line}")).await });
}

async fn copy(log: &Receiver, tell: impl Fn(&str)) {
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
                tell(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_place_of_the_shared_fifo_is_replaced_and_a_fifo_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shims.log");
        std::fs::write(&path, "x").unwrap();
        prepare(&path).unwrap();
        let number = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.symlink_metadata().unwrap());
        let first = number(&path);
        assert!(path.symlink_metadata().unwrap().file_type().is_fifo());
        prepare(&path).unwrap();
        assert_eq!(number(&path), first);
    }
}
