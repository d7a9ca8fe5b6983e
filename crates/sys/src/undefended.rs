//! Which defence a test build leaves out, to show that an attack bites where the defence is missing.
//!
//! The feature `undefended` is for `cargo xtask suite attacks` only. Without it every [`left_out`] is `false` at compile
//! time, and the program does not contain [`MARK`]: `cargo xtask dist` looks for it.

/// Stands in every program that was built with the feature.
pub const MARK: &str = "gantry-undefended-build";

/// The environment variable that names one defence to leave out.
pub const VARIABLE: &str = "GANTRY_UNDEFENDED";

macro_rules! defences {
    ($($(#[$about:meta])* $variant:ident = $name:literal,)*) => {
        /// Something that keeps an attack from succeeding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Defence {
            $($(#[$about])* $variant,)*
        }

        impl Defence {
            /// The name by which it is left out.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            #[cfg(feature = "undefended")]
            fn find(name: &str) -> Option<Self> {
                [$(Self::$variant,)*].into_iter().find(|defence| defence.name() == name)
            }
        }
    };
}

defences! {
    /// Paths below the root are resolved in it, by descriptor.
    Paths = "paths",
    /// What masks a file is the host's null device.
    Null = "null",
    /// `/dev/console` is not a link.
    Console = "console",
    /// Nothing is mounted over procfs or parts of it.
    ProcPlace = "proc_place",
    /// Masks are laid on the procfs that was mounted.
    ProcMasks = "proc_masks",
    /// Sysctls are written through the host's procfs.
    ProcWrites = "proc_writes",
    /// The working directory is below the root.
    Cwd = "cwd",
    /// Descriptors end with the exec.
    Fds = "fds",
    /// Our own program is out of the container's reach.
    Program = "program",
    /// A process that joins a container cannot be looked into.
    Hide = "hide",
    /// `HOME` is a path, and of the very user.
    Home = "home",
    /// `/etc/passwd` is a plain file, and not read to its end.
    Passwd = "passwd",
    /// No capability is inheritable unless the document says so.
    Inheritable = "inheritable",
    /// The caller's groups are left behind.
    Groups = "groups",
    /// Ids are numbers and nothing else.
    Ids = "ids",
    /// Documents have a size at most.
    Documents = "documents",
    /// Of a hook's output the end is kept.
    HookOutput = "hook_output",
    /// What is too long is refused, not cut.
    Lengths = "lengths",
    /// Sysctls belong to a namespace of the container.
    Sysctls = "sysctls",
    /// A cgroup's path has no `..`.
    CgroupPath = "cgroup_path",
    /// A container's id is a name.
    ContainerId = "container_id",
    /// The state of a container is private.
    Modes = "modes",
    /// The host's cgroups are shown read-only.
    CgroupMounts = "cgroup_mounts",
    /// The default template masks what tells of other containers.
    Masks = "masks",
    /// Every container is in its cgroup.
    Cgroup = "cgroup",
}

/// Whether this defence is left out in this process.
#[cfg(not(feature = "undefended"))]
#[inline]
pub const fn left_out(_: Defence) -> bool {
    false
}

/// Whether this defence is left out in this process: its name is in the environment. The first call allocates, so it
/// must come before any clone.
#[cfg(feature = "undefended")]
pub fn left_out(defence: Defence) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Defence>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        // A use of the mark, so that it is in the program.
        if name == MARK { None } else { Defence::find(&name) }
    });
    *chosen == Some(defence)
}

#[cfg(all(test, not(feature = "undefended")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out() {
        const { assert!(!left_out(Defence::Paths)) };
        assert_eq!(Defence::CgroupMounts.name(), "cgroup_mounts");
    }
}
