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
}

impl Space {
    pub(crate) fn new(dir: &Path, log: Arc<File>, segment_bytes: u64, reserve_bytes: u64) -> Self {
        Self { dir: dir.to_owned(), log, ahead_bytes: 4 * segment_bytes, reserve_bytes }
    }

    /// Makes room for a transaction of `bytes`; one that `deletes` may use the reserve.
    pub(crate) fn admit(&self, bytes: u64, deletes: bool) -> Result<(), Error> {
        match self.allocate_ahead(bytes) {
            Err(error) if is_full(&error) => {}
            Err(source) => return Err(Error::file("allocate space for", self.dir.join("db"))(source)),
            Ok(()) => return Ok(()),
        }
        if !deletes {
            return Err(Error::NoSpace { dir: self.dir.clone() });
        }
        release_reserve(&self.dir);
        // What is left of the room ahead is for exactly this, so being refused more of it is no reason to refuse.
        let _ = self.allocate_ahead(bytes);
        Ok(())
    }

    fn allocate_ahead(&self, bytes: u64) -> io::Result<()> {
        let metadata = self.log.metadata()?;
        let wanted = self.ahead_bytes / 2 + bytes.saturating_mul(AMPLIFICATION);
        if metadata.blocks() * 512 >= metadata.len() + wanted {
            return Ok(());
        }
        allocate(&self.log, metadata.len() + wanted + self.ahead_bytes / 2)?;
        // Whoever finds room ahead of the log may also find room for a reserve that was given up.
        self.keep_reserve()
    }

    /// Makes the reserve file unless it is there.
    pub(crate) fn keep_reserve(&self) -> io::Result<()> {
        let path = self.dir.join(RESERVE);
        if self.reserve_bytes == 0 || path.exists() {
            return Ok(());
        }
        let made = File::create(&path).and_then(|file| allocate(&file, self.reserve_bytes));
        if made.is_err() {
            release_reserve(&self.dir);
        }
        made
    }
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
