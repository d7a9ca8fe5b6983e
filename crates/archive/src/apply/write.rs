//! Making an entry: its inode, its data, its attributes.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, makedev};
use rustix::io::Errno;

use super::{Applier, Whiteouts, clean};
use crate::copy::{copy_entry, write_all_at};
use crate::lower::is_whiteout;
use crate::reader::{Entry, Kind, TarReader};
use crate::{Error, xattr};

impl Applier {
    pub(super) fn write(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
        reader: &mut TarReader<impl Read>,
    ) -> Result<(), Error> {
        let failed = |errno| Error::entry("create", &entry.path)(errno);
        let made = match self.create(entry, components, dir, name)? {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if entry.kind == Kind::Directory && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    None
                } else {
                    self.remove(dir, name).map_err(failed)?;
                    let made = self.create(entry, components, dir, name)?.map_err(failed)?;
                    if entry.kind == Kind::Directory && self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat) {
                        // The name was removed from the layers below, so their directory must not show through.
                        self.set_opaque(dir, name).map_err(failed)?;
                    }
                    made
                }
            }
            result => result.map_err(failed)?,
        };
        let target = match made {
            Some(file) => {
                self.fill(entry, file.as_fd(), reader)?;
                file
            }
            None => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?
            }
        };
        self.attributes(entry, components, dir, name, target.as_fd())
    }

    /// Makes the entry's inode, without its attributes. The outer error is about something else than the name; a
    /// regular file is returned open for writing.
    fn create(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Result<Option<OwnedFd>, Errno>, Error> {
        let private = Mode::RUSR | Mode::WUSR;
        let node = |kind| {
            rustix::fs::mknodat(dir, name, kind, private, makedev(entry.device.0, entry.device.1)).map(|()| None)
        };
        let result = match entry.kind {
            Kind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, private).map(Some)
            }
            Kind::Directory => rustix::fs::mkdirat(dir, name, Mode::RWXU).map(|()| None),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(Error::refused(&entry.path, "symbolic link to nothing"));
                }
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), dir, name).map(|()| None)
            }
            Kind::Hardlink => return self.link(entry, components, dir, name).map(|made| made.map(|()| None)),
            Kind::Char => node(FileType::CharacterDevice),
            Kind::Block => node(FileType::BlockDevice),
            Kind::Fifo => node(FileType::Fifo),
        };
        if result.is_ok() {
            self.applied.inodes += 1;
        }
        Ok(result)
    }

    fn link(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Result<(), Errno>, Error> {
        let target = clean(&entry.link)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(Error::refused(&entry.path, "hard link to the root"));
        };
        if target == components {
            return Err(Error::refused(&entry.path, "hard link to itself"));
        }
        let missing = |errno| Error::entry("find the target of hard link", &entry.path)(errno);
        let found = match self.open_directory(&target_parents.join(&b'/')) {
            Ok(target_dir) => match rustix::fs::statat(&target_dir, *target_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat) => {
                    return Err(missing(Errno::NOENT));
                }
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    return Err(Error::refused(&entry.path, "hard link to a directory"));
                }
                Ok(_) => Some(target_dir),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(missing(errno)),
            },
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(missing(errno)),
        };
        let target_dir = match found {
            Some(target_dir) => Rc::new(target_dir),
            None => self.copy_up(&target, target_name, target_parents, missing)?,
        };
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one to the link itself.
        Ok(rustix::fs::linkat(&*target_dir, *target_name, dir, name, AtFlags::empty()))
    }

    /// Brings a file of a layer below up, as overlayfs would before it links it.
    fn copy_up(
        &mut self,
        target: &[&[u8]],
        name: &[u8],
        parents: &[&[u8]],
        missing: impl FnOnce(Errno) -> Error,
    ) -> Result<Rc<OwnedFd>, Error> {
        let found = match self.lowers.find(target)? {
            Some(found) if FileType::from_raw_mode(found.stat.st_mode) != FileType::Directory => found,
            _ => return Err(missing(Errno::NOENT)),
        };
        let dir = self.directory(parents)?;
        copy_entry((found.dir.as_fd(), name), (dir.as_fd(), name)).map_err(missing)?;
        self.applied.inodes += 1;
        self.applied.bytes += found.stat.st_size.cast_unsigned();
        Ok(dir)
    }

    /// Writes a regular file's data.
    fn fill(&mut self, entry: &Entry, file: BorrowedFd<'_>, reader: &mut TarReader<impl Read>) -> Result<(), Error> {
        let whole = [(0, entry.size)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        if entry.pieces.is_some() {
            if entry.size > self.limits.sparse_file_bytes {
                return Err(Error::Limit { what: "bytes of a sparse file", limit: self.limits.sparse_file_bytes });
            }
            rustix::fs::ftruncate(file, entry.size).map_err(Error::entry("write", &entry.path))?;
        }
        for (offset, length) in pieces {
            let mut done = 0;
            while done < *length {
                let want = usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = match reader.read(&mut self.buffer[..want]) {
                    Ok(0) => return Err(Error::Truncated),
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Error::Truncated),
                    Err(error) => return Err(Error::Read(error)),
                };
                write_all_at(file, &self.buffer[..count], offset + done).map_err(Error::entry("write", &entry.path))?;
                done += count as u64;
                self.applied.bytes += count as u64;
            }
        }
        Ok(())
    }

    /// Owner, mode, extended attributes and times of `target`, which is the entry itself, open. In this order: a change of
    /// owner clears setuid and file capabilities.
    fn attributes(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
        target: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let failed = |errno| Error::entry("set attributes of", &entry.path)(errno);
        let (user, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(target, c"", Some(user), Some(group), AtFlags::EMPTY_PATH).map_err(failed)?;
        let symlink = match entry.kind {
            Kind::Symlink => true,
            Kind::Hardlink => {
                let stat = rustix::fs::fstat(target).map_err(failed)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
            }
            Kind::Regular | Kind::Directory | Kind::Char | Kind::Block | Kind::Fifo => false,
        };
        let mode = Mode::from_raw_mode(entry.mode);
        if entry.kind == Kind::Regular {
            rustix::fs::fchmod(target, mode).map_err(failed)?;
        } else if !symlink {
            // An O_PATH descriptor takes no fchmod; its name in /proc leads to the same inode.
            rustix::fs::chmod(sys::fs::proc_path(target), mode).map_err(failed)?;
        }
        for (key, value) in &entry.xattrs {
            if reserved(key) {
                continue;
            }
            let set = if entry.kind == Kind::Regular {
                rustix::fs::fsetxattr(target, &**key, value, XattrFlags::empty())
            } else {
                xattr::set(dir, name, key, value)
            };
            match set {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                // Only files and directories have user attributes (xattr(7)).
                Err(Errno::PERM)
                    if key.starts_with(b"user.") && !matches!(entry.kind, Kind::Regular | Kind::Directory) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        let times = bounded_times(entry.mtime);
        if entry.kind == Kind::Directory {
            let path = components.join(&b'/');
            self.remember(path.len())?;
            self.times.push((path, times));
            return Ok(());
        }
        rustix::fs::utimensat(target, c"", &times, AtFlags::EMPTY_PATH).map_err(failed)
    }

    /// Sets the times of directories, now that nothing is written into them any more.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        for (path, times) in std::mem::take(&mut self.times) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match sys::fs::open_in_root(self.root.as_fd(), OsStr::from_bytes(&path), flags) {
                Ok(dir) => rustix::fs::utimensat(&dir, c"", &times, AtFlags::EMPTY_PATH)
                    .map_err(Error::entry("set times of", &path))?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Error::entry("set times of", &path)(errno)),
            }
        }
        Ok(())
    }
}

/// Attributes that an image may not set: the administrator's, among them overlayfs's own.
fn reserved(key: &[u8]) -> bool {
    key.is_empty() || key.contains(&0) || key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.")
}

/// A modification time as both times of a file; one that 64 bits of nanoseconds cannot hold becomes 1970, as in
/// containerd.
fn bounded_times((seconds, nanos): (i64, u32)) -> Timestamps {
    let good = (0..=i64::MAX / 1_000_000_000).contains(&seconds);
    let time =
        if good { Timespec { tv_sec: seconds, tv_nsec: nanos.into() } } else { Timespec { tv_sec: 0, tv_nsec: 0 } };
    Timestamps { last_access: time, last_modification: time }
}
