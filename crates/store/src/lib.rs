//! The one database of gantryd: a durable, ordered map of byte strings on sled.
//!
//! Others keep their records under key prefixes of one tree, so that one request is one transaction. Writers run one
//! after the other in memory and share a batch and a flush; readers see the last acknowledged state and hold nobody up.
//!
//! **Invariant:** a transaction acknowledged with [`Durability::OnDisk`] survives a power cut, whole; no reader ever
//! sees half of one; what one transaction saw is on disk before it is.
//!
//! # Why this can be trusted with sled
//!
//! sled 0.34 never syncs its log. Both remedies together are used: `guard` takes the place of `sync_file_range`, syncs
//! where sled relies on order (the ends and beginnings of segments), and lets the rest wait for one fdatasync by the
//! committer. Around it: values are cut into chunks, because sled keeps large pages in files that it never syncs; what a
//! killed process left is synced before sled recovers from it; an unfinished snapshot, which keeps sled from opening, is
//! removed; a panic of sled is an error; a flush that sled forgot is freed by `watchdog`; space is allocated ahead and a
//! reserve is kept, so that deletes work on a full disk.
//!
//! Measured (`tests/power_cut*.rs`, `examples/throughput.rs`, 2 cores, ext4 on virtio, a shared machine): 200 of 200
//! images lose nothing, with 20 of 29 segments reused, and so do 700 replays with lost and torn writes, 300 of them cut
//! in a recovery; as shipped, sled lost in 7 of 20 images and 18 of 20 replays. One fdatasync for a lone transaction (two
//! more when the log enters another segment of 1 MiB), 0.44 with 4 callers, 0.07 with 32. redb 4, each caller
//! committing for itself, writes 29 KiB where this writes 1.3 for a transaction of 0.7 KiB, and was 1.4, 3 and 18 times
//! slower with 1, 4 and 32 callers; on a disk that costs nothing its lone commit is twice as fast (77 against 180 µs). It
//! stays the way out, behind the same functions.

mod bytes;
mod commit;
mod dump;
mod engine;
mod error;
mod guard;
mod mvcc;
mod record;
mod space;
mod view;
mod watchdog;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, RwLock};

pub use bytes::{Key, Value};
pub use error::{Error, WriteError};
pub use view::{Scan, Transaction, View};

use commit::{Commit, Opening};
use engine::Engine;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 768;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The most that one transaction may put, in bytes of keys and values.
pub const MAX_TRANSACTION_BYTES: usize = 16 << 20;

const DEFAULT_SEGMENT_BYTES: usize = 1 << 20;
const MIN_SEGMENT_BYTES: usize = 64 << 10;
const MAX_SEGMENT_BYTES: usize = 16 << 20;
const LOCK: &str = "lock";

/// How far a transaction has come when [`Store::write`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk: one fdatasync, shared with every caller that commits at the same time.
    OnDisk,
    /// Ordered in the log: no flush. It survives the death of this process and reaches the disk no later than the
    /// next `OnDisk` transaction, but a power cut before that may take it back, whole. For what is garbage if it returns.
    Ordered,
}

/// How to open a [`Store`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of pages that sled keeps in memory. Default: 8 MiB.
    pub cache_bytes: u64,
    /// Bytes of a file that stands aside for deletes on a full file system; 0 for none. Default: 8 MiB.
    pub reserve_bytes: u64,
    /// Bytes of one segment of the log: a power of two from 64 KiB to 16 MiB, fixed when the database is made. Keys and
    /// values are limited to less than [`MAX_KEY_BYTES`] and [`MAX_VALUE_BYTES`] below the default, 1 MiB.
    pub segment_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 8 << 20, reserve_bytes: 8 << 20, segment_bytes: DEFAULT_SEGMENT_BYTES }
    }
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    options: Options,
    /// What readers use; the committer has a copy under its own lock.
    opening: RwLock<Result<Opening, Error>>,
    commit: Mutex<Commit>,
    finished: Condvar,
    /// Held as long as the store lives, over re-openings.
    _lock: File,
}

/// The database. Cloning is cheap and gives another handle to the same one. Blocking: call it from a blocking thread.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Opens the database in `dir`, making both if needed.
    ///
    /// # Errors
    /// [`Error::Locked`] when somebody has it open; [`Error::Unguarded`] when this build could not keep its promises.
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        let segment = options.segment_bytes.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES).next_power_of_two();
        let options = Options { segment_bytes: segment, ..options };
        make_dir(dir)?;
        let path = dir.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path).map_err(Error::file("create", &path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked { dir: dir.to_owned() },
            TryLockError::Error(source) => Error::file("lock", &path)(source),
        })?;
        let opening = Opening { engine: Arc::new(Engine::open(dir, &options)?), versions: Arc::default() };
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            options,
            opening: RwLock::new(Ok(opening.clone())),
            commit: Mutex::new(Commit::new(opening)),
            finished: Condvar::new(),
            _lock: lock,
        })))
    }

    /// Runs `f` on a consistent view: the state after some acknowledged transactions, unchanged while `f` runs.
    ///
    /// Neither waits for a flush of writers nor holds them up.
    ///
    /// After a failure of the disk the view answers every read with [`Error::Poisoned`], until [`Store::reopen`].
    pub fn read<T>(&self, f: impl FnOnce(&View) -> T) -> T {
        f(&View::new(self.0.opening(), Vec::new()))
    }

    /// Runs `f` alone, serialised with all other writers, on a view that includes its own writes, and commits them.
    ///
    /// When `f` returns an error, nothing of it is kept. Callers that commit at the same time share one batch and one
    /// flush. `f` must be quick and must not call this store.
    ///
    /// # Errors
    /// [`WriteError::Refused`] with what `f` returned, else [`WriteError::Store`].
    pub fn write<T, E>(
        &self,
        durability: Durability,
        f: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, WriteError<E>> {
        self.0.write(durability, f)
    }

    /// Opens the database again, for every handle, after a failure of the disk. Does nothing when it works.
    ///
    /// A file system that was full needs no call: the store re-opens itself then.
    pub fn reopen(&self) -> Result<(), Error> {
        self.0.reopen()
    }
}

/// Makes `dir`; its name is on disk when this returns.
fn make_dir(dir: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.is_dir()).collect();
    fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        engine::sync_path(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}
