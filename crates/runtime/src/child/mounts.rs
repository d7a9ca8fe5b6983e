//! Mounts below the root, made detached and attached by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use sys::mount::{MountAttr, attr};
use sys::undefended::{Defence, left_out};

use super::ground::Ground;
use super::path::{self, Text};
use super::scratch::Scratch;
use super::{Bind, Filesystem, Legacy, MountStep, RootTree, What, copy};

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

/// Puts the root file system into this mount namespace, without making it the root yet. Gives a descriptor of it where
/// the tree has none.
pub(super) fn attach_root(tree: &RootTree) -> Result<Option<OwnedFd>, Errno> {
    match tree {
        RootTree::Detached { mount, place } => {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
            let attach = |place: &CStr| rustix::mount::move_mount(mount, c"", rustix::fs::CWD, place, flags);
            match place {
                Some(place) => match attach(place) {
                    // A user namespace may not walk there. Over the old root, which goes away, there is nothing to walk.
                    Err(Errno::ACCESS) => attach(c"/"),
                    result => result,
                },
                None => attach(c"/"),
            }?;
            Ok(None)
        }
        RootTree::Path { directory, propagation } => {
            mount_raw(Some(directory), directory, None, libc::MS_BIND | REC, None)?;
            mount_raw(None, directory, None, *propagation, None)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(directory, flags, Mode::empty()).map(Some)
        }
    }
}

/// What mounts are made with.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) ground: &'a Ground<'a>,
    pub(super) scratch: &'a Scratch,
}

/// Makes a mount and attaches it. A file system that was made here comes back.
pub(super) fn mount(site: Site<'_>, step: &MountStep) -> Result<Option<OwnedFd>, Errno> {
    match mount_what(site, step, &step.what) {
        Err(errno @ (Errno::PERM | Errno::BUSY)) => match &step.instead {
            Some(what) => mount_what(site, step, what),
            None => Err(errno),
        },
        result => result,
    }
}

fn mount_what(site: Site<'_>, step: &MountStep, what: &What) -> Result<Option<OwnedFd>, Errno> {
    let mut made = None;
    let mut directory = step.directory;
    if let What::Bind(bind) = what
        && bind.inside
    {
        let mount = made.insert(make_bind(bind)?);
        directory = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode) == FileType::Directory;
    } else if let Some(spot) = site.ground.place(site.root, step) {
        match what {
            What::Legacy(legacy) => {
                if let Some(result) = spot.mount(legacy) {
                    return result.map(|()| None);
                }
            }
            What::Detached(mount) => {
                if spot.attach(mount.as_fd()).is_ok() {
                    return Ok(None);
                }
            }
            What::Bind(bind) => {
                let mount = made.insert(make_bind(bind)?);
                if spot.attach(mount.as_fd()).is_ok() {
                    return Ok(made);
                }
            }
            What::Taken => return Err(Errno::BADF),
            What::Filesystem(filesystem) => {
                let mount = made.insert(make(site.scratch, filesystem, None)?);
                if spot.attach(mount.as_fd()).is_ok() {
                    return Ok(made);
                }
            }
        }
    }
    // What was made for a place that is not as plain as it seemed is attached where a walk leads.
    let place = Place::find(site.root, step, directory)?;
    let mount = match (what, &mut made) {
        (_, Some(mount)) => OwnedFd::as_fd(mount),
        (What::Detached(mount), None) => mount.as_fd(),
        (What::Taken, None) => return Err(Errno::BADF),
        (What::Bind(bind), None) => OwnedFd::as_fd(made.insert(make_bind(bind)?)),
        (What::Filesystem(filesystem), None) => {
            let fresh = make(site.scratch, filesystem, place.mode(step)?)?;
            if step.copy_up {
                copy::tree(place.fd.as_fd(), fresh.as_fd())?;
            }
            OwnedFd::as_fd(made.insert(fresh))
        }
        (What::Legacy(legacy), None) => {
            let mounted = mount_legacy(site.root, step, legacy, &place);
            site.scratch.put(place.fd);
            return mounted.map(|()| None);
        }
    };
    attach(mount, place.fd.as_fd())?;
    for flags in &step.propagation {
        set_propagation(mount, *flags)?;
    }
    site.scratch.put(place.fd);
    Ok(made)
}

/// Where something is mounted.
struct Place {
    fd: OwnedFd,
    /// Whether it was there before.
    existed: bool,
}

