use std::sync::Arc;

use content::{Blob, ContentStore};
use model::filter::Filters;
use model::{Digest, Labels, Namespace};
use store::{Durability, View};

use crate::db::{Inner, clean_labels, mask_map, rows};
use crate::encoding::{BlobRecord, IngestRecord, decode};
use crate::guard::Held;
use crate::keys::Table;
use crate::writer::{self, Writer, WriterOptions};
use crate::{BlobInfo, Error, IngestStatus, Scope, payload};

/// The blobs and ingests of all namespaces.
///
/// A namespace sees only what it has a record of. Bytes are shared: a blob that any namespace has need not be written
/// again ([`Content::open_writer`]).
#[derive(Clone, Copy, Debug)]
pub struct Content<'a>(&'a Arc<Inner>);

impl<'a> Content<'a> {
    pub(crate) fn new(inner: &'a Arc<Inner>) -> Self {
        Self(inner)
    }

    /// The blob store itself, for readers of what a namespace was found to have.
    pub fn store(&self) -> &'a ContentStore {
        &self.0.content
    }

    /// One blob. NOT_FOUND if the namespace does not have it.
    pub fn info(&self, namespace: &Namespace, digest: &Digest) -> Result<BlobInfo, Error> {
        let found = self.0.store.read(|view| find(view, namespace, digest))?;
        found.ok_or_else(|| missing(digest))
    }

    /// Those that match, in order of their digests. Fields: `digest`, `labels.*`.
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<BlobInfo>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Blob, namespace.as_str(), |digest, value| {
                let record = decode::<BlobRecord>("content", digest, value)?;
                // Only digests are ever put there.
                let Ok(digest) = digest.parse::<Digest>() else { return Ok(()) };
                let info = record.info(digest);
                if filters.matches(|path| field(&info, path)) {
                    found.push(info);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Changes the labels that `mask` names: `labels` or `labels.<key>`; an empty mask replaces all.
    pub fn update(&self, scope: &Scope, digest: &Digest, labels: &Labels, mask: &[String]) -> Result<BlobInfo, Error> {
        self.0.write(Durability::OnDisk, |tx| {
            let mut info = find(tx, &scope.namespace, digest)?.ok_or_else(|| missing(digest))?;
            if mask.is_empty() {
                info.labels.clone_from(labels);
            }
            for path in mask {
                if !mask_map(path, "labels", &mut info.labels, labels) {
                    return Err(Error::Mask { path: path.clone(), subject: format!("content info {digest}") });
                }
            }
            clean_labels("info", &mut info.labels)?;
            info.updated_at = tx.now;
            tx.put_record(&key(&scope.namespace, digest), &BlobRecord::new(&info))?;
            Ok(info)
        })
    }

    /// Takes a blob from the namespace; its bytes go when no namespace has it.
    pub fn delete(&self, scope: &Scope, digest: &Digest) -> Result<(), Error> {
        let key = key(&scope.namespace, digest);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_none() {
                return Err(missing(digest));
            }
            tx.delete(&key);
            tx.unlease(scope, "content", digest.as_str());
            tx.event(scope.namespace.as_str(), "/content/delete", payload::content_delete(digest.as_str()));
            Ok(())
        })?;
        self.0.gc.remove_blob(digest.clone());
        Ok(())
    }

    /// Opens a blob for reading; it stays readable after its deletion.
    pub fn reader(&self, namespace: &Namespace, digest: &Digest) -> Result<Blob, Error> {
        self.info(namespace, digest)?;
        Ok(self.0.content.reader(digest)?)
    }

    /// Where an ingest stands. NOT_FOUND if the namespace does not have it.
    pub fn status(&self, namespace: &Namespace, reference: &str) -> Result<IngestStatus, Error> {
        if self.0.store.read(|view| view.get(&Table::Ingest.key(namespace.as_str(), reference)))?.is_none() {
            return Err(Error::NoStatus(reference.to_owned()));
        }
        match self.0.content.status(&writer::backend_key(namespace, reference)) {
            Ok(status) => Ok(ingest_status(reference, &status)),
            Err(content::Error::NoIngest(_)) => Err(Error::NoStatus(reference.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// Where all ingests of the namespace stand that match, in order of their references. Field: `ref`.
    pub fn statuses(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<IngestStatus>, Error> {
        let references = self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Ingest, namespace.as_str(), |reference, _| {
                if filters.matches(|path| (path == ["ref"]).then_some(reference)) {
                    found.push(reference.to_owned());
                }
                Ok(())
            })?;
            Ok::<_, Error>(found)
        })?;
        let mut statuses = Vec::with_capacity(references.len());
        for reference in references {
            match self.0.content.status(&writer::backend_key(namespace, &reference)) {
                Ok(status) => statuses.push(ingest_status(&reference, &status)),
                // Committed or aborted since, or not written to yet because its bytes are here already.
                Err(content::Error::NoIngest(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(statuses)
    }

    /// Gives an ingest up, with its bytes, whether a writer has it open or not.
    pub fn abort(&self, scope: &Scope, reference: &str) -> Result<(), Error> {
        let key = Table::Ingest.key(scope.namespace.as_str(), reference);
        let record = self.0.write(Durability::Ordered, |tx| {
            let stored = tx.get(&key)?.ok_or_else(|| Error::NoIngest(reference.to_owned()))?;
            tx.delete(&key);
            tx.unlease(scope, "ingests", reference);
            decode::<IngestRecord>("ingest", reference, &stored)
        })?;
        if let Ok(expected) = record.expected.parse() {
            // Only this may have kept the bytes that it was to share.
            self.0.gc.remove_blob(expected);
        }
        ignore_missing(self.0.content.abort(&writer::backend_key(&scope.namespace, reference)))
    }

    /// Opens an ingest for writing, or makes it; what an earlier writer left is continued.
    ///
    /// If the namespace has the expected blob, that is put into the request's lease and ALREADY_EXISTS is returned. If
    /// another namespace has it (and the total does not contradict), the writer is complete from the start and its
    /// commit only makes a record. Otherwise this is an ordinary ingest: in the request's lease, or expiring after 24
    /// hours. UNAVAILABLE while another writer has it.
    pub fn open_writer(&self, scope: &Scope, options: &WriterOptions<'_>) -> Result<Writer, Error> {
        Writer::open(self.0, scope, options)
    }
}

pub(crate) fn key(namespace: &Namespace, digest: &Digest) -> Vec<u8> {
    Table::Blob.key(namespace.as_str(), digest.as_str())
}

pub(crate) fn find(view: &View, namespace: &Namespace, digest: &Digest) -> Result<Option<BlobInfo>, Error> {
    let Some(stored) = view.get(&key(namespace, digest))? else { return Ok(None) };
    Ok(Some(decode::<BlobRecord>("content", digest.as_str(), &stored)?.info(digest.clone())))
}

pub(crate) fn ignore_missing(result: Result<(), content::Error>) -> Result<(), Error> {
    match result {
        Err(content::Error::NoIngest(_)) => Ok(()),
        other => Ok(other?),
    }
}

/// What a blob is held by while a request depends on its bytes.
pub(crate) fn held(digest: &Digest) -> Held {
    Held::Blob(digest.as_str().to_owned())
}

fn missing(digest: &Digest) -> Error {
    Error::NoContent(digest.as_str().to_owned())
}

fn ingest_status(reference: &str, status: &content::Status) -> IngestStatus {
    IngestStatus {
        reference: reference.to_owned(),
        offset: status.offset,
        total: status.total,
        started_at: status.started_at,
        updated_at: status.updated_at,
    }
}

fn field(info: &BlobInfo, path: &[&str]) -> Option<String> {
    match path {
        ["digest"] => Some(info.digest.as_str().to_owned()),
        ["labels", rest @ ..] => model::filter::label(&info.labels, rest).map(str::to_owned),
        _ => None,
    }
}
