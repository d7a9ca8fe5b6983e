use std::io;
use std::path::PathBuf;

use model::{Code, Coded};
use rustix::io::Errno;

/// What can go wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The media type is none that we can read.
    #[error("unsupported diff media type: {0}")]
    MediaType(String),
    /// The stream cannot be read or decompressed.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// The stream cannot be written or compressed.
    #[error("write archive")]
    Write(#[source] io::Error),
    /// An entry got fewer bytes than its size.
    #[error("archive entry lacks {0} bytes of its size")]
    Short(u64),
    /// The stream is no tar.
    #[error("invalid tar header: {0}")]
    Header(&'static str),
    /// The stream ends within an entry.
    #[error("unexpected end of archive")]
    Truncated,
    /// An entry cannot be what an honest layer has.
    #[error("archive entry {entry:?} refused: {reason}")]
    Refused {
        /// Its name.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// The archive needs more than we grant.
    #[error("archive exceeds the limit of {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
    /// An entry cannot be written.
    #[error("{operation} archive entry {entry:?}")]
    Entry {
        /// What was being done.
        operation: &'static str,
        /// To which entry.
        entry: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
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

/// At most this much of a hostile name goes into a message.
const NAME_CHARS: usize = 256;

impl Error {
    pub(crate) fn refused(entry: &[u8], reason: &'static str) -> Self {
        Self::Refused { entry: shown(entry), reason }
    }

    pub(crate) fn entry(operation: &'static str, entry: &[u8]) -> impl FnOnce(Errno) -> Self {
        let entry = shown(entry);
        move |errno| Self::Entry { operation, entry, source: errno.into() }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { operation, path, source: errno.into() }
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(NAME_CHARS).collect()
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::MediaType(_) => Code::Unimplemented,
            Self::Header(_) | Self::Truncated | Self::Refused { .. } | Self::Limit { .. } => Code::InvalidArgument,
            Self::Short(_) => Code::Internal,
            Self::Read(source) | Self::Write(source) | Self::Entry { source, .. } | Self::Io { source, .. } => {
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                    Code::ResourceExhausted
                } else {
                    Code::Unknown
                }
            }
        }
    }
}