impl Place {
    /// Opens the place of a mount below the root, making it where it is missing.
    fn find(root: BorrowedFd<'_>, step: &MountStep, directory: bool) -> Result<Self, Errno> {
        let extra = if directory { OFlags::DIRECTORY } else { OFlags::empty() };
        let (fd, existed) = match path::open_ordinary(root, &step.target, extra) {
            Ok(fd) => return Ok(Self { fd, existed: true }),
            Err(Errno::NOENT) if step.ordinary => (path::ordinary_directory(root, &step.target)?, false),
            Err(Errno::NOENT) => (made_place(root, step, directory)?, false),
            Err(Errno::LOOP) if !step.ordinary => match path::open(root, &step.target, extra) {
                Ok(fd) => (fd, true),
                Err(Errno::NOENT) => (made_place(root, step, directory)?, false),
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        };
        // A link may lead where the plan would have refused the path itself.
        let led = !step.target.to_bytes().starts_with(b"proc/") && !left_out(Defence::ProcPlace);
        if led && is_procfs(fd.as_fd())? {
            return Err(Errno::XDEV);
        }
        Ok(Self { fd, existed })
    }

    /// The mode that a new file system takes over from here.
    fn mode(&self, step: &MountStep) -> Result<Option<u32>, Errno> {
        if !(step.copy_mode && self.existed) {
            return Ok(None);
        }
        Ok(Some(rustix::fs::fstat(&self.fd)?.st_mode & 0o7777))
    }
}

fn made_place(root: BorrowedFd<'_>, step: &MountStep, directory: bool) -> Result<OwnedFd, Errno> {
    if directory { path::directory(root, &step.target) } else { path::file(root, &step.target) }
}

pub(super) fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

fn mount_legacy(root: BorrowedFd<'_>, step: &MountStep, legacy: &Legacy, place: &Place) -> Result<(), Errno> {
    let mut name = Text::new();
    path::magic(place.fd.as_fd(), &mut name)?;
    let mut data = Text::new();
    if let Some(mode) = place.mode(step)? {
        data.append(b"mode=")?;
        data.append_octal(mode)?;
        data.append(if legacy.data.is_empty() { b"" } else { b"," })?;
    }
    data.append(legacy.data.to_bytes())?;
    let data = data.as_c_str()?;
    let data = if data.is_empty() { None } else { Some(data) };
    mount_raw(Some(&legacy.source), name.as_c_str()?, legacy.kind.as_deref(), legacy.flags, data)?;
    if legacy.remount.is_none() && step.propagation.is_empty() && !step.copy_up {
        return Ok(());
    }
    // The descriptor is of the place under the mount; the mount itself is found by the same path.
    let mount = Place::find(root, step, step.directory)?.fd;
    path::magic(mount.as_fd(), &mut name)?;
    if step.copy_up {
        copy::tree(place.fd.as_fd(), mount.as_fd())?;
    }
    if let Some(flags) = legacy.remount {
        remount(mount.as_fd(), name.as_c_str()?, flags)?;
    }
    for flags in &step.propagation {
        mount_raw(None, name.as_c_str()?, None, *flags, None)?;
    }
    Ok(())
}

/// Sets the flags of a mount. In a user namespace some that it has may be locked: those are said again.
fn remount(mount: BorrowedFd<'_>, name: &CStr, flags: u64) -> Result<(), Errno> {
    match mount_raw(None, name, None, flags, None) {
        Err(Errno::PERM) => mount_raw(None, name, None, flags | flags_of(mount)?, None),
        result => result,
    }
}

fn make(scratch: &Scratch, filesystem: &Filesystem, mode: Option<u32>) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(filesystem.kind.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", filesystem.source.as_c_str())?;
    if let Some(mode) = mode {
        let mut text = Text::new();
        text.append_octal(mode)?;
        rustix::mount::fsconfig_set_string(&context, c"mode", text.as_c_str()?)?;
    }
    for (key, value) in &filesystem.parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?,
            None => rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(filesystem.attributes);
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    scratch.put(context);
    mount
}

fn make_bind(bind: &Bind) -> Result<OwnedFd, Errno> {
    let whole_tree = |flags: u64| flags & REC != 0 || !bind.recursive;
    // What is made private has nothing left of what was set before.
    let last = bind.propagation.iter().rposition(|flags| flags & libc::MS_PRIVATE != 0 && whole_tree(*flags));
    let propagation = bind.propagation.get(last.unwrap_or(0)..).unwrap_or_default();
    let [(set, clear), (set_below, clear_below)] = bind.attributes;
    let whole = if bind.recursive { set == 0 && clear == 0 } else { set_below == 0 && clear_below == 0 };
    if let ([only], true, None) = (propagation, whole, &bind.id_map)
        && whole_tree(*only)
    {
        let (set, clear) = if bind.recursive { (set_below, clear_below) } else { (set, clear) };
        let change = MountAttr { set, clear, propagation: only & !REC, ..MountAttr::default() };
        match sys::mount::copy_with(rustix::fs::CWD, &bind.source, bind.recursive, true, &change) {
            // What is locked is looked at below.
            Err(Errno::PERM) => {}
            result => return result,
        }
    }
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = rustix::mount::open_tree(rustix::fs::CWD, bind.source.as_c_str(), flags)?;
    if let Some(map) = &bind.id_map {
        let change = MountAttr { user_namespace: Some(map.namespace.as_fd()), ..MountAttr::default() };
        sys::mount::mount_setattr(mount.as_fd(), c"", map.recursive, &change)?;
    }
    for ((set, clear), recursive) in bind.attributes.into_iter().zip([false, true]) {
        if set == 0 && clear == 0 {
            continue;
        }
        let change = MountAttr { set, clear, ..MountAttr::default() };
        match sys::mount::mount_setattr(mount.as_fd(), c"", recursive, &change) {
            // What came from another user namespace is locked; what is to be set must be set all the same.
            Err(Errno::PERM) if clear != 0 => {
                if flags_of(mount.as_fd())? & bind.refused != 0 {
                    return Err(Errno::PERM);
                }
                let change = MountAttr { set: set & !attr::ATIME, ..MountAttr::default() };
                sys::mount::mount_setattr(mount.as_fd(), c"", recursive, &change)?;
            }
            result => result?,
        }
    }
    for flags in propagation {
        set_propagation(mount.as_fd(), *flags)?;
    }
    Ok(mount)
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

pub(super) fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    if sys::features().mount_setattr {
        let change = MountAttr { set: attr::RDONLY, ..MountAttr::default() };
        return sys::mount::mount_setattr(mount, c"", false, &change);
    }
    // mount(2) sets all flags: those that are there must be said again, or a locked one makes it fail.
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | flags_of(mount)?;
    let mut name = Text::new();
    path::magic(mount, &mut name)?;
    mount_raw(None, name.as_c_str()?, None, flags, None)
}

/// The `MS_*` flags that a mount has.
fn flags_of(mount: BorrowedFd<'_>) -> Result<u64, Errno> {
    let have = rustix::fs::fstatvfs(mount)?.f_flag.bits();
    let mut flags = 0;
    for (bit, flag) in [
        (libc::ST_RDONLY, libc::MS_RDONLY),
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
    Ok(flags)
}

/// Makes everything at `path` appear read-only, by a mount of it on itself. What is not there needs nothing.
pub(super) fn read_only(root: BorrowedFd<'_>, scratch: &Scratch, path: &CStr) -> Result<(), Errno> {
    let place = match path::open(root, path, OFlags::empty()) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if sys::features().new_mount_api && sys::features().mount_setattr {
        let tree = copy(place.as_fd(), true)?;
        set_read_only(tree.as_fd())?;
        attach(tree.as_fd(), place.as_fd())?;
        scratch.put(tree);
        scratch.put(place);
        return Ok(());
    }
    let mut name = Text::new();
    path::magic(place.as_fd(), &mut name)?;
    let name = name.as_c_str()?;
    mount_raw(Some(name), name, None, libc::MS_BIND | REC, None)?;
    make_read_only(root, path)
}

/// As [`read_only`], for a name in a procfs that is no link and below which nothing is mounted.
pub(super) fn read_only_name(procfs: BorrowedFd<'_>, scratch: &Scratch, name: &CStr) -> Result<(), Errno> {
    let change = MountAttr { set: attr::RDONLY, ..MountAttr::default() };
    let tree = match sys::mount::copy_with(procfs, name, false, false, &change) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    attach_name(tree.as_fd(), procfs, name)?;
    scratch.put(tree);
    Ok(())
}

/// Attaches a mount at a name in a directory, following nothing.
pub(super) fn attach_name(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    rustix::mount::move_mount(mount, c"", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes `root` the root of this process and takes the old one out of reach. With `by_move`, by moving it over the old one, in which these places are emptied before.
/// `apart`: nothing that is unmounted in this namespace is unmounted on the host any more.
pub(super) fn change_root(root: BorrowedFd<'_>, by_move: Option<&[CString]>, apart: bool) -> Result<(), Errno> {
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
    if apart {
        rustix::process::fchdir(root)?;
        // The old root lands on top of the new one, where it needs no directory to be put into and is found first
        // (pivot_root(2), NOTES).
        rustix::process::pivot_root(c".", c".")?;
        return rustix::mount::unmount(c".", UnmountFlags::DETACH);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open(c"/", flags, Mode::empty())?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::process::fchdir(&old)?;
    // What is unmounted here must not be unmounted on the host.
    mount_raw(None, c".", None, libc::MS_SLAVE | REC, None)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Makes `root` the root of this process and no other: the mount namespace is also somebody else's.
pub(super) fn chroot(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

pub(super) fn root_read_only(root: BorrowedFd<'_>) -> Result<(), Errno> {
    set_read_only(root)
}
