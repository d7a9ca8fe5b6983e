//! sled, opened so that it can be trusted, and nothing of it visible outside.
//!
//! **Invariant:** when `Engine::open` returns, everything that it found or made is on disk; when `sync` returns,
//! everything applied before it is.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::guard::Registration;
use crate::record::{self, Limits, Stored};
use crate::space::{self, Space};
use crate::watchdog::Watchdog;
use crate::{Error, Options, Value};

/// Present while the files are made for the first time: what is found with it was never acknowledged to anybody.
const CREATING: &str = "creating";
/// sled's own files and directories.
const LOG: &str = "db";
const CONFIG: &str = "conf";
const BLOBS: &str = "blobs";
const SNAPSHOT_PREFIX: &str = "snap.";
/// sled forgets to ignore a snapshot that it did not finish, and refuses to open because of it.
const UNFINISHED_SNAPSHOT_SUFFIX: &str = ".generating";
/// How long sled's threads may hold the log after the last handle on it is gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// One opening of the database.
#[derive(Debug)]
pub(crate) struct Engine {
    dir: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) space: Space,
    log: Arc<File>,
    /// Something was applied since the last sync.
    unsynced: AtomicBool,
    registration: Registration,
    watchdog: ManuallyDrop<Watchdog>,
    db: ManuallyDrop<sled::Db>,
}

/// What sled has under a key. Chunks that do not fit together are seen when a newer transaction replaces them meanwhile.
pub(crate) enum Found {
    Value(Option<Value>),
    Torn,
}

impl Engine {
    /// Opens the database in `dir`, which the caller has locked, making it if needed.
    pub(crate) fn open(dir: &Path, options: &Options) -> Result<Self, Error> {
        let give_up: [&dyn Fn() -> bool; 2] =
            [&|| space::release_reserve(dir), &|| space::release_room_ahead(&dir.join(LOG))];
        let mut result = Self::open_once(dir, options);
        for release in give_up {
            if result.as_ref().is_err_and(Error::is_no_space) && release() {
                result = Self::open_once(dir, options);
            }
        }
        result.map_err(|error| if error.is_no_space() { Error::NoSpace { dir: dir.to_owned() } } else { error })
    }

    fn open_once(dir: &Path, options: &Options) -> Result<Self, Error> {
        let creating = prepare(dir)?;
        let db = open_sled(dir, options)?;
        let log_path = dir.join(LOG);
        let log = File::options().read(true).write(true).open(&log_path).map_err(Error::file("open", &log_path))?;
        let log = Arc::new(log);
        sync_all(dir)?;
        let segment_bytes = options.segment_bytes as u64;
        let registration = Registration::new(log.as_fd(), segment_bytes)?;
        let watchdog = Watchdog::start(db.clone()).map_err(Error::file("start a thread for", dir))?;
        let engine = Self {
            dir: dir.to_owned(),
            limits: Limits::new(options.segment_bytes),
            space: Space::new(dir, log.clone(), segment_bytes, options.reserve_bytes),
            log,
            unsynced: AtomicBool::new(false),
            registration,
            watchdog: ManuallyDrop::new(watchdog),
            db: ManuallyDrop::new(db),
        };
        engine.prove_guard()?;
        // Without a reserve the database works; deletes on a full file system may not.
        let _ = engine.space.keep_reserve();
        if creating {
            fs::remove_file(dir.join(CREATING)).map_err(Error::file("remove", dir.join(CREATING)))?;
        }
        sync_path(dir)?;
        Ok(engine)
    }

    /// Counts this opening in the database: a write that must pass by the durability guard, or nothing is durable.
    fn prove_guard(&self) -> Result<(), Error> {
        let count = self.guarded("read", || self.db.get(record::OPENINGS))?;
        let count = count.and_then(|raw| Some(u64::from_be_bytes(raw[..].try_into().ok()?))).unwrap_or(0);
        let mut batch = sled::Batch::default();
        batch.insert(record::OPENINGS, &(count + 1).to_be_bytes());
        self.apply(batch)?;
        self.sync()?;
        if self.registration.calls() == 0 { Err(Error::Unguarded) } else { Ok(()) }
    }

    /// What is stored under `key` now.
    pub(crate) fn find(&self, key: &[u8]) -> Result<Found, Error> {
        match self.guarded("read", || self.db.get(record::entry_key(key)))? {
            Some(raw) => self.load(key, &raw),
            None => Ok(Found::Value(None)),
        }
    }

    /// The value that the entry `raw` of `key` stands for.
    pub(crate) fn load(&self, key: &[u8], raw: &sled::IVec) -> Result<Found, Error> {
        match record::decode(raw) {
            Some(Stored::Whole(value)) => Ok(Found::Value(Some(value))),
            Some(Stored::Chunked(length)) => {
                let chunk = |name: &[u8]| self.guarded("read", || self.db.get(name));
                Ok(record::join(key, length, chunk)?.map_or(Found::Torn, |value| Found::Value(Some(value))))
            }
            None => Err(self.damaged("an entry is not in a known form")),
        }
    }

