//! What is written to procfs, through a handle that cannot be anything else.
//!
//! A container that could make the runtime write its labels or sysctls elsewhere would have escaped (CVE-2019-16884,
//! CVE-2025-52881). All of it is written before the root is changed, to the host's procfs, and that this is one is
//! checked: its magic number, its root's inode, and that nothing is mounted between there and the file.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Inode number of the root of every procfs (`PROC_ROOT_INO`).
const ROOT_INODE: u64 = 1;

/// The root of the host's procfs.
pub(super) fn root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/proc", flags, Mode::empty())?;
    check(&root)?;
    if rustix::fs::fstat(&root)?.st_ino == ROOT_INODE { Ok(root) } else { Err(Errno::XDEV) }
}

/// Opens a file of procfs; `path` is relative to its root.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    if !sys::features().openat2 {
        let file = rustix::fs::openat(root, path, flags, Mode::empty())?;
        return check(&file).map(|()| file);
    }
    // `self` and `thread-self` are ordinary links; magic ones lead out.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn check(file: impl AsFd) -> Result<(), Errno> {
    let found = rustix::fs::fstatfs(file)?;
    if found.f_type == rustix::fs::PROC_SUPER_MAGIC { Ok(()) } else { Err(Errno::XDEV) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_procfs() {
        let root = root().unwrap();
        let open = |path, access| open(root.as_fd(), path, access);
        assert!(open(c"self/oom_score_adj", OFlags::RDONLY).is_ok());
        assert!(open(c"thread-self/attr/exec", OFlags::RDONLY).is_ok());
        assert_eq!(open(c"self/no-such-file", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
        // Magic links and what leads above it are no files of procfs.
        if sys::features().openat2 {
            for path in [c"self/exe", c"self/root/etc/passwd", c"self/cwd/x", c"../etc/passwd"] {
                assert!(open(path, OFlags::RDONLY).is_err(), "{path:?}");
            }
        }
    }
}
