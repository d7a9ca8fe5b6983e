//! Attaching mounts to the tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use model::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use sys::fs::proc_path;
use sys::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use crate::build::Step;
use crate::{Error, ParsedOptions, Result, build, legacy};

/// Makes all `mounts` one after the other on `target`, in the caller's mount namespace; each at its own `target` field
/// joined inside. On an error those already made are undone. `target` itself is trusted and may be a symbolic link.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    let failed = |source| Error::Target { target: target.display().to_string(), source };
    let root = rustix::fs::openat(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    mount_all_in(mounts, root.as_fd())
}

/// Makes all `mounts` one after the other, each at its own `target` field below the first, where nobody sees them, and gives the
/// root of what that makes. It goes away with the descriptor (`O_PATH`). Blocks, and uses a thread for that time.
///
/// The way for mounts that cannot be built with [`crate::detached`]: several, and those of older kernels.
pub fn mount_apart(mounts: &[Mount]) -> Result<OwnedFd> {
    // A directory that is everywhere, and that no mount needs to be made; the thread alone sees what is mounted there.
    const PLACE: &str = "/sys";
    let failed = |source| Error::Target { target: PLACE.to_owned(), source };
    let made = sys::mount::in_own_namespace(|| {
        mount_all(mounts, Path::new(PLACE))?;
        if mounts.len() == 1 {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            return rustix::fs::openat(CWD, PLACE, flags, Mode::empty()).map_err(failed);
        }
        // The end of a namespace takes its mounts off each other; a copy of the tree is in none. Linux 5.2 has the call.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, PLACE, flags).map_err(failed)
    });
    made.map_err(failed)?
}

/// As [`mount_all`], with the target as an open directory.
pub fn mount_all_in(mounts: &[Mount], target: BorrowedFd<'_>) -> Result<()> {
    let mut made = Undo(Vec::new());
    // A mount on the target itself becomes the root in which later targets are looked up.
    let mut top = None;
    for mount in mounts {
        let options = crate::parse_options(&mount.options)?;
        let root = top.and_then(|index: usize| made.0.get(index)).map_or(target, AsFd::as_fd);
        let mounted = if mount.target.is_empty() {
            let mounted = mount_on_fd(&mount.kind, &mount.source, &options, root)?;
            top = Some(made.0.len());
            mounted
        } else {
            let place = open_target(root, Path::new(&mount.target))?;
            mount_on_fd(&mount.kind, &mount.source, &options, place.as_fd())?
        };
        if let Some(mounted) = mounted {
            made.0.push(mounted);
        } else {
            // A remount makes nothing new.
            top = None;
        }
    }
    made.0.clear();
    Ok(())
}

/// Mounts to take away again, the last one first, unless the list is emptied.
struct Undo(Vec<OwnedFd>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(mount) = self.0.pop() {
            // The error that brought us here matters more than one of cleaning up.
            let _ = sys::mount::unmount(proc_path(mount.as_fd()), UnmountFlags::DETACH);
        }
    }
}

/// Makes one mount on what `target` refers to (an `O_PATH` descriptor will do), detached first where the kernel can,
/// else with `mount(2)`. With `remount` among the options, changes the mount that `target` is the root of.
pub fn mount_on(kind: &str, source: &str, options: &ParsedOptions, target: BorrowedFd<'_>) -> Result<()> {
    mount_on_fd(kind, source, options, target).map(drop)
}

/// As [`mount_on`]; gives the root of the new mount, or nothing after a remount.
fn mount_on_fd(kind: &str, source: &str, options: &ParsedOptions, target: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    if options.remount {
        return legacy::remount(kind, source, options, target).map(|()| None);
    }
    match build::detached_with(kind, source, options) {
        Ok(mount) => {
            attach(mount.as_fd(), target)?;
            // Attached below a shared mount it has become shared, whatever it was before.
            build::set_propagation(mount.as_fd(), options)?;
            Ok(Some(mount))
        }
        Err(Error::Unsupported { feature, .. }) if feature.has_fallback() => {
            legacy::mount_on(kind, source, options, target).map(Some)
        }
        Err(error) => Err(error),
    }
}

/// Attaches a detached mount on what `target` refers to (an `O_PATH` descriptor will do).
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags).map_err(Step { kind: "", source: "" }.failed("move_mount"))
}

/// Attaches a detached mount at `path` resolved inside `root`.
pub fn attach_in(mount: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let place = open_target(root, path)?;
    attach(mount, place.as_fd())
}

fn open_target(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    sys::fs::open_in_root(root, path, OFlags::PATH)
        .map_err(|source| Error::Target { target: path.display().to_string(), source })
}
