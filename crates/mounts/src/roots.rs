//! The directories in which clients may have directories and files made.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::Error;

/// Directories of this daemon, open.
#[derive(Debug)]
pub(crate) struct Roots(Vec<(PathBuf, OwnedFd)>);

/// A place below one of them.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// As the client named it.
    pub(crate) path: &'a Path,
    /// The directory that holds it.
    pub(crate) parent: OwnedFd,
    /// Its last name.
    pub(crate) name: std::ffi::OsString,
}

impl Roots {
    pub(crate) fn open(paths: &[&Path]) -> Result<Self, Error> {
        let open = |path: &&Path| {
            let file = File::open(path).map_err(|source| Error::file("open", *path, source))?;
            Ok((path.to_path_buf(), OwnedFd::from(file)))
        };
        Ok(Self(paths.iter().map(open).collect::<Result<_, Error>>()?))
    }

    /// Looks up a path: what is behind the root's own path is resolved inside of the root, whatever links stand there.
    /// UNIMPLEMENTED for a path that is below none of them.
    pub(crate) fn find<'a>(&self, path: &'a Path) -> Result<Place<'a>, Error> {
        let below = self.0.iter().find_map(|(root, fd)| path.strip_prefix(root).ok().map(|rest| (fd, rest)));
        let (root, rest) = below.ok_or_else(|| Error::Outside(path.to_owned()))?;
        let (parent, name) =
            sys::fs::parent_in_root(root.as_fd(), rest).map_err(|errno| Error::file("look up", path, errno))?;
        Ok(Place { path, parent, name })
    }
}

impl Place<'_> {
    /// What is there, without following a link; `None` if nothing is.
    pub(crate) fn stat(&self) -> Result<Option<rustix::fs::Stat>, Error> {
        match rustix::fs::statat(&self.parent, &self.name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::file("examine", self.path, errno)),
        }
    }

    /// Makes the directory, which must not exist, and gives it the mode and the owner.
    ///
    /// A container may write where it is made, and put a link in its place at once: what is changed is changed by the
    /// descriptor of a directory, never by the name.
    pub(crate) fn mkdir(&self, mode: u32, owner: Option<(Uid, Gid)>) -> Result<(), Error> {
        let failed = |errno: Errno| Error::file("make directory", self.path, errno);
        rustix::fs::mkdirat(&self.parent, &self.name, Mode::from_raw_mode(mode)).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty()).map_err(failed)?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&made, Some(uid), Some(gid)).map_err(failed)?;
        }
        // Whatever the umask has taken away.
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)).map_err(failed)
    }
}
