use std::io;
use std::path::PathBuf;
use std::time::Duration;

use model::{Code, Coded, IdentifierError};

/// What went wrong with a task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is no identifier.
    #[error("invalid {what}")]
    Identifier {
        /// Which name.
        what: &'static str,
        /// The rule that it breaks.
        #[source]
        source: IdentifierError,
    },
    /// An additional process without a name.
    #[error("exec id cannot be empty")]
    EmptyExecId,
    /// The task exists.
    #[error("task {0}: already exists")]
    TaskExists(String),
    /// There is no such task.
    #[error("task {0} not found")]
    TaskNotFound(String),
    /// The task has no such process.
    #[error("process does not exist {0}")]
    ProcessNotFound(String),
    /// The task has a process of that name.
    #[error("id {0}")]
    ExecExists(String),
    /// A signal for a process that has ended.
    #[error("process already finished")]
    ProcessFinished,
    /// A signal for a process that was never started.
    #[error("process not created")]
    ProcessNotCreated,
    /// An additional process that runs.
    #[error("cannot delete a running process")]
    ProcessRunning,
    /// The runtime's name has no meaning.
    #[error(
        "failed to start shim: failed to resolve runtime path: invalid runtime name {0}, correct runtime name should be either format like `io.containerd.runc.v2` or a full path to the binary"
    )]
    RuntimeName(String),
    /// The runtime's binary is nowhere.
    #[error(
        "failed to start shim: failed to resolve runtime path: runtime {runtime:?} binary not installed {binary:?}: file does not exist"
    )]
    RuntimeMissing {
        /// The runtime's name.
        runtime: String,
        /// The binary that was looked for.
        binary: String,
    },
    /// A foreign shim's `start` did not succeed.
    #[error("failed to start shim: start failed: {output}: exit status {status}")]
    ShimStart {
        /// What it printed.
        output: String,
        /// How it ended.
        status: u32,
    },
    /// A foreign shim's answer to `start` is of no use.
    #[error("failed to start shim: {program} answered {reply:?}: {problem}")]
    ShimReply {
        /// The shim.
        program: PathBuf,
        /// What is wrong.
        problem: &'static str,
        /// What it printed.
        reply: String,
    },
    /// A shim does not say what it is.
    #[error("failed to run {program} -info: exit status {status} (stderr: {output:?})")]
    ShimInfo {
        /// The shim.
        program: PathBuf,
        /// How it ended.
        status: u32,
        /// The beginning of what it printed.
        output: String,
    },
    /// What a shim says that it is cannot be read.
    #[error("failed to unmarshal what {program} -info printed")]
    ShimInfoReply {
        /// The shim.
        program: PathBuf,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// A file or directory of the bundle.
    #[error("{operation} {path}")]
    Bundle {
        /// What we did.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The shim could not be executed or connected to.
    #[error("failed to start shim: {operation} {path}")]
    Launch {
        /// What we did.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The shim ended while it made the container.
    #[error("failed to start shim: it ended before it answered: {log}")]
    ShimDied {
        /// The end of its log.
        log: String,
    },
    /// The shim refused; its text and class are passed on.
    #[error("{context}{message}")]
    Shim {
        /// Put before the text; ends with `": "` or is empty.
        context: &'static str,
        /// The class that the shim gave.
        code: Code,
        /// The shim's text.
        message: String,
    },
    /// The shim's answer cannot be read.
    #[error("{operation} of task {id}: undecodable answer of the shim")]
    Answer {
        /// Which request.
        operation: &'static str,
        /// Of which task.
        id: String,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// The shim did not answer in time. It is not judged dead.
    #[error("{operation} of task {id}: no answer of the shim within {limit:?}")]
    Deadline {
        /// Which request.
        operation: &'static str,
        /// Of which task.
        id: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection to the shim is gone. CRI clients match the text.
    #[error("{operation} of task {id}: ttrpc: closed")]
    Closed {
        /// Which request.
        operation: &'static str,
        /// Of which task.
        id: String,
    },
    /// Too many requests wait for this task, or too many tasks are being created.
    #[error("task {0} has too many requests waiting; try again later")]
    Busy(String),
    /// Events cannot be written, so nothing may happen that makes more of them.
    #[error("task {0}: events cannot be written to the journal; make room in the state directory and try again")]
    JournalFull(String),
    /// What is being removed cannot be made anew yet.
    #[error("task {0}: what an earlier daemon left of it is being removed; try again later")]
    Removing(String),
    /// A request for a task whose shim has died, and its processes with it.
    #[error("cannot {operation} a stopped process")]
    Ended {
        /// Which request.
        operation: &'static str,
    },
    /// The daemon ends while a request is in flight.
    #[error("task {0}: the daemon is stopping")]
    Stopping(String),
    /// The socket for events of shims.
    #[error("{operation} {path}")]
    Socket {
        /// What we did.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A failure in `sys`, while doing something to a process.
    #[error("{operation} process {pid}")]
    Process {
        /// What we did.
        operation: &'static str,
        /// To which.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Identifier { .. } | Self::EmptyExecId => Code::InvalidArgument,
            Self::TaskExists(_) | Self::ExecExists(_) => Code::AlreadyExists,
            Self::TaskNotFound(_) | Self::ProcessNotFound(_) | Self::ProcessFinished => Code::NotFound,
            Self::ProcessNotCreated => Code::FailedPrecondition,
            Self::ShimReply { .. } => Code::Unimplemented,
            // containerd gives no class to what fails in the runtime, and clients read the text.
            Self::ProcessRunning
            | Self::Ended { .. }
            | Self::RuntimeName(_)
            | Self::RuntimeMissing { .. }
            | Self::Bundle { .. }
            | Self::Launch { .. }
            | Self::ShimStart { .. }
            | Self::ShimInfo { .. }
            | Self::ShimInfoReply { .. }
            | Self::ShimDied { .. }
            | Self::Socket { .. }
            | Self::Process { .. } => Code::Unknown,
            Self::Shim { code, .. } => *code,
            Self::Answer { .. } => Code::Internal,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Closed { .. } | Self::Stopping(_) | Self::Removing(_) => Code::Unavailable,
            Self::Busy(_) | Self::JournalFull(_) => Code::ResourceExhausted,
        }
    }
}
