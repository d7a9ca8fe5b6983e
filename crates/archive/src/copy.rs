//! Copies files with all they have: data (shared by reflink where the file system can, holes kept), owner, mode, times,
//! extended attributes, device numbers, and hard links among the copied.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timestamps, Uid};
use rustix::io::Errno;

use crate::{Error, xattr};

/// Deepest nesting of directories; two descriptors are held per level.
const MAX_DEPTH: usize = 1000;
const BUFFER_BYTES: usize = 256 << 10;
/// Attributes that say how overlayfs stacks a directory: they are not part of a file.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";

/// Copies what is below `from` into the empty directory `to`, and the attributes of `from` itself. `from` must not change
/// meanwhile. Memory grows with the number of files that have several names. Blocks.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut levels = vec![Level::open(from, b".", to, b".", Vec::new())?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.next_name()? else {
            level.finish()?;
            levels.pop();
            continue;
        };
        let path = level.path_of(&name);
        let failed = |errno| Error::io("copy", OsStr::from_bytes(&path))(errno);
        let stat = rustix::fs::statat(&level.from, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            rustix::fs::mkdirat(&level.to, &*name, Mode::RWXU).map_err(failed)?;
            let next = Level::open(level.from.as_fd(), &name, level.to.as_fd(), &name, path)?;
            if levels.len() == MAX_DEPTH {
                return Err(Error::Limit { what: "levels of directories", limit: MAX_DEPTH as u64 });
            }
            levels.push(next);
            continue;
        }
        let inode = (stat.st_dev, stat.st_ino);
        match links.get(&inode) {
            // The first copy's path has only directories of ours in it.
            Some(first) => {
                rustix::fs::linkat(to, OsStr::from_bytes(first), &level.to, &*name, AtFlags::empty())
                    .map_err(failed)?;
            }
            None => {
                copy_known(&stat, (level.from.as_fd(), &name), (level.to.as_fd(), &name)).map_err(failed)?;
                if stat.st_nlink > 1 {
                    links.insert(inode, path);
                }
            }
        }
    }
    Ok(())
}

/// Copies one entry that is not a directory (EISDIR). The last component of neither name is followed, and there must
/// not be anything at the target (EEXIST).
pub fn copy_entry(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    let stat = rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    copy_known(&stat, from, to)
}

/// Gives the entry `to` the owner, mode and extended attributes of the entry `from`. Neither may be a symbolic link.
pub(crate) fn copy_attributes(
    stat: &Stat,
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to.0, to.1, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    // After the owner, whose change clears setuid; file capabilities after both.
    rustix::fs::chmodat(to.0, to.1, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    xattr::copy(from, to, |key| !key.starts_with(OVERLAY_PREFIX))
}

struct Level {
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
    entries: Dir,
    path: Vec<u8>,
}

impl Level {
    fn open(
        from: BorrowedFd<'_>,
        from_name: &[u8],
        to: BorrowedFd<'_>,
        to_name: &[u8],
        path: Vec<u8>,
    ) -> Result<Self, Error> {
        let failed = |errno| Error::io("open directory", OsStr::from_bytes(&path))(errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(from, from_name, flags, Mode::empty()).map_err(failed)?;
        let to = rustix::fs::openat(to, to_name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&from).map_err(failed)?;
        let entries = Dir::read_from(&from).map_err(failed)?;
        Ok(Self { from, to, stat, entries, path })
    }

    fn next_name(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            let Some(entry) = self.entries.next() else { return Ok(None) };
            let entry = entry.map_err(Error::io("list", OsStr::from_bytes(&self.path)))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                return Ok(Some(name.to_vec()));
            }
        }
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }

    /// The attributes of a directory come last: writing into it changes its time.
    fn finish(&self) -> Result<(), Error> {
        let failed = |errno| Error::io("copy attributes of", OsStr::from_bytes(&self.path))(errno);
        copy_attributes(&self.stat, (self.from.as_fd(), b"."), (self.to.as_fd(), b".")).map_err(failed)?;
        rustix::fs::futimens(&self.to, &times(&self.stat)).map_err(failed)
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time =
        |seconds: i64, nanos: u64| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn copy_known(stat: &Stat, from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from.0, from.1, read, Mode::empty())?;
            let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = rustix::fs::openat(to.0, to.1, write, Mode::RUSR | Mode::WUSR)?;
            copy_data(source.as_fd(), target.as_fd())?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from.0, from.1, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to.0, to.1)?;
            let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chownat(to.0, to.1, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            xattr::copy(from, to, |_| true)?;
            return rustix::fs::utimensat(to.0, to.1, &times(stat), AtFlags::SYMLINK_NOFOLLOW);
        }
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket => {
            rustix::fs::mknodat(to.0, to.1, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
        }
        FileType::Directory | FileType::Unknown => return Err(Errno::INVAL),
    }
    copy_attributes(stat, from, to)?;
    rustix::fs::utimensat(to.0, to.1, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Copies the bytes of a file into an empty one.
fn copy_data(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // Shared blocks where the file system can (xfs, btrfs).
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let size = rustix::fs::fstat(source)?.st_size.cast_unsigned();
    rustix::fs::ftruncate(target, size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: BorrowedFd<'_>, target: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Other file systems, or one that cannot.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Err(errno) => return Err(errno),
        }
    }
    let mut buffer = vec![0; if from < end { BUFFER_BYTES } else { 0 }];
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(buffer.len());
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..want], from))?;
        if count == 0 {
            break;
        }
        write_all_at(target, &buffer[..count], from)?;
        from += count as u64;
    }
    Ok(())
}

