//! One blob on its way into a namespace.
//!
//! ```text
//!            expected blob is in the namespace ──▶ leased, ALREADY_EXISTS
//! open ──┬── expected blob is in the store ──▶ shared ──commit──▶ record only
//!        │                                       │ write or truncate: its bytes are copied
//!        └── otherwise ──▶ ingest ◀──────────────┘
//!                            │ ──commit──▶ bytes on disk ──▶ record, or ALREADY_EXISTS with a lease
//!                            └─ dropped: kept, opened again by its reference
//! ```
//!
//! **Invariant:** the bytes of a blob are on disk before its record says that it exists, and the blob is held from
//! before the bytes are published until the record is written, so the collector cannot come in between.

use std::sync::Arc;

use content::{Algorithm, Ingest};
use model::{Digest, Labels, Namespace, Timestamp};
use store::Durability;

use crate::content::{find, held, ignore_missing, key};
use crate::db::{Inner, clean_labels};
use crate::encoding::{BlobRecord, IngestRecord};
use crate::guard::{Guard, Held};
use crate::keys::{NAME_BYTES_MAX, Table, check_name};
use crate::{BlobInfo, Error, IngestStatus, Scope, payload};

/// How long an ingest without a lease is kept.
const INGEST_SECONDS: i64 = 24 * 60 * 60;

/// What a writer is opened for.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions<'a> {
    /// The client's name for the ingest; any text.
    pub reference: &'a str,
    /// The blob that it is to become, where that is known.
    pub expected: Option<&'a Digest>,
    /// Its size; 0 for unknown. One that contradicts an earlier writer's discards the bytes of that one.
    pub total: u64,
}

/// A writer of one ingest. Dropping it gives the reference back and keeps the bytes. Its calls block.
#[derive(Debug)]
pub struct Writer {
    inner: Arc<Inner>,
    scope: Scope,
    reference: String,
    bytes: Bytes,
    started_at: Timestamp,
    /// Keeps the ingest, and for a shared blob its bytes, from being collected.
    _guards: Vec<Guard>,
}

#[derive(Debug)]
enum Bytes {
    /// The blob is in the store already.
    Shared { digest: Digest, size: u64 },
    /// They are being written.
    Ingest(Box<Ingest>),
}

/// The key in the blob store. The number is the ingest's generation in containerd's scheme, where it is always 1; it is
/// part of a text that clients see.
pub(crate) fn backend_key(namespace: &Namespace, reference: &str) -> String {
    format!("{}/1/{reference}", namespace.as_str())
}

impl Writer {
    pub(crate) fn open(inner: &Arc<Inner>, scope: &Scope, options: &WriterOptions<'_>) -> Result<Self, Error> {
        check_name("ref", options.reference, NAME_BYTES_MAX)?;
        if let Some(expected) = options.expected {
            refuse_existing(inner, scope, expected)?;
        }
        require_lease(inner, scope)?;
        let backend = backend_key(&scope.namespace, options.reference);
        let mut guards = vec![inner.guards.hold(Held::Ingest(backend.clone()))];
        let bytes = match shared(inner, options, &mut guards)? {
            Some(shared) => shared,
            None => {
                let algorithm = options.expected.map_or(Algorithm::default(), Algorithm::of);
                Bytes::Ingest(Box::new(inner.content.writer_with(&backend, options.total, algorithm)?))
            }
        };
        let mut record = IngestRecord::default();
        if let Bytes::Shared { digest, .. } = &bytes {
            digest.as_str().clone_into(&mut record.expected);
        }
        // Lost at a power cut, it is an ingest to begin again; its bytes are not flushed either.
        let recorded = inner.write(Durability::Ordered, |tx| {
            tx.touch_namespace(&scope.namespace)?;
            if !tx.lease(scope, "ingests", options.reference)? {
                let expire = Timestamp { seconds: tx.now.seconds + INGEST_SECONDS, nanos: tx.now.nanos };
                record.expire_at = Some(expire.into());
            }
            tx.put_record(&Table::Ingest.key(scope.namespace.as_str(), options.reference), &record)
        });
        if let Err(error) = recorded {
            inner.gc.remove_ingest(backend);
            return Err(error);
        }
        Ok(Self {
            inner: Arc::clone(inner),
            scope: scope.clone(),
            reference: options.reference.to_owned(),
            bytes,
            started_at: Timestamp::now(),
            _guards: guards,
        })
    }

    /// The client's name for the ingest.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Bytes so far.
    pub fn offset(&self) -> u64 {
        match &self.bytes {
            Bytes::Shared { size, .. } => *size,
            Bytes::Ingest(ingest) => ingest.offset(),
        }
    }

