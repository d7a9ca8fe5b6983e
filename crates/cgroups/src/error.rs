use model::{Code, Coded};
use sys::Errno;

/// Why a control group could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of a group is not one that may be used.
    #[error("cgroup path {path:?}: {reason}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host's control groups could not be found.
    #[error("finding the control groups of this host: {reason}")]
    Detect {
        /// What was looked for.
        reason: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The group does not exist (any more).
    #[error("cgroup does not exist: {path:?}")]
    Gone {
        /// The path of the group.
        path: String,
    },
    /// The group could not be made.
    #[error("making cgroup {path:?}")]
    Create {
        /// The directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A control file could not be opened or read.
    #[error("reading {file} of cgroup {path:?}")]
    Read {
        /// The path of the group.
        path: String,
        /// The control file.
        file: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A control file could not be written.
    #[error("writing {value:?} to {file} of cgroup {path:?}")]
    Write {
        /// The path of the group.
        path: String,
        /// The control file.
        file: String,
        /// What was to be written.
        value: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A limit needs a controller that this host does not have, or does not let us use.
    #[error("{limit} cannot be limited: cgroup controller {controller:?} is not available")]
    NoController {
        /// What was to be limited.
        limit: String,
        /// The controller that is missing.
        controller: String,
    },
    /// A limit needs a control file that this kernel does not have, though it has the controller.
    #[error("{limit} cannot be limited: this kernel has no {file}")]
    NoFile {
        /// What was to be limited.
        limit: String,
        /// The control file that is missing.
        file: String,
    },
    /// A limit cannot be set as asked.
    #[error("limit {limit} = {value}: {reason}")]
    Limit {
        /// What was to be limited.
        limit: String,
        /// To what.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A rule for devices cannot be expressed.
    #[error("device rule {rule:?}: {reason}")]
    DeviceRule {
        /// The rule.
        rule: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The program that decides about devices could not be installed.
    #[error("installing the device program of cgroup {path:?}{log}")]
    DeviceProgram {
        /// The path of the group.
        path: String,
        /// What the kernel's verifier said, with a leading separator; may be empty.
        log: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The group did not reach a state in the time allowed.
    #[error("cgroup {path:?} did not become {state} in {seconds} s")]
    Timeout {
        /// The path of the group.
        path: String,
        /// The state that was waited for.
        state: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The group could not be removed.
    #[error("removing cgroup {path:?}")]
    Delete {
        /// The directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Path { .. } | Self::Limit { .. } | Self::DeviceRule { .. } => Code::InvalidArgument,
            Self::Gone { .. } => Code::NotFound,
            Self::NoController { .. } | Self::NoFile { .. } => Code::FailedPrecondition,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Detect { source, .. }
            | Self::Create { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::DeviceProgram { source, .. }
            | Self::Delete { source, .. } => class(*source),
        }
    }
}

impl Error {
    /// What the kernel said, where it said something.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Path { .. }
            | Self::Limit { .. }
            | Self::DeviceRule { .. }
            | Self::Gone { .. }
            | Self::NoController { .. }
            | Self::NoFile { .. }
            | Self::Timeout { .. } => None,
            Self::Detect { source, .. }
            | Self::Create { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::DeviceProgram { source, .. }
            | Self::Delete { source, .. } => Some(*source),
        }
    }
}

fn class(errno: Errno) -> Code {
    match errno {
        Errno::PERM | Errno::ACCESS | Errno::ROFS => Code::PermissionDenied,
        Errno::INVAL | Errno::RANGE => Code::InvalidArgument,
        Errno::BUSY => Code::FailedPrecondition,
        Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN => Code::ResourceExhausted,
        _ => Code::Unknown,
    }
}
