use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use model::{Digest, Timestamp};

use crate::ingest::{self, Ingest, Status};
use crate::{Algorithm, Blob, Error};

/// The blob store below one directory. Cloning is cheap and gives another handle. All calls block.
#[derive(Clone, Debug)]
pub struct ContentStore(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    /// The keys that a writer holds, and since when.
    locks: Mutex<HashMap<String, (Timestamp, Instant)>>,
}

/// What is known of a blob without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// When its last byte was written.
    pub created: Timestamp,
}

impl ContentStore {
    /// Opens the store in `root`, making it if needed, and removes ingests that a power cut left without a key.
    pub fn open(root: &Path) -> Result<Self, Error> {
        make_dir(root)?;
        let store = Self(Arc::new(Inner { root: root.to_owned(), locks: Mutex::default() }));
        let blobs = root.join("blobs");
        make_dir(&blobs)?;
        for algorithm in Algorithm::ALL {
            make_dir(&blobs.join(algorithm.as_str()))?;
        }
        make_dir(&store.0.ingests())?;
        // Blobs are only as durable as the directories above them.
        sync_dir(&blobs)?;
        sync_dir(root)?;
        ingest::sweep(&store.0.ingests())?;
        Ok(store)
    }

    /// The directory that `open` was given: the export `root` of introspection.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Opens the ingest `key` for writing, or makes it; what an earlier writer left is kept and hashed again.
    ///
    /// `expected_total` is the size that the blob will have, 0 for unknown. One that contradicts what the ingest was
    /// made with discards the old bytes. UNAVAILABLE while another writer holds the key.
    pub fn writer(&self, key: &str, expected_total: u64) -> Result<Ingest, Error> {
        self.writer_with(key, expected_total, Algorithm::Sha256)
    }

    /// As [`ContentStore::writer`], computing the digest by `algorithm` as bytes flow. A commit that expects another
    /// algorithm works too, and reads the bytes again.
    pub fn writer_with(&self, key: &str, expected_total: u64, algorithm: Algorithm) -> Result<Ingest, Error> {
        Ingest::open(Lock::take(&self.0, key)?, expected_total, algorithm)
    }

    /// Where the ingest `key` stands, whether a writer holds it or not.
    pub fn status(&self, key: &str) -> Result<Status, Error> {
        let dir = self.0.ingest_dir(key);
        ingest::status(&dir)?.filter(|status| status.key == key).ok_or_else(|| Error::NoIngest(key.to_owned()))
    }

    /// Where all ingests stand, in no particular order.
    pub fn statuses(&self) -> Result<Vec<Status>, Error> {
        let root = self.0.ingests();
        let mut statuses = Vec::new();
        for entry in fs::read_dir(&root).map_err(Error::io("list ingests in", &root))? {
            let entry = entry.map_err(Error::io("list ingests in", &root))?;
            statuses.extend(ingest::status(&entry.path())?);
        }
        Ok(statuses)
    }

    /// Removes the ingest `key` and its bytes, even while a writer holds it; that writer's commit then fails.
    pub fn abort(&self, key: &str) -> Result<(), Error> {
        self.status(key)?;
        ingest::remove(&self.0.ingest_dir(key))
    }

    /// Opens a blob for reading.
    pub fn reader(&self, digest: &Digest) -> Result<Blob, Error> {
        let path = self.0.blob_path(digest);
        let file = File::open(&path).map_err(|source| not_found(digest, "open blob", path.clone(), source))?;
        let size = file.metadata().map_err(Error::io("examine blob", &path))?.len();
        Ok(Blob::new(file, size))
    }

    /// Examines a blob.
    pub fn info(&self, digest: &Digest) -> Result<BlobInfo, Error> {
        let path = self.0.blob_path(digest);
        let metadata = fs::metadata(&path).map_err(|source| not_found(digest, "examine blob", path, source))?;
        Ok(info(digest.clone(), &metadata))
    }

    /// Deletes a blob, and tells whether there was one. The deletion is not flushed: a power cut may bring the blob back,
    /// as garbage.
    pub fn delete(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.0.blob_path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::io("delete blob", path)(source)),
        }
    }

    /// All blobs, sorted by digest. Files whose names are no digests are skipped.
    pub fn list(&self) -> Result<Vec<BlobInfo>, Error> {
        let mut blobs = Vec::new();
        for algorithm in Algorithm::ALL {
            let dir = self.0.root.join("blobs").join(algorithm.as_str());
            for entry in fs::read_dir(&dir).map_err(Error::io("list blobs in", &dir))? {
                let entry = entry.map_err(Error::io("list blobs in", &dir))?;
                let name = entry.file_name();
                let Ok(digest) = format!("{}:{}", algorithm.as_str(), name.to_string_lossy()).parse::<Digest>() else {
                    continue;
                };
                match entry.metadata() {
                    Ok(metadata) => blobs.push(info(digest, &metadata)),
                    // Deleted since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(Error::io("examine blob", entry.path())(source)),
                }
            }
        }
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(blobs)
    }
}

impl Inner {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        // Safe as a path: a `Digest` is a known algorithm and hex.
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn ingests(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn ingest_dir(&self, key: &str) -> PathBuf {
        let mut hasher = crate::Hasher::new(Algorithm::Sha256);
        hasher.update(key.as_bytes());
        self.ingests().join(hasher.digest().hex())
    }
}

/// The right to write one key; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    pub(crate) store: Arc<Inner>,
    pub(crate) key: String,
}

impl Lock {
    fn take(store: &Arc<Inner>, key: &str) -> Result<Self, Error> {
        if key.is_empty() {
            return Err(Error::EmptyKey);
        }
        let mut locks = store.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, instant)) = locks.get(key) {
            return Err(Error::Locked { key: key.to_owned(), since: *since, held: instant.elapsed() });
        }
        locks.insert(key.to_owned(), (Timestamp::now(), Instant::now()));
        Ok(Self { store: store.clone(), key: key.to_owned() })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.store.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(Error::io("make directory", path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("flush directory", path))
}

pub(crate) fn modified(metadata: &fs::Metadata) -> Timestamp {
    Timestamp { seconds: metadata.mtime(), nanos: i32::try_from(metadata.mtime_nsec()).unwrap_or(0) }
}

fn info(digest: Digest, metadata: &fs::Metadata) -> BlobInfo {
    BlobInfo { digest, size: metadata.len(), created: modified(metadata) }
}

fn not_found(digest: &Digest, operation: &'static str, path: PathBuf, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::NotFound {
        Error::NotFound(digest.clone())
    } else {
        Error::io(operation, path)(source)
    }
}