pub(crate) fn write_all_at(file: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, offset))?;
        bytes = &bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn a_copy_has_everything() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir_all(from.join("dir/sub")).expect("directories");
        fs::create_dir(&to).expect("directory");
        fs::write(from.join("dir/file"), "content").expect("file");
        fs::hard_link(from.join("dir/file"), from.join("dir/sub/link")).expect("link");
        symlink("/nowhere", from.join("symlink")).expect("symlink");
        let sparse = File::create(from.join("sparse")).expect("file");
        sparse.write_all_at(b"end", 50 << 20).expect("write");
        let dir = File::open(&from).expect("open");
        rustix::fs::mknodat(&dir, "fifo", FileType::Fifo, Mode::RWXU, 0).expect("fifo");
        rustix::fs::mknodat(&dir, "null", FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3))
            .expect("device");
        std::os::unix::fs::chown(from.join("dir"), Some(7), Some(8)).expect("chown");
        fs::set_permissions(from.join("dir/file"), fs::Permissions::from_mode(0o6755)).expect("chmod");
        let with_attributes =
            rustix::fs::setxattr(from.join("dir/file"), "user.test", b"value", rustix::fs::XattrFlags::empty()).is_ok();
        let old = Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 6 },
            last_modification: rustix::fs::Timespec { tv_sec: 7, tv_nsec: 8 },
        };
        for path in ["dir/file", "dir", "symlink", "."] {
            rustix::fs::utimensat(&dir, path, &old, AtFlags::SYMLINK_NOFOLLOW).expect("utimes");
        }
        copy_tree(dir.as_fd(), File::open(&to).expect("open").as_fd()).expect("copy");

        for path in ["", "dir", "dir/file", "dir/sub/link", "symlink", "fifo", "null", "sparse"] {
            let (a, b) =
                (from.join(path).symlink_metadata().expect("source"), to.join(path).symlink_metadata().expect("copy"));
            let key = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.rdev(), m.mtime(), m.mtime_nsec());
            assert_eq!(key(&a), key(&b), "{path}");
        }
        assert_eq!(fs::read(to.join("dir/file")).expect("read"), b"content");
        let inode = |path: &str| to.join(path).metadata().expect("copy").ino();
        assert_eq!(inode("dir/file"), inode("dir/sub/link"));
        assert_eq!(fs::read_link(to.join("symlink")).expect("link").to_str(), Some("/nowhere"));
        let sparse = to.join("sparse").metadata().expect("copy");
        assert_eq!(sparse.len(), (50 << 20) + 3);
        assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", sparse.blocks());
        if with_attributes {
            let mut value = [0; 16];
            let length = rustix::fs::getxattr(to.join("dir/file"), "user.test", &mut value[..]).expect("attribute");
            assert_eq!(&value[..length], b"value");
        }
    }
}