    pub(crate) fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged { dir: self.dir.clone(), what }
    }

    /// The entries from `start` to before `end`, as sled has them while the caller iterates.
    pub(crate) fn range(&self, start: Vec<u8>, end: Vec<u8>) -> sled::Iter {
        self.db.range(start..end)
    }

    /// The next entry of a range.
    pub(crate) fn next(&self, range: &mut sled::Iter) -> Result<Option<(sled::IVec, sled::IVec)>, Error> {
        self.guarded("read", || range.next().transpose())
    }

    /// Writes a batch to the log, whole or not at all. It survives this process, and the next `sync` makes it durable.
    pub(crate) fn apply(&self, batch: sled::Batch) -> Result<(), Error> {
        self.unsynced.store(true, Ordering::Relaxed);
        self.guarded("write", || {
            self.watchdog.during(|| {
                self.db.apply_batch(batch)?;
                self.db.flush()
            })
        })
        .map(drop)
    }

    /// Puts everything applied so far on disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        if !self.unsynced.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.log.sync_data().map_err(Error::file("sync", self.dir.join(LOG)))?;
        self.unsynced.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Calls sled, and turns both its errors and its panics into ours.
    fn guarded<T>(&self, operation: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
        guarded(operation, &self.dir, call)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // sled's last handle flushes and syncs, and panics where that fails; what was acknowledged is on disk already.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: neither field is used again: this is their owner's drop.
            #[expect(unsafe_code, reason = "only so can the drop of a field be caught")]
            unsafe {
                ManuallyDrop::drop(&mut self.watchdog)
            };
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "as above")]
            unsafe {
                ManuallyDrop::drop(&mut self.db)
            };
        }));
    }
}

fn guarded<T>(operation: &'static str, dir: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|source| Error::Engine { operation, dir: dir.to_owned(), source }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
            Err(Error::Panicked { operation, dir: dir.to_owned(), message: message.to_owned() })
        }
    }
}

/// Brings the directory into a state from which sled recovers rightly; whether the database is to be made.
fn prepare(dir: &Path) -> Result<bool, Error> {
    let creating = dir.join(CREATING);
    let log = dir.join(LOG);
    if creating.exists() {
        for name in names(dir)? {
            if name == LOG || name == CONFIG || name.starts_with(SNAPSHOT_PREFIX) {
                fs::remove_file(dir.join(&name)).map_err(Error::file("remove", dir.join(&name)))?;
            }
        }
        match fs::remove_dir_all(dir.join(BLOBS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", dir.join(BLOBS))(error));
            }
            _ => {}
        }
    } else if log.exists() {
        for name in names(dir)?.iter().filter(|name| name.ends_with(UNFINISHED_SNAPSHOT_SUFFIX)) {
            fs::remove_file(dir.join(name)).map_err(Error::file("remove", dir.join(name)))?;
        }
        // What a killed process left in the page cache decides what sled keeps and what it overwrites next, so it must
        // be on disk first.
        sync_all(dir)?;
        return Ok(false);
    } else {
        File::create(&creating).map_err(Error::file("create", &creating))?;
    }
    sync_path(&creating)?;
    sync_path(dir)?;
    Ok(true)
}

fn open_sled(dir: &Path, options: &Options) -> Result<sled::Db, Error> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .segment_size(options.segment_bytes)
            .flush_every_ms(None);
        match guarded("open", dir, || config.open()) {
            // The caller holds the lock of the directory, so whoever holds sled's is a thread of sled that is about to
            // end. It tells nobody when, so this looks again.
            Err(Error::Engine { source: sled::Error::Io(error), .. })
                if error.kind() == io::ErrorKind::Other && Instant::now() < deadline =>
            {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let entry = entry.map_err(Error::file("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Syncs every file of the database, then the directory that names them.
fn sync_all(dir: &Path) -> Result<(), Error> {
    for name in names(dir)? {
        if name == LOG || name == CONFIG || name == BLOBS || name.starts_with(SNAPSHOT_PREFIX) {
            sync_path(&dir.join(name))?;
        }
    }
    sync_path(dir)
}

/// Drops the pages of the log that the kernel believes to be clean, so that the next read comes from the disk.
pub(crate) fn forget_cached(dir: &Path) {
    if let Ok(log) = File::open(dir.join(LOG)) {
        // SAFETY: posix_fadvise takes no pointers, and the descriptor is open here. It is advice: failing is no harm.
        #[expect(unsafe_code, reason = "the standard library has no posix_fadvise")]
        unsafe {
            libc::posix_fadvise(log.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
        };
    }
}

/// fsync of a file or directory.
pub(crate) fn sync_path(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("sync", path))
}
