//! Copying a directory into a file system that was made to cover it (`tmpcopyup`).
//!
//! What is copied may change meanwhile: nothing is followed, and what is opened is looked at again.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Uid};
use rustix::io::Errno;

/// Directories below directories; each takes a stack frame.
const MAX_DEPTH: u32 = 64;
const CHUNK_BYTES: usize = 1 << 20;

/// Copies what is in the directory `from` into the directory `to`, with owners and modes, those of the directory
/// itself included. Sockets are left out; hard links become files of their own. ELOOP for a tree that is too deep.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    level(from, to, MAX_DEPTH)
}

fn level(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, c".", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
    let mut entries = RawDir::new(&from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            item(from.as_fd(), to, name, depth)?;
        }
    }
    belong(to, c".", &rustix::fs::fstat(&from)?)
}

fn item(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
    let found = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
        // Gone meanwhile.
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let kind = FileType::from_raw_mode(found.st_mode);
    match kind {
        FileType::Directory => {
            let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            level(open(from, name, OFlags::DIRECTORY)?.as_fd(), open(to, name, OFlags::DIRECTORY)?.as_fd(), depth)
        }
        FileType::RegularFile => file(from, to, name),
        FileType::Symlink => link(from, to, name, &found),
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            rustix::fs::mknodat(to, name, kind, Mode::empty(), found.st_rdev)?;
            belong(to, name, &found)
        }
        FileType::Socket | FileType::Unknown => Ok(()),
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr, extra: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags | extra, Mode::empty())
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let source = open(from, name, OFlags::empty())?;
    let found = rustix::fs::fstat(&source)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    while rustix::fs::sendfile(&target, &source, None, CHUNK_BYTES)? > 0 {}
    belong(to, name, &found)
}

fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, found: &Stat) -> Result<(), Errno> {
    let mut text = [0_u8; libc::PATH_MAX as usize];
    // One byte stays for the NUL.
    let length =
        rustix::fs::readlinkat_raw(from, name, text.get_mut(..libc::PATH_MAX as usize - 1).unwrap_or_default())?;
    let text = text.get(..=length).ok_or(Errno::NAMETOOLONG)?;
    rustix::fs::symlinkat(CStr::from_bytes_with_nul(text).map_err(|_| Errno::INVAL)?, to, name)?;
    own(to, name, found)
}

/// Owner, then mode: a change of the owner takes set-user-id bits away.
fn belong(parent: BorrowedFd<'_>, name: &CStr, found: &Stat) -> Result<(), Errno> {
    own(parent, name, found)?;
    // What was made here is no link, and nobody else is in the new file system.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(found.st_mode), AtFlags::empty())
}

fn own(parent: BorrowedFd<'_>, name: &CStr, found: &Stat) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    match rustix::fs::chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW) {
        // An owner whom the user namespace does not know.
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}
