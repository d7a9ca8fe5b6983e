//! The rules of the blob store as a suite that any build of it passes, for this crate's tests and for other suites.
//!
//! Each case gets an empty store. A case fails by returning a [`Failure`]; nothing here panics.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use model::{Code, Coded as _, Digest};

use crate::{Algorithm, ContentStore, Error, Hasher, Ingest};

/// A rule that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A call failed that must succeed.
    #[error("call failed")]
    Call(#[from] Error),
    /// The suite could not look at the store's files.
    #[error("examine the store")]
    Io(#[from] std::io::Error),
    /// A result is wrong.
    #[error("{0}")]
    Wrong(String),
}

/// A rule: its name and the program that checks it.
pub type Case = (&'static str, fn(&ContentStore) -> Result<(), Failure>);

/// All rules.
pub const CASES: &[Case] = &[
    ("a committed blob reads back, whole and in ranges", reads_back),
    ("an empty blob is a blob", empty_blob),
    ("every registered algorithm", algorithms),
    ("one writer per key", one_writer),
    ("a dropped ingest is resumed with its digest", resume),
    ("another total begins again", other_total),
    ("truncate begins again", truncate),
    ("a refused commit keeps the ingest", refused_commit),
    ("a collision removes the ingest", collision),
    ("abort removes, also under a writer", abort),
    ("keys never become paths", hostile_keys),
    ("statuses list every ingest", statuses),
    ("delete is idempotent", delete),
    ("list is sorted and skips foreign files", list),
    ("of many equal commits one wins", race),
];

/// Runs all cases, each on an empty store that `open` opens in a new directory below `scratch`.
pub fn run(scratch: &Path, open: impl Fn(&Path) -> Result<ContentStore, Error>) -> Vec<(&'static str, Failure)> {
    let mut failures = Vec::new();
    for (number, (name, case)) in CASES.iter().enumerate() {
        let result = open(&scratch.join(number.to_string())).map_err(Failure::from).and_then(|store| case(&store));
        if let Err(failure) = result {
            failures.push((*name, failure));
        }
    }
    failures
}

fn ensure(condition: bool, what: impl Into<String>) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Wrong(what.into())) }
}

fn refused<T>(result: Result<T, Error>, code: Code, what: &str) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(Failure::Wrong(format!("{what} succeeded"))),
        Err(error) => ensure(error.code() == code, format!("{what}: {} instead of {code:?}", model::render(&error))),
    }
}

fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.digest()
}

fn sha256(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha256, bytes)
}

fn written(store: &ContentStore, key: &str, bytes: &[u8]) -> Result<Ingest, Error> {
    let mut ingest = store.writer(key, 0)?;
    ingest.write(bytes)?;
    Ok(ingest)
}

fn blob(store: &ContentStore, bytes: &[u8]) -> Result<Digest, Error> {
    Ok(written(store, "blob", bytes)?.commit(0, None)?.0)
}

/// Bytes without a short period.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

fn reads_back(store: &ContentStore) -> Result<(), Failure> {
    let bytes = noise(300_000);
    let mut ingest = store.writer("key", bytes.len() as u64)?;
    for chunk in bytes.chunks(70_000) {
        ingest.write(chunk)?;
    }
    let want = sha256(&bytes);
    ensure(ingest.digest_so_far() == want, "digest so far")?;
    let (digest, size) = ingest.commit(bytes.len() as u64, Some(&want))?;
    ensure(digest == want && size == bytes.len() as u64, "commit's answer")?;
    let reader = store.reader(&digest)?;
    ensure(reader.size() == size, "size of reader")?;
    for (offset, length) in [(0, 300_000), (0, 1), (299_999, 1), (65_536, 65_536), (299_990, 100), (300_000, 10)] {
        let mut buffer = vec![0; length];
        let count = reader.read_at(&mut buffer, offset as u64)?;
        let end = (offset + length).min(bytes.len());
        ensure(buffer[..count] == bytes[offset..end], format!("range {offset}+{length}"))?;
    }
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut reader.into_reader(1000), &mut rest)?;
    ensure(rest == bytes[1000..], "stream from an offset")?;
    let path = store.root().join("blobs/sha256").join(digest.hex());
    ensure(fs::metadata(path)?.permissions().mode() & 0o777 == 0o444, "mode of a blob")?;
    ensure(store.info(&digest)?.size == size, "size in info")?;
    ensure(store.statuses()?.is_empty(), "the ingest is gone")
}

