//! Measures a tree of files that may change meanwhile and that a container may have shaped.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Usage};

/// Deepest nesting; one descriptor is held per level.
const MAX_DEPTH: usize = 1000;
/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What `root` and everything below it on the same file system takes. `path` is for messages.
pub(crate) fn measure(root: BorrowedFd<'_>, path: &Path) -> Result<Usage, Error> {
    let failed = |errno: Errno| Error::io("measure", path, errno);
    let top = rustix::fs::fstat(root).map_err(failed)?;
    let mut usage = Usage { size: bytes(&top), inodes: 1 };
    let mut linked = HashSet::new();
    let mut levels = vec![open(root, c".").map_err(failed)?];
    while let Some((dir, entries)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since it was listed.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        if stat.st_dev != top.st_dev {
            continue;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
            usage.inodes += 1;
            usage.size += bytes(&stat);
        }
        if directory {
            match open(dir.as_fd(), name) {
                Ok(_) if levels.len() == MAX_DEPTH => {
                    return Err(Error::TooDeep { path: path.to_owned(), max: MAX_DEPTH });
                }
                Ok(level) => levels.push(level),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    Ok(usage)
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<(OwnedFd, Dir), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let entries = Dir::read_from(&dir)?;
    Ok((dir, entries))
}

fn bytes(stat: &Stat) -> u64 {
    stat.st_blocks.cast_unsigned() * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn links_count_once() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let measured = || measure(File::open(scratch.path()).expect("open").as_fd(), scratch.path()).expect("measure");
        let empty = measured();
        assert_eq!(empty.inodes, 1);
        fs::create_dir(scratch.path().join("dir")).expect("directory");
        fs::write(scratch.path().join("dir/file"), vec![1; 100_000]).expect("file");
        File::open(scratch.path().join("dir/file")).expect("open").sync_all().expect("sync");
        fs::hard_link(scratch.path().join("dir/file"), scratch.path().join("link")).expect("link");
        std::os::unix::fs::symlink("/usr", scratch.path().join("symlink")).expect("symlink");
        let usage = measured();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..200_000).contains(&(usage.size - empty.size)), "{usage:?}");
    }

    #[test]
    fn a_bottomless_tree_is_an_error() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let mut dir: OwnedFd = File::open(scratch.path()).expect("open").into();
        for _ in 0..=MAX_DEPTH {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).expect("directory");
            dir = rustix::fs::openat(&dir, "d", OFlags::PATH, Mode::empty()).expect("open");
        }
        let result = measure(File::open(scratch.path()).expect("open").as_fd(), scratch.path());
        assert!(matches!(result, Err(Error::TooDeep { .. })), "{result:?}");
        let parent = File::open(scratch.path()).expect("open");
        sys::fs::remove_tree(parent.as_fd(), "d").expect("remove");
    }
}
