use model::{Code, Coded};

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
    #[error("cannot apply a layer to {0}: only one writable bind or overlay mount is supported")]
    Unsupported(String),
    /// The layer cannot be decompressed or written.
    #[error("apply layer")]
    Archive(#[from] archive::Error),
    /// The thread that decompresses could not be started.
    #[error("start decompression")]
    Thread(#[source] std::io::Error),
    /// The thread that decompresses ended without a result.
    #[error("decompression ended early")]
    Lost,
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoMounts | Self::BadMount { .. } => Code::InvalidArgument,
            Self::ReadOnly => Code::FailedPrecondition,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Archive(source) => source.code(),
            Self::Thread(_) => Code::ResourceExhausted,
            Self::Lost => Code::Internal,
        }
    }
}
