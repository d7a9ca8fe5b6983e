//! The directories of a driver, which both drivers lay out alike.
//!
//! ```text
//! <root>/snapshots/new-<id>    being made
//! <root>/snapshots/<id>/fs     the files of the snapshot
//! <root>/snapshots/<id>/work   overlayfs only, active snapshots only
//! <root>/trash/<id>.<n>        being removed
//! ```
//!
//! **Invariant:** `<id>` has everything that its snapshot needs, because it came by a rename.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::Error;

#[derive(Debug)]
pub(crate) struct Dirs {
    root: PathBuf,
    snapshots: OwnedFd,
    trash: OwnedFd,
    /// Makes names in the trash different.
    trashed: AtomicU64,
}

impl Dirs {
    /// Opens or makes the directories, and removes what a crash left half made.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        // The path goes into mount options, where these characters have a meaning.
        if root.to_str().is_none_or(|text| text.contains([',', ':', '\\', '"', '\n'])) {
            return Err(Error::Root { path: root.to_owned() });
        }
        let open = |path: &Path| -> Result<OwnedFd, Error> {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700).create(path).map_err(|e| Error::io("make directory", path, e))?;
            Ok(File::open(path).map_err(|e| Error::io("open directory", path, e))?.into())
        };
        let dirs = Self {
            root: root.to_owned(),
            snapshots: open(&root.join("snapshots"))?,
            trash: open(&root.join("trash"))?,
            trashed: AtomicU64::new(0),
        };
        for name in dirs.names(dirs.snapshots.as_fd(), "snapshots")? {
            if name.starts_with("new-") {
                // Only out of the way: start waits for nothing. `sweep` removes it.
                dirs.trash(&name)?;
            }
        }
        Ok(dirs)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn fs_path(&self, id: u64) -> PathBuf {
        self.root.join(format!("snapshots/{id}/fs"))
    }

    pub(crate) fn work_path(&self, id: u64) -> PathBuf {
        self.root.join(format!("snapshots/{id}/work"))
    }

    pub(crate) fn exists(&self, id: u64) -> Result<bool, Error> {
        match rustix::fs::statat(&self.snapshots, id.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io("examine", self.root.join(format!("snapshots/{id}")), errno)),
        }
    }

    /// Opens the files of a snapshot; [`Error::Lost`] if they are not there.
    pub(crate) fn open_fs(&self, id: u64) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.snapshots, format!("{id}/fs"), flags, Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT) => Err(Error::Lost { id, dir: self.fs_path(id) }),
            Err(errno) => Err(Error::io("open", self.fs_path(id), errno)),
        }
    }

    /// Makes the directory of `id`, whole or not at all: `fill` gets it before it has its name.
    pub(crate) fn create(
        &self,
        id: u64,
        fill: impl FnOnce(BorrowedFd<'_>, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new = format!("new-{id}");
        let path = self.root.join("snapshots").join(&new);
        rustix::fs::mkdirat(&self.snapshots, &new, Mode::RWXU).map_err(|e| Error::io("make directory", &path, e))?;
        let result = self.fill_and_publish(id, &new, &path, fill);
        if result.is_err() {
            // The first error is the one to tell; remains go at the next start.
            let _ = self.discard(&new);
        }
        result
    }

    fn fill_and_publish(
        &self,
        id: u64,
        new: &str,
        path: &Path,
        fill: impl FnOnce(BorrowedFd<'_>, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(&self.snapshots, new, flags, Mode::empty()).map_err(|e| Error::io("open", path, e))?;
        fill(dir.as_fd(), path)?;
        let name = id.to_string();
        let publish =
            || rustix::fs::renameat_with(&self.snapshots, new, &self.snapshots, &name, RenameFlags::NOREPLACE);
        let result = match publish() {
            // A snapshot that a power cut took from the records had this id: garbage.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                self.remove(id)?;
                publish()
            }
            result => result,
        };
        result.map_err(|e| Error::io("rename", path, e))
    }

    /// Frees the name of `id`, then removes its files.
    pub(crate) fn remove(&self, id: u64) -> Result<(), Error> {
        self.discard(&id.to_string())
    }

    /// Every id that has a directory.
    pub(crate) fn ids(&self) -> Result<Vec<u64>, Error> {
        let names = self.names(self.snapshots.as_fd(), "snapshots")?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes what is left in the trash.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        for name in self.names(self.trash.as_fd(), "trash")? {
            // What is busy now is tried again next time.
            let _ = sys::fs::remove_tree(self.trash.as_fd(), &name);
        }
        Ok(())
    }

    /// Brings the names of a snapshot's directories to disk. `fs` is its open files directory.
    pub(crate) fn sync_names(&self, id: u64, fs: BorrowedFd<'_>) -> Result<(), Error> {
        let failed = |errno: Errno| Error::io("flush", self.fs_path(id), errno);
        rustix::fs::fsync(fs).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.snapshots, id.to_string(), flags, Mode::empty()).map_err(failed)?;
        rustix::fs::fsync(dir).map_err(failed)?;
        rustix::fs::fsync(&self.snapshots).map_err(failed)
    }

    /// Whether the file system tells the types of directory entries.
    pub(crate) fn has_file_types(&self) -> Result<bool, Error> {
        let dir = File::open(&self.root).map_err(|e| Error::io("open directory", &self.root, e))?;
        let failed = |errno: Errno| Error::io("list", &self.root, errno);
        for entry in Dir::read_from(dir).map_err(failed)? {
            if entry.map_err(failed)?.file_type() == rustix::fs::FileType::Unknown {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn discard(&self, name: &str) -> Result<(), Error> {
        if let Some(trashed) = self.trash(name)? {
            // What cannot be removed now (a mount is on it in another namespace, say) is left to `sweep`.
            let _ = sys::fs::remove_tree(self.trash.as_fd(), &trashed);
        }
        Ok(())
    }

    /// Moves a directory into the trash and tells its name there; `None` if there is no such directory.
    fn trash(&self, name: &str) -> Result<Option<String>, Error> {
        loop {
            let number = self.trashed.fetch_add(1, Ordering::Relaxed);
            let trashed = format!("{name}.{number}");
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&self.snapshots, name, &self.trash, &trashed, flags) {
                Ok(()) => return Ok(Some(trashed)),
                Err(Errno::NOENT) => return Ok(None),
                // Left by an earlier process.
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    let path = self.root.join("snapshots").join(name);
                    return Err(Error::io("move to the trash", path, errno));
                }
            }
        }
    }

    fn names(&self, dir: BorrowedFd<'_>, what: &str) -> Result<Vec<String>, Error> {
        let failed = |errno: Errno| Error::io("list", self.root.join(what), errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_crash_leaves_is_swept() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let root = scratch.path().join("root");
        let dirs = Dirs::open(&root).expect("open");
        dirs.create(7, |_, _| Ok(())).expect("create");
        // Half made, half removed, and a name in the trash that the next process would choose.
        fs::create_dir_all(root.join("snapshots/new-8/fs")).expect("directory");
        fs::create_dir_all(root.join("trash/7.0/fs/deep")).expect("directory");
        fs::create_dir_all(root.join("trash/new-8.0")).expect("directory");
        let dirs = Dirs::open(&root).expect("open again");
        assert_eq!(dirs.ids().expect("ids"), [7]);
        assert!(!root.join("snapshots/new-8").exists());
        assert_eq!(fs::read_dir(root.join("trash")).expect("list").count(), 3);
        dirs.sweep().expect("sweep");
        assert_eq!(fs::read_dir(root.join("trash")).expect("list").count(), 0);
        dirs.remove(7).expect("remove");
        dirs.remove(7).expect("remove again");
        assert!(dirs.ids().expect("ids").is_empty());
    }

    #[test]
    fn a_failed_snapshot_leaves_nothing() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let dirs = Dirs::open(scratch.path()).expect("open");
        let result = dirs.create(1, |_, _| Err(Error::EmptyKey));
        assert!(matches!(result, Err(Error::EmptyKey)));
        for dir in ["snapshots", "trash"] {
            assert_eq!(fs::read_dir(scratch.path().join(dir)).expect("list").count(), 0, "{dir}");
        }
    }

    #[test]
    fn roots_that_mount_options_cannot_hold_are_refused() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        for name in ["a,b", "a:b", r"a\b", "a\"b", "a\nb"] {
            assert!(matches!(Dirs::open(&scratch.path().join(name)), Err(Error::Root { .. })), "{name}");
        }
        assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 0);
    }
}
