use std::io;

use model::{Code, Coded};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// No container has this id.
    #[error("container does not exist")]
    NoContainer,
    /// A container has this id.
    #[error("container with given ID already exists")]
    Exists,
    /// The container is not in a state that allows this.
    #[error("{0}")]
    State(String),
    /// A document was refused.
    #[error("{document}")]
    Document {
        document: String,
        #[source]
        source: oci::Error,
    },
    /// The record of a container cannot be read.
    #[error("reading the state of container {id}")]
    Record {
        id: String,
        #[source]
        source: serde_json::Error,
    },
    /// The runtime failed.
    #[error("{0}")]
    Runtime(#[from] runtime::Error),
    /// An exec failed, which has an exit code of its own.
    #[error("exec failed: {0}")]
    Exec(#[source] runtime::Error),
    /// A file could not be used.
    #[error("{operation}")]
    Io {
        operation: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation: operation.into(), source: source.into() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            Self::Usage(_)
            | Self::NoContainer
            | Self::Exists
            | Self::State(_)
            | Self::Document { .. }
            | Self::Record { .. }
            | Self::Runtime(_)
            | Self::Io { .. } => 1,
        }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        // A command line has no classes: the text is all there is, and nothing is added to it.
        Code::Unknown
    }
}
