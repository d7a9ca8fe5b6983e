//! The objects of the metadata, as callers see them. How they are stored is in `encoding`.

use std::collections::BTreeMap;

use model::{Any, Digest, Labels, Namespace, Timestamp};

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The namespace of every name in the request.
    pub namespace: Namespace,
    /// The lease that what the request adds is put into. A write that adds something fails with NOT_FOUND when there is
    /// no such lease; reads ignore it.
    pub lease: Option<String>,
}

impl Scope {
    /// A request without a lease.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }
}

/// What is needed to make a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its id, an identifier.
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// Name of an image; nothing is looked up.
    pub image: String,
    /// Name of the runtime.
    pub runtime: String,
    /// Options for the runtime.
    pub runtime_options: Option<Any>,
    /// The specification, kept byte for byte.
    pub spec: Option<Any>,
    /// Snapshotter of `snapshot_key`.
    pub snapshotter: String,
    /// The snapshot that is its root file system; the container protects it from collection.
    pub snapshot_key: String,
    /// When it was created. Ignored on input.
    pub created_at: Timestamp,
    /// When it last changed. Ignored on input.
    pub updated_at: Timestamp,
    /// Data of clients, kept byte for byte.
    pub extensions: BTreeMap<String, Any>,
    /// Sandbox that it belongs to; not looked up.
    pub sandbox_id: String,
}

/// What several containers share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id, an identifier.
    pub id: String,
    /// Its labels; those of garbage collection keep what they name.
    pub labels: Labels,
    /// Name of the runtime.
    pub runtime: String,
    /// Options for the runtime.
    pub runtime_options: Option<Any>,
    /// The specification, kept byte for byte.
    pub spec: Option<Any>,
    /// Name of the controller that runs it; not looked up.
    pub sandboxer: String,
    /// When it was created. Ignored on input.
    pub created_at: Timestamp,
    /// When it last changed. Ignored on input.
    pub updated_at: Timestamp,
    /// Data of clients, kept byte for byte.
    pub extensions: BTreeMap<String, Any>,
}

/// A name for a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Any text.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// What it names.
    pub target: Descriptor,
    /// When it was created. Ignored on input.
    pub created_at: Timestamp,
    /// When it last changed. Ignored on input.
    pub updated_at: Timestamp,
}

/// A blob with its type (image-spec, descriptor).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest; checked where it is stored.
    pub digest: String,
    /// Size in bytes.
    pub size: i64,
    /// Annotations.
    pub annotations: Labels,
}

/// A blob as one namespace sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it came into this namespace.
    pub created_at: Timestamp,
    /// When its labels last changed.
    pub updated_at: Timestamp,
    /// Its labels in this namespace.
    pub labels: Labels,
}

/// Where an unfinished blob stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// The client's name for it.
    pub reference: String,
    /// Bytes so far.
    pub offset: u64,
    /// Bytes there will be; 0 for unknown.
    pub total: u64,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it last grew.
    pub updated_at: Timestamp,
}

/// What keeps objects from being collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Any text.
    pub id: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its labels; `containerd.io/gc.expire` ends it, `containerd.io/gc.flat` makes it flat.
    pub labels: Labels,
}

/// A member of a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `content`, `images`, `ingests` or `snapshots/<snapshotter>`.
    pub kind: String,
    /// Digest, name, reference or key.
    pub id: String,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}
