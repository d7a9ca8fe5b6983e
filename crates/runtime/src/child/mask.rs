//! Paths that the container is not to see.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::Child;
use super::mounts::{attach, copy, make_read_only, mount_raw, set_read_only};
use super::path::{self, Text};

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
            None => match &self.script.null {
                Some(null) => Some(rustix::io::fcntl_dupfd_cloexec(null, 3)?),
                None => Some(null_device()?),
            },
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

/// The host's null device as a read-only mount, where the parent had no right to make it.
fn null_device() -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open(c"/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&device)?;
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    if !is_device || found.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Errno::NODEV);
    }
    let mount = copy(device.as_fd(), false)?;
    set_read_only(mount.as_fd())?;
    Ok(mount)
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
