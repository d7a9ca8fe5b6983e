//! What the layers below an overlay upper directory show at a path.
//!
//! **Invariant:** symbolic links of a lower layer are never followed.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::{Error, xattr};

/// The lower directories, nearest first; opened when first needed.
#[derive(Debug)]
pub(crate) struct Lowers {
    paths: Vec<PathBuf>,
    opened: Vec<OwnedFd>,
}

/// An entry of a lower layer.
#[derive(Debug)]
pub(crate) struct Found {
    /// The directory that holds it.
    pub(crate) dir: OwnedFd,
    /// What it is.
    pub(crate) stat: Stat,
}

enum Look {
    Found(Found),
    /// Not in this layer; a deeper one may have it.
    Deeper,
    /// Hidden from here down.
    Hidden,
}

impl Lowers {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, opened: Vec::new() }
    }

    /// The entry that the merged lower layers show at the path made of `components`; there must be one component.
    pub(crate) fn find(&mut self, components: &[&[u8]]) -> Result<Option<Found>, Error> {
        for index in 0..self.paths.len() {
            let failed = Error::io("look into lower layer", &self.paths[index]);
            if index == self.opened.len() {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                match rustix::fs::openat(CWD, &self.paths[index], flags, Mode::empty()) {
                    Ok(dir) => self.opened.push(dir),
                    Err(errno) => return Err(failed(errno)),
                }
            }
            match look(self.opened[index].as_fd(), components) {
                Ok(Look::Found(found)) => return Ok(Some(found)),
                Ok(Look::Hidden) => return Ok(None),
                Ok(Look::Deeper) => {}
                Err(errno) => return Err(Error::io("look into lower layer", &self.paths[index])(errno)),
            }
        }
        Ok(None)
    }
}

fn look(root: BorrowedFd<'_>, components: &[&[u8]]) -> Result<Look, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    let mut opaque = false;
    for (index, name) in components.iter().enumerate() {
        let stat = match rustix::fs::statat(&dir, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(if opaque { Look::Hidden } else { Look::Deeper }),
            Err(errno) => return Err(errno),
        };
        if is_whiteout(&stat) {
            return Ok(Look::Hidden);
        }
        if index + 1 == components.len() {
            return Ok(Look::Found(Found { dir, stat }));
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Look::Hidden);
        }
        opaque |= xattr::value(dir.as_fd(), name, xattr::OPAQUE.as_bytes())?.as_deref() == Some(b"y");
        dir = rustix::fs::openat(&dir, *name, flags, Mode::empty())?;
    }
    Ok(Look::Deeper)
}

/// Whether this is overlayfs's mark of a removed name: a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