    /// The digest of the bytes so far; sha256, or the algorithm of the digest that was expected at the opening.
    pub fn digest(&self) -> Digest {
        match &self.bytes {
            Bytes::Shared { digest, .. } => digest.clone(),
            Bytes::Ingest(ingest) => ingest.digest_so_far(),
        }
    }

    /// Where it stands.
    pub fn status(&self) -> IngestStatus {
        let reference = self.reference.clone();
        match &self.bytes {
            Bytes::Shared { size, .. } => IngestStatus {
                reference,
                offset: *size,
                total: *size,
                started_at: self.started_at,
                updated_at: self.started_at,
            },
            Bytes::Ingest(ingest) => {
                let status = ingest.status();
                IngestStatus {
                    reference,
                    offset: status.offset,
                    total: status.total,
                    started_at: status.started_at,
                    updated_at: status.updated_at,
                }
            }
        }
    }

    /// A digest that a later message expects: if the namespace has that blob by now, it is put into the lease, the
    /// ingest is given up, and ALREADY_EXISTS is returned; the writer is of no further use then.
    pub fn expect(&mut self, expected: &Digest) -> Result<(), Error> {
        let exists = match refuse_existing(&self.inner, &self.scope, expected) {
            Err(error @ Error::ContentExists(_)) => error,
            other => return other,
        };
        self.give_up()?;
        Err(exists)
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        Ok(self.unshare(true)?.write(bytes)?)
    }

    /// Throws the bytes away and starts again at 0.
    pub fn truncate(&mut self) -> Result<(), Error> {
        Ok(self.unshare(false)?.truncate()?)
    }

