//! What of a container is not its own: mounts and namespaces that belong to the host, which a dump names and a restore
//! gives anew. The names are those that runc writes, so that either runtime restores the other's images.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use sys::clone::flags;

use crate::plan::{MountKind, MountPlan};
use crate::{Error, HostFeatures, Plan};

/// A mount that is the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct External {
    /// Where it is, below the root, without a leading slash.
    pub(super) target: PathBuf,
    /// Where it comes from.
    pub(super) source: PathBuf,
}

/// The bind mounts of a plan, those of its cgroups among them, and its devices.
pub(super) fn mounts(plan: &Plan, host: &HostFeatures) -> Vec<External> {
    let mut list = Vec::new();
    for mount in &plan.mounts {
        let target = || Path::new(std::ffi::OsStr::from_bytes(mount.target.as_bytes())).to_owned();
        match &mount.kind {
            MountKind::Bind(source) => list.push(External { target: target(), source: source.clone() }),
            MountKind::Cgroup if !plan.spaces.has(flags::NEWCGROUP) => cgroups(plan, &target(), host, &mut list),
            // Mounts of their own, whose content CRIU knows how to keep.
            MountKind::Cgroup | MountKind::Filesystem(..) => {}
        }
    }
    // Nodes of a tmpfs mostly; bound from the host where nodes cannot be made. CRIU takes no notice of too many.
    list.extend(plan.devices.iter().map(|device| {
        let target = device.path.strip_prefix("/").unwrap_or(&device.path).to_owned();
        External { target, source: device.path.clone() }
    }));
    list
}

/// On version 1 without a namespace of their own every hierarchy is bound; on version 2 there is one mount, and it is
/// CRIU's.
fn cgroups(plan: &Plan, target: &Path, host: &HostFeatures, list: &mut Vec<External>) {
    let cgroups::Host::V1 { controllers } = &host.cgroups else { return };
    for (controller, place) in controllers {
        let name = place.file_name().map_or_else(|| controller.into(), std::ffi::OsStr::to_owned);
        let bound = External { target: target.join(name), source: place.join(plan.cgroup.as_str()) };
        if !list.contains(&bound) {
            list.push(bound);
        }
    }
}

/// A target as the container's own mount table has it, with a leading slash: links below the root are followed.
pub(super) fn resolved(root: BorrowedFd<'_>, target: &Path) -> Vec<u8> {
    let found = sys::fs::open_in_root(root, target, OFlags::PATH).ok();
    let seen = found.and_then(|found| std::fs::read_link(sys::fs::proc_path(found.as_fd())).ok());
    match seen.filter(|path| path.is_absolute()) {
        Some(path) => path.into_os_string().into_vec(),
        None => Path::new("/").join(target).into_os_string().into_vec(),
    }
}

/// The same before the container exists: `root` is a directory of the host.
pub(super) fn resolved_below(root: BorrowedFd<'_>, target: &Path) -> Vec<u8> {
    let seen = PathBuf::from(std::ffi::OsString::from_vec(resolved(root, target)));
    let own = std::fs::read_link(sys::fs::proc_path(root)).unwrap_or_default();
    let below = seen.strip_prefix(&own).map(Path::to_owned).unwrap_or_else(|_| target.to_owned());
    Path::new("/").join(below).into_os_string().into_vec()
}

/// The key under which an external namespace is kept: `extRootNetNS`.
fn key(kind: &str) -> String {
    let (first, rest) = kind.split_at(1.min(kind.len()));
    format!("extRoot{}{rest}NS", first.to_uppercase())
}

/// Kinds that CRIU can leave out of a dump.
const EXTERNAL_KINDS: [(u64, &str); 2] = [(flags::NEWNET, "net"), (flags::NEWPID, "pid")];

/// The joined namespaces that a dump leaves out: `net[4026531992]:extRootNetNS`.
pub(super) fn dumped_namespaces(plan: &Plan, pid: u32) -> Result<Vec<String>, Error> {
    let mut list = Vec::new();
    for (_, name) in EXTERNAL_KINDS.into_iter().filter(|(kind, _)| plan.spaces.joins(*kind)) {
        // What the container is in counts, whatever has become of the path.
        let path = format!("/proc/{pid}/ns/{name}");
        let found = rustix::fs::stat(&path).map_err(|errno| Error::host(format!("looking at {path}"), errno))?;
        list.push(format!("{name}[{}]:{}", found.st_ino, key(name)));
    }
    Ok(list)
}

