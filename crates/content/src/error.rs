use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::{Code, Coded, Digest, Timestamp};

/// What can go wrong in the blob store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An ingest needs a key.
    #[error("ingest reference must not be empty")]
    EmptyKey,
    /// No such blob.
    #[error("content {0}")]
    NotFound(Digest),
    /// No such ingest.
    #[error("reference {0}")]
    NoIngest(String),
    /// The blob exists already; the ingest that was to become it is removed.
    #[error("content {0}")]
    Exists(Digest),
    /// Another writer holds the key.
    #[error("ref {key} locked for {held:?} (since {since})", since = .since.seconds)]
    Locked {
        /// The key.
        key: String,
        /// When the other writer came.
        since: Timestamp,
        /// How long ago that is.
        held: Duration,
    },
    /// A commit named another size than was written. The ingest is kept.
    #[error("{key:?} failed size validation: {have} != {want}")]
    Size {
        /// The key.
        key: String,
        /// Bytes written.
        have: u64,
        /// Bytes named.
        want: u64,
    },
    /// A commit named another digest than the bytes have. The ingest is kept.
    #[error("unexpected commit digest {have}, expected {want}")]
    Digest {
        /// Digest of the bytes.
        have: Digest,
        /// Digest named.
        want: Digest,
    },
    /// A file operation failed.
    #[error("{operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::EmptyKey => Code::InvalidArgument,
            Self::NotFound(_) | Self::NoIngest(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Locked { .. } => Code::Unavailable,
            Self::Size { .. } | Self::Digest { .. } => Code::FailedPrecondition,
            Self::Io { source, .. } => {
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                    Code::ResourceExhausted
                } else {
                    Code::Unknown
                }
            }
        }
    }
}
