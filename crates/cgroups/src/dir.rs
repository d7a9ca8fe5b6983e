//! The directory of a group: its control files, by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use sys::Errno;

use crate::{Error, Result};

/// A directory of the cgroup file system. One that was made here is opened when something has to be done in it by
/// descriptor, and held open then; one that was found, at once.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OnceLock<OwnedFd>,
    /// Where it is.
    location: PathBuf,
}

impl Dir {
    pub(crate) fn open(location: PathBuf) -> sys::Result<Self> {
        let dir = Self::made(location);
        dir.fd()?;
        Ok(dir)
    }

    /// One that is known to be there.
    pub(crate) fn made(location: PathBuf) -> Self {
        Self { fd: OnceLock::new(), location }
    }

    /// Its descriptor, good as a place to begin at.
    pub(crate) fn fd(&self) -> sys::Result<BorrowedFd<'_>> {
        if self.fd.get().is_none() {
            let opened = rustix::fs::openat(CWD, &self.location, OPEN, Mode::empty())?;
            // Whoever was quicker has opened the same.
            let _ = self.fd.set(opened);
        }
        self.fd.get().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Opens a file in it.
    fn file(&self, name: &str, flags: OFlags) -> sys::Result<OwnedFd> {
        let flags = flags | OFlags::NOCTTY | OFlags::CLOEXEC;
        match self.fd.get() {
            Some(fd) => rustix::fs::openat(fd, name, flags, Mode::empty()),
            None => rustix::fs::openat(CWD, self.location.join(name), flags, Mode::empty()),
        }
    }

    fn text(&self, file: &str) -> sys::Result<String> {
        text(&self.file(file, OFlags::RDONLY)?)
    }

    pub(crate) fn location(&self) -> &Path {
        &self.location
    }

    pub(crate) fn shown(&self) -> String {
        self.location.display().to_string()
    }

    /// Reads a control file. [`Error::Gone`] if the group was removed.
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        self.text(file).map_err(|source| self.read_error(file, source))
    }

    /// Reads a control file that need not be there: its controller may be missing, or what it counts switched off.
    pub(crate) fn read_optional(&self, file: &str) -> Result<Option<String>> {
        match self.text(file) {
            Ok(text) => Ok(Some(text)),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
            Err(source) => Err(self.read_error(file, source)),
        }
    }

    /// The number in a control file that need not be there; `max` is `u64::MAX`.
    pub(crate) fn number(&self, file: &str) -> Result<Option<u64>> {
        Ok(self.read_optional(file)?.as_deref().map(crate::text::number))
    }

    /// Whether the group is still there.
    pub(crate) fn exists(&self) -> bool {
        self.has("cgroup.procs")
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        let (access, flags) = (rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty());
        match self.fd.get() {
            Some(fd) => rustix::fs::accessat(fd, file, access, flags).is_ok(),
            None => rustix::fs::accessat(CWD, self.location.join(file), access, flags).is_ok(),
        }
    }

    /// Opens a control file for others to write.
    pub(crate) fn open_file(&self, file: &str) -> Result<OwnedFd> {
        self.file(file, OFlags::WRONLY | OFlags::NOFOLLOW).map_err(|source| self.write_error(file, "", source))
    }

    /// Writes a control file in one write.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        self.try_write(file, value).map_err(|source| self.write_error(file, value, source))
    }

    /// As [`Dir::write`], with the bare error. The file is never made.
    pub(crate) fn try_write(&self, file: &str, value: &str) -> sys::Result<()> {
        write(&self.writable(file)?, value)
    }

    /// Writes one value after the other to a control file.
    pub(crate) fn write_each<'a>(&self, file: &str, values: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut values = values.into_iter().peekable();
        let Some(first) = values.peek().copied() else { return Ok(()) };
        let fd = self.writable(file).map_err(|source| self.write_error(file, first, source))?;
        values.try_for_each(|value| write(&fd, value).map_err(|source| self.write_error(file, value, source)))
    }

    fn writable(&self, file: &str) -> sys::Result<OwnedFd> {
        let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW;
        if cfg!(test) {
            // Plain files stand in for control files there. On a real one it would only cost memory in the kernel.
            flags |= OFlags::TRUNC;
        }
        self.file(file, flags)
    }

    pub(crate) fn write_error(&self, file: &str, value: &str, source: Errno) -> Error {
        if self.is_gone(source) {
            return Error::Gone { path: self.shown() };
        }
        let (file, value) = (file.to_owned(), value.chars().take(200).collect());
        Error::Write { path: self.shown(), file, value, source }
    }

    pub(crate) fn read_error(&self, file: &str, source: Errno) -> Error {
        if self.is_gone(source) {
            return Error::Gone { path: self.shown() };
        }
        Error::Read { path: self.shown(), file: file.to_owned(), source }
    }

    /// A removed group has no files any more, not even those that all groups have.
    fn is_gone(&self, errno: Errno) -> bool {
        matches!(errno, Errno::NOENT | Errno::NODEV) && !self.exists()
    }
}