/// The namespaces that a restored container joins.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Key and opened file of those that were left out of the dump.
    pub(super) inherited: Vec<(String, OwnedFd)>,
    /// Kind and path of those that CRIU enters itself.
    pub(super) entered: Vec<(&'static str, Vec<u8>)>,
}

pub(super) fn restored_namespaces(plan: &Plan) -> Result<Joined, Error> {
    let mut joined = Joined::default();
    for (kind, path) in &plan.spaces.joined {
        if let Some((_, name)) = EXTERNAL_KINDS.iter().find(|(external, _)| external == kind) {
            let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Error::host(format!("opening namespace {}", path.display()), errno))?;
            joined.inherited.push((key(name), file));
            continue;
        }
        let name = match *kind {
            flags::NEWIPC => "ipc",
            flags::NEWUTS => "uts",
            flags::NEWUSER => "user",
            flags::NEWTIME => "time",
            _ => {
                let reason = format!("criu cannot restore into the namespace {}", path.display());
                return Err(Error::unsupported("linux.namespaces", reason));
            }
        };
        joined.entered.push((name, path.as_os_str().as_bytes().to_vec()));
    }
    Ok(joined)
}

/// Makes the places that mounts need and a fresh root file system may lack. What is on a tmpfs is left out: CRIU
/// restores that with its content.
pub(super) fn make_mount_points(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Error> {
    // Where earlier mounts are, links followed.
    let mut places: Vec<(PathBuf, &MountKind)> = Vec::new();
    for mount in &plan.mounts {
        let target = Path::new(std::ffi::OsStr::from_bytes(mount.target.as_bytes()));
        // The mount that covers the place: the last one at or above its parent.
        let above = places.iter().rev().find(|(place, _)| target.starts_with(place) && target != place);
        let place = match above {
            None => {
                make_mount_point(mount, root, target)?;
                let seen = PathBuf::from(std::ffi::OsString::from_vec(resolved_below(root, target)));
                seen.strip_prefix("/").unwrap_or(target).to_owned()
            }
            Some((place, MountKind::Bind(source))) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let source = rustix::fs::open(source, flags, Mode::empty())
                    .map_err(|errno| Error::host(format!("opening {}", source.display()), errno))?;
                make_mount_point(mount, source.as_fd(), target.strip_prefix(place).unwrap_or(target))?;
                target.to_owned()
            }
            Some((_, MountKind::Filesystem(..) | MountKind::Cgroup)) => target.to_owned(),
        };
        places.push((place, &mount.kind));
    }
    Ok(())
}

fn make_mount_point(mount: &MountPlan, root: BorrowedFd<'_>, target: &Path) -> Result<(), Error> {
    let failed = |errno| {
        Error::host(format!("making the mount point {} of the restored container", mount.destination.display()), errno)
    };
    let file = match &mount.kind {
        MountKind::Bind(source) => {
            let found = rustix::fs::stat(source)
                .map_err(|errno| Error::host(format!("looking at {}", source.display()), errno))?;
            FileType::from_raw_mode(found.st_mode) != FileType::Directory
        }
        MountKind::Filesystem(..) | MountKind::Cgroup => false,
    };
    if file {
        sys::fs::mkfile_in_root(root, target, Mode::from_raw_mode(0o644)).map(drop).map_err(failed)
    } else {
        sys::fs::mkdir_in_root(root, target, Mode::from_raw_mode(0o755)).map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_runcs() {
        assert_eq!((key("net").as_str(), key("pid").as_str()), ("extRootNetNS", "extRootPidNS"));
    }

    #[test]
    fn targets_are_resolved_inside_of_the_root() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("real/conf")).unwrap();
        std::os::unix::fs::symlink("/real/conf", top.path().join("conf")).unwrap();
        let root = rustix::fs::open(top.path(), OFlags::PATH, Mode::empty()).unwrap();
        let prefix = top.path().to_str().unwrap().to_owned();
        // The whole path is seen here, because the root is none of this process.
        let found = String::from_utf8(resolved(root.as_fd(), Path::new("conf"))).unwrap();
        assert_eq!(found.strip_prefix(&prefix), Some("/real/conf"));
        assert_eq!(resolved(root.as_fd(), Path::new("not/there")), b"/not/there");
        assert_eq!(resolved_below(root.as_fd(), Path::new("conf")), b"/real/conf");
        assert_eq!(resolved_below(root.as_fd(), Path::new("not/there")), b"/not/there");
    }
}
