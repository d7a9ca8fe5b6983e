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
    /// `linux.cgroupsPath` names no scope of systemd. The words are runc's, as far as the colon.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead: it {reason}"
    )]
    ScopePath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An annotation asks for a property of the unit that it cannot have.
    #[error("annotation org.systemd.property.{name} = {value:?}: it {reason}")]
    Property {
        /// The property.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The systemd driver was asked for where systemd does not run.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// systemd could not be talked to.
    #[error("talking to systemd, {operation}")]
    Bus {
        /// What was to be done.
        operation: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// systemd refused.
    #[error("systemd, {operation}: {text} ({name})")]
    Systemd {
        /// What was to be done.
        operation: String,
        /// The name of its error.
        name: String,
        /// What it said.
        text: String,
    },
    /// systemd began, and did not get through.
    #[error("systemd could not start {unit}: {result}")]
    Job {
        /// The unit.
        unit: String,
        /// The result of the job.
        result: String,
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
    /// A file of `unified` cannot be written. The words are runc's.
    #[error("unified resource {file:?} {reason}")]
    Unified {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The kernel does not lower the limit of memory so far.
    #[error("memory limit too low: unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})")]
    TooLow {
        /// Bytes asked for.
        limit: String,
        /// Bytes in use.
        usage: u64,
        /// The most bytes ever in use.
        peak: u64,
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
            Self::Path { .. }
            | Self::ScopePath { .. }
            | Self::Property { .. }
            | Self::Limit { .. }
            | Self::Unified { .. }
            | Self::DeviceRule { .. } => Code::InvalidArgument,
            Self::Gone { .. } => Code::NotFound,
            Self::NoController { .. } | Self::NoFile { .. } | Self::NoSystemd | Self::TooLow { .. } => {
                Code::FailedPrecondition
            }
            Self::Systemd { .. } | Self::Job { .. } => Code::Unknown,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Detect { source, .. }
            | Self::Bus { source, .. }
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
            | Self::ScopePath { .. }
            | Self::Property { .. }
            | Self::NoSystemd
            | Self::Systemd { .. }
            | Self::Job { .. }
            | Self::Unified { .. }
            | Self::TooLow { .. }
            | Self::Limit { .. }
            | Self::DeviceRule { .. }
            | Self::Gone { .. }
            | Self::NoController { .. }
            | Self::NoFile { .. }
            | Self::Timeout { .. } => None,
            Self::Detect { source, .. }
            | Self::Bus { source, .. }
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
