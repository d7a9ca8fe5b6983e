//! Finding and making the directories that entries go to.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Applier, CACHED_DIRS, Whiteouts};
use crate::copy::copy_attributes;
use crate::lower::is_whiteout;
use crate::{Error, xattr};

impl Applier {
    /// The directory at a path inside the root, made with all above it where missing.
    pub(super) fn directory(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, Error> {
        let path = components.join(&b'/');
        if let Some(dir) = self.dirs.get(&path) {
            return Ok(dir.clone());
        }
        let dir = match self.open_directory(&path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(components)?,
            Err(errno) => return Err(Error::entry("open directory of", &path)(errno)),
        };
        if self.dirs.len() >= CACHED_DIRS {
            self.dirs.clear();
        }
        let dir = Rc::new(dir);
        self.dirs.insert(path, dir.clone());
        Ok(dir)
    }

    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        sys::fs::open_in_root(self.root.as_fd(), OsStr::from_bytes(path), OFlags::PATH | OFlags::DIRECTORY)
    }

    fn make_directories(&mut self, components: &[&[u8]]) -> Result<OwnedFd, Error> {
        let mut dir = self.open_directory(b"").map_err(Error::entry("open directory of", b"/"))?;
        for (index, name) in components.iter().enumerate() {
            let upto = &components[..=index];
            let path = upto.join(&b'/');
            let failed = |errno| Error::entry("make directory of", &path)(errno);
            dir = match self.open_directory(&path) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => match rustix::fs::mkdirat(&dir, *name, Mode::RWXU) {
                    Ok(()) => {
                        self.applied.inodes += 1;
                        self.like_lower(dir.as_fd(), upto)?;
                        self.open_directory(&path).map_err(failed)?
                    }
                    // A link to nowhere: what it names inside the root is made.
                    Err(Errno::EXIST) => {
                        let mode = Mode::from_raw_mode(0o755);
                        sys::fs::mkdir_in_root(self.root.as_fd(), OsStr::from_bytes(&path), mode).map_err(failed)?
                    }
                    Err(errno) => return Err(failed(errno)),
                },
                Err(Errno::NOTDIR) if self.holds_whiteout(dir.as_fd(), name).map_err(failed)? => {
                    self.remove(dir.as_fd(), name).map_err(failed)?;
                    rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    self.set_opaque(dir.as_fd(), name).map_err(failed)?;
                    self.open_directory(&path).map_err(failed)?
                }
                Err(errno) => return Err(failed(errno)),
            };
        }
        Ok(dir)
    }

    /// Gives a directory just made the attributes of the one that it covers, so that a change below does not change it.
    fn like_lower(&mut self, dir: BorrowedFd<'_>, components: &[&[u8]]) -> Result<(), Error> {
        let path = components.join(&b'/');
        let Some(name) = components.last() else { return Ok(()) };
        let failed = |errno| Error::entry("copy attributes of", &path)(errno);
        match self.lowers.find(components)? {
            Some(found) if FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory => {
                copy_attributes(&found.stat, (found.dir.as_fd(), name), (dir, name)).map_err(failed)
            }
            _ => rustix::fs::chmodat(dir, *name, Mode::from_raw_mode(0o755), AtFlags::empty()).map_err(failed),
        }
    }

    pub(super) fn set_opaque(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        xattr::set(dir, name, xattr::OPAQUE.as_bytes(), b"y")
    }

    fn holds_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat))
    }

    pub(super) fn remove(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        self.dirs.clear();
        sys::fs::remove_tree(dir, OsStr::from_bytes(name))
    }
}
