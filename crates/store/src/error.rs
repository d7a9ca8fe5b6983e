//! What can go wrong in the store, and which class each failure has for a client.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use model::{Code, Coded};

/// A failure of the store itself. Clonable, because one failed flush fails every caller of its group.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory of the database could not be made, locked, read, written or synced.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process, or another `Store` of this one, has the database open.
    #[error("the database in {} is in use by another process; stop it, or give this one its own root", dir.display())]
    Locked {
        /// The directory of the database.
        dir: PathBuf,
    },
    /// sled could not open, read or write its files.
    #[error("cannot {operation} the database in {}", dir.display())]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The directory of the database.
        dir: PathBuf,
        /// What sled said.
        #[source]
        source: sled::Error,
    },
    /// sled panicked. The panic was caught and the database refuses to work until it is opened again.
    #[error("the engine failed while it tried to {operation} the database in {}: {message}", dir.display())]
    Panicked {
        /// What was being done.
        operation: &'static str,
        /// The directory of the database.
        dir: PathBuf,
        /// The words of the panic.
        message: String,
    },
    /// What is on disk is not what this version of the store writes.
    #[error("the database in {} is damaged: {what}; restore it from a dump", dir.display())]
    Damaged {
        /// The directory of the database.
        dir: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// sled's calls of `sync_file_range` do not arrive in this crate, so nothing could be promised about a power cut.
    #[error("this build cannot make its database durable: sync_file_range is not bound to the durability guard")]
    Unguarded,
    /// The file system is full. Transactions that delete something are still accepted.
    #[error("no space is left for the database in {}; delete something, or make space", dir.display())]
    NoSpace {
        /// The directory of the database.
        dir: PathBuf,
    },
    /// An earlier failure made the database refuse to work; [`Store::reopen`](crate::Store::reopen) recovers.
    #[error("the database in {} failed and must be opened again: {reason}", dir.display())]
    Poisoned {
        /// The directory of the database.
        dir: PathBuf,
        /// The first failure, rendered.
        reason: String,
    },
    /// A key is empty or longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    #[error("a key of {bytes} bytes is not allowed: 1 to {max} are")]
    KeySize {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// A value is longer than [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES).
    #[error("a value of {bytes} bytes is too large: at most {max} are allowed")]
    ValueSize {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// A transaction writes more than [`MAX_TRANSACTION_BYTES`](crate::MAX_TRANSACTION_BYTES).
    #[error("a transaction of {bytes} bytes is too large: at most {max} are allowed")]
    TransactionSize {
        /// The sum of its keys and values.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// A dump could not be written or read.
    #[error("cannot {operation} a dump of the database")]
    Dump {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// A dump is cut short or altered, or the directory to restore into is not empty.
    #[error("cannot restore into {}: {what}", dir.display())]
    Restore {
        /// The directory to restore into.
        dir: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source: Arc::new(source) }
    }

    /// Whether the cause is a full file system or an exhausted quota.
    pub(crate) fn is_no_space(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if let Self::Engine { source: sled::Error::Io(error), .. } = self {
            return full(error.kind());
        }
        if let Self::File { source, .. } = self {
            return full(source.kind());
        }
        matches!(self, Self::NoSpace { .. })
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::File { .. } | Self::Engine { .. } | Self::Panicked { .. } | Self::Unguarded | Self::Dump { .. } => {
                Code::Internal
            }
            Self::Damaged { .. } => Code::DataLoss,
            Self::Locked { .. } | Self::Restore { .. } => Code::FailedPrecondition,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::Poisoned { .. } => Code::Unavailable,
            Self::KeySize { .. } | Self::ValueSize { .. } | Self::TransactionSize { .. } => Code::InvalidArgument,
        }
    }
}

/// Why [`Store::write`](crate::Store::write) acknowledged nothing.
#[derive(Debug)]
pub enum WriteError<E> {
    /// The caller's closure refused; nothing of its transaction is kept.
    Refused(E),
    /// The store failed. The transaction is not acknowledged; after a re-open it is there whole or not at all.
    Store(Error),
}

impl<E> From<Error> for WriteError<E> {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl<E: fmt::Display> fmt::Display for WriteError<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(formatter),
            Self::Store(error) => error.fmt(formatter),
        }
    }
}

impl<E: StdError + 'static> StdError for WriteError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Refused(error) => error.source(),
            Self::Store(error) => error.source(),
        }
    }
}

impl<E: Coded + 'static> Coded for WriteError<E> {
    fn code(&self) -> Code {
        match self {
            Self::Refused(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}
