use std::os::unix::fs::MetadataExt as _;

use crate::Error;

/// What this host offers, probed once per process.
#[derive(Clone, Debug)]
pub struct HostFeatures {
    /// The cgroup hierarchies.
    pub cgroups: cgroups::Host,
    /// Capabilities that this process can give away, as a bit mask: the permitted ones. That a bounding set lacks one of
    /// them is the work of an earlier runtime with inheritable capabilities; the kernel then takes it away at the exec.
    pub(crate) capabilities: u64,
    /// How many capabilities the kernel knows.
    pub(crate) capabilities_known: u32,
    /// Whether the user of this process is not the host's root: cgroups may be out of reach.
    pub(crate) rootless: bool,
    /// Whether mounts can be made in the mount namespace of this process: CAP_SYS_ADMIN.
    pub(crate) mounts: bool,
    /// Whether device nodes may be made: the initial user namespace and CAP_MKNOD.
    pub(crate) device_nodes: bool,
    /// Whether there is a `/proc/kcore` to link to.
    pub(crate) kcore: bool,
    /// The number above the highest descriptor that may be open; 0 where nobody needs it.
    pub(crate) descriptor_limit: u32,
    /// Device and inode of the running program.
    pub(crate) own_program: (u64, u64),
    /// Whether all ids of this process are root's.
    pub(crate) root_ids: bool,
    /// Whether the limit of descriptors is so small that none may stay open that is done with.
    pub(crate) few_descriptors: bool,
}

/// More than a container's birth ever has open.
const MANY_DESCRIPTORS: u64 = 512;

const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const MKNOD: u32 = 27;

impl HostFeatures {
    /// Whether this process may raise resource limits.
    pub(crate) fn raises_limits(&self) -> bool {
        self.capabilities & (1 << SYS_RESOURCE) != 0
    }

    /// Probes the host. Cheap; call it once.
    pub fn detect() -> Result<Self, Error> {
        let cgroups = cgroups::Host::detect()
            .map_err(|source| Error::Cgroup { operation: "finding the cgroup hierarchies".to_owned(), source })?;
        let sets = sys::caps::get().map_err(|errno| Error::host("reading the capabilities of this process", errno))?;
        let program = std::fs::metadata("/proc/self/exe")
            .map_err(|source| Error::host("looking at the running program", source))?;
        let initial = in_initial_user_namespace();
        Ok(Self {
            cgroups,
            capabilities: sets.permitted,
            capabilities_known: sys::caps::known(),
            rootless: !(initial && sys::process::effective_user() == 0),
            mounts: sets.effective & (1 << SYS_ADMIN) != 0,
            device_nodes: sets.effective & (1 << MKNOD) != 0 && initial,
            kcore: std::path::Path::new("/proc/kcore").exists(),
            descriptor_limit: if sys::features().close_range { 0 } else { descriptor_limit() },
            own_program: (program.dev(), program.ino()),
            root_ids: sys::process::has_root_ids(),
            few_descriptors: {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
                limit.is_some_and(|limit| limit < MANY_DESCRIPTORS)
            },
        })
    }
}

impl HostFeatures {
    /// The cgroups of a container that has none: no hierarchy is known.
    pub(crate) fn no_cgroups() -> cgroups::Host {
        cgroups::Host::V1 { controllers: Vec::new() }
    }

    /// Whether there is any hierarchy of cgroups for the container.
    pub(crate) fn has_cgroups(&self) -> bool {
        !matches!(&self.cgroups, cgroups::Host::V1 { controllers } if controllers.is_empty())
    }

    /// The same host for a container without cgroups.
    pub(crate) fn without_cgroups(&self) -> Self {
        Self { cgroups: Self::no_cgroups(), ..self.clone() }
    }
}

/// `USER_NS_INIT_INO` of `linux/nsfs.h`: the inode of the initial user namespace, by which the kernel itself lets it be
/// known.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

fn in_initial_user_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
}

fn descriptor_limit() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(1 << 20).min(1 << 20)
}
