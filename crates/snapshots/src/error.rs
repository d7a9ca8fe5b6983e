use std::io;
use std::path::PathBuf;

use model::{Code, Coded};

/// What can go wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request names no snapshot.
    #[error("snapshot key must not be empty")]
    EmptyKey,
    /// The key is longer than the store takes.
    #[error("snapshot key of {bytes} bytes is longer than {max} bytes")]
    KeyTooLong {
        /// Length of the key.
        bytes: usize,
        /// Longest key.
        max: usize,
    },
    /// No such snapshot.
    #[error("snapshot {0} does not exist")]
    NotFound(String),
    /// The parent that a request names does not exist.
    #[error("parent snapshot {0} does not exist")]
    ParentNotFound(String),
    /// The key or the name is taken.
    #[error("snapshot {0}")]
    Exists(String),
    /// A parent must be committed.
    #[error("parent {0:?} is not committed snapshot")]
    ParentNotCommitted(String),
    /// The snapshot has a parent already, so another one cannot be given at commit.
    #[error("snapshot {key} has parent {parent}, cannot be rebased")]
    HasParent {
        /// The snapshot.
        key: String,
        /// Its parent.
        parent: String,
    },
    /// The driver's active snapshots hold their parent's files, so a parent cannot be given at commit.
    #[error("snapshotter {0} cannot rebase")]
    NoRebase(String),
    /// Other snapshots stand on this one.
    #[error("cannot remove snapshot with child: {0}")]
    HasChildren(String),
    /// Only an active snapshot can be committed.
    #[error("snapshot {0} is not active")]
    NotActive(String),
    /// Only an active snapshot or a view has mounts.
    #[error("requested snapshot {0} not active or view")]
    NotMountable(String),
    /// A chain of parents is longer than any kernel mounts.
    #[error("snapshot has more than {max} parents")]
    TooManyParents {
        /// Longest chain.
        max: usize,
    },
    /// A label with an id mapping cannot be understood.
    #[error("label {label} is no id mapping: {value:?}")]
    IdMapping {
        /// Its key.
        label: &'static str,
        /// The beginning of its value.
        value: String,
    },
    /// The file system does not report file types in directory entries; overlayfs needs that (xfs: `ftype=1`).
    #[error("{dir} does not support d_type: overlayfs cannot be used there")]
    NoFileTypes {
        /// The directory that was examined.
        dir: PathBuf,
    },
    /// A driver's directory has a name that cannot stand in mount options.
    #[error("{path} cannot be a snapshotter's root: it is not UTF-8 or contains one of , : \\ \"")]
    Root {
        /// The directory.
        path: PathBuf,
    },
    /// A tree is nested deeper than any that a program could have walked to.
    #[error("{path} contains directories nested deeper than {max}")]
    TooDeep {
        /// Where the tree is.
        path: PathBuf,
        /// Deepest nesting.
        max: usize,
    },
    /// Directories of a snapshot are not there.
    #[error("files of snapshot {id} are missing at {dir}")]
    Lost {
        /// Id of the snapshot.
        id: u64,
        /// Where they were expected.
        dir: PathBuf,
    },
    /// A record cannot be decoded.
    #[error("record of snapshot {key} is damaged")]
    Damaged {
        /// The snapshot.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The database failed.
    #[error("read or write snapshot records")]
    Store(#[from] store::Error),
    /// A parent's files cannot be copied.
    #[error("copy the files of the parent")]
    Copy(#[from] archive::Error),
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
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyTooLong { .. }
            | Self::ParentNotCommitted(_)
            | Self::HasParent { .. }
            | Self::TooManyParents { .. }
            | Self::IdMapping { .. }
            | Self::Root { .. } => Code::InvalidArgument,
            Self::NotFound(_) | Self::ParentNotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::NoRebase(_) | Self::NoFileTypes { .. } => Code::Unimplemented,
            Self::HasChildren(_) | Self::NotActive(_) | Self::NotMountable(_) | Self::TooDeep { .. } => {
                Code::FailedPrecondition
            }
            Self::Lost { .. } | Self::Damaged { .. } => Code::DataLoss,
            Self::Store(source) => source.code(),
            Self::Copy(source) => source.code(),
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
