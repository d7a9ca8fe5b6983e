//! Paths that the container is not to see.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use sys::undefended::{Defence, left_out};

use super::mounts::{self, attach, copy, make_read_only, mount_raw, set_read_only};
use super::path::{self, Text};
use super::scratch::Scratch;
use super::{Child, MountStep, What};

/// Names in procfs that are plain files in every kernel that has them, and those that are directories: no link can be
/// there, so that a mount on the name is a mount on the thing.
const FILES: [&CStr; 8] = [
    c"interrupts",
    c"kcore",
    c"keys",
    c"latency_stats",
    c"sched_debug",
    c"sysrq-trigger",
    c"timer_list",
    c"timer_stats",
];
const DIRECTORIES: [&CStr; 7] = [c"acpi", c"asound", c"bus", c"fs", c"irq", c"scsi", c"sys"];

impl<'script> Child<'script> {
    /// Makes a mount, and keeps the procfs of the container at hand.
    pub(super) fn mount(&mut self, step: &'script MountStep) -> Result<(), Errno> {
        let made = mounts::mount(self.site()?, step)?;
        if step.target.to_bytes().starts_with(b"proc/") {
            self.procfs_bare = false;
        }
        if step.target.as_c_str() != c"proc" {
            match &step.what {
                What::Filesystem(_) => self.ground.mounted(step, made),
                What::Detached(_) | What::Bind(_) | What::Legacy(_) | What::Taken => {
                    self.ground.mounted(step, None);
                    made.into_iter().for_each(|mount| self.scratch.put(mount));
                }
            }
            return Ok(());
        }
        // Without a descriptor of the new mount, of what is there now, if it is a procfs.
        let fresh = matches!(&step.what, What::Filesystem(made) if made.kind.as_c_str() == c"proc");
        self.procfs_bare = fresh && step.instead.is_none() && made.is_some();
        let found = match made {
            Some(mount) => mount,
            None => path::open(self.root()?, &step.target, OFlags::DIRECTORY)?,
        };
        let procfs = self.procfs_bare || mounts::is_procfs(found.as_fd())?;
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

    /// The container's procfs and a name in it that is no link, if nothing is mounted in there.
    fn plain_name<'path>(&self, path: &'path CStr) -> Option<(BorrowedFd<'_>, &'path CStr)> {
        let features = sys::features();
        let procfs = self.procfs.as_ref().filter(|_| self.procfs_bare)?;
        let name = CStr::from_bytes_with_nul(path.to_bytes_with_nul().strip_prefix(b"proc/")?).ok()?;
        let usable = features.new_mount_api && features.mount_setattr;
        (usable && (DIRECTORIES.contains(&name) || FILES.contains(&name))).then_some((procfs.as_fd(), name))
    }

    /// Whether what a path leads to in procfs is a directory, where that is known without a look.
    fn kind_in_procfs(&self, path: &CStr) -> Option<bool> {
        self.plain_name(path).map(|(_, name)| DIRECTORIES.contains(&name))
    }

    pub(super) fn read_only(&self, path: &CStr) -> Result<(), Errno> {
        if let Some((procfs, name)) = self.plain_name(path) {
            return mounts::read_only_name(procfs, &self.scratch, name);
        }
        let (base, path) = self.base(path)?;
        mounts::read_only(base, &self.scratch, path)
    }

    /// Hides what is at `path` behind an empty read-only directory, or behind the null device.
    pub(super) fn mask_path(&mut self, path: &CStr) -> Result<(), Errno> {
        let known = self.kind_in_procfs(path);
        let (base, path) = self.base(path)?;
        let place = match path::open(base, path, OFlags::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let directory = match known {
            Some(directory) => directory,
            None => FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory,
        };
        if !sys::features().new_mount_api {
            return mask_legacy(base, place.as_fd(), path, directory);
        }
        if directory {
            cover(&mut self.mask, &self.scratch, place.as_fd(), || empty_directory(&self.scratch))?;
        } else if left_out(Defence::Null) {
            let null = path::open(self.root()?, c"dev/null", OFlags::empty())?;
            attach(copy(null.as_fd(), false)?.as_fd(), place.as_fd())?;
        } else {
            match &self.script.null {
                Some(null) if self.mask_null.is_none() && !self.null_used => {
                    attach(null.as_fd(), place.as_fd())?;
                    self.null_used = true;
                }
                Some(null) => self.scratch.put(attach_copy(null.as_fd(), place.as_fd())?),
                None => cover(&mut self.mask_null, &self.scratch, place.as_fd(), null_device)?,
            }
        }
        self.scratch.put(place);
        Ok(())
    }
}

/// Attaches a copy of what is attached elsewhere: kernels before 6.15 copy nothing else.
fn attach_copy(attached: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mount = copy(attached, false)?;
    attach(mount.as_fd(), place)?;
    Ok(mount)
}

/// Attaches what `make` makes, or a copy of the one that was `used` first.
fn cover(
    used: &mut Option<OwnedFd>,
    scratch: &Scratch,
    place: BorrowedFd<'_>,
    make: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<(), Errno> {
    if let Some(mount) = used {
        scratch.put(attach_copy(mount.as_fd(), place)?);
        return Ok(());
    }
    let mount = make()?;
    attach(mount.as_fd(), place)?;
    *used = Some(mount);
    Ok(())
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

fn empty_directory(scratch: &Scratch) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"2")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    scratch.put(context);
    mount
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
