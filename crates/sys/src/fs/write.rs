//! Replacing a file as a whole.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;

/// Makes the file `name` in `dir` have exactly `bytes` and `mode`: a reader sees the whole old or the whole new
/// content. Survives the death of any process; not of the kernel, since nothing is flushed. On an error the old file
/// is untouched.
///
/// `name` must be a single name (EINVAL). The new file is first written beside it as `.<name>.<pid>.<n>.tmp`.
pub fn write_atomic(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, bytes: &[u8], mode: u32) -> Result<()> {
    replace(dir, Path::new(""), name.as_ref(), bytes, mode, false)
}

/// As [`write_atomic`], for a path that the caller trusts: its directory is not opened.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    replace(CWD, path.parent().unwrap_or(Path::new("")), name, bytes, mode, false)
}

/// As [`write_atomic`], and returns only when content and name are on disk.
pub fn write_durable(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>, bytes: &[u8], mode: u32) -> Result<()> {
    replace(dir, Path::new(""), name.as_ref(), bytes, mode, true)?;
    fsync_dir(dir)
}

/// Flushes the names in a directory to disk.
pub fn fsync_dir(dir: BorrowedFd<'_>) -> Result<()> {
    match rustix::fs::fsync(dir) {
        // An O_PATH descriptor cannot be flushed; a fresh one of the same directory can.
        Err(Errno::BADF) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::fsync(rustix::fs::openat(dir, ".", flags, Mode::empty())?)
        }
        result => result,
    }
}

/// `place` is below `dir`.
fn replace(dir: BorrowedFd<'_>, place: &Path, name: &OsStr, bytes: &[u8], mode: u32, durable: bool) -> Result<()> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    if name.is_empty() || matches!(name.as_bytes(), b"." | b"..") || name.as_bytes().contains(&b'/') {
        return Err(Errno::INVAL);
    }
    let mut temporary = OsStr::new(".").to_owned();
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
    let (temporary, name) = (place.join(temporary), place.join(name));

    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let create = || rustix::fs::openat(dir, &temporary, flags, Mode::from_raw_mode(mode));
    let file = match create() {
        // Left by a process of this pid that died here: nobody else uses the name now.
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(dir, &temporary, AtFlags::empty())?;
            create()?
        }
        result => result?,
    };
    let result = fill(&file, bytes, mode, durable).and_then(|()| rustix::fs::renameat(dir, &temporary, dir, &name));
    if result.is_err() {
        // The error that matters is the first one; a temporary file that stays is swept by its name.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
    }
    result
}

fn fill(file: &OwnedFd, mut bytes: &[u8], mode: u32, durable: bool) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file.as_fd(), bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let wanted = Mode::from_raw_mode(mode);
    if Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode) != wanted {
        // The umask took some bits away.
        rustix::fs::fchmod(file, wanted)?;
    }
    if durable { rustix::fs::fdatasync(file) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_stays_behind() {
        let root = tempfile::tempdir().unwrap();
        let dir = fs::File::open(root.path()).unwrap();
        write_atomic(dir.as_fd(), "a", b"one", 0o600).unwrap();
        write_durable(dir.as_fd(), "a", b"two", 0o666).unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"two");
        assert_eq!(fs::metadata(root.path().join("a")).unwrap().permissions().mode() & 0o7777, 0o666);
        assert_eq!(names(root.path()), ["a"]);
        replace_file(&root.path().join("a"), b"three", 0o600).unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"three");
        assert_eq!(names(root.path()), ["a"]);
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let dir = fs::File::open(root.path()).unwrap();
        fs::create_dir(root.path().join("taken")).unwrap();
        assert_eq!(write_atomic(dir.as_fd(), "taken", b"x", 0o600).unwrap_err(), Errno::ISDIR);
        assert_eq!(names(root.path()), ["taken"]);
        for bad in ["", ".", "..", "a/b"] {
            assert_eq!(write_atomic(dir.as_fd(), bad, b"x", 0o600).unwrap_err(), Errno::INVAL, "{bad}");
        }
    }

    #[test]
    fn a_link_is_replaced_not_followed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("target"), "old").unwrap();
        std::os::unix::fs::symlink("target", root.path().join("link")).unwrap();
        write_atomic(fs::File::open(root.path()).unwrap().as_fd(), "link", b"new", 0o600).unwrap();
        assert_eq!(fs::read(root.path().join("target")).unwrap(), b"old");
        assert_eq!(fs::read(root.path().join("link")).unwrap(), b"new");
    }

    #[test]
    fn a_path_only_directory_can_be_flushed() {
        let root = tempfile::tempdir().unwrap();
        let dir = rustix::fs::open(root.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        fsync_dir(dir.as_fd()).unwrap();
    }
}
