//! Device nodes, links and the terminal.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use sys::undefended::{Defence, left_out};

use super::mounts::Site;
use super::path::{self, Text};
use super::{Child, Console, Device, DeviceKind, Kind, Link, mounts};

/// `/dev/ptmx` and `/dev/pts/ptmx`.
const PTMX: (u32, u32) = (5, 2);

/// The directory for devices and links, and whether it has to be put away.
fn open_parent<'a>(site: Site<'a>, parent: &CStr, opened: &'a mut Option<OwnedFd>) -> Result<BorrowedFd<'a>, Errno> {
    match site.ground.own_directory(parent) {
        Some(directory) => Ok(directory),
        None => Ok(OwnedFd::as_fd(opened.insert(path::directory(site.root, parent)?))),
    }
}

pub(super) fn make_devices(site: Site<'_>, parent: &CStr, devices: &[Device]) -> Result<(), Errno> {
    let mut opened = None;
    let parent = open_parent(site, parent, &mut opened)?;
    for device in devices {
        make_device(parent, device)?;
    }
    Ok(())
}

fn make_device(parent: BorrowedFd<'_>, device: &Device) -> Result<(), Errno> {
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let mode = Mode::from_raw_mode(device.mode);
    match rustix::fs::mknodat(parent, device.name.as_c_str(), kind, mode, device.number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let found = rustix::fs::statat(parent, device.name.as_c_str(), flags)?;
            let same = FileType::from_raw_mode(found.st_mode) == kind;
            if !same || (kind != FileType::Fifo && found.st_rdev != device.number) {
                return Err(Errno::EXIST);
            }
        }
        Err(errno) => return Err(errno),
    }
    if device.uid == 0 && device.gid == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(parent, device.name.as_c_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn make_links(site: Site<'_>, parent: &CStr, links: &[Link]) -> Result<(), Errno> {
    let mut opened = None;
    let parent = open_parent(site, parent, &mut opened)?;
    for link in links {
        match rustix::fs::symlinkat(link.target.as_c_str(), parent, link.name.as_c_str()) {
            // The container's root may come with `/dev/ptmx` as a device of the host's devpts: ours replaces it.
            Err(Errno::EXIST) if link.name.as_c_str() == c"ptmx" => {
                path::unlink(parent, &link.name)?;
                rustix::fs::symlinkat(link.target.as_c_str(), parent, link.name.as_c_str())?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

impl Child<'_> {
    /// Makes a terminal in the container's own devpts and gives its master to the parent. Our end is found without
    /// a path, and `/dev/console` becomes it by descriptor.
    pub(super) fn open_console(&mut self, console: &Console) -> Result<(), Errno> {
        let root = self.root()?;
        let master = open_multiplexer(root)?;
        let found = rustix::fs::fstat(&master)?;
        let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
        if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice || number != PTMX {
            return Err(Errno::NODEV);
        }
        rustix::pty::unlockpt(&master)?;
        let terminal =
            rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        if let Some((rows, columns)) = console.size {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&master, size)?;
        }
        if console.device {
            let place = path::file(root, c"dev/console")?;
            // A link would put the terminal over whatever the image likes (CVE-2025-52565 class).
            let found = path::open(root, c"dev/console", OFlags::NOFOLLOW)?;
            let link = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink;
            if link && !left_out(Defence::Console) {
                return Err(Errno::LOOP);
            }
            let place = if link { place } else { found };
            if sys::features().new_mount_api {
                mounts::attach(mounts::copy(terminal.as_fd(), false)?.as_fd(), place.as_fd())?;
            } else {
                let (mut from, mut to) = (Text::new(), Text::new());
                path::magic(terminal.as_fd(), &mut from)?;
                path::magic(place.as_fd(), &mut to)?;
                mounts::mount_raw(Some(from.as_c_str()?), to.as_c_str()?, None, libc::MS_BIND, None)?;
            }
        }
        self.send_descriptor(Kind::Console, master.as_fd())?;
        self.terminal = Some(terminal);
        Ok(())
    }
}

/// Opens `/dev/ptmx` inside the root. What it is must be checked afterwards.
fn open_multiplexer(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = if sys::features().openat2 {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, c"dev/ptmx", flags, Mode::empty(), resolve)?
    } else {
        let found = path::open(root, c"dev/ptmx", OFlags::empty())?;
        let mut name = Text::new();
        path::magic(found.as_fd(), &mut name)?;
        rustix::fs::open(name.as_c_str()?, flags, Mode::empty())?
    };
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR)?;
    Ok(master)
}