fn write(fd: &OwnedFd, value: &str) -> sys::Result<()> {
    loop {
        match rustix::io::write(fd, value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads a control file to its end. What the kernel gives of one in less than half of the space is all of it: it stops
/// before a record that does not fit, and none of them is that long.
fn text(file: &OwnedFd) -> sys::Result<String> {
    const SPACE: usize = 4096;
    let mut bytes = Vec::with_capacity(SPACE);
    loop {
        bytes.reserve(SPACE);
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(count) if count < SPACE / 2 => break,
            Ok(_) if bytes.len() > LIMIT_BYTES => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}

/// The text of a control file by its path.
pub(crate) fn text_at(path: &Path) -> sys::Result<String> {
    text(&rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Far more than any control file has.
const LIMIT_BYTES: usize = 1 << 20;

const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes a directory `path` (relative, validated) below `mount` and those missing above it. True if the last one is
/// new. `visit` is called for each level, with its location and whether it was made: from the first one down, or for the
/// last one alone if it could be made at once.
pub(crate) fn make(
    mount: &Path,
    path: &str,
    mut visit: impl FnMut(&Path, &Path, bool) -> sys::Result<()>,
) -> sys::Result<bool> {
    let whole = mount.join(path);
    if rustix::fs::mkdirat(CWD, &whole, Mode::from_raw_mode(0o755)).is_ok() {
        return visit(whole.parent().unwrap_or(mount), &whole, true).map(|()| true);
    }
    let mut parent = mount.to_owned();
    let mut new = false;
    for name in path.split('/') {
        let child = parent.join(name);
        new = match rustix::fs::mkdirat(CWD, &child, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        visit(&parent, &child, new)?;
        parent = child;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_written_and_never_made() {
        let top = tempfile::tempdir().unwrap();
        for (file, text) in [("cgroup.procs", ""), ("a", "max\n"), ("b", "17\n")] {
            std::fs::write(top.path().join(file), text).unwrap();
        }
        let dir = Dir::open(top.path().to_owned()).unwrap();
        assert_eq!(dir.number("a").unwrap(), Some(u64::MAX));
        assert_eq!(dir.number("b").unwrap(), Some(17));
        assert_eq!(dir.number("c").unwrap(), None);
        dir.write("a", "1").unwrap();
        assert_eq!(dir.read("a").unwrap(), "1");
        assert!(matches!(dir.write("c", "1").unwrap_err(), Error::Write { source: Errno::NOENT, .. }));
        std::fs::remove_file(top.path().join("cgroup.procs")).unwrap();
        assert!(matches!(dir.write("c", "1").unwrap_err(), Error::Gone { .. }));
        assert!(matches!(dir.read("c").unwrap_err(), Error::Gone { .. }));
    }

    #[test]
    fn levels_are_visited_from_the_top() {
        let top = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        let visit = |_: &Path, child: &Path, made: bool| {
            assert!(made);
            seen.push(child.strip_prefix(top.path()).unwrap().to_owned());
            Ok(())
        };
        assert!(make(top.path(), "a/b/c", visit).unwrap());
        assert_eq!(seen, [Path::new("a"), Path::new("a/b"), Path::new("a/b/c")]);
        assert!(!make(top.path(), "a/b/c", |_, _, _| Ok(())).unwrap());
        let mut seen = Vec::new();
        let visit = |parent: &Path, child: &Path, _: bool| {
            seen.push((parent.to_owned(), child.to_owned()));
            Ok(())
        };
        assert!(make(top.path(), "a/b/d", visit).unwrap());
        assert_eq!(seen, [(top.path().join("a/b"), top.path().join("a/b/d"))]);
    }
}
