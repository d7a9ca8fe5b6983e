//! Snapshots as plain directories: an active snapshot is a copy of its parent. Slow, and works on any file system.

use std::os::fd::AsFd as _;
use std::path::Path;

use model::{Labels, Mount};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use crate::dirs::Dirs;
use crate::{Driver, Error, Kind, Usage, idmap, overlay};

/// The snapshotter `native`.
#[derive(Debug)]
pub struct Native {
    dirs: Dirs,
}

impl Native {
    /// Opens or makes the driver's directory (`<root>/io.containerd.snapshotter.v1.native`).
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self { dirs: Dirs::open(root)? })
    }

    fn make(&self, id: u64, parents: &[u64], labels: &Labels) -> Result<(), Error> {
        let mapped = idmap::mapped_root(labels)?;
        let parent = parents.first().map(|parent| self.dirs.open_fs(*parent)).transpose()?;
        self.dirs.create(id, |dir, path| {
            let failed = |errno| Error::io("make directories in", path, errno);
            rustix::fs::mkdirat(dir, "fs", Mode::RWXU).map_err(failed)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fs = rustix::fs::openat(dir, "fs", flags, Mode::empty()).map_err(failed)?;
            match &parent {
                Some(parent) => archive::copy_tree(parent.as_fd(), fs.as_fd())?,
                None => rustix::fs::fchmod(&fs, Mode::from_raw_mode(0o755)).map_err(failed)?,
            }
            if let Some((user, group)) = mapped {
                let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                rustix::fs::chownat(dir, "fs", Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            if parent.is_some() {
                // The copy looks like the parent's files to whoever comes after a power cut, so it must be as whole.
                rustix::fs::syncfs(&fs).map_err(|e| Error::io("flush the file system of", path, e))?;
            }
            Ok(())
        })
    }
}

impl Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn root(&self) -> &Path {
        self.dirs.root()
    }

    fn prepare(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<(), Error> {
        // A view of a parent is the parent's own directory.
        if kind == Kind::View && !parents.is_empty() { Ok(()) } else { self.make(id, parents, labels) }
    }

    fn mounts(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>, Error> {
        let (source, access) = match (kind, parents) {
            (Kind::View, [parent, ..]) => (*parent, "ro"),
            (Kind::View, []) => (id, "ro"),
            (Kind::Active | Kind::Committed, _) => (id, "rw"),
        };
        if source == id && !self.dirs.exists(id)? {
            self.make(id, parents, labels)?;
        }
        Ok(vec![Mount {
            kind: "bind".to_owned(),
            source: self.dirs.fs_path(source).to_string_lossy().into_owned(),
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        }])
    }

    fn commit(&self, id: u64) -> Result<Usage, Error> {
        overlay::commit(&self.dirs, id)
    }

    fn usage(&self, id: u64) -> Result<Usage, Error> {
        overlay::usage(&self.dirs, id)
    }

    fn remove(&self, id: u64) -> Result<(), Error> {
        self.dirs.remove(id)
    }

    fn ids(&self) -> Result<Vec<u64>, Error> {
        self.dirs.ids()
    }

    fn sweep(&self) -> Result<(), Error> {
        self.dirs.sweep()
    }
}
