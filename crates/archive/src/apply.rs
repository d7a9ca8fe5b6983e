//! Writes a layer's changes into a directory.
//!
//! The rules are containerd's: an entry replaces what is at its name, except that a directory merges with a directory;
//! the root entry is ignored; missing parents are made like the layers below have them; links into nowhere fail.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, makedev};
use rustix::io::Errno;

use crate::copy::{copy_attributes, copy_entry, write_all_at};
use crate::lower::{Lowers, is_whiteout};
use crate::reader::{Entry, Kind, TarReader};
use crate::{Error, xattr};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// `PATH_MAX`: no program could open a longer one.
const MAX_PATH_BYTES: usize = 4096;
/// Directories held open; a layer's entries come directory by directory.
const CACHED_DIRS: usize = 64;
const BUFFER_BYTES: usize = 256 << 10;

/// What a layer's removals become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// Overlayfs's marks (a character device 0:0, `trusted.overlay.opaque`): the directory is an upper directory.
    Overlay,
    /// Removals: the directory holds the files of the layers below.
    Remove,
}

/// Bounds on what an archive may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of a sparse file, holes included.
    pub sparse_file_bytes: u64,
    /// Bytes of names that must be remembered until the end: of directories, whose times are set last, and with
    /// [`Whiteouts::Remove`] of all entries.
    pub remembered_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sparse_file_bytes: 1 << 40, remembered_bytes: 128 << 20 }
    }
}

/// How to apply a layer.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// What removals become.
    pub whiteouts: Whiteouts,
    /// The directories that the target will be stacked on, nearest first: missing parent directories get their
    /// attributes, and hard links may name their files.
    pub lowers: Vec<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

impl ApplyOptions {
    /// For a directory that holds all files itself.
    pub fn in_place() -> Self {
        Self { whiteouts: Whiteouts::Remove, lowers: Vec::new(), limits: Limits::default() }
    }

    /// For an overlay upper directory over `lowers`, nearest first.
    pub fn upper(lowers: Vec<PathBuf>) -> Self {
        Self { whiteouts: Whiteouts::Overlay, lowers, limits: Limits::default() }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of file data.
    pub bytes: u64,
    /// Inodes made.
    pub inodes: u64,
}

/// Applies the tar stream `tar` to the directory `root`, and reads the stream to its very end. Blocks.
///
/// After an error `root` holds part of the layer. The stream is untrusted: see the invariant of this crate.
pub fn apply(tar: impl Read, root: &Path, options: ApplyOptions) -> Result<Applied, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(Error::io("open", root))?;
    let mut reader = TarReader::new(tar);
    let mut applier = Applier {
        root,
        whiteouts: options.whiteouts,
        lowers: Lowers::new(options.lowers),
        limits: options.limits,
        dirs: HashMap::new(),
        times: Vec::new(),
        written: HashSet::new(),
        remembered: 0,
        applied: Applied::default(),
        buffer: vec![0; BUFFER_BYTES],
    };
    while let Some(entry) = reader.next_entry()? {
        applier.entry(&entry, &mut reader)?;
    }
    applier.finish()?;
    reader.drain()?;
    Ok(applier.applied)
}

struct Applier {
    root: OwnedFd,
    whiteouts: Whiteouts,
    lowers: Lowers,
    limits: Limits,
    /// Directories by cleaned path. An entry is valid as long as nothing on the way to it is replaced, so it is emptied
    /// whenever something is removed.
    dirs: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Times of directories, set when nothing is written into them any more.
    times: Vec<(Vec<u8>, Timestamps)>,
    /// With [`Whiteouts::Remove`]: the paths that this layer has written, and those above them.
    written: HashSet<Vec<u8>>,
    remembered: u64,
    applied: Applied,
    buffer: Vec<u8>,
}

