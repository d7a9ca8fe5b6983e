//! Records as they stand in the store: protobuf messages of our own, so that a field can be added and an old record
//! still reads. They are no wire format; nobody else reads them.
//!
//! **Invariant:** a tag keeps its meaning for ever. A change that older programs would misread raises
//! [`SCHEMA`](crate::keys::SCHEMA_VERSION).

use std::collections::BTreeMap;

use model::{Any, Digest, Labels, Timestamp};
use prost::Message;

use crate::{BlobInfo, Container, Descriptor, Error, Image, Lease, Sandbox};

/// A point in time.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Time {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos }
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        Self { seconds: time.seconds, nanos: time.nanos }
    }
}

fn time(stored: Option<Time>) -> Timestamp {
    stored.map_or(Timestamp::ZERO, Timestamp::from)
}

/// A typed blob.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyRecord {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl From<&Any> for AnyRecord {
    fn from(any: &Any) -> Self {
        Self { type_url: any.type_url.clone(), value: any.value.clone() }
    }
}

impl From<AnyRecord> for Any {
    fn from(any: AnyRecord) -> Self {
        Self { type_url: any.type_url, value: any.value }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(message, optional, tag = "1")]
    created_at: Option<Time>,
    #[prost(message, optional, tag = "2")]
    updated_at: Option<Time>,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: Labels,
    #[prost(string, tag = "4")]
    image: String,
    #[prost(string, tag = "5")]
    runtime: String,
    #[prost(message, optional, tag = "6")]
    runtime_options: Option<AnyRecord>,
    #[prost(message, optional, tag = "7")]
    spec: Option<AnyRecord>,
    #[prost(string, tag = "8")]
    snapshotter: String,
    #[prost(string, tag = "9")]
    snapshot_key: String,
    #[prost(btree_map = "string, message", tag = "10")]
    extensions: BTreeMap<String, AnyRecord>,
    #[prost(string, tag = "11")]
    sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxRecord {
    #[prost(message, optional, tag = "1")]
    created_at: Option<Time>,
    #[prost(message, optional, tag = "2")]
    updated_at: Option<Time>,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: Labels,
    #[prost(string, tag = "4")]
    sandboxer: String,
    #[prost(string, tag = "5")]
    runtime: String,
    #[prost(message, optional, tag = "6")]
    runtime_options: Option<AnyRecord>,
    #[prost(message, optional, tag = "7")]
    spec: Option<AnyRecord>,
    #[prost(btree_map = "string, message", tag = "8")]
    extensions: BTreeMap<String, AnyRecord>,
}

/// What the collector needs of a [`SandboxRecord`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxEdges {
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
}

