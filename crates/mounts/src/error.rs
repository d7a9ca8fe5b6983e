use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::template::TemplateError;
use model::{Code, Coded, LabelError};

/// Why mounts could not be activated, found or undone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mount needs the manager: the caller is to mount by itself.
    #[error("no mount needs the mount manager")]
    NotNeeded,
    /// The name is empty or too long.
    #[error("mount name must have 1 to {max} bytes, not {bytes}")]
    Name {
        /// Bytes that it has.
        bytes: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// More mounts than anybody needs.
    #[error("too many mounts ({count}): maximum {max}")]
    TooMany {
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The mounts' texts are too long together.
    #[error("mounts {name:?} have {bytes} bytes of text: maximum {max}")]
    TooLong {
        /// The mounts' name.
        name: String,
        /// Bytes that they have.
        bytes: usize,
        /// Bytes that they may have.
        max: usize,
    },
    /// Too many are active.
    #[error("{0} mounts are active already")]
    Full(usize),
    /// A label is none.
    #[error("mount labels")]
    Label(#[from] LabelError),
    /// The name is taken.
    #[error("mount {0:?}")]
    Exists(String),
    /// Nothing is active under that name.
    #[error("mount {0:?}")]
    Missing(String),
    /// A field of an update mask that cannot be changed.
    #[error("cannot update {0:?} of a mount")]
    Mask(String),
    /// A template does not parse, or becomes too long.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A template calls what does not exist.
    #[error("no function {name:?} of {arguments} numbers for mount templates")]
    Function {
        /// The function.
        name: String,
        /// How many arguments it was given.
        arguments: usize,
    },
    /// A template names a mount that is not active yet.
    #[error("index out of bounds: {index}, has {active} active mounts")]
    Index {
        /// Which mount.
        index: u64,
        /// How many are active so far.
        active: usize,
    },
    /// An option of ours is malformed.
    #[error("mount option {option:?}: {problem}")]
    Option {
        /// The option.
        option: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An option asks for what cannot be done.
    #[error("mount option {option:?}: {problem}")]
    Unsupported {
        /// The option.
        option: String,
        /// What cannot be done.
        problem: &'static str,
    },
    /// A path that is not below a directory of ours.
    #[error("no root configured for {0:?}")]
    Outside(PathBuf),
    /// A file or directory.
    #[error("{operation} {path}")]
    File {
        /// What we did.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file system could not be made.
    #[error("failed format {path}: {program}: {output}")]
    Format {
        /// The image.
        path: PathBuf,
        /// The program.
        program: String,
        /// How it ended and what it printed.
        output: String,
    },
    /// The program that makes file systems takes too long.
    #[error("{program} did not end within {limit:?}")]
    Deadline {
        /// The program.
        program: String,
        /// How long we waited.
        limit: Duration,
    },
    /// A mount failed.
    #[error("mount {index} of {name:?}")]
    Mount {
        /// Name of the activation.
        name: String,
        /// Which of its mounts.
        index: usize,
        /// Why.
        #[source]
        source: Box<mount::Error>,
    },
    /// A mount cannot be undone now; the collector tries again.
    #[error("unmount")]
    Unmount(#[source] Box<mount::Error>),
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NotNeeded | Self::Unsupported { .. } | Self::Outside(_) => Code::Unimplemented,
            Self::Name { .. }
            | Self::TooMany { .. }
            | Self::TooLong { .. }
            | Self::Label(_)
            | Self::Mask(_)
            | Self::Template(_)
            | Self::Function { .. }
            | Self::Index { .. }
            | Self::Option { .. } => Code::InvalidArgument,
            Self::Full(_) => Code::ResourceExhausted,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Missing(_) => Code::NotFound,
            Self::File { .. } | Self::Format { .. } => Code::Unknown,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Mount { source, .. } | Self::Unmount(source) => source.code(),
        }
    }
}
