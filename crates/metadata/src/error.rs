use model::{Code, Coded, DigestError, IdentifierError, LabelError};

/// Why a request to the metadata failed. The texts are those that containerd's clients know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A record may not be as it is wanted.
    #[error("{operation} failed validation")]
    Invalid {
        /// What was to be done, in containerd's words.
        operation: &'static str,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// A name that must be an identifier is none.
    #[error("{field}")]
    Identifier {
        /// Which one.
        field: &'static str,
        /// Why.
        #[source]
        source: IdentifierError,
    },
    /// A label is too long.
    #[error("{object}.Labels")]
    Label {
        /// Of what.
        object: &'static str,
        /// Which one.
        #[source]
        source: LabelError,
    },
    /// A digest is none.
    #[error("{field}")]
    Digest {
        /// Which one.
        field: &'static str,
        /// Why.
        #[source]
        source: DigestError,
    },
    /// A field that every such object has is missing.
    #[error("{0} must be set")]
    Required(&'static str),
    /// A name or key is longer than the store takes.
    #[error("{field} of {bytes} bytes is longer than {max} bytes")]
    TooLong {
        /// Which one.
        field: &'static str,
        /// Its length.
        bytes: usize,
        /// Longest one.
        max: usize,
    },
    /// A number that must be greater than zero.
    #[error("target.Size must be greater than zero")]
    TargetSize,
    /// An update tried to change what cannot change.
    #[error("{0} field is immutable")]
    Immutable(&'static str),
    /// A field mask names something that cannot be updated.
    #[error("cannot update {path:?} field on {subject}")]
    Mask {
        /// The path in the mask.
        path: String,
        /// What was to be updated.
        subject: String,
    },
    /// No such container.
    #[error("container {id:?} in namespace {namespace:?}")]
    NoContainer {
        /// Its id.
        id: String,
        /// The namespace.
        namespace: String,
    },
    /// The container's id is taken.
    #[error("container {0:?}")]
    ContainerExists(String),
    /// No such sandbox.
    #[error("sandbox {id:?} in namespace {namespace:?}")]
    NoSandbox {
        /// Its id.
        id: String,
        /// The namespace.
        namespace: String,
    },
    /// The sandbox's id is taken.
    #[error("sandbox {0:?}")]
    SandboxExists(String),
    /// No such image.
    #[error("image {0:?}")]
    NoImage(String),
    /// The image's name is taken.
    #[error("image {0:?}")]
    ImageExists(String),
    /// The image has another target than its deletion expects.
    #[error("image {name:?} has target {have}, not {want}")]
    ImageTarget {
        /// Its name.
        name: String,
        /// Digest of its target.
        have: String,
        /// Digest that was expected.
        want: String,
    },
    /// No such blob in this namespace.
    #[error("content digest {0}")]
    NoContent(String),
    /// The blob is in this namespace already.
    #[error("content {0}")]
    ContentExists(String),
    /// No such ingest in this namespace.
    #[error("reference {0}")]
    NoIngest(String),
    /// No such ingest whose status could be told.
    #[error("could not get status for ref {0:?}: reference {0}")]
    NoStatus(String),
    /// A commit named another size than was written.
    #[error("{reference:?} failed size validation: {have} != {want}")]
    CommitSize {
        /// The ingest.
        reference: String,
        /// Bytes written.
        have: u64,
        /// Bytes named.
        want: u64,
    },
    /// A commit named another digest than the bytes have.
    #[error("unexpected commit digest {have}, expected {want}")]
    CommitDigest {
        /// Digest of the bytes.
        have: String,
        /// Digest named.
        want: String,
    },
    /// No such lease.
    #[error("lease {0:?}")]
    NoLease(String),
    /// The lease that a request names does not exist.
    #[error("lease does not exist")]
    NoScopeLease,
    /// The lease's id is taken.
    #[error("lease {0:?}")]
    LeaseExists(String),
    /// A lease holds no such things.
    #[error("resource type {0} not supported yet")]
    ResourceKind(String),
    /// The type of a lease's resource has the wrong form.
    #[error("invalid resource type {0}")]
    ResourceForm(String),
    /// No such namespace.
    #[error("namespace {0:?}")]
    NoNamespace(String),
    /// The namespace exists already.
    #[error("namespace {0:?}")]
    NamespaceExists(String),
    /// The namespace holds objects.
    #[error("namespace {name:?} must be empty, but it still has {holds}")]
    NamespaceInUse {
        /// Its name.
        name: String,
        /// What it holds.
        holds: String,
    },
    /// The request names no snapshotter.
    #[error("snapshotter argument missing")]
    SnapshotterMissing,
    /// We have no such snapshotter.
    #[error("snapshotter not loaded: {0}")]
    NoSnapshotter(String),
    /// The snapshot's key or name is taken.
    #[error("snapshot {0:?}")]
    SnapshotExists(String),
    /// The committed snapshot that the request works towards exists already.
    #[error("target snapshot {0:?}")]
    TargetExists(String),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] snapshots::Error),
    /// A blob or ingest.
    #[error(transparent)]
    Content(#[from] content::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The event journal.
    #[error(transparent)]
    Events(#[from] events::Error),
    /// A record cannot be decoded.
    #[error("{kind} record {name:?} is damaged")]
    Damaged {
        /// What it is.
        kind: &'static str,
        /// Whose it is.
        name: String,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
    /// The database was written by a newer gantry.
    #[error("the metadata has schema version {have}, this program knows {known}: use a newer one")]
    Schema {
        /// Version found.
        have: u64,
        /// Newest known version.
        known: u64,
    },
    /// The kernel gave no random bytes.
    #[error("make a lease id")]
    Random(#[source] std::io::Error),
    /// The thread that collects garbage could not be started.
    #[error("start the garbage collector")]
    Thread(#[source] std::io::Error),
    /// A garbage collection that a request waited for has failed.
    #[error("gc failed: {0}")]
    Collect(String),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { source, .. } => source.code(),
            Self::Identifier { .. }
            | Self::Label { .. }
            | Self::Digest { .. }
            | Self::Required(_)
            | Self::TooLong { .. }
            | Self::TargetSize
            | Self::Immutable(_)
            | Self::Mask { .. }
            | Self::ResourceForm(_)
            | Self::SnapshotterMissing
            | Self::NoSnapshotter(_) => Code::InvalidArgument,
            Self::NoContainer { .. }
            | Self::NoSandbox { .. }
            | Self::NoImage(_)
            | Self::ImageTarget { .. }
            | Self::NoContent(_)
            | Self::NoIngest(_)
            | Self::NoStatus(_)
            | Self::NoLease(_)
            | Self::NoScopeLease
            | Self::NoNamespace(_) => Code::NotFound,
            Self::ContainerExists(_)
            | Self::SandboxExists(_)
            | Self::ImageExists(_)
            | Self::ContentExists(_)
            | Self::LeaseExists(_)
            | Self::NamespaceExists(_)
            | Self::SnapshotExists(_)
            | Self::TargetExists(_) => Code::AlreadyExists,
            Self::CommitSize { .. } | Self::CommitDigest { .. } | Self::NamespaceInUse { .. } | Self::Schema { .. } => {
                Code::FailedPrecondition
            }
            Self::ResourceKind(_) => Code::Unimplemented,
            Self::Snapshot(source) => source.code(),
            Self::Content(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Events(source) => source.code(),
            Self::Damaged { .. } => Code::DataLoss,
            Self::Random(_) | Self::Thread(_) => Code::Internal,
            Self::Collect(_) => Code::Unknown,
        }
    }
}
