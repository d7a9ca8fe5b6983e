//! Paths that the container is not to see.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sys::undefended::{Defence, left_out};

use super::mounts::{self, attach, copy, make_read_only, mount_raw, set_read_only};
use super::path::{self, Text};
use super::{Child, MountStep};

impl Child<'_> {
    /// Makes a mount, and keeps the procfs of the container at hand.
    pub(super) fn mount(&mut self, step: &MountStep) -> Result<(), Errno> {
        let made = mounts::mount(self.root()?, step)?;
        if step.target.as_c_str() != c"proc" {
            return Ok(());
        }
        // Without a descriptor of the new mount, of what is there now, if it is a procfs.
        let found = match made {
            Some(mount) => mount,
            None => path::open(self.root()?, &step.target, OFlags::DIRECTORY)?,
        };
        let procfs = mounts::is_procfs(found.as_fd())?;
        self.procfs = Some(found).filter(|_| procfs && !left_out(Defence::ProcMasks));
        Ok(())
    }

    /// Where a path to mask begins: parts of procfs in the procfs that was mounted, whatever is at its place meanwhile
    /// (CVE-2023-27561 class).
    fn base<'path>(&self, path: &'path CStr) -> Result<(BorrowedFd<'_>, &'path CStr), Errno> {
        let below = path.to_bytes_with_nul().strip_prefix(b"proc/").map(CStr::from_bytes_with_nul);
        match (&self.procfs, below) {
            (Some(procfs), Some(Ok(below))) => Ok((procfs.as_fd(), below)),
            _ => Ok((self.root()?, path)),
        }
    }

    pub(super) fn read_only(&self, path: &CStr) -> Result<(), Errno> {
        let (base, path) = self.base(path)?;
        mounts::read_only(base, path)
    }

    /// Hides what is at `path` behind an empty read-only directory, or behind the null device.
    pub(super) fn mask_path(&mut self, path: &CStr) -> Result<(), Errno> {
        let (base, path) = self.base(path)?;
        let place = match path::open(base, path, OFlags::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let directory = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
        if !sys::features().new_mount_api {
            return mask_legacy(base, place.as_fd(), path, directory);
        }
        if directory {
            let fresh = if self.mask.is_none() { Some(empty_directory()?) } else { None };
            return cover(&mut self.mask, fresh, place.as_fd());
        }
        if left_out(Defence::Null) {
            let null = path::open(self.root()?, c"dev/null", OFlags::empty())?;
            return attach(copy(null.as_fd(), false)?.as_fd(), place.as_fd());
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
