use std::io;
use std::path::PathBuf;

use model::{Code, Coded, IdentifierError};

/// What went wrong with the journal or a subscription.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An envelope without a valid namespace.
    #[error("event envelope has invalid namespace")]
    Namespace(#[source] IdentifierError),
    /// A topic that is empty or lacks the leading slash.
    #[error("envelope topic {topic:?}: must start with '/'")]
    TopicStart {
        /// Its beginning.
        topic: String,
    },
    /// A topic with a component that is no identifier.
    #[error("envelope topic {topic:?}: failed validation on a component")]
    Topic {
        /// Its beginning.
        topic: String,
        /// Why.
        #[source]
        source: IdentifierError,
    },
    /// An event that no message of the API could carry.
    #[error("event of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A cursor that nobody can have received.
    #[error(
        "{text:?} is no cursor of the event journal: want \"now\", or <journal uuid>:<sequence> as it was received"
    )]
    Cursor {
        /// Its beginning.
        text: String,
    },
    /// A cursor of another journal, or one behind which events have been dropped.
    #[error(
        "events since {since} are not in the journal any more; it begins after {oldest}: query the present state, then subscribe since that or since \"now\""
    )]
    Forgotten {
        /// What was asked for.
        since: String,
        /// The cursor before the oldest event that is kept.
        oldest: String,
    },
    /// The reader was so slow that it would have had to skip events.
    #[error(
        "subscription error: the reader is {behind} events behind, more than are kept for it; subscribe again and read faster"
    )]
    Lagged {
        /// Events that it had not read yet.
        behind: u64,
    },
    /// The journal's directory or one of its files.
    #[error("event journal: cannot {action} {path}", path = .path.display())]
    File {
        /// What we were doing.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Whether the file system has no room left.
pub(crate) fn out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Namespace(_)
            | Self::TopicStart { .. }
            | Self::Topic { .. }
            | Self::TooLarge { .. }
            | Self::Cursor { .. } => Code::InvalidArgument,
            Self::Forgotten { .. } => Code::OutOfRange,
            Self::Lagged { .. } => Code::ResourceExhausted,
            Self::File { source, .. } if out_of_space(source) => Code::ResourceExhausted,
            Self::File { .. } => Code::Internal,
        }
    }
}
