//! What every pipeline does with the metadata: a lease for its time, blobs in and out.

use std::fmt;
use std::io::Read;

use ::metadata::{BlobInfo, Metadata, Scope, WriterOptions};
use content::Blob;
use model::{Code, Coded as _, Digest, Labels, Timestamp};

use crate::document::DOCUMENT_BYTES_MAX;
use crate::{Descriptor, Error, Progress};

/// Ends a lease that the transfer's own death would leave behind.
const LEASE_SECONDS: i64 = 24 * 60 * 60;
/// Bytes on their way into an ingest.
const BUFFER_BYTES: usize = 256 << 10;

/// How it went to write a blob.
enum Refused<F> {
    /// The ingest was ours.
    Opened(Result<(Digest, u64), Error>),
    /// Somebody else has it; nothing was done.
    Locked(Error, F),
}

/// One transfer: whose it is, and who is told how far it is.
pub struct Session {
    pub(crate) metadata: Metadata,
    pub(crate) scope: Scope,
    progress: Box<dyn FnMut(Progress<'_>)>,
    /// The lease that is ours, if the caller had none.
    own_lease: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("scope", &self.scope)
            .field("own_lease", &self.own_lease)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(lease) = self.scope.lease.as_ref().filter(|_| self.own_lease) {
            // It expires by itself where this fails.
            let _ = self.metadata.leases().delete(&self.scope.namespace, lease);
        }
    }
}

impl Session {
    /// Begins a transfer. What it makes is in the caller's lease, or in one of its own that ends with it.
    pub fn begin(
        metadata: &Metadata,
        mut scope: Scope,
        progress: impl FnMut(Progress<'_>) + 'static,
    ) -> Result<Self, Error> {
        let own_lease = scope.lease.is_none();
        if own_lease {
            let end = crate::time::rfc3339(Timestamp::now().seconds + LEASE_SECONDS);
            let labels = Labels::from([("containerd.io/gc.expire".to_owned(), end)]);
            scope.lease = Some(metadata.leases().create(&scope.namespace, "", labels)?.id);
        }
        Ok(Self { metadata: metadata.clone(), scope, progress: Box::new(progress), own_lease })
    }

    /// Begins something small: what it makes is in the caller's lease, or in none, and nobody is told of it.
    pub fn plain(metadata: &Metadata, scope: Scope) -> Self {
        Self { metadata: metadata.clone(), scope, progress: Box::new(|_| {}), own_lease: false }
    }

    pub(crate) fn tell(&mut self, event: &str, name: &str, descriptor: Option<&Descriptor>) {
        (self.progress)(Progress { event, name, descriptor });
    }

    /// A document that is in the store. INVALID_ARGUMENT if it is too long to be one, NOT_FOUND if it is not there.
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let digest = descriptor.checked()?;
        let blob = self.metadata.content().reader(&self.scope.namespace, &digest)?;
        if blob.size() > DOCUMENT_BYTES_MAX {
            return Err(Error::Limit { what: "bytes of a document", limit: DOCUMENT_BYTES_MAX });
        }
        let mut bytes = Vec::new();
        let read = blob.into_reader(0).read_to_end(&mut bytes);
        read.map_err(|source| Error::ReadBlob { digest: digest.as_str().to_owned(), source })?;
        Ok(bytes)
    }

    pub(crate) fn info(&self, digest: &Digest) -> Result<BlobInfo, Error> {
        Ok(self.metadata.content().info(&self.scope.namespace, digest)?)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        Ok(self.metadata.content().reader(&self.scope.namespace, digest)?)
    }

    /// Writes labels over those of a blob.
    pub(crate) fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), Error> {
        let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        if !mask.is_empty() {
            self.metadata.content().update(&self.scope, digest, labels, &mask)?;
        }
        Ok(())
    }

    /// Makes a blob of what `fill` writes, by the ingest `reference`, and returns its digest and size; that the namespace
    /// has it already is no error. If anything fails, no ingest stays behind.
    pub(crate) fn write_blob(
        &self,
        reference: &str,
        total: u64,
        labels: Labels,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(Digest, u64), Error> {
        match self.write_as(reference, total, labels.clone(), fill) {
            Refused::Opened(result) => result,
            // Another transfer writes something of the same name, which need not be the same thing.
            Refused::Locked(_, fill) => {
                let name = format!("{reference}-{}", self.scope.lease.as_deref().unwrap_or_default());
                match self.write_as(&name, total, labels, fill) {
                    Refused::Opened(result) => result,
                    Refused::Locked(error, _) => Err(error),
                }
            }
        }
    }

    /// As [`Session::write_blob`], by this reference and no other: UNAVAILABLE while somebody else has it.
    pub(crate) fn write_exactly(
        &self,
        reference: &str,
        labels: Labels,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(Digest, u64), Error> {
        match self.write_as(reference, 0, labels, fill) {
            Refused::Opened(result) => result,
            Refused::Locked(error, _) => Err(error),
        }
    }

    fn write_as<F>(&self, reference: &str, total: u64, labels: Labels, fill: F) -> Refused<F>
    where
        F: FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
    {
        let content = self.metadata.content();
        let mut writer = match content.open_writer(&self.scope, &WriterOptions { reference, expected: None, total }) {
            Ok(writer) => writer,
            Err(error) if error.code() == Code::Unavailable => return Refused::Locked(error.into(), fill),
            Err(error) => return Refused::Opened(Err(error.into())),
        };
        let written = (|| {
            if writer.offset() > 0 {
                writer.truncate()?;
            }
            fill(&mut |bytes| Ok(writer.write(bytes)?))?;
            let (digest, size) = (writer.digest(), writer.offset());
            match writer.commit(0, None, labels) {
                Ok(_) => Ok((digest, size)),
                Err(error) if error.code() == Code::AlreadyExists => Ok((digest, size)),
                Err(error) => Err(error.into()),
            }
        })();
        if written.is_err() {
            let _ = content.abort(&self.scope, reference);
        }
        Refused::Opened(written)
    }

    /// As [`Session::write_blob`], for all that `reader` has.
    pub(crate) fn copy_blob(
        &self,
        reference: &str,
        total: u64,
        labels: Labels,
        mut reader: impl Read,
    ) -> Result<(Digest, u64), Error> {
        self.write_blob(reference, total, labels, |write| {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => write(&buffer[..count])?,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        return Err(archive::Error::Truncated.into());
                    }
                    Err(error) => return Err(Error::ReadStream(error)),
                }
            }
        })
    }
}
