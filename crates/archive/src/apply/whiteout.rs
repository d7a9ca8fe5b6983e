//! Names that a layer takes away from the layers below it.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Applier, Whiteouts};
use crate::Error;

impl Applier {
    pub(super) fn opaque(&mut self, components: &[&[u8]]) -> Result<(), Error> {
        let path = components.join(&b'/');
        let failed = |errno| Error::entry("make opaque", &path)(errno);
        match self.whiteouts {
            Whiteouts::Overlay => {
                let dir = self.directory(components)?;
                self.set_opaque(dir.as_fd(), b".").map_err(failed)
            }
            Whiteouts::Remove => match self.open_directory(&path) {
                Ok(dir) => self.remove_unwritten(dir.as_fd(), &path),
                Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                Err(errno) => Err(failed(errno)),
            },
        }
    }

    /// A name of the layers below is gone. What this layer itself has there stays.
    pub(super) fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), Error> {
        let path = [parents, &[name]].concat().join(&b'/');
        let failed = |errno| Error::entry("remove", &path)(errno);
        match self.whiteouts {
            Whiteouts::Overlay => {
                let dir = self.directory(parents)?;
                match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => {
                        let mode = Mode::empty();
                        rustix::fs::mknodat(&*dir, name, FileType::CharacterDevice, mode, 0).map_err(failed)?;
                        self.applied.inodes += 1;
                        Ok(())
                    }
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                        self.set_opaque(dir.as_fd(), name).map_err(failed)
                    }
                    Ok(_) => Ok(()),
                    Err(errno) => Err(failed(errno)),
                }
            }
            Whiteouts::Remove => {
                let dir = match self.open_directory(&parents.join(&b'/')) {
                    Ok(dir) => dir,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                    Err(errno) => return Err(failed(errno)),
                };
                if !self.written.contains(&path) {
                    return self.remove(dir.as_fd(), name).map_err(failed);
                }
                // A directory of this layer took over the name: as if it were opaque.
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                    Ok(inner) => self.remove_unwritten(inner.as_fd(), &path),
                    Err(_) => Ok(()),
                }
            }
        }
    }

    /// Removes everything below `dir` that this layer did not write. The depth is that of paths that were written.
    fn remove_unwritten(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
        let failed = |errno| Error::entry("remove below", path)(errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(dir, ".", flags, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&listed).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        for name in names {
            let inner_path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            if !self.written.contains(&inner_path) {
                self.remove(dir, &name).map_err(failed)?;
            } else if let Ok(inner) = rustix::fs::openat(dir, &*name, flags, Mode::empty()) {
                self.remove_unwritten(inner.as_fd(), &inner_path)?;
            }
        }
        Ok(())
    }
}
