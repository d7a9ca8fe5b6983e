//! The fallback: `mount(2)`, in as many steps as it takes.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use sys::Errno;
use sys::fs::proc_path;
use sys::mount::{MountFlags, MountPropagationFlags, attr};

use crate::build::{Step, is_bind, loop_device};
use crate::overlay::{Held, MAX_MOUNT_DATA, Overlay};
use crate::{Attributes, Bind, Error, Feature, ParsedOptions, Result};

/// Mount attributes, and the flags that `mount(2)` has for them.
const FLAGS: [(u64, MountFlags); 7] = [
    (attr::RDONLY, MountFlags::RDONLY),
    (attr::NOSUID, MountFlags::NOSUID),
    (attr::NODEV, MountFlags::NODEV),
    (attr::NOEXEC, MountFlags::NOEXEC),
    (attr::NODIRATIME, MountFlags::NODIRATIME),
    (attr::NOATIME, MountFlags::NOATIME),
    (attr::STRICTATIME, MountFlags::STRICTATIME),
];
/// `MS_REMOUNT`, which rustix keeps to itself.
const REMOUNT: MountFlags = MountFlags::from_bits_retain(1 << 5);

/// Makes one mount on `target` and returns a descriptor of its root.
pub(crate) fn mount_on(kind: &str, source: &str, options: &ParsedOptions, target: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unsupported = |feature| Err(Error::Unsupported { kind: kind.to_owned(), feature });
    if options.id_map.is_some() {
        return unsupported(Feature::IdMap);
    }
    if !options.recursive_attributes.is_empty() {
        return unsupported(Feature::RecursiveAttributes);
    }
    let step = Step { kind, source };
    let bind = is_bind(kind, options);
    if bind {
        if source.is_empty() {
            return Err(Error::Invalid { kind: kind.to_owned(), reason: "a bind mount needs a source" });
        }
        bind_on(&step, options.bind == Some(Bind::Tree), target)?;
    } else {
        filesystem_on(&step, options, target)?;
    }
    let mounted = on_top(target).map_err(step.failed("finding the new mount"))?;
    let finish = || {
        if bind && !options.attributes.is_empty() {
            remount_bind(mounted.as_fd(), &step, &options.attributes)?;
        }
        propagate(mounted.as_fd(), &step, options)
    };
    if let Err(error) = finish() {
        // The error that matters is the first one; a lazy unmount of a path that is a mount's root does not fail.
        let _ = sys::mount::unmount(proc_path(mounted.as_fd()), sys::mount::UnmountFlags::DETACH);
        return Err(error);
    }
    Ok(mounted)
}

fn bind_on(step: &Step<'_>, recursive: bool, target: BorrowedFd<'_>) -> Result<()> {
    let path = proc_path(target);
    let result = if recursive {
        sys::mount::mount_bind_recursive(step.source, path)
    } else {
        sys::mount::mount_bind(step.source, path)
    };
    result.map_err(|errno| match errno {
        Errno::NOENT => Error::Source { path: step.source.to_owned(), source: errno },
        _ => step.failed("mount(MS_BIND)")(errno),
    })
}

fn filesystem_on(step: &Step<'_>, options: &ParsedOptions, target: BorrowedFd<'_>) -> Result<()> {
    let device = loop_device(step.source, options)?;
    let source = device.as_ref().map_or(step.source, |device| device.path.as_str());
    let source = if source.is_empty() { "none" } else { source };
    let mut held = Held::default();
    let data = data(step, options, &mut held)?;
    let flags = flags_of(options.attributes.set)
        | MountFlags::from_bits_retain(u32::try_from(options.superblock_flags).unwrap_or(0));
    sys::mount::mount(source, proc_path(target), step.kind, flags, data.as_c_str()).map_err(step.failed("mount"))
}

/// The data of a file system in one string of at most a page. Layers of an overlay that would not fit are named by
/// descriptor.
fn data(step: &Step<'_>, options: &ParsedOptions, held: &mut Held) -> Result<CString> {
    let mut joined = options.data.join(",");
    if joined.len() > MAX_MOUNT_DATA
        && let Some(overlay) = Overlay::parse(&options.data)
    {
        let lower: Vec<String> = overlay.lower.iter().map(|path| held.short(path)).collect::<Result<_>>()?;
        let mut parts = overlay.rest;
        let lower = format!("lowerdir={}", lower.join(":"));
        parts.push(&lower);
        joined = parts.join(",");
    }
    if joined.len() > MAX_MOUNT_DATA {
        return Err(Error::Invalid { kind: step.kind.to_owned(), reason: "the options are longer than a page" });
    }
    CString::new(joined).map_err(|_| Error::Invalid { kind: step.kind.to_owned(), reason: "an option has a NUL byte" })
}

