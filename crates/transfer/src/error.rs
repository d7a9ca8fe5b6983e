use std::io;

use model::{Code, Coded, Digest};

/// What can go wrong in a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request has no mounts to write to.
    #[error("no mounts to apply the layer to")]
    NoMounts,
    /// A mount lacks what its type needs, or contradicts itself.
    #[error("mount of type {kind:?} cannot be used: {reason}")]
    BadMount {
        /// Its type.
        kind: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The mounts are read-only.
    #[error("mounts are read-only")]
    ReadOnly,
    /// The mounts would have to be made to be written to.
    #[error("no layer is made of or applied to {0}")]
    Unsupported(String),
    /// The layer cannot be decompressed or written.
    #[error("apply layer")]
    Archive(#[from] archive::Error),
    /// A mount cannot be made.
    #[error(transparent)]
    Mount(#[from] ::mount::Error),
    /// The directory of a bind mount cannot be opened.
    #[error("open {path}")]
    OpenTree {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was written cannot be brought to disk.
    #[error("flush the mounted file system")]
    Flush(#[source] io::Error),
    /// The metadata refused.
    #[error(transparent)]
    Metadata(#[from] ::metadata::Error),
    /// A digest in a document is none.
    #[error("digest in a document")]
    Digest(#[source] model::DigestError),
    /// A filter that we made does not parse.
    #[error(transparent)]
    Filter(model::filter::ParseError),
    /// The client's stream cannot be read.
    #[error("read stream")]
    ReadStream(#[source] io::Error),
    /// The client's stream cannot be written.
    #[error("write stream")]
    WriteStream(#[source] io::Error),
    /// A document cannot be read.
    #[error("read {what}")]
    ReadDocument {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob cannot be read.
    #[error("read content {digest}")]
    ReadBlob {
        /// Which one.
        digest: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is not of its form.
    #[error("{what} is malformed")]
    Document {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document is another one than its media type says.
    #[error("document {digest}: {why}")]
    Confused {
        /// Its digest.
        digest: String,
        /// What it is.
        why: &'static str,
    },
    /// Something has more than we grant.
    #[error("more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are granted.
        limit: u64,
    },
    /// The archive is of an unknown version.
    #[error("unsupported OCI image layout version {0:?}")]
    Layout(String),
    /// The layout has no index.
    #[error("missing index.json in OCI image layout")]
    NoIndex,
    /// The stream has neither a layout nor a manifest.json.
    #[error("unrecognized image format: neither oci-layout nor manifest.json in the archive")]
    NoArchive,
    /// The archive refers to a file that it does not have.
    #[error("{what} {name:?} is missing in the archive")]
    NoFile {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A file of the archive has holes, which a blob cannot have.
    #[error("archive entry {0:?} is a sparse file")]
    Sparse(String),
    /// An archive has a name that is none.
    #[error("invalid image reference {0:?}")]
    Reference(String),
    /// Nothing of an image is wanted.
    #[error("image might be filtered out: nothing in it for the platforms")]
    Filtered,
    /// An index has nothing for the platforms.
    #[error("no manifest found for platform")]
    NoPlatform,
    /// No name for an image where one is needed.
    #[error("no image name given")]
    NoImageNamed,
    /// Images cannot be read by the beginning of their names.
    #[error("prefix lookup on export")]
    PrefixLookup,
    /// An image is neither an index nor a manifest.
    #[error("only manifests may be exported, not {0:?}")]
    NotAnImage(String),
    /// A blob has another size than its descriptor.
    #[error("content {digest} has {have} bytes, not {want}")]
    BlobSize {
        /// Which one.
        digest: Digest,
        /// Its size.
        have: u64,
        /// What the descriptor says.
        want: i64,
    },
    /// The bytes of a blob are not those of its digest any more.
    #[error("content {want} has the digest {have}")]
    Corrupt {
        /// Its name.
        want: Digest,
        /// Its digest.
        have: Digest,
    },
    /// An image cannot be unpacked to where it should.
    #[error("snapshotter not loaded: {0}")]
    Snapshotter(String),
    /// Images for another operating system cannot be unpacked.
    #[error("cannot unpack for operating system {0:?}")]
    UnpackPlatform(String),
    /// An image's configuration and manifest do not agree.
    #[error("number of layers and diff ids does not match: {layers} != {diff_ids}")]
    LayerCount {
        /// Of the manifest.
        layers: usize,
        /// Of the configuration.
        diff_ids: usize,
    },
    /// A layer is another one than its image says.
    #[error("wrong diff id {have} of layer {layer}, expected {want}")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// What its bytes say.
        have: Digest,
        /// What the configuration says.
        want: Digest,
    },
    /// The thread that decompresses could not be started.
    #[error("start decompression")]
    Thread(#[source] io::Error),
    /// The thread that decompresses ended without a result.
    #[error("decompression ended early")]
    Lost,
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoMounts
            | Self::BadMount { .. }
            | Self::Digest(_)
            | Self::Filter(_)
            | Self::Document { .. }
            | Self::Confused { .. }
            | Self::Limit { .. }
            | Self::Layout(_)
            | Self::NoIndex
            | Self::NoArchive
            | Self::NoFile { .. }
            | Self::Sparse(_)
            | Self::Reference(_)
            | Self::NoImageNamed
            | Self::NotAnImage(_)
            | Self::Snapshotter(_)
            | Self::UnpackPlatform(_)
            | Self::LayerCount { .. } => Code::InvalidArgument,
            Self::Filtered | Self::NoPlatform => Code::NotFound,
            Self::PrefixLookup => Code::Unimplemented,
            Self::BlobSize { .. } | Self::DiffId { .. } => Code::FailedPrecondition,
            Self::Corrupt { .. } => Code::DataLoss,
            Self::Metadata(source) => source.code(),
            Self::Mount(source) => source.code(),
            Self::OpenTree { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::OpenTree { .. } | Self::Flush(_) => Code::Unknown,
            Self::ReadStream(_) | Self::WriteStream(_) | Self::ReadDocument { .. } | Self::ReadBlob { .. } => {
                Code::Unknown
            }
            Self::ReadOnly => Code::FailedPrecondition,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Archive(source) => source.code(),
            Self::Thread(_) => Code::ResourceExhausted,
            Self::Lost => Code::Internal,
        }
    }
}
