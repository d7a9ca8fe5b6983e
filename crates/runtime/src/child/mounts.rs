//! Mounts below the root, made detached and attached by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use sys::mount::{MountAttr, attr};

use super::path::{self, Text};
use super::{Child, Filesystem, Legacy, MountStep, RootTree, What};

const REC: u64 = libc::MS_REC;

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// `mount(2)` with its arguments as they are.
pub(super) fn mount_raw(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string that outlives the call.
    #[expect(unsafe_code, reason = "rustix splits mount(2) into functions that do not fit a prepared list")]
    let result = unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Sets the propagation of `/`, with `MS_REC` of all mounts.
pub(super) fn propagate(flags: u64) -> Result<(), Errno> {
    mount_raw(None, c"/", None, flags, None)
}

/// Puts the root file system into this mount namespace, without making it the root yet.
pub(super) fn attach_root(tree: &RootTree) -> Result<OwnedFd, Errno> {
    match tree {
        RootTree::Detached(mount) => {
            // Over the old root: the namespace is ours, the old root goes away, and no path is walked, which a user
            // namespace might not be allowed to.
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount, c"", rustix::fs::CWD, c"/", flags)?;
            rustix::io::fcntl_dupfd_cloexec(mount, 3)
        }
        RootTree::Path(directory) => {
            mount_raw(Some(directory), directory, None, libc::MS_BIND | REC, None)?;
            mount_raw(None, directory, None, libc::MS_PRIVATE, None)?;
            rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        }
    }
}

pub(super) fn mount(root: BorrowedFd<'_>, step: &MountStep) -> Result<(), Errno> {
    let target = || {
        if step.directory { path::directory(root, &step.target) } else { path::file(root, &step.target) }
    };
    match &step.what {
        What::Detached(mount) => {
            attach(mount.as_fd(), target()?.as_fd())?;
            for flags in &step.propagation {
                set_propagation(mount.as_fd(), *flags)?;
            }
        }
        What::Filesystem(filesystem) => match make(filesystem) {
            Ok(mount) => {
                attach(mount.as_fd(), target()?.as_fd())?;
                for flags in &step.propagation {
                    set_propagation(mount.as_fd(), *flags)?;
                }
            }
            Err(errno @ (Errno::PERM | Errno::BUSY)) => match &step.instead {
                Some(mount) => attach(mount.as_fd(), target()?.as_fd())?,
                None => return Err(errno),
            },
            Err(errno) => return Err(errno),
        },
        What::Legacy(legacy) => {
            let place = target()?;
            mount_legacy(legacy, place.as_fd())?;
            if legacy.remount.is_none() && step.propagation.is_empty() {
                return Ok(());
            }
            // The descriptor is of the place under the mount; the mount itself is found by the same path.
            let place = target()?;
            let mut name = Text::new();
            path::magic(place.as_fd(), &mut name)?;
            if let Some(flags) = legacy.remount {
                mount_raw(None, name.as_c_str()?, None, flags, None)?;
            }
            for flags in &step.propagation {
                mount_raw(None, name.as_c_str()?, None, *flags, None)?;
            }
        }
    }
    Ok(())
}

fn mount_legacy(legacy: &Legacy, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut name = Text::new();
    path::magic(place, &mut name)?;
    let data = if legacy.data.is_empty() { None } else { Some(legacy.data.as_c_str()) };
    mount_raw(Some(&legacy.source), name.as_c_str()?, legacy.kind.as_deref(), legacy.flags, data)
}

