use std::io;

use model::{Code, Coded};

/// An operation on a container failed.
///
/// Callers prefix the rendered text with `OCI runtime create failed: ` and its kin; the phrases that engines map to
/// exit codes (`executable file not found in $PATH`, `no such file or directory`, `permission denied`) are in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification asks for something that it must not.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, as a path from the document's root.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The specification is valid, but this field is not honoured here. Nothing is ever ignored silently.
    #[error("{field}: {reason}")]
    Unsupported {
        /// The field, as a path from the document's root.
        field: String,
        /// Why not.
        reason: String,
    },
    /// The process has several threads, so a clone of it could inherit a held lock.
    #[error("the process has more than one thread and must not clone")]
    Threads,
    /// A preparation on the host failed.
    #[error("{operation}")]
    Host {
        /// What was being done, with the subject.
        operation: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container's process failed while it set itself up.
    #[error("{stage}")]
    Child {
        /// What it was doing, with the subject.
        stage: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container was told to start and its document has no process; it has ended.
    #[error("process: is required to start the container")]
    NoProcess,
    /// The program to run cannot be run. The text has runc's form.
    #[error("unable to start container process: {problem}")]
    Program {
        /// `exec: "x": executable file not found in $PATH` and the like.
        problem: String,
    },
    /// The program is there and the kernel does not run it, seen when the container was told to start. runc's init
    /// prints this line by itself.
    #[error("exec {program}: {problem}")]
    Exec {
        /// The program.
        program: String,
        /// What the kernel said.
        problem: String,
    },
    /// The container's process ended while it was being set up.
    #[error("unable to start container process: container init was killed or died during {during}")]
    Died {
        /// What it was doing last, as far as known.
        during: String,
    },
    /// A hook failed.
    #[error("error running {kind} hook #{index}: {problem}")]
    Hook {
        /// Which of the six kinds.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// Exit status, signal, timeout or error, with what it wrote to standard error.
        problem: String,
    },
    /// A cgroup operation failed.
    #[error("{operation}")]
    Cgroup {
        /// What was being done.
        operation: String,
        /// Why it failed.
        #[source]
        source: cgroups::Error,
    },
    /// The container is not in a state that allows this.
    #[error("cannot {operation} a container that is {status}")]
    State {
        /// The operation.
        operation: &'static str,
        /// Where the container stands.
        status: &'static str,
    },
    /// The process has ended already.
    #[error("process already finished")]
    Finished,
    /// There is no CRIU, without which nothing can be checkpointed or restored.
    #[error("checkpoint and restore need criu, which is not in PATH (package criu)")]
    CriuMissing,
    /// CRIU failed or refused; what runs goes on as before.
    #[error("{operation}: {problem}")]
    Criu {
        /// `checkpoint` or `restore`.
        operation: &'static str,
        /// What CRIU said, with the last error of its log and where that is.
        problem: String,
    },
    /// Waiting for the other process failed.
    #[error("waiting for the container's process")]
    Wait {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn host(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Host { operation: operation.into(), source: source.into() }
    }

    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::NoProcess => Code::InvalidArgument,
            Self::Unsupported { .. } | Self::CriuMissing => Code::Unimplemented,
            Self::Threads => Code::Internal,
            Self::Finished => Code::NotFound,
            Self::State { .. } => Code::FailedPrecondition,
            // containerd reports every failure of its runtime as Unknown; clients read the text.
            Self::Host { .. }
            | Self::Child { .. }
            | Self::Program { .. }
            | Self::Exec { .. }
            | Self::Died { .. }
            | Self::Hook { .. }
            | Self::Criu { .. }
            | Self::Wait { .. } => Code::Unknown,
            Self::Cgroup { source, .. } => source.code(),
        }
    }
}
