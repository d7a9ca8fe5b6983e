//! The mount system calls. What `rustix` offers is passed on; `mount_setattr(2)` is ours.

#![expect(unsafe_code, reason = "mount_setattr has no wrapper elsewhere")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

pub use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_create_exclusive, fsconfig_reconfigure, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_path, fsconfig_set_path_empty, fsconfig_set_string, fsmount, fsopen, fspick, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};

use crate::arch::NATIVE;
use crate::{Result, syscall};

/// Attributes to change on a mount: `struct mount_attr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr<'fd> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear; all of `MOUNT_ATTR__ATIME` if an atime mode is set.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave propagation alone.
    pub propagation: u64,
    /// The user namespace whose maps an id-mapped mount uses; sets `MOUNT_ATTR_IDMAP`.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// `MOUNT_ATTR_*` of `linux/mount.h`.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x01;
    /// Ignore set-user-id and file capabilities.
    pub const NOSUID: u64 = 0x02;
    /// Device files do not open.
    pub const NODEV: u64 = 0x04;
    /// Nothing executes.
    pub const NOEXEC: u64 = 0x08;
    /// The bits of the atime mode.
    pub const ATIME: u64 = 0x70;
    /// Update atime relative to mtime: the mode with no bit.
    pub const RELATIME: u64 = 0x00;
    /// Never update atime.
    pub const NOATIME: u64 = 0x10;
    /// Always update atime.
    pub const STRICTATIME: u64 = 0x20;
    /// Never update the atime of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Translate owners through a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Do not follow symbolic links below.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// `struct mount_attr`, version 0.
#[repr(C)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

impl From<&MountAttr<'_>> for RawMountAttr {
    fn from(change: &MountAttr<'_>) -> Self {
        Self {
            attr_set: change.set | if change.user_namespace.is_some() { attr::IDMAP } else { 0 },
            attr_clr: change.clear,
            propagation: change.propagation,
            userns_fd: change.user_namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
        }
    }
}

/// Changes attributes of the mount at `path` (relative to `dir`; empty: `dir` itself), of all mounts below it too if
/// `recursive`. Either all of them change or none.
///
/// Does not block. ENOSYS before Linux 5.12: ask [`crate::features`] first.
pub fn mount_setattr(dir: impl AsFd, path: &CStr, recursive: bool, change: &MountAttr<'_>) -> Result<()> {
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let raw = RawMountAttr::from(change);
    let arguments = [
        dir.as_fd().as_raw_fd() as usize,
        path.as_ptr() as usize,
        flags as usize,
        syscall::address(&raw),
        size_of::<RawMountAttr>(),
    ];
    // SAFETY: path is a C string and raw a whole struct mount_attr; both outlive the call.
    unsafe { syscall::call(NATIVE.numbers.mount_setattr, arguments) }.map(drop)
}

/// A detached copy of the mount at `path` (relative to `dir`; empty: `dir` itself) with its attributes changed, of the
/// whole tree if `recursive`. `follow`: whether a link in the last component is followed.
///
/// One call since Linux 6.15 (`open_tree_attr`), two before. Neither allocates nor locks. Needs `open_tree` and
/// `mount_setattr`: ask [`crate::features`] first.
pub fn copy_with(
    dir: impl AsFd,
    path: &CStr,
    recursive: bool,
    follow: bool,
    change: &MountAttr<'_>,
) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    flags.set(OpenTreeFlags::AT_SYMLINK_NOFOLLOW, !follow);
    if !crate::features().forced_fallbacks && !ONE_CALL_FAILS.load(Ordering::Relaxed) {
        let raw = RawMountAttr::from(change);
        let arguments = [
            dir.as_raw_fd() as usize,
            path.as_ptr() as usize,
            flags.bits() as usize,
            syscall::address(&raw),
            size_of::<RawMountAttr>(),
        ];
        // SAFETY: path is a C string and raw a whole struct mount_attr; both outlive the call.
        match unsafe { syscall::call(NATIVE.numbers.open_tree_attr, arguments) } {
            // SAFETY: the kernel has just returned a new descriptor.
            Ok(fd) => return unsafe { syscall::own(fd) },
            Err(Errno::NOENT) => return Err(Errno::NOENT),
            Err(Errno::NOSYS) => ONE_CALL_FAILS.store(true, Ordering::Relaxed),
            // Refused, maybe by a filter around us that does not know the call: the two calls tell.
            Err(_) => {}
        }
    }
    let mount = open_tree(dir, path, flags)?;
    mount_setattr(&mount, c"", recursive, change)?;
    Ok(mount)
}

/// Whether the kernel lacks `open_tree_attr`.
static ONE_CALL_FAILS: AtomicBool = AtomicBool::new(false);

/// Runs `work` on a thread of its own with a mount namespace of its own, in which nothing that it mounts is seen by anybody
/// else and nothing that others mount arrives. What it mounts goes when the thread has ended, but for what descriptors refer
/// to.
pub fn in_own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let run = || {
            // The thread leaves the others' root and working directory along with their mounts (clone(2), CLONE_FS).
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().name("mounts".to_owned()).spawn_scoped(scope, run);
        let thread = thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        thread.join().unwrap_or(Err(Errno::IO))
    })
}

/// Detaches the mount at `target` from the tree at once; it goes away when its last user does. Never follows a
/// symbolic link in the last component.
pub fn umount_detach(target: impl rustix::path::Arg) -> Result<()> {
    unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}