/// Changes an existing mount: its own attributes (`bind` given), or the file system's options too.
pub(crate) fn remount(kind: &str, source: &str, options: &ParsedOptions, target: BorrowedFd<'_>) -> Result<()> {
    let step = Step { kind, source };
    if options.bind.is_some() {
        return remount_bind(target, &step, &options.attributes).and_then(|()| propagate(target, &step, options));
    }
    let mut held = Held::default();
    let data = data(&step, options, &mut held)?;
    let flags = merged(target, &options.attributes).map_err(step.failed("reading mount attributes"))?
        | MountFlags::from_bits_retain(u32::try_from(options.superblock_flags).unwrap_or(0));
    sys::mount::mount("none", proc_path(target), "", flags | REMOUNT, data.as_c_str())
        .map_err(step.failed("mount(MS_REMOUNT)"))?;
    propagate(target, &step, options)
}

/// Attributes of a bind can only be set by a second call. What the mount has already stays unless it is cleared by
/// name; what is locked (a mount that came from another user namespace) stays even then.
fn remount_bind(mounted: BorrowedFd<'_>, step: &Step<'_>, attributes: &Attributes) -> Result<()> {
    let change = |attributes: &Attributes| {
        let flags = merged(mounted, attributes)? | MountFlags::BIND | REMOUNT;
        sys::mount::mount("none", proc_path(mounted), "", flags, None)
    };
    let result = match change(attributes) {
        Err(Errno::PERM) if attributes.clear != 0 => change(&Attributes { set: attributes.set, clear: 0 }),
        result => result,
    };
    result.map_err(step.failed("mount(MS_REMOUNT | MS_BIND)"))
}

/// The flags that a mount has now, changed.
fn merged(mounted: BorrowedFd<'_>, attributes: &Attributes) -> sys::Result<MountFlags> {
    let now = rustix::fs::fstatvfs(mounted)?.f_flag;
    let mut bits = 0;
    for (shown, bit) in [
        (StatVfsMountFlags::RDONLY, attr::RDONLY),
        (StatVfsMountFlags::NOSUID, attr::NOSUID),
        (StatVfsMountFlags::NODEV, attr::NODEV),
        (StatVfsMountFlags::NOEXEC, attr::NOEXEC),
        (StatVfsMountFlags::NOATIME, attr::NOATIME),
        (StatVfsMountFlags::NODIRATIME, attr::NODIRATIME),
    ] {
        if now.contains(shown) {
            bits |= bit;
        }
    }
    if !now.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
        bits |= attr::STRICTATIME;
    }
    Ok(flags_of((bits & !attributes.clear) | attributes.set))
}

fn flags_of(attributes: u64) -> MountFlags {
    let mut flags = FLAGS
        .iter()
        .filter(|(bit, _)| attributes & bit == *bit)
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag);
    if attributes & attr::NOSYMFOLLOW != 0 {
        flags |= MountFlags::NOSYMFOLLOW;
    }
    if attributes & attr::ATIME == 0 {
        flags |= MountFlags::RELATIME;
    }
    flags
}

pub(crate) fn propagate(mounted: BorrowedFd<'_>, step: &Step<'_>, options: &ParsedOptions) -> Result<()> {
    for change in &options.propagation {
        let mut flags = MountPropagationFlags::from_bits_retain(u32::try_from(change.kind).unwrap_or(0));
        if change.recursive {
            flags |= MountPropagationFlags::REC;
        }
        sys::mount::mount_change(proc_path(mounted), flags).map_err(step.failed("setting propagation"))?;
    }
    Ok(())
}

/// Opens the root of the mount that was just made on `covered`. A descriptor keeps pointing below the mount, so the
/// place is looked up again by its name; that what is found is the root of another mount is checked.
fn on_top(covered: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    let path = rustix::fs::readlinkat(CWD, proc_path(covered), Vec::new())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let what = |fd: BorrowedFd<'_>| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let (above, below) = (what(found.as_fd())?, what(covered)?);
    let is_root = above.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    if is_root && above.stx_mnt_id != below.stx_mnt_id { Ok(found) } else { Err(Errno::STALE) }
}