fn empty_blob(store: &ContentStore) -> Result<(), Failure> {
    let (digest, size) = store.writer("key", 0)?.commit(0, None)?;
    ensure(size == 0 && digest == sha256(b""), "empty blob")?;
    ensure(store.reader(&digest)?.size() == 0, "size of empty blob")
}

fn algorithms(store: &ContentStore) -> Result<(), Failure> {
    for algorithm in Algorithm::ALL {
        for (key, with) in [("told", algorithm), ("found out at commit", Algorithm::Sha256)] {
            let bytes = format!("{key} {}", algorithm.as_str());
            let want = digest_of(algorithm, bytes.as_bytes());
            let mut ingest = store.writer_with(key, 0, with)?;
            ingest.write(bytes.as_bytes())?;
            ensure(ingest.digest_so_far() == digest_of(with, bytes.as_bytes()), "digest so far")?;
            ensure(ingest.commit(0, Some(&want))?.0 == want, "committed digest")?;
            ensure(store.reader(&want)?.size() == bytes.len() as u64, "blob under its own algorithm")?;
        }
    }
    Ok(())
}

fn one_writer(store: &ContentStore) -> Result<(), Failure> {
    refused(store.writer("", 0), Code::InvalidArgument, "a writer without a key")?;
    let first = store.writer("key", 0)?;
    refused(store.writer("key", 0), Code::Unavailable, "a second writer")?;
    store.writer("other", 0)?;
    drop(first);
    store.writer("key", 0)?;
    Ok(())
}

fn resume(store: &ContentStore) -> Result<(), Failure> {
    let started = written(store, "key", b"one ")?.status().started_at;
    let mut ingest = store.writer("key", 0)?;
    ensure(ingest.offset() == 4 && ingest.digest_so_far() == sha256(b"one "), "resumed bytes and digest")?;
    ensure(ingest.status().started_at == started, "start time survives")?;
    ingest.write(b"two")?;
    let updated = ingest.status().updated_at;
    drop(ingest);
    // Another process: only what is on disk counts.
    let reopened = ContentStore::open(store.root())?;
    let ingest = reopened.writer("key", 0)?;
    ensure(ingest.offset() == 7, "offset after reopening")?;
    ensure(ingest.status().updated_at == updated, "time of the last write survives")?;
    ensure(ingest.commit(7, None)?.0 == sha256(b"one two"), "digest after reopening")
}

fn other_total(store: &ContentStore) -> Result<(), Failure> {
    let mut ingest = store.writer("key", 10)?;
    ingest.write(b"abc")?;
    drop(ingest);
    let same = store.writer("key", 10)?;
    ensure(same.offset() == 3 && same.status().total == 10, "the same total resumes")?;
    drop(same);
    let unknown = store.writer("key", 0)?;
    ensure(unknown.offset() == 3 && unknown.status().total == 10, "an unknown total resumes")?;
    drop(unknown);
    let other = store.writer("key", 11)?;
    ensure(other.offset() == 0 && other.status().total == 11, "another total begins again")
}

fn truncate(store: &ContentStore) -> Result<(), Failure> {
    let mut ingest = written(store, "key", b"wrong and longer")?;
    ingest.truncate()?;
    ensure(ingest.offset() == 0 && ingest.digest_so_far() == sha256(b""), "empty after truncate")?;
    ingest.write(b"right")?;
    ensure(ingest.commit(5, None)?.0 == sha256(b"right"), "only the new bytes count")?;
    ensure(store.reader(&sha256(b"right"))?.size() == 5, "size after truncate")
}

fn refused_commit(store: &ContentStore) -> Result<(), Failure> {
    refused(written(store, "key", b"abc")?.commit(99, None), Code::FailedPrecondition, "a wrong size")?;
    let ingest = store.writer("key", 0)?;
    ensure(ingest.offset() == 3, "bytes survive a wrong size")?;
    refused(ingest.commit(3, Some(&sha256(b"abd"))), Code::FailedPrecondition, "a wrong digest")?;
    let mut ingest = store.writer("key", 0)?;
    ingest.seal(3, None)?;
    ingest.write(b"d")?;
    ensure(ingest.commit(4, Some(&sha256(b"abcd")))?.1 == 4, "commit at last, and writes after a seal count")
}

fn collision(store: &ContentStore) -> Result<(), Failure> {
    let digest = blob(store, b"same")?;
    for expected in [None, Some(&digest)] {
        refused(written(store, "second", b"same")?.commit(0, expected), Code::AlreadyExists, "an equal blob")?;
        refused(store.status("second"), Code::NotFound, "the status of a collided ingest")?;
        ensure(store.writer("second", 0)?.offset() == 0, "a collided ingest begins again")?;
    }
    Ok(())
}

