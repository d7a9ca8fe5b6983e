//! What can go wrong in the shim, in the words that clients know.

use std::io;
use std::path::PathBuf;

use model::{Code, Coded};

/// A request failed, or the shim could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Identifier {
        what: &'static str,
        #[source]
        source: model::IdentifierError,
    },
    #[error("{operation} {}", .path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{operation}")]
    System {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("encode {what}")]
    Encode {
        what: &'static str,
        #[source]
        source: protobuf::Error,
    },
    #[error("{0}")]
    InvalidRequest(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error(transparent)]
    Spec(#[from] oci::Error),
    #[error("mount rootfs component")]
    Mount(#[source] mount::Error),
    #[error("failed rootfs umount")]
    Unmount(#[source] mount::Error),
    #[error("OCI runtime {operation} failed")]
    Runtime {
        operation: &'static str,
        #[source]
        source: runtime::Error,
    },
    /// What a foreign runtime said.
    #[error("OCI runtime {operation} failed: {message}")]
    Foreign { operation: &'static str, message: String },
    /// The text is what Go says, which clients look for.
    #[error("OCI runtime create failed: exec: {name:?}: {}", if *path { "no such file, or not executable" } else { "executable file not found in $PATH" })]
    NoRuntime { name: String, path: bool },
    #[error("no such container")]
    NoContainer,
    #[error("OCI runtime {operation} failed: not finished after {seconds} s")]
    Deadline { operation: &'static str, seconds: u64 },
    #[error(transparent)]
    Cgroup(#[from] cgroups::Error),
    #[error(transparent)]
    Server(#[from] api_shim::ServerError),
    #[error("cgroup does not exist")]
    NoCgroup,
    #[error("container {0}")]
    ContainerExists(String),
    #[error("id {0}")]
    ExecExists(String),
    #[error("container not created")]
    NotCreated,
    #[error("process does not exist {0}")]
    NoProcess(String),
    #[error("container {0} init process is not running")]
    InitNotRunning(String),
    #[error("process already finished")]
    Finished,
    #[error("process not created")]
    NotStarted,
    /// The process is in a state that does not allow this; the text is containerd's.
    #[error("{0}")]
    State(&'static str),
    #[error("another operation is under way for {0}")]
    Busy(String),
    #[error("io {uri:?}: {problem}")]
    Stdio { uri: String, problem: &'static str },
    #[error("open {uri:?}")]
    OpenStdio {
        uri: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { operation, source: source.into() }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Usage(_) | Self::Identifier { .. } | Self::InvalidRequest(_) | Self::Stdio { .. } => {
                Code::InvalidArgument
            }
            Self::Spec(error) => error.code(),
            Self::Mount(error) | Self::Unmount(error) => error.code(),
            Self::Runtime { source, .. } => source.code(),
            Self::Cgroup(error) => error.code(),
            Self::Server(error) => error.code(),
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::ContainerExists(_) | Self::ExecExists(_) => Code::AlreadyExists,
            Self::NotCreated | Self::NoProcess(_) | Self::Finished | Self::NoCgroup | Self::NoContainer => {
                Code::NotFound
            }
            Self::InitNotRunning(_) | Self::NotStarted => Code::FailedPrecondition,
            Self::Busy(_) => Code::Unavailable,
            Self::OpenStdio { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            // containerd gives these no class; clients read the text.
            Self::File { .. }
            | Self::System { .. }
            | Self::Encode { .. }
            | Self::State(_)
            | Self::Foreign { .. }
            | Self::NoRuntime { .. }
            | Self::OpenStdio { .. } => Code::Unknown,
        }
    }
}