    /// Makes the bytes a blob of the namespace with these labels, and returns its name and size; it is in the request's
    /// lease then. `size` 0 and `expected` `None` mean unknown.
    ///
    /// FAILED_PRECONDITION where they contradict the bytes; the ingest is kept then. ALREADY_EXISTS where the namespace
    /// has the blob: the ingest is gone, the blob is in the lease, and its labels are as they were.
    pub fn commit(self, size: u64, expected: Option<&Digest>, mut labels: Labels) -> Result<(Digest, u64), Error> {
        clean_labels("info", &mut labels)?;
        if size != 0 && size != self.offset() {
            let have = self.offset();
            return Err(Error::CommitSize { reference: self.reference, have, want: size });
        }
        let Self { inner, scope, reference, bytes, _guards: mut guards, .. } = self;
        let (digest, size) = match bytes {
            Bytes::Shared { digest, size } => match expected {
                Some(want) if *want != digest => return Err(digest_mismatch(&digest, want)),
                _ => (digest, size),
            },
            Bytes::Ingest(mut ingest) => {
                let size = ingest.offset();
                let digest = match ingest.seal(size, expected) {
                    Ok(digest) => digest,
                    Err(content::Error::Digest { have, want }) => return Err(digest_mismatch(&have, &want)),
                    Err(error) => return Err(error.into()),
                };
                guards.push(inner.guards.hold(held(&digest)));
                match ingest.commit(size, Some(&digest)) {
                    // That another namespace has the bytes is no error.
                    Ok(_) | Err(content::Error::Exists(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                (digest, size)
            }
        };
        let recorded = record_blob(&inner, &scope, &reference, &digest, size, labels);
        drop(guards);
        if recorded.as_ref().is_err_and(|error| !matches!(error, Error::ContentExists(_))) {
            // Bytes without a record, perhaps.
            inner.gc.remove_blob(digest.clone());
        }
        recorded.map(|()| (digest, size))
    }

    /// The ingest to write to. A shared blob becomes one: with a copy of its bytes where they are wanted, as clients may
    /// append to what they were told is there.
    fn unshare(&mut self, copy: bool) -> Result<&mut Ingest, Error> {
        if let Bytes::Shared { digest, size } = &self.bytes {
            let backend = backend_key(&self.scope.namespace, &self.reference);
            let mut ingest =
                self.inner.content.writer_with(&backend, if copy { *size } else { 0 }, Algorithm::of(digest))?;
            ingest.truncate()?;
            if copy {
                copy_blob(&self.inner, digest, &mut ingest)?;
            }
            // It is an ordinary ingest from now on: its record must not speak of another blob.
            let key = Table::Ingest.key(self.scope.namespace.as_str(), &self.reference);
            self.inner.write(Durability::Ordered, |tx| {
                if let Some(stored) = tx.get(&key)? {
                    let mut record: IngestRecord = crate::encoding::decode("ingest", &self.reference, &stored)?;
                    record.expected.clear();
                    tx.put_record(&key, &record)?;
                }
                Ok(())
            })?;
            let shared = std::mem::replace(&mut self.bytes, Bytes::Ingest(Box::new(ingest)));
            if let Bytes::Shared { digest, .. } = shared {
                self.inner.gc.remove_blob(digest);
            }
        }
        match &mut self.bytes {
            Bytes::Ingest(ingest) => Ok(ingest),
            // Replaced just above.
            Bytes::Shared { digest, .. } => Err(Error::NoContent(digest.as_str().to_owned())),
        }
    }

    /// Removes the ingest and its record.
    fn give_up(&mut self) -> Result<(), Error> {
        let key = Table::Ingest.key(self.scope.namespace.as_str(), &self.reference);
        self.inner.write(Durability::Ordered, |tx| {
            tx.delete(&key);
            tx.unlease(&self.scope, "ingests", &self.reference);
            Ok(())
        })?;
        ignore_missing(self.inner.content.abort(&backend_key(&self.scope.namespace, &self.reference)))
    }
}

fn digest_mismatch(have: &Digest, want: &Digest) -> Error {
    Error::CommitDigest { have: have.as_str().to_owned(), want: want.as_str().to_owned() }
}

/// Leases a blob that the namespace has, and says ALREADY_EXISTS then. The lease stands although the request fails: a
/// client goes on to rely on the blob.
fn refuse_existing(inner: &Inner, scope: &Scope, digest: &Digest) -> Result<(), Error> {
    if inner.store.read(|view| find(view, &scope.namespace, digest))?.is_none() {
        return Ok(());
    }
    if scope.lease.is_some() {
        let exists = inner.write(Durability::OnDisk, |tx| {
            if find(tx, &scope.namespace, digest)?.is_none() {
                return Ok(false);
            }
            tx.lease(scope, "content", digest.as_str())?;
            Ok(true)
        })?;
        if !exists {
            return Ok(());
        }
    }
    Err(Error::ContentExists(digest.as_str().to_owned()))
}

/// Refuses a lease that does not exist before anything is made for it.
fn require_lease(inner: &Inner, scope: &Scope) -> Result<(), Error> {
    let Some(lease) = &scope.lease else { return Ok(()) };
    let key = Table::Lease.key(scope.namespace.as_str(), lease);
    if inner.store.read(|view| view.get(&key))?.is_none() {
        return Err(Error::NoScopeLease);
    }
    Ok(())
}

/// The expected blob, if the store has it and its size is not another one than the client says. It is held then.
fn shared(inner: &Inner, options: &WriterOptions<'_>, guards: &mut Vec<Guard>) -> Result<Option<Bytes>, Error> {
    let Some(digest) = options.expected else { return Ok(None) };
    let guard = inner.guards.hold(held(digest));
    match inner.content.info(digest) {
        Ok(info) if options.total == 0 || options.total == info.size => {
            guards.push(guard);
            Ok(Some(Bytes::Shared { digest: digest.clone(), size: info.size }))
        }
        Ok(_) | Err(content::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends the ingest and adds the blob to the namespace and to the lease, in one transaction that stands even where the
/// blob is there already.
fn record_blob(
    inner: &Inner,
    scope: &Scope,
    reference: &str,
    digest: &Digest,
    size: u64,
    labels: Labels,
) -> Result<(), Error> {
    let namespace = scope.namespace.as_str();
    let new = inner.write(Durability::OnDisk, |tx| {
        tx.delete(&Table::Ingest.key(namespace, reference));
        tx.unlease(scope, "ingests", reference);
        tx.lease(scope, "content", digest.as_str())?;
        if find(tx, &scope.namespace, digest)?.is_some() {
            return Ok(false);
        }
        let info = BlobInfo { digest: digest.clone(), size, created_at: tx.now, updated_at: tx.now, labels };
        tx.touch_namespace(&scope.namespace)?;
        tx.put_record(&key(&scope.namespace, digest), &BlobRecord::new(&info))?;
        tx.event(namespace, "/content/create", payload::content_create(digest.as_str(), size));
        Ok(true)
    })?;
    if new { Ok(()) } else { Err(Error::ContentExists(digest.as_str().to_owned())) }
}

fn copy_blob(inner: &Inner, digest: &Digest, ingest: &mut Ingest) -> Result<(), Error> {
    let blob = inner.content.reader(digest)?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let count = blob.read_at(&mut buffer, offset).map_err(|source| content::Error::Io {
            operation: "read blob",
            path: digest.as_str().into(),
            source,
        })?;
        if count == 0 {
            return Ok(());
        }
        ingest.write(&buffer[..count])?;
        offset += count as u64;
    }
}
