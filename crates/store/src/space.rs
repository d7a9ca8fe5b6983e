//! Room on the disk: the log never meets a full file system, and deletes still work on one.
//!
//! Blocks are allocated ahead of the log before a transaction is accepted, so that a full file system is an answer to
//! its caller and not an error in the middle of a write. A reserve file stands aside; it is given up so that
//! transactions that delete something find room, and so that the database can be opened. It is made again as soon as
//! there is space.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

const RESERVE: &str = "reserve";
/// sled writes a key again with its neighbours when a page is consolidated: this much of the log for each byte asked.
const AMPLIFICATION: u64 = 4;

/// The allocation of one database's files.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    log: Arc<File>,
    ahead_bytes: u64,
    reserve_bytes: u64,
    /// The reserve stands aside. While it does not, only what deletes is accepted.
    reserved: AtomicBool,
}

impl Space {
    pub(crate) fn new(dir: &Path, log: Arc<File>, segment_bytes: u64, reserve_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            log,
            ahead_bytes: 4 * segment_bytes,
            reserve_bytes,
            reserved: AtomicBool::new(false),
        }
    }

    /// Makes room for a transaction of `bytes`; one that `deletes` may use the reserve, and does not wait for a new one.
    pub(crate) fn admit(&self, bytes: u64, deletes: impl FnOnce() -> Result<bool, Error>) -> Result<(), Error> {
        let ahead = self.allocate_ahead(bytes);
        if ahead.is_ok() && self.reserved.load(Ordering::Relaxed) {
            return Ok(());
        }
        if deletes()? {
            if ahead.is_err() {
                release_reserve(&self.dir);
                self.reserved.store(false, Ordering::Relaxed);
                // What is left of the room ahead, and segments that are free, are for exactly this, so being refused
                // more is no reason to refuse. Should they not do, the write fails whole and the database re-opens.
                let _ = self.allocate_ahead(bytes).or_else(|_| self.allocate_at_least(bytes));
            }
            return Ok(());
        }
        match ahead.and_then(|()| self.keep_reserve()) {
            Err(error) if is_full(&error) => Err(Error::NoSpace { dir: self.dir.clone() }),
            Err(source) => Err(Error::file("allocate space for", self.dir.join("db"))(source)),
            Ok(()) => Ok(()),
        }
    }

    fn allocate_at_least(&self, bytes: u64) -> io::Result<()> {
        allocate(&self.log, self.log.metadata()?.len() + bytes.saturating_mul(AMPLIFICATION))
    }

    fn allocate_ahead(&self, bytes: u64) -> io::Result<()> {
        let metadata = self.log.metadata()?;
        let wanted = self.ahead_bytes / 2 + bytes.saturating_mul(AMPLIFICATION);
        if metadata.blocks() * 512 >= metadata.len() + wanted {
            return Ok(());
        }
        allocate(&self.log, metadata.len() + wanted + self.ahead_bytes / 2)
    }

    /// Makes the reserve file unless it is there.
    pub(crate) fn keep_reserve(&self) -> io::Result<()> {
        if self.reserve_bytes == 0 {
            self.reserved.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let file = File::options().create(true).append(true).open(self.dir.join(RESERVE))?;
        let made = allocate(&file, self.reserve_bytes);
        match made {
            Ok(()) => self.reserved.store(true, Ordering::Relaxed),
            Err(_) => drop(release_reserve(&self.dir)),
        }
        made
    }
}

/// Gives up the room ahead of a log that nobody has open; whether there was any.
///
/// Opening needs a little space of its own, and the log takes from the rest again what it needs.
pub(crate) fn release_room_ahead(log: &Path) -> bool {
    let release = || -> io::Result<bool> {
        let file = File::options().write(true).open(log)?;
        let before = file.metadata()?;
        file.set_len(before.len())?;
        Ok(file.metadata()?.blocks() < before.blocks())
    };
    release().unwrap_or(false)
}

/// Gives up the reserve file; whether there was one.
pub(crate) fn release_reserve(dir: &Path) -> bool {
    std::fs::remove_file(dir.join(RESERVE)).is_ok()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Allocates the first `bytes` of a file without changing its length. A file system that cannot is left as it is.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: fallocate takes no pointers, and the descriptor is open for as long as `file` is borrowed.
    #[expect(unsafe_code, reason = "the standard library has no fallocate, and this crate must not lie above `sys`")]
    let result = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, length) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(()) } else { Err(error) }
}
