use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use model::{Digest, Timestamp};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::store::{Lock, make_dir, modified, sync_dir};
use crate::{Algorithm, Error, Hasher};

/// Where an unfinished blob stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its key.
    pub key: String,
    /// Bytes so far.
    pub offset: u64,
    /// Bytes there will be; 0 for unknown.
    pub total: u64,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it last grew.
    pub updated_at: Timestamp,
}

/// A blob being written. Dropping it gives the key back and keeps the bytes for a later writer.
#[derive(Debug)]
pub struct Ingest {
    lock: Lock,
    dir: PathBuf,
    data: File,
    hasher: Hasher,
    offset: u64,
    total: u64,
    started_at: Timestamp,
    updated_at: Timestamp,
    /// `updated_at` is newer than what the file says.
    grown: bool,
    sealed: bool,
}

impl Drop for Ingest {
    /// The kernel's own note of the last write is a few milliseconds old; the next writer is told the same time as this
    /// one was.
    fn drop(&mut self) {
        if self.grown {
            let time = rustix::fs::Timespec { tv_sec: self.updated_at.seconds, tv_nsec: self.updated_at.nanos.into() };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            // It only tells when.
            let _ = rustix::fs::futimens(&self.data, &times);
        }
    }
}

impl Ingest {
    pub(crate) fn open(lock: Lock, total: u64, algorithm: Algorithm) -> Result<Self, Error> {
        let dir = lock.store.ingest_dir(&lock.key);
        let resumed = header(&dir)?.filter(|old| old.key == lock.key && (total == 0 || old.total == total));
        let fresh = resumed.is_none();
        let (started_at, total) = match resumed {
            Some(old) => (old.started_at, old.total),
            None => {
                remove(&dir)?;
                let started_at = Timestamp::now();
                begin(&dir, &lock.key, total, started_at)?;
                (started_at, total)
            }
        };
        let path = dir.join(DATA);
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(Error::io("open ingest data", &path))?;
        let mut hasher = Hasher::new(algorithm);
        let (offset, updated_at) = if fresh {
            (0, started_at)
        } else {
            let metadata = data.metadata().map_err(Error::io("examine ingest data", &path))?;
            (hasher.update_from(&data).map_err(Error::io("read ingest data", &path))?, modified(&metadata))
        };
        Ok(Self { lock, dir, data, hasher, offset, total, started_at, updated_at, grown: false, sealed: false })
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        Status {
            key: self.lock.key.clone(),
            offset: self.offset,
            total: self.total,
            started_at: self.started_at,
            updated_at: self.updated_at,
        }
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The digest of the bytes so far, by the algorithm that the writer was opened with.
    pub fn digest_so_far(&self) -> Digest {
        self.hasher.digest()
    }

    /// Appends bytes: all of them, or none where it fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sealed = false;
        if let Err(source) = self.data.write_all_at(bytes, self.offset) {
            // Best effort: the next writer hashes what is there, and the digest decides.
            let _ = self.data.set_len(self.offset);
            return Err(Error::io("write ingest data", self.dir.join(DATA))(source));
        }
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        self.updated_at = Timestamp::now();
        self.grown = true;
        Ok(())
    }

    /// Throws the bytes away and starts again at 0.
    pub fn truncate(&mut self) -> Result<(), Error> {
        self.sealed = false;
        self.data.set_len(0).map_err(Error::io("truncate ingest data", self.dir.join(DATA)))?;
        self.hasher = Hasher::new(self.hasher.algorithm());
        self.offset = 0;
        self.updated_at = Timestamp::now();
        self.grown = true;
        Ok(())
    }

