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
    /// A command failed whose name belongs to the message.
    #[error("{prefix} failed")]
    Command {
        prefix: String,
        /// An exec has one of its own, by which engines tell it from the exit status of the program.
        exit_code: u8,
        #[source]
        source: Box<Error>,
    },
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

    /// The error as one of a command, in the words of runc.
    pub(crate) fn of(self, command: &str) -> Self {
        let (prefix, exit_code) = match command {
            "create" | "run" => (format!("{} {command}", super::name()), 1),
            "exec" => ("exec".to_owned(), 255),
            _ => return self,
        };
        if self.is_bare() && exit_code == 1 {
            return self;
        }
        Self::Command { prefix, exit_code, source: Box::new(self) }
    }

    /// Whether the message is the container's: it stands alone, as the container's process itself would say it.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self, Self::Runtime(runtime::Error::Exec { .. }))
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Command { exit_code, .. } => *exit_code,
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