impl Applier {
    fn entry(&mut self, entry: &Entry, reader: &mut TarReader<impl Read>) -> Result<(), Error> {
        let components = clean(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // The root directory is the snapshot's, not the layer's.
            return Ok(());
        };
        if components.iter().any(|component| component.starts_with(AUFS) && *component != OPAQUE_WHITEOUT) {
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(Error::refused(&entry.path, "a whiteout is no directory"));
        }
        if *name == OPAQUE_WHITEOUT {
            return self.opaque(parents);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::refused(&entry.path, "invalid whiteout name"));
            }
            return self.whiteout(parents, hidden);
        }
        let dir = self.directory(parents)?;
        self.write(entry, &components, dir.as_fd(), name, reader)?;
        self.remember_written(&components)
    }

    /// The directory at a path inside the root, made with all above it where missing.
    fn directory(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, Error> {
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

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
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

    fn opaque(&mut self, components: &[&[u8]]) -> Result<(), Error> {
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
    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), Error> {
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

    fn write(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
        reader: &mut TarReader<impl Read>,
    ) -> Result<(), Error> {
        let failed = |errno| Error::entry("create", &entry.path)(errno);
        let made = match self.create(entry, components, dir, name)? {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if entry.kind == Kind::Directory && FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    None
                } else {
                    self.remove(dir, name).map_err(failed)?;
                    let made = self.create(entry, components, dir, name)?.map_err(failed)?;
                    if entry.kind == Kind::Directory && self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat) {
                        // The name was removed from the layers below, so their directory must not show through.
                        self.set_opaque(dir, name).map_err(failed)?;
                    }
                    made
                }
            }
            result => result.map_err(failed)?,
        };
        let target = match made {
            Some(file) => {
                self.fill(entry, file.as_fd(), reader)?;
                file
            }
            None => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?
            }
        };
        self.attributes(entry, components, dir, name, target.as_fd())
    }

    /// Makes the entry's inode, without its attributes. The outer error is about something else than the name; a
    /// regular file is returned open for writing.
    fn create(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Result<Option<OwnedFd>, Errno>, Error> {
        let private = Mode::RUSR | Mode::WUSR;
        let node = |kind| {
            rustix::fs::mknodat(dir, name, kind, private, makedev(entry.device.0, entry.device.1)).map(|()| None)
        };
        let result = match entry.kind {
            Kind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, private).map(Some)
            }
            Kind::Directory => rustix::fs::mkdirat(dir, name, Mode::RWXU).map(|()| None),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(Error::refused(&entry.path, "symbolic link to nothing"));
                }
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), dir, name).map(|()| None)
            }
            Kind::Hardlink => return self.link(entry, components, dir, name).map(|made| made.map(|()| None)),
            Kind::Char => node(FileType::CharacterDevice),
            Kind::Block => node(FileType::BlockDevice),
            Kind::Fifo => node(FileType::Fifo),
        };
        if result.is_ok() {
            self.applied.inodes += 1;
        }
        Ok(result)
    }

    fn link(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Result<(), Errno>, Error> {
        let target = clean(&entry.link)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(Error::refused(&entry.path, "hard link to the root"));
        };
        if target == components {
            return Err(Error::refused(&entry.path, "hard link to itself"));
        }
        let missing = |errno| Error::entry("find the target of hard link", &entry.path)(errno);
        let found = match self.open_directory(&target_parents.join(&b'/')) {
            Ok(target_dir) => match rustix::fs::statat(&target_dir, *target_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat) => {
                    return Err(missing(Errno::NOENT));
                }
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    return Err(Error::refused(&entry.path, "hard link to a directory"));
                }
                Ok(_) => Some(target_dir),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(missing(errno)),
            },
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(missing(errno)),
        };
        let target_dir = match found {
            Some(target_dir) => Rc::new(target_dir),
            None => self.copy_up(&target, target_name, target_parents, missing)?,
        };
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one to the link itself.
        Ok(rustix::fs::linkat(&*target_dir, *target_name, dir, name, AtFlags::empty()))
    }

    /// Brings a file of a layer below up, as overlayfs would before it links it.
    fn copy_up(
        &mut self,
        target: &[&[u8]],
        name: &[u8],
        parents: &[&[u8]],
        missing: impl FnOnce(Errno) -> Error,
    ) -> Result<Rc<OwnedFd>, Error> {
        let found = match self.lowers.find(target)? {
            Some(found) if FileType::from_raw_mode(found.stat.st_mode) != FileType::Directory => found,
            _ => return Err(missing(Errno::NOENT)),
        };
        let dir = self.directory(parents)?;
        copy_entry((found.dir.as_fd(), name), (dir.as_fd(), name)).map_err(missing)?;
        self.applied.inodes += 1;
        self.applied.bytes += found.stat.st_size.cast_unsigned();
        Ok(dir)
    }

    /// Writes a regular file's data.
    fn fill(&mut self, entry: &Entry, file: BorrowedFd<'_>, reader: &mut TarReader<impl Read>) -> Result<(), Error> {
        let whole = [(0, entry.size)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        if entry.pieces.is_some() {
            if entry.size > self.limits.sparse_file_bytes {
                return Err(Error::Limit { what: "bytes of a sparse file", limit: self.limits.sparse_file_bytes });
            }
            rustix::fs::ftruncate(file, entry.size).map_err(Error::entry("write", &entry.path))?;
        }
        for (offset, length) in pieces {
            let mut done = 0;
            while done < *length {
                let want = usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
                let count = match reader.read(&mut self.buffer[..want]) {
                    Ok(0) => return Err(Error::Truncated),
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Error::Truncated),
                    Err(error) => return Err(Error::Read(error)),
                };
                write_all_at(file, &self.buffer[..count], offset + done).map_err(Error::entry("write", &entry.path))?;
                done += count as u64;
                self.applied.bytes += count as u64;
            }
        }
        Ok(())
    }

    /// Owner, mode, extended attributes and times of `target`, which is the entry itself, open. In this order: a change of
    /// owner clears setuid and file capabilities.
    fn attributes(
        &mut self,
        entry: &Entry,
        components: &[&[u8]],
        dir: BorrowedFd<'_>,
        name: &[u8],
        target: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let failed = |errno| Error::entry("set attributes of", &entry.path)(errno);
        let (user, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(target, c"", Some(user), Some(group), AtFlags::EMPTY_PATH).map_err(failed)?;
        let symlink = match entry.kind {
            Kind::Symlink => true,
            Kind::Hardlink => {
                let stat = rustix::fs::fstat(target).map_err(failed)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
            }
            Kind::Regular | Kind::Directory | Kind::Char | Kind::Block | Kind::Fifo => false,
        };
        let mode = Mode::from_raw_mode(entry.mode);
        if entry.kind == Kind::Regular {
            rustix::fs::fchmod(target, mode).map_err(failed)?;
        } else if !symlink {
            // An O_PATH descriptor takes no fchmod; its name in /proc leads to the same inode.
            rustix::fs::chmod(sys::fs::proc_path(target), mode).map_err(failed)?;
        }
        for (key, value) in &entry.xattrs {
            if reserved(key) {
                continue;
            }
            let set = if entry.kind == Kind::Regular {
                rustix::fs::fsetxattr(target, &**key, value, XattrFlags::empty())
            } else {
                xattr::set(dir, name, key, value)
            };
            match set {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                // Only files and directories have user attributes (xattr(7)).
                Err(Errno::PERM)
                    if key.starts_with(b"user.") && !matches!(entry.kind, Kind::Regular | Kind::Directory) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        let times = bounded_times(entry.mtime);
        if entry.kind == Kind::Directory {
            let path = components.join(&b'/');
            self.remember(path.len())?;
            self.times.push((path, times));
            return Ok(());
        }
        rustix::fs::utimensat(target, c"", &times, AtFlags::EMPTY_PATH).map_err(failed)
    }

    /// Sets the times of directories, now that nothing is written into them any more.
    fn finish(&mut self) -> Result<(), Error> {
        for (path, times) in std::mem::take(&mut self.times) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match sys::fs::open_in_root(self.root.as_fd(), OsStr::from_bytes(&path), flags) {
                Ok(dir) => rustix::fs::utimensat(&dir, c"", &times, AtFlags::EMPTY_PATH)
                    .map_err(Error::entry("set times of", &path))?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Error::entry("set times of", &path)(errno)),
            }
        }
        Ok(())
    }

    fn set_opaque(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        xattr::set(dir, name, xattr::OPAQUE.as_bytes(), b"y")
    }

    fn holds_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.whiteouts == Whiteouts::Overlay && is_whiteout(&stat))
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        self.dirs.clear();
        sys::fs::remove_tree(dir, OsStr::from_bytes(name))
    }

    /// Notes that this layer wrote a path; everything above it counts as well, or an opaque mark would take it away.
    fn remember_written(&mut self, components: &[&[u8]]) -> Result<(), Error> {
        if self.whiteouts == Whiteouts::Overlay {
            return Ok(());
        }
        for end in (1..=components.len()).rev() {
            let path = components[..end].join(&b'/');
            let bytes = path.len();
            if !self.written.insert(path) {
                break;
            }
            self.remember(bytes)?;
        }
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), Error> {
        // A name costs its allocation and its place in the collection as well.
        self.remembered += bytes as u64 + 64;
        if self.remembered > self.limits.remembered_bytes {
            return Err(Error::Limit { what: "bytes of names", limit: self.limits.remembered_bytes });
        }
        Ok(())
    }
}

/// The components of a path without empty ones and `.`; `..` takes one back and stops at the root, as Go cleans the
/// absolute path.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::refused(path, "name too long"));
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// Attributes that an image may not set: the administrator's, among them overlayfs's own.
fn reserved(key: &[u8]) -> bool {
    key.is_empty() || key.contains(&0) || key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.")
}

/// A modification time as both times of a file; one that 64 bits of nanoseconds cannot hold becomes 1970, as in
/// containerd.
fn bounded_times((seconds, nanos): (i64, u32)) -> Timestamps {
    let good = (0..=i64::MAX / 1_000_000_000).contains(&seconds);
    let time =
        if good { Timespec { tv_sec: seconds, tv_nsec: nanos.into() } } else { Timespec { tv_sec: 0, tv_nsec: 0 } };
    Timestamps { last_access: time, last_modification: time }
}