fn make(filesystem: &Filesystem) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(filesystem.kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", filesystem.source.as_c_str())?;
    for (key, value) in &filesystem.parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?,
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(filesystem.attributes);
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

fn set_propagation(mount: BorrowedFd<'_>, flags: u64) -> Result<(), Errno> {
    let change = MountAttr { propagation: flags & !REC, ..MountAttr::default() };
    sys::mount::mount_setattr(mount, c"", flags & REC != 0, &change)
}

/// A detached copy of what a descriptor refers to.
pub(super) fn copy(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(of, c"", flags)
}

/// Makes the mount at `path` read-only.
pub(super) fn make_read_only(root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let place = path::open(root, path, OFlags::empty())?;
    set_read_only(place.as_fd())
}

fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    if sys::features().mount_setattr {
        let change = MountAttr { set: attr::RDONLY, ..MountAttr::default() };
        return sys::mount::mount_setattr(mount, c"", false, &change);
    }
    // mount(2) sets all flags: those that are there must be said again, or a locked one makes it fail.
    let have = rustix::fs::fstatvfs(mount)?.f_flag.bits();
    let mut flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    for (bit, flag) in [
        (libc::ST_NOSUID, libc::MS_NOSUID),
        (libc::ST_NODEV, libc::MS_NODEV),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
        (libc::ST_NOATIME, libc::MS_NOATIME),
        (libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (libc::ST_RELATIME, libc::MS_RELATIME),
    ] {
        if have & bit != 0 {
            flags |= flag;
        }
    }
    let mut name = Text::new();
    path::magic(mount, &mut name)?;
    mount_raw(None, name.as_c_str()?, None, flags, None)
}

/// Makes everything at `path` appear read-only, by a mount of it on itself. What is not there needs nothing.
pub(super) fn read_only(root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let place = match path::open(root, path, OFlags::empty()) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if sys::features().new_mount_api && sys::features().mount_setattr {
        let tree = copy(place.as_fd(), true)?;
        set_read_only(tree.as_fd())?;
        return attach(tree.as_fd(), place.as_fd());
    }
    let mut name = Text::new();
    path::magic(place.as_fd(), &mut name)?;
    let name = name.as_c_str()?;
    mount_raw(Some(name), name, None, libc::MS_BIND | REC, None)?;
    make_read_only(root, path)
}

/// Makes `root` the root of this process and takes the old one out of reach.
/// Makes `root` the root. With `by_move`, by moving it over the old one, in which these places are emptied before.
pub(super) fn change_root(root: BorrowedFd<'_>, by_move: Option<&[CString]>) -> Result<(), Errno> {
    if let Some(places) = by_move {
        // What is unmounted here must not be unmounted on the host.
        mount_raw(None, c"/", None, libc::MS_SLAVE | REC, None)?;
        for place in places {
            match rustix::mount::unmount(place, UnmountFlags::DETACH) {
                // Locked, by a user namespace: an empty directory takes its place.
                Err(Errno::INVAL | Errno::PERM) => {
                    mount_raw(Some(c"tmpfs"), place, Some(c"tmpfs"), libc::MS_RDONLY, None)?;
                }
                // Below one that is gone already.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                other => other?,
            }
        }
        rustix::process::fchdir(root)?;
        mount_raw(Some(c"."), c"/", None, libc::MS_MOVE, None).or_else(|errno| {
            // A root that was attached over the old one is where it should be already.
            if errno == Errno::INVAL || errno == Errno::LOOP || errno == Errno::BUSY { Ok(()) } else { Err(errno) }
        })?;
        rustix::process::chroot(c".")?;
        return rustix::process::chdir(c"/");
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open(c"/", flags, Mode::empty())?;
    rustix::process::fchdir(root)?;
    // The old root lands on top of the new one, where it needs no directory to be put into (pivot_root(2), NOTES).
    rustix::process::pivot_root(c".", c".")?;
    rustix::process::fchdir(&old)?;
    // What is unmounted here must not be unmounted on the host.
    mount_raw(None, c".", None, libc::MS_SLAVE | REC, None)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

pub(super) fn root_read_only(root: BorrowedFd<'_>) -> Result<(), Errno> {
    set_read_only(root)
}

impl Child<'_> {
    /// Hides what is at `path` behind an empty read-only directory, or behind the null device.
    pub(super) fn mask_path(&mut self, path: &CStr) -> Result<(), Errno> {
        let place = match path::open(self.root()?, path, OFlags::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let directory = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
        if !sys::features().new_mount_api {
            return mask_legacy(self.root()?, place.as_fd(), path, directory);
        }
        if directory {
            let fresh = if self.mask.is_none() { Some(empty_directory()?) } else { None };
            return cover(&mut self.mask, fresh, place.as_fd());
        }
        let fresh = match &self.mask_null {
            None => Some(rustix::io::fcntl_dupfd_cloexec(self.script.null.as_ref().ok_or(Errno::BADF)?, 3)?),
            Some(_) => None,
        };
        cover(&mut self.mask_null, fresh, place.as_fd())
    }
}

/// Attaches `fresh`, or a copy of the `used` one. Kernels before 6.15 copy only what is attached somewhere.
fn cover(used: &mut Option<OwnedFd>, fresh: Option<OwnedFd>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    match (fresh, used.as_ref()) {
        (Some(mount), _) => {
            attach(mount.as_fd(), place)?;
            *used = Some(mount);
            Ok(())
        }
        (None, Some(mount)) => attach(copy(mount.as_fd(), false)?.as_fd(), place),
        (None, None) => Err(Errno::BADF),
    }
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"2")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn mask_legacy(root: BorrowedFd<'_>, place: BorrowedFd<'_>, path: &CStr, directory: bool) -> Result<(), Errno> {
    let mut name = Text::new();
    path::magic(place, &mut name)?;
    let name = name.as_c_str()?;
    if directory {
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        return mount_raw(Some(c"tmpfs"), name, Some(c"tmpfs"), flags, Some(c"nr_inodes=2"));
    }
    mount_raw(Some(c"/dev/null"), name, None, libc::MS_BIND, None)?;
    // Read-only, or the container's root could change the mode of the host's null device.
    make_read_only(root, path)
}