fn abort(store: &ContentStore) -> Result<(), Failure> {
    refused(store.abort("key"), Code::NotFound, "abort of nothing")?;
    drop(written(store, "key", b"abc")?);
    store.abort("key")?;
    refused(store.status("key"), Code::NotFound, "status after abort")?;
    let ingest = written(store, "key", b"abc")?;
    store.abort("key")?;
    refused(ingest.commit(0, None), Code::NotFound, "commit after abort")?;
    ensure(store.list()?.is_empty(), "nothing was committed")
}

fn hostile_keys(store: &ContentStore) -> Result<(), Failure> {
    let long = "x".repeat(5000);
    let keys = ["../../escape", "/etc/passwd", "a/b", ".", "..", "nul\0", "new\nline", "ä", &long];
    for key in keys {
        drop(written(store, key, key.as_bytes())?);
        ensure(store.status(key)?.key == key, format!("key {key:?} is kept verbatim"))?;
    }
    ensure(fs::read_dir(store.root().join("ingest"))?.count() == keys.len(), "one directory per key")?;
    ensure(fs::read_dir(store.root())?.count() == 2, "nothing outside of ingest and blobs")?;
    for key in keys {
        ensure(store.writer(key, 0)?.commit(0, None)?.0 == sha256(key.as_bytes()), "digest")?;
    }
    Ok(())
}

fn statuses(store: &ContentStore) -> Result<(), Failure> {
    let open = written(store, "open", b"1")?;
    drop(written(store, "closed", b"22")?);
    let mut found: Vec<_> = store.statuses()?.into_iter().map(|status| (status.key, status.offset)).collect();
    found.sort();
    ensure(found == [("closed".to_owned(), 2), ("open".to_owned(), 1)], format!("statuses: {found:?}"))?;
    ensure(store.status("open")?.offset == open.status().offset, "status seen from outside")
}

fn delete(store: &ContentStore) -> Result<(), Failure> {
    let digest = blob(store, b"gone")?;
    let reader = store.reader(&digest)?;
    ensure(store.delete(&digest)?, "delete tells that there was one")?;
    ensure(!store.delete(&digest)?, "delete tells that there was none")?;
    refused(store.reader(&digest), Code::NotFound, "a reader of a deleted blob")?;
    refused(store.info(&digest), Code::NotFound, "info of a deleted blob")?;
    ensure(reader.read_at(&mut [0; 8], 0)? == 4, "an open reader still reads")?;
    blob(store, b"gone")?;
    Ok(())
}

fn list(store: &ContentStore) -> Result<(), Failure> {
    let mut want = Vec::new();
    for number in 0..20 {
        want.push(blob(store, format!("blob {number}").as_bytes())?);
    }
    want.sort();
    fs::write(store.root().join("blobs/sha256/README"), "not a blob")?;
    let found: Vec<_> = store.list()?.into_iter().map(|info| info.digest).collect();
    ensure(found == want, "list")
}

fn race(store: &ContentStore) -> Result<(), Failure> {
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || written(store, &format!("key {number}"), b"the same bytes")?.commit(0, None))
            })
            .collect();
        writers.into_iter().map(|writer| writer.join()).collect()
    });
    let mut won = 0;
    for outcome in outcomes {
        match outcome {
            Ok(Ok(_)) => won += 1,
            Ok(result) => refused(result, Code::AlreadyExists, "an equal commit")?,
            Err(_) => return Err(Failure::Wrong("a writer panicked".to_owned())),
        }
    }
    ensure(won == 1 && store.statuses()?.is_empty(), format!("{won} of 8 equal commits won"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_store_conforms() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let failures = run(scratch.path(), ContentStore::open);
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn remains_of_a_power_cut_are_swept() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let store = ContentStore::open(scratch.path()).expect("open");
        drop(written(&store, "kept", b"abc").expect("write"));
        drop(written(&store, "torn", b"abc").expect("write"));
        // The header's bytes did not reach the disk.
        for entry in fs::read_dir(scratch.path().join("ingest")).expect("list") {
            let header = entry.expect("entry").path().join("ref");
            if fs::read(&header).expect("read").ends_with(b"torn") {
                fs::write(&header, b"").expect("tear");
            }
        }
        let store = ContentStore::open(scratch.path()).expect("open again");
        let keys: Vec<_> = store.statuses().expect("statuses").into_iter().map(|status| status.key).collect();
        assert_eq!(keys, ["kept"]);
        assert_eq!(fs::read_dir(scratch.path().join("ingest")).expect("list").count(), 1);
    }
}
