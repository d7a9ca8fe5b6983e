use model::{Code, Coded};
use sys::Errno;

/// Why a mount could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is not known, malformed, or contradicts another one.
    #[error("mount option {option:?}: {reason}")]
    Option {
        /// The option as given.
        option: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The mount asks for something that this kernel, or this version of gantry, cannot do.
    #[error("mount of type {kind:?}: {feature}")]
    Unsupported {
        /// The mount's type.
        kind: String,
        /// What it asked for.
        feature: Feature,
    },
    /// A field of the mount cannot be used.
    #[error("mount of type {kind:?}: {reason}")]
    Invalid {
        /// The mount's type.
        kind: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The place to mount on could not be opened.
    #[error("opening mount target {target:?}")]
    Target {
        /// The target as given, below its root.
        target: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The source of a bind mount or a layer could not be opened.
    #[error("opening mount source {path:?}")]
    Source {
        /// The source as given.
        path: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A step of making the mount failed.
    #[error("mounting {mount_source:?} of type {kind:?}: {step}{log}")]
    Mount {
        /// The mount's type.
        kind: String,
        /// The mount's source.
        mount_source: String,
        /// The call that failed, with its subject.
        step: String,
        /// What the file system said about it, with a leading separator; may be empty.
        log: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A loop device could not be set up.
    #[error("setting up a loop device for {path:?}")]
    LoopDevice {
        /// The backing file.
        path: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A user namespace with the wanted id maps could not be made.
    #[error("making a user namespace for the id maps of a mount")]
    UserNamespace {
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Unmounting failed.
    #[error("unmounting {target:?}")]
    Unmount {
        /// What was to be unmounted.
        target: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The table of mounts could not be read.
    #[error("reading /proc/self/mountinfo")]
    MountTable {
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// What a mount may ask for in vain. The text says what would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Feature {
    /// The new mount API is missing or switched off.
    #[error("detached mounts need Linux 5.12 and are switched on; mount it on a path instead")]
    Detached,
    /// An overlay whose layers do not fit into one string.
    #[error("a detached overlay of this many layers needs Linux 6.7; mount it on a path instead")]
    ManyLayers,
    /// An option that `fsconfig` does not take.
    #[error("a detached mount takes no option longer than 255 bytes; mount it on a path instead")]
    LongOption,
    /// An id-mapped mount.
    #[error("id-mapped mounts need mount_setattr, Linux 5.12, and a file system that has them")]
    IdMap,
    /// An id-mapped overlay.
    #[error("an id-mapped overlay needs Linux 6.15, or layers owned by the container's ids")]
    IdMappedOverlay,
    /// `rro` and its kin.
    #[error("recursive mount attributes need mount_setattr, Linux 5.12")]
    RecursiveAttributes,
    /// `fuse.*` and `fuse3.*`.
    #[error("mount helpers are not run; mount the file system and bind it")]
    Helper,
}

impl Feature {
    /// Whether `mount(2)` on a path may do what a detached mount cannot.
    pub(crate) fn has_fallback(self) -> bool {
        match self {
            Self::Detached | Self::ManyLayers | Self::LongOption => true,
            Self::IdMap | Self::IdMappedOverlay | Self::RecursiveAttributes | Self::Helper => false,
        }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Option { .. } | Self::Invalid { .. } => Code::InvalidArgument,
            Self::Unsupported { .. } => Code::Unimplemented,
            Self::Target { source, .. } | Self::Source { source, .. } | Self::LoopDevice { source, .. } => {
                if *source == Errno::NOENT { Code::NotFound } else { class(*source) }
            }
            Self::Mount { source, .. }
            | Self::UserNamespace { source }
            | Self::Unmount { source, .. }
            | Self::MountTable { source } => class(*source),
        }
    }
}

impl Error {
    /// What the kernel said, where it said something.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Option { .. } | Self::Unsupported { .. } | Self::Invalid { .. } => None,
            Self::Target { source, .. }
            | Self::Source { source, .. }
            | Self::Mount { source, .. }
            | Self::LoopDevice { source, .. }
            | Self::UserNamespace { source }
            | Self::Unmount { source, .. }
            | Self::MountTable { source } => Some(*source),
        }
    }
}

fn class(errno: Errno) -> Code {
    match errno {
        Errno::PERM | Errno::ACCESS => Code::PermissionDenied,
        Errno::BUSY => Code::FailedPrecondition,
        Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Code::ResourceExhausted,
        _ => Code::Unknown,
    }
}