/// What the collector needs of a [`ContainerRecord`]: the specification is skipped, not copied.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerEdges {
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "8")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "9")]
    pub(crate) snapshot_key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageRecord {
    #[prost(message, optional, tag = "1")]
    created_at: Option<Time>,
    #[prost(message, optional, tag = "2")]
    updated_at: Option<Time>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "4")]
    media_type: String,
    #[prost(string, tag = "5")]
    pub(crate) digest: String,
    #[prost(int64, tag = "6")]
    size: i64,
    #[prost(btree_map = "string, string", tag = "7")]
    annotations: Labels,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct BlobRecord {
    #[prost(message, optional, tag = "1")]
    created_at: Option<Time>,
    #[prost(message, optional, tag = "2")]
    updated_at: Option<Time>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
    #[prost(uint64, tag = "4")]
    size: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct IngestRecord {
    /// Until then it is kept without a lease.
    #[prost(message, optional, tag = "1")]
    pub(crate) expire_at: Option<Time>,
    /// The blob that it only refers to, because its bytes are here already; empty for a real one.
    #[prost(string, tag = "2")]
    pub(crate) expected: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseRecord {
    #[prost(message, optional, tag = "1")]
    created_at: Option<Time>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: Labels,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NamespaceRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
}

/// An event between its commit and its publication.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EventRecord {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Time>,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(message, optional, tag = "4")]
    event: Option<AnyRecord>,
}

/// Decodes a stored record. `name` is for the error.
pub(crate) fn decode<M: Message + Default>(kind: &'static str, name: &str, bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|source| Error::Damaged { kind, name: name.to_owned(), source })
}

impl ContainerRecord {
    pub(crate) fn new(container: &Container) -> Self {
        Self {
            created_at: Some(container.created_at.into()),
            updated_at: Some(container.updated_at.into()),
            labels: container.labels.clone(),
            image: container.image.clone(),
            runtime: container.runtime.clone(),
            runtime_options: container.runtime_options.as_ref().map(AnyRecord::from),
            spec: container.spec.as_ref().map(AnyRecord::from),
            snapshotter: container.snapshotter.clone(),
            snapshot_key: container.snapshot_key.clone(),
            extensions: container.extensions.iter().map(|(name, any)| (name.clone(), any.into())).collect(),
            sandbox_id: container.sandbox_id.clone(),
        }
    }

    pub(crate) fn container(self, id: &str) -> Container {
        Container {
            id: id.to_owned(),
            labels: self.labels,
            image: self.image,
            runtime: self.runtime,
            runtime_options: self.runtime_options.map(Any::from),
            spec: self.spec.map(Any::from),
            snapshotter: self.snapshotter,
            snapshot_key: self.snapshot_key,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            extensions: self.extensions.into_iter().map(|(name, any)| (name, any.into())).collect(),
            sandbox_id: self.sandbox_id,
        }
    }
}

impl SandboxRecord {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self {
            created_at: Some(sandbox.created_at.into()),
            updated_at: Some(sandbox.updated_at.into()),
            labels: sandbox.labels.clone(),
            sandboxer: sandbox.sandboxer.clone(),
            runtime: sandbox.runtime.clone(),
            runtime_options: sandbox.runtime_options.as_ref().map(AnyRecord::from),
            spec: sandbox.spec.as_ref().map(AnyRecord::from),
            extensions: sandbox.extensions.iter().map(|(name, any)| (name.clone(), any.into())).collect(),
        }
    }

    pub(crate) fn sandbox(self, id: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            labels: self.labels,
            runtime: self.runtime,
            runtime_options: self.runtime_options.map(Any::from),
            spec: self.spec.map(Any::from),
            sandboxer: self.sandboxer,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            extensions: self.extensions.into_iter().map(|(name, any)| (name, any.into())).collect(),
        }
    }
}

impl ImageRecord {
    pub(crate) fn new(image: &Image) -> Self {
        Self {
            created_at: Some(image.created_at.into()),
            updated_at: Some(image.updated_at.into()),
            labels: image.labels.clone(),
            media_type: image.target.media_type.clone(),
            digest: image.target.digest.clone(),
            size: image.target.size,
            annotations: image.target.annotations.clone(),
        }
    }

    pub(crate) fn image(self, name: &str) -> Image {
        Image {
            name: name.to_owned(),
            labels: self.labels,
            target: Descriptor {
                media_type: self.media_type,
                digest: self.digest,
                size: self.size,
                annotations: self.annotations,
            },
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
        }
    }
}

impl BlobRecord {
    pub(crate) fn new(info: &BlobInfo) -> Self {
        Self {
            created_at: Some(info.created_at.into()),
            updated_at: Some(info.updated_at.into()),
            labels: info.labels.clone(),
            size: info.size,
        }
    }

    pub(crate) fn info(self, digest: Digest) -> BlobInfo {
        BlobInfo {
            digest,
            size: self.size,
            created_at: time(self.created_at),
            updated_at: time(self.updated_at),
            labels: self.labels,
        }
    }
}

impl LeaseRecord {
    pub(crate) fn new(lease: &Lease) -> Self {
        Self { created_at: Some(lease.created_at.into()), labels: lease.labels.clone() }
    }

    pub(crate) fn lease(self, id: &str) -> Lease {
        Lease { id: id.to_owned(), created_at: time(self.created_at), labels: self.labels }
    }
}

impl EventRecord {
    pub(crate) fn new(envelope: &events::Envelope) -> Self {
        Self {
            timestamp: Some(envelope.timestamp.into()),
            namespace: envelope.namespace.clone(),
            topic: envelope.topic.clone(),
            event: Some((&envelope.event).into()),
        }
    }

    pub(crate) fn envelope(self) -> events::Envelope {
        events::Envelope {
            timestamp: time(self.timestamp),
            namespace: self.namespace,
            topic: self.topic,
            event: self.event.map(Any::from).unwrap_or_default(),
        }
    }
}
