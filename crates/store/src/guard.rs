//! The durability guard: what stands in for `sync_file_range` in every program that links this crate.
//!
//! sled 0.34 calls `sync_file_range` after each write of its log and then believes the bytes to be on disk. The real
//! call flushes neither file metadata nor the disk's cache (sync_file_range(2), "Warning"), so sled as shipped loses
//! acknowledged writes at a power cut. The symbol defined here takes its place. It makes sled's belief true where sled
//! relies on it, and leaves the rest to one fdatasync by the committer before it acknowledges.
//!
//! Where sled relies on it (pagecache/{iobuf,segment,iterator}.rs): the header of a segment says up to which log
//! position everything is on disk. Recovery looks for holes only from the segment of that position onwards, and a
//! segment is freed for reuse only when what supersedes it lies below the segment of that position. So
//! **Invariant:** when a write into segment `n + 1` is believed, all of segment `n` is on disk. Three kinds of write
//! are therefore synced at once: one that ends a segment, one that begins a segment, and one into a segment that is
//! no longer the newest (sled's threads may write out of order). All others wait for the committer.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;

/// What the guard knows of the log file of one open database.
#[derive(Debug)]
struct Log {
    segment_bytes: u64,
    /// The start of the segment that was begun last; unknown until one is begun, and then nothing is being written late.
    newest_segment: Option<u64>,
    calls: u64,
}

/// Device and inode number: what names a log file whatever descriptor it is written through.
type FileId = (u64, u64);

static LOGS: Mutex<Option<HashMap<FileId, Log>>> = Mutex::new(None);

fn logs() -> MutexGuard<'static, Option<HashMap<FileId, Log>>> {
    LOGS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file_id(fd: RawFd) -> Option<FileId> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes at most one `stat` to the pointer, which is valid for that.
    #[expect(unsafe_code, reason = "the descriptor belongs to the caller of a C function, so no safe type has it")]
    let result = unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it has filled the structure.
    #[expect(unsafe_code, reason = "as above")]
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

impl Log {
    /// Whether sled's belief about this write must be true before it learns that the write succeeded.
    fn must_sync(&mut self, offset: u64, bytes: u64) -> bool {
        self.calls += 1;
        let segment = offset - offset % self.segment_bytes;
        let begins = offset == segment;
        let ends = (offset + bytes).is_multiple_of(self.segment_bytes);
        if begins {
            self.newest_segment = Some(segment);
        }
        begins || ends || self.newest_segment.is_some_and(|newest| newest != segment)
    }
}

/// Replaces the C library's function of the same name for the whole program; see the module's documentation.
///
/// A file that is not the log of an open [`Store`](crate::Store) is synced, which is more than was asked for.
#[expect(unsafe_code, reason = "the only way to change what sled does after a write")]
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: RawFd, offset: i64, bytes: i64, _flags: libc::c_uint) -> libc::c_int {
    let wanted = match (file_id(fd), u64::try_from(offset), u64::try_from(bytes)) {
        (Some(id), Ok(offset), Ok(bytes)) => {
            logs().as_mut().and_then(|logs| logs.get_mut(&id)).is_none_or(|log| log.must_sync(offset, bytes))
        }
        _ => true,
    };
    if !wanted {
        return 0;
    }
    // SAFETY: fdatasync has no memory effects; a bad descriptor is an error, which is passed on with its errno.
    unsafe { libc::fdatasync(fd) }
}

/// One log file under the guard's rules; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Registration(FileId);

impl Registration {
    /// Puts `log` under the rules. It must be synced, and sled must not be writing to it yet.
    pub(crate) fn new(log: BorrowedFd<'_>, segment_bytes: u64) -> Result<Self, Error> {
        // The linker decides which definition sled's calls reach. Were it another one than ours, nothing would be safe.
        let bound = libc::sync_file_range as *const () as usize;
        let ours = sync_file_range as *const () as usize;
        let id = file_id(log.as_raw_fd());
        match id {
            Some(id) if std::hint::black_box(bound) == std::hint::black_box(ours) => {
                let log = Log { segment_bytes, newest_segment: None, calls: 0 };
                logs().get_or_insert_default().insert(id, log);
                Ok(Self(id))
            }
            _ => Err(Error::Unguarded),
        }
    }

    /// How often sled has asked for this log to be synced. Zero after a flush means that it asks somebody else.
    pub(crate) fn calls(&self) -> u64 {
        logs().as_ref().and_then(|logs| logs.get(&self.0)).map_or(0, |log| log.calls)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(logs) = logs().as_mut() {
            logs.remove(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Log;

    #[test]
    fn syncs_where_sled_relies_on_it() {
        let mut log = Log { segment_bytes: 1000, newest_segment: None, calls: 0 };
        let writes = [
            ("into the segment found at open", 300, 40, false),
            ("ends that segment", 340, 660, true),
            ("begins one", 4000, 100, true),
            ("into it", 4100, 100, false),
            ("late, into the one before", 300, 40, true),
            ("ends it", 4200, 800, true),
            ("begins a reused one", 1000, 20, true),
            ("into the reused one", 1020, 20, false),
            ("a whole one at once", 2000, 1000, true),
        ];
        for (what, offset, bytes, wanted) in writes {
            assert_eq!(log.must_sync(offset, bytes), wanted, "{what}");
        }
        assert_eq!(log.calls, 9);
    }
}