    /// Verifies the bytes and brings them to disk, so that a following [`Ingest::commit`] is quick: call it before taking
    /// locks. `size` 0 and `expected` `None` mean unknown. FAILED_PRECONDITION where they contradict the bytes.
    pub fn seal(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest, Error> {
        if size != 0 && size != self.offset {
            return Err(Error::Size { key: self.lock.key.clone(), have: self.offset, want: size });
        }
        let path = || self.dir.join(DATA);
        let algorithm = expected.map_or(self.hasher.algorithm(), Algorithm::of);
        if algorithm != self.hasher.algorithm() {
            let mut hasher = Hasher::new(algorithm);
            let file = File::open(path()).map_err(Error::io("open ingest data", path()))?;
            hasher.update_from(file).map_err(Error::io("read ingest data", path()))?;
            self.hasher = hasher;
        }
        let have = self.hasher.digest();
        if let Some(want) = expected
            && *want != have
        {
            return Err(Error::Digest { have, want: want.clone() });
        }
        if !self.sealed {
            let read_only = fs::Permissions::from_mode(0o444);
            self.data.set_permissions(read_only).map_err(Error::io("change mode of ingest data", path()))?;
            self.data.sync_all().map_err(Error::io("flush ingest data", path()))?;
            self.sealed = true;
        }
        Ok(have)
    }

    /// Makes the bytes a blob, and returns its name and size. When it returns, the blob is on disk.
    ///
    /// Fails as [`Ingest::seal`] does, keeping the ingest; ALREADY_EXISTS removes it (the blob that exists is as durable
    /// as one just committed).
    pub fn commit(mut self, size: u64, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let digest = self.seal(size, expected)?;
        let blob = self.lock.store.blob_path(&digest);
        let data = self.dir.join(DATA);
        self.grown = false;
        let collision = match renameat_with(CWD, &data, CWD, &blob, RenameFlags::NOREPLACE) {
            Ok(()) => false,
            Err(rustix::io::Errno::EXIST) => true,
            Err(rustix::io::Errno::NOENT) => return Err(Error::NoIngest(self.lock.key.clone())),
            Err(errno) => return Err(Error::io("publish blob", &blob)(errno.into())),
        };
        // Also after a collision: the other writer may not have come this far.
        if let Some(parent) = blob.parent() {
            sync_dir(parent)?;
        }
        // The blob is committed; remains of the ingest are found by the next writer or the sweep at start.
        let _ = remove(&self.dir);
        if collision { Err(Error::Exists(digest)) } else { Ok((digest, self.offset)) }
    }
}

const DATA: &str = "data";
const HEADER: &str = "ref";

struct Header {
    key: String,
    total: u64,
    started_at: Timestamp,
}

/// Makes the directory of an ingest and its header; nothing is flushed, because an ingest lost at a power cut is only
/// begun again.
fn begin(dir: &Path, key: &str, total: u64, started_at: Timestamp) -> Result<(), Error> {
    make_dir(dir)?;
    let path = dir.join(HEADER);
    let text = format!("{total} {} {}\n{key}", started_at.seconds, started_at.nanos);
    fs::write(&path, text).map_err(Error::io("write ingest reference", path))
}

/// The header of the ingest in `dir`; `None` if there is no ingest or none that was ever whole.
fn header(dir: &Path) -> Result<Option<Header>, Error> {
    let path = dir.join(HEADER);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::io("read ingest reference", path)(source)),
    };
    Ok(std::str::from_utf8(&text).ok().and_then(parse_header))
}

fn parse_header(text: &str) -> Option<Header> {
    let (numbers, key) = text.split_once('\n')?;
    let mut numbers = numbers.split(' ');
    let total = numbers.next()?.parse().ok()?;
    let started_at = Timestamp { seconds: numbers.next()?.parse().ok()?, nanos: numbers.next()?.parse().ok()? };
    Some(Header { key: key.to_owned(), total, started_at })
}

pub(crate) fn status(dir: &Path) -> Result<Option<Status>, Error> {
    let Some(header) = header(dir)? else { return Ok(None) };
    let path = dir.join(DATA);
    let (offset, updated_at) = match fs::metadata(&path) {
        Ok(metadata) => (metadata.len(), modified(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, header.started_at),
        Err(source) => return Err(Error::io("examine ingest data", path)(source)),
    };
    Ok(Some(Status { key: header.key, offset, total: header.total, started_at: header.started_at, updated_at }))
}

/// Removes an ingest's directory, header first: without it nothing takes the rest for an ingest.
pub(crate) fn remove(dir: &Path) -> Result<(), Error> {
    for name in [HEADER, DATA] {
        let path = dir.join(name);
        ignore_missing(fs::remove_file(&path)).map_err(Error::io("remove ingest file", path))?;
    }
    ignore_missing(fs::remove_dir(dir)).map_err(Error::io("remove ingest directory", dir))
}

/// Removes what power cuts left of ingests: directories without a whole header.
pub(crate) fn sweep(root: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(root).map_err(Error::io("list ingests in", root))? {
        let entry = entry.map_err(Error::io("list ingests in", root))?;
        if entry.path().is_dir() && header(&entry.path())?.is_none() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
