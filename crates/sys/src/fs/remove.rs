//! Removing a tree.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::Result;

/// Directories held open at once. A tree that is deeper is flattened while it is removed.
const MAX_DEPTH: usize = 32;

/// Removes the file or tree `name` in `dir`. What is gone already is no error. Blocks for as long as it takes.
///
/// Links are removed, not followed. A mount below is not crossed: the tree around it is removed as far as possible and
/// the result is EBUSY. Memory and descriptors used do not depend on the shape of the tree, which may be hostile: what
/// is nested deeper than 32 levels is first moved up.
pub fn remove_tree(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> Result<()> {
    let name = CString::new(name.as_ref().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let Some(top) = Level::enter(dir, name, None)? else { return Ok(()) };
    Removal { mount: mount_id(top.dir.as_fd())?, levels: VecDeque::from([top]), moved: 0, busy: false }.run(dir)
}

struct Removal {
    mount: u64,
    /// From the top to where the removal stands.
    levels: VecDeque<Level>,
    /// How many directories were moved up; names the next one.
    moved: u64,
    /// Whether a mount was met.
    busy: bool,
}

struct Level {
    name: CString,
    dir: OwnedFd,
    entries: Dir,
    /// Whether something below could not be removed, so that the directory itself cannot be.
    kept: bool,
    /// Whether directories were moved into this one after its entries were read.
    refilled: bool,
}

impl Level {
    /// Opens a directory to empty it; `None` if it is gone. EXDEV if it is on another mount than `mount`.
    fn enter(parent: BorrowedFd<'_>, name: CString, mount: Option<u64>) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(parent, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        if let Some(mount) = mount
            && mount_id(dir.as_fd())? != mount
        {
            return Err(Errno::XDEV);
        }
        let entries = Dir::read_from(&dir)?;
        Ok(Some(Self { name, dir, entries, kept: false, refilled: false }))
    }
}

impl Removal {
    fn run(mut self, dir: BorrowedFd<'_>) -> Result<()> {
        while let Some(level) = self.levels.back_mut() {
            match level.entries.read() {
                Some(entry) => {
                    let entry = entry?;
                    if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                        self.entry(entry.file_name().to_owned(), entry.file_type())?;
                    }
                }
                None if level.refilled => {
                    level.refilled = false;
                    level.entries = Dir::read_from(&level.dir)?;
                }
                None => self.leave(dir)?,
            }
        }
        if self.busy { Err(Errno::BUSY) } else { Ok(()) }
    }

    /// Removes one entry of the deepest level, or goes into it.
    fn entry(&mut self, name: CString, kind: FileType) -> Result<()> {
        let Some(level) = self.levels.back_mut() else { return Ok(()) };
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(&level.dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) => {
                    (level.kept, self.busy) = (true, true);
                    return Ok(());
                }
                // The file system did not say the type, or it changed.
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        // Most directories of a tree that was removed before are empty; but a full one must be entered anyway, so only
        // the depth decides.
        if self.levels.len() >= MAX_DEPTH {
            return self.move_up(&name);
        }
        let Some(level) = self.levels.back_mut() else { return Ok(()) };
        match Level::enter(level.dir.as_fd(), name, Some(self.mount)) {
            Ok(Some(next)) => self.levels.push_back(next),
            Ok(None) => {}
            Err(Errno::XDEV) => (level.kept, self.busy) = (true, true),
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Moves a directory of the deepest level to the top level, where it is met again later.
    fn move_up(&mut self, name: &CStr) -> Result<()> {
        let (Some(top), Some(level)) = (self.levels.front(), self.levels.back()) else { return Ok(()) };
        loop {
            let target = format!(".removing-{}-{}", std::process::id(), self.moved);
            self.moved += 1;
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&level.dir, name, &top.dir, target, flags) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY | Errno::XDEV) => {
                    if let Some(level) = self.levels.back_mut() {
                        level.kept = true;
                    }
                    self.busy = true;
                    return Ok(());
                }
                Err(errno) => return Err(errno),
            }
        }
        if let Some(top) = self.levels.front_mut() {
            top.refilled = true;
        }
        Ok(())
    }

    /// Removes the deepest level itself, now that it is empty.
    fn leave(&mut self, dir: BorrowedFd<'_>) -> Result<()> {
        let Some(level) = self.levels.pop_back() else { return Ok(()) };
        let parent = self.levels.back().map_or(dir, |parent| parent.dir.as_fd());
        let result =
            if level.kept { Err(Errno::BUSY) } else { rustix::fs::unlinkat(parent, &level.name, AtFlags::REMOVEDIR) };
        match result {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY) => {
                self.busy = true;
                if let Some(parent) = self.levels.back_mut() {
                    parent.kept = true;
                }
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }
}

/// The id of the mount that an open file is on (statx, Linux 5.8). The device number would not tell a bind mount of
/// the same file system apart.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &std::path::Path) -> fs::File {
        fs::File::open(path).unwrap()
    }

    #[test]
    fn files_links_and_trees_go_and_what_links_point_to_stays() {
        let top = tempfile::tempdir().unwrap();
        let dir = open(top.path());
        fs::create_dir_all(top.path().join("tree/a/b")).unwrap();
        fs::create_dir(top.path().join("kept")).unwrap();
        fs::write(top.path().join("kept/file"), "").unwrap();
        for number in 0..300 {
            fs::write(top.path().join(format!("tree/a/{number}")), "").unwrap();
            fs::create_dir(top.path().join(format!("tree/a/b/{number}"))).unwrap();
        }
        symlink(top.path().join("kept"), top.path().join("tree/link")).unwrap();
        symlink("kept", top.path().join("link")).unwrap();
        for name in ["tree", "link", "missing"] {
            remove_tree(dir.as_fd(), name).unwrap();
            assert!(!top.path().join(name).is_symlink() && !top.path().join(name).exists());
        }
        assert!(top.path().join("kept/file").exists());
    }

    #[test]
    fn a_very_deep_tree_goes_with_few_descriptors() {
        let top = tempfile::tempdir().unwrap();
        let mut current = OwnedFd::from(open(top.path()));
        // Deeper than PATH_MAX and than any descriptor limit would allow.
        for depth in 0..5000 {
            rustix::fs::mkdirat(&current, "deep", Mode::RWXU).unwrap();
            if depth % 100 == 0 {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
                drop(rustix::fs::openat(&current, "file", flags, Mode::RUSR).unwrap());
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            current = rustix::fs::openat(&current, "deep", flags, Mode::empty()).unwrap();
        }
        drop(current);
        remove_tree(open(top.path()).as_fd(), "deep").unwrap();
        assert!(!top.path().join("deep").exists());
    }

    #[test]
    fn a_mount_below_is_not_crossed() {
        // In a mount namespace of its own, reached by running this test again there.
        const INSIDE: &str = "GANTRY_TEST_INSIDE_NAMESPACE";
        if std::env::var_os(INSIDE).is_none() {
            let exe = std::env::current_exe().unwrap();
            let arguments = ["-m", "--propagation", "private"];
            let command = crate::spawn::Command::new("/usr/bin/unshare").args(arguments).arg(exe);
            let name = "fs::remove::tests::a_mount_below_is_not_crossed";
            let end = command.args(["--exact", name]).inherit_env().env(INSIDE, "1").status().unwrap();
            assert_eq!(end.exit, crate::process::Exit::Code(0));
            return;
        }
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("tree/sub/mounted")).unwrap();
        fs::create_dir_all(top.path().join("kept")).unwrap();
        fs::write(top.path().join("kept/file"), "").unwrap();
        fs::write(top.path().join("tree/sub/gone"), "").unwrap();
        // A bind of the same file system: only the mount differs, not the device.
        let mounted = top.path().join("tree/sub/mounted");
        rustix::mount::mount_bind(top.path().join("kept"), &mounted).unwrap();
        assert_eq!(remove_tree(open(top.path()).as_fd(), "tree").unwrap_err(), Errno::BUSY);
        assert!(top.path().join("kept/file").exists() && !top.path().join("tree/sub/gone").exists());
        rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::empty()).unwrap();
        remove_tree(open(top.path()).as_fd(), "tree").unwrap();
        assert!(!top.path().join("tree").exists());
    }
}
