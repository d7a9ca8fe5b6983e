//! Records on `store`: namespaces, containers, images, content, snapshots and leases, what refers to what, and the
//! collection of what nothing refers to.
//!
//! ```text
//! services ──▶ Metadata ─┬─ containers() images() leases() namespaces()   records only
//!                        ├─ content()    records + blob store             Writer: open … commit
//!                        ├─ snapshots()  records + snapshotters
//!                        └─ collect_and_wait(), and a thread that does it after deletions
//!                  each mutation: one transaction = records + outbox ──▶ event journal
//! ```
//!
//! All calls block: asynchronous callers make them from a blocking thread.
//!
//! **Invariant:** a record is what makes an object exist. Bytes and directories without a record are garbage, which is
//! removed sooner or later; they are removed only when no record of any namespace refers to them and no request in
//! flight does. Events are published if and only if their transaction was committed, in commit order.
//!
//! Labels with the prefixes `containerd.io/` and `io.cri-containerd` steer this crate, garbage collection above all.
//! Clients may set them; whoever copies labels from an image must leave them out.

mod containers;
mod content;
mod db;
mod encoding;
mod error;
mod gc;
mod guard;
mod images;
mod keys;
mod leases;
mod namespaces;
mod outbox;
mod payload;
mod sandboxes;
mod snapshots;
mod types;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use containers::Containers;
pub use content::Content;
pub use error::Error;
pub use gc::{Collectible, Member};
pub use images::Images;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use sandboxes::Sandboxes;
pub use snapshots::{NewSnapshot, SnapshotCommit, Snapshots};
pub use types::{BlobInfo, Container, Descriptor, Image, IngestStatus, Lease, NamespaceInfo, Resource, Sandbox, Scope};
pub use writer::{Writer, WriterOptions};

use ::content::ContentStore;
use ::snapshots::Driver;

/// The metadata of one daemon; cloning it is cheap. When the last clone is dropped, the collector's thread ends.
#[derive(Clone, Debug)]
pub struct Metadata {
    worker: Arc<gc::Worker>,
}

impl Metadata {
    /// Joins the database, the blob store, the snapshotters' drivers and the journal; publishes events whose
    /// transaction was committed by a process that did not live to publish them; starts the collector, whose first run
    /// also removes bytes and directories that no record mentions.
    pub fn open(
        store: store::Store,
        content: ContentStore,
        drivers: Vec<Arc<dyn Driver>>,
        journal: events::Journal,
    ) -> Result<Self, Error> {
        let inner = Arc::new(db::Inner::open(store, content, drivers, journal)?);
        Ok(Self { worker: Arc::new(gc::Worker::start(inner)?) })
    }

    fn inner(&self) -> &Arc<db::Inner> {
        self.worker.inner()
    }

    /// Namespaces and their labels.
    pub fn namespaces(&self) -> Namespaces<'_> {
        Namespaces::new(self.inner())
    }

    /// Containers.
    pub fn containers(&self) -> Containers<'_> {
        Containers::new(self.inner())
    }

    /// Images.
    pub fn images(&self) -> Images<'_> {
        Images::new(self.inner())
    }

    /// Leases.
    pub fn leases(&self) -> Leases<'_> {
        Leases::new(self.inner())
    }

    /// Records of sandboxes.
    pub fn sandboxes(&self) -> Sandboxes<'_> {
        Sandboxes::new(self.inner())
    }

    /// Blobs and ingests.
    pub fn content(&self) -> Content<'_> {
        Content::new(self.inner())
    }

    /// Snapshots.
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots::new(self.inner())
    }

    /// Names of the snapshotters, in order.
    pub fn snapshotters(&self) -> Vec<String> {
        self.inner().snapshotters.keys().cloned().collect()
    }

    /// From now on the collector asks `keeper` as well what is there, and tells it what can go.
    pub fn keep(&self, keeper: Arc<dyn Collectible>) {
        self.inner().outside.register(keeper);
    }

    /// Waits for a garbage collection that began after this call: what it could remove has been removed, bytes and
    /// directories included, when this returns. For deletions that ask to be synchronous.
    pub fn collect_and_wait(&self) -> Result<(), Error> {
        self.inner().collect_and_wait()
    }
}
