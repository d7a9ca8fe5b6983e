//! What differs between two trees, as a layer: the way back of [`crate::apply`].
//!
//! Both trees are walked at the same time, names in byte order, so the result depends on the trees alone. A directory comes
//! before what is in it; where only something below it has changed it comes as it is.
//!
//! **Invariant:** no symbolic link is followed and nothing but regular files is opened, whatever the trees hold.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, major, minor};
use rustix::io::Errno;

use crate::reader::{Entry, Kind};
use crate::{Error, TarWriter, xattr};

/// Deepest nesting of directories; up to four descriptors are held per level.
const MAX_DEPTH: usize = 1000;
const BUFFER_BYTES: usize = 256 << 10;
/// What a name begins with that stands for the removal of the rest of it (image-spec, layer, whiteouts).
const WHITEOUT: &[u8] = b".wh.";

/// Writes what makes `upper` of `lower` to `tar`, which is not finished; without a `lower`, all of `upper`. Sockets are left
/// out, for a tar has no such thing. Blocks.
///
/// Times are written in whole seconds, and none later than `latest` (seconds since 1970). Removals have that time, or 1970.
/// INVALID_ARGUMENT for a file whose name would be read as a removal.
pub fn diff(
    lower: Option<BorrowedFd<'_>>,
    upper: BorrowedFd<'_>,
    latest: Option<i64>,
    tar: &mut TarWriter<impl Write>,
) -> Result<(), Error> {
    let lower = lower.map(|lower| open_dir(lower, b".")).transpose().map_err(Error::io("open directory", "lower"))?;
    let upper = open_dir(upper, b".").map_err(Error::io("open directory", "upper"))?;
    let mut walk = Walk { tar, latest, path: Vec::new(), parents: Vec::new(), links: HashMap::new() };
    walk.directory(lower, upper)
}

/// A directory on the way to the current one.
struct Parent {
    /// Length of its path.
    length: usize,
    /// Its header, until it is written.
    entry: Option<Entry>,
}

/// The names of one file of several.
enum Links {
    /// Written by this name: the others are links to it.
    Written(Vec<u8>),
    /// Not changed so far: they become links if one of the others is written.
    Unchanged(Vec<Vec<u8>>),
}

struct Walk<'a, W> {
    tar: &'a mut TarWriter<W>,
    latest: Option<i64>,
    path: Vec<u8>,
    parents: Vec<Parent>,
    links: HashMap<(u64, u64), Links>,
}

/// Where the walk goes on: the directory below, the one above, and the latter's header if it is not written yet.
type Below = (Option<OwnedFd>, OwnedFd, Option<Entry>);

/// One level of the walk.
struct Level {
    lower: Option<OwnedFd>,
    upper: OwnedFd,
    /// Names of either, in descending order: the next one is the last.
    names: Vec<Vec<u8>>,
}

impl Level {
    fn open(lower: Option<OwnedFd>, upper: OwnedFd) -> Result<Self, Errno> {
        let mut names = names(&upper)?;
        if let Some(lower) = &lower {
            names.extend(self::names(lower)?);
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.dedup();
        Ok(Self { lower, upper, names })
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

impl<W: Write> Walk<'_, W> {
    /// The walk itself: a stack instead of recursion, because the depth is the trees'.
    fn directory(&mut self, lower: Option<OwnedFd>, upper: OwnedFd) -> Result<(), Error> {
        let mut levels = vec![Level::open(lower, upper).map_err(|errno| self.failed("list", errno))?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                self.parents.pop();
                self.path.truncate(self.parents.last().map_or(0, |parent| parent.length));
                continue;
            };
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let next = self.entry(level, &name)?;
            match next {
                None => self.path.truncate(length),
                Some((lower, upper, entry)) => {
                    if levels.len() == MAX_DEPTH {
                        return Err(Error::Limit { what: "levels of directories", limit: MAX_DEPTH as u64 });
                    }
                    self.parents.push(Parent { length: self.path.len(), entry });
                    levels.push(Level::open(lower, upper).map_err(|errno| self.failed("list", errno))?);
                }
            }
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, errno: Errno) -> Error {
        Error::io(operation, OsStr::from_bytes(&self.path))(errno)
    }

    /// Writes what is to be said of one name, and gives the directories behind it if the walk goes on there.
    fn entry(&mut self, level: &Level, name: &[u8]) -> Result<Option<Below>, Error> {
        let failed = |errno| self.failed("examine", errno);
        let upper_dir = level.upper.as_fd();
        let upper = stat(upper_dir, name).map_err(failed)?;
        let lower = match &level.lower {
            Some(dir) => stat(dir.as_fd(), name).map_err(failed)?.map(|stat| (dir.as_fd(), stat)),
            None => None,
        };
        let Some(upper) = upper else {
            if lower.is_some() {
                self.removal(name)?;
            }
            return Ok(None);
        };
        if name.starts_with(WHITEOUT) {
            return Err(Error::refused(&self.path, "its name means a removal"));
        }
        let changed = match &lower {
            Some((lower_dir, stat)) => !same((*lower_dir, name, stat), (upper_dir, name, &upper)).map_err(failed)?,
            None => true,
        };
        if !is_dir(&upper) {
            self.file(upper_dir, name, &upper, changed)?;
            return Ok(None);
        }
        let header = self.header(upper_dir, name, &upper)?;
        let pending = if changed {
            self.parents()?;
            self.tar.append(&header)?;
            None
        } else {
            Some(header)
        };
        let below = |dir: BorrowedFd<'_>| open_dir(dir, name).map_err(|errno| self.failed("open directory", errno));
        let lower = lower.filter(|(_, stat)| is_dir(stat)).map(|(dir, _)| below(dir)).transpose()?;
        Ok(Some((lower, below(upper_dir)?, pending)))
    }

    /// Writes the directories on the way that are not written yet.
    fn parents(&mut self) -> Result<(), Error> {
        for parent in &mut self.parents {
            if let Some(entry) = parent.entry.take() {
                self.tar.append(&entry)?;
            }
        }
        Ok(())
    }

    fn removal(&mut self, name: &[u8]) -> Result<(), Error> {
        let dir = &self.path[..self.path.len() - name.len()];
        let entry = Entry {
            path: [dir, WHITEOUT, name].concat(),
            link: Vec::new(),
            kind: Kind::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (self.latest.unwrap_or(0), 0),
            device: (0, 0),
            size: 0,
            xattrs: Vec::new(),
            pieces: None,
        };
        self.parents()?;
        self.tar.append(&entry)
    }

    /// Anything but a directory.
    fn file(&mut self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat, changed: bool) -> Result<(), Error> {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            return Ok(());
        }
        let mut unchanged = Vec::new();
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            match self.links.get_mut(&inode) {
                Some(Links::Written(first)) => {
                    let target = first.clone();
                    return self.link(dir, name, stat, self.path.clone(), target);
                }
                Some(Links::Unchanged(names)) if !changed => {
                    names.push(self.path.clone());
                    return Ok(());
                }
                Some(Links::Unchanged(names)) => unchanged = std::mem::take(names),
                None if !changed => {
                    self.links.insert(inode, Links::Unchanged(vec![self.path.clone()]));
                    return Ok(());
                }
                None => {}
            }
            self.links.insert(inode, Links::Written(self.path.clone()));
        } else if !changed {
            return Ok(());
        }
        let header = self.header(dir, name, stat)?;
        self.parents()?;
        self.tar.append(&header)?;
        if header.kind == Kind::Regular {
            self.data(dir, name, stat)?;
        }
        // They were the same file below, but that one is not this one any more.
        for other in unchanged {
            self.link(dir, name, stat, other, self.path.clone())?;
        }
        Ok(())
    }

    fn link(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        path: Vec<u8>,
        target: Vec<u8>,
    ) -> Result<(), Error> {
        let header = self.header(dir, name, stat)?;
        self.parents()?;
        self.tar.append(&Entry { path, link: target, kind: Kind::Hardlink, size: 0, ..header })
    }

    /// The bytes of a regular file, which must be the one that was examined and as long as it was.
    fn data(&mut self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), Error> {
        let file = open_file(dir, name, stat).map_err(|errno| self.failed("open", errno))?;
        let mut left = stat.st_size.cast_unsigned();
        let mut buffer = vec![0; BUFFER_BYTES];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = read(&file, &mut buffer[..want]).map_err(|errno| self.failed("read", errno))?;
            if count == 0 {
                return Err(Error::Short(left));
            }
            self.tar.write_all(&buffer[..count]).map_err(Error::Write)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn header(&self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<Entry, Error> {
        let failed = |errno| self.failed("examine", errno);
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket | FileType::Unknown => return Err(Error::refused(&self.path, "unknown type of file")),
        };
        let link = match kind {
            Kind::Symlink => rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed)?.into_bytes(),
            Kind::Regular | Kind::Directory | Kind::Hardlink | Kind::Char | Kind::Block | Kind::Fifo => Vec::new(),
        };
        let device = match kind {
            Kind::Char | Kind::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
            Kind::Regular | Kind::Directory | Kind::Symlink | Kind::Hardlink | Kind::Fifo => (0, 0),
        };
        let mut path = self.path.clone();
        if kind == Kind::Directory {
            path.push(b'/');
        }
        let seconds = self.latest.map_or(stat.st_mtime, |latest| stat.st_mtime.min(latest));
        Ok(Entry {
            path,
            link,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (seconds, 0),
            device,
            size: if kind == Kind::Regular { stat.st_size.cast_unsigned() } else { 0 },
            xattrs: attributes(dir, name, stat).map_err(failed)?,
            pieces: None,
        })
    }
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes that are part of a layer, in order: file capabilities, and those of users. The rest is the host's.
fn attributes(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<Attributes, Errno> {
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for key in xattr::keys(dir, name)? {
        let wanted = key == b"security.capability" || (key.starts_with(b"user.") && !key.starts_with(b"user.overlay."));
        // A key with an equals sign could not be told from its value.
        if !wanted || key.contains(&b'=') {
            continue;
        }
        if let Some(value) = xattr::value(dir, name, &key)? {
            found.push((key, value));
        }
    }
    found.sort();
    Ok(found)
}

type Named<'a> = (BorrowedFd<'a>, &'a [u8], &'a Stat);

/// Whether two entries are the same but for what is in a directory. Files are taken to be the same if their times are, to the
/// nanosecond; where one of them has whole seconds only, as after an extraction, their bytes decide.
fn same(lower: Named<'_>, upper: Named<'_>) -> Result<bool, Errno> {
    let (old, new) = (lower.2, upper.2);
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) {
        return Ok(true);
    }
    let attributes_differ = || Ok(attributes(lower.0, lower.1, old)? != attributes(upper.0, upper.1, new)?);
    if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid) || attributes_differ()? {
        return Ok(false);
    }
    match FileType::from_raw_mode(new.st_mode) {
        FileType::Directory => Ok(true),
        FileType::RegularFile => {
            if old.st_size != new.st_size || old.st_mtime != new.st_mtime {
                return Ok(false);
            }
            if old.st_mtime_nsec == new.st_mtime_nsec {
                return Ok(true);
            }
            Ok((old.st_mtime_nsec == 0 || new.st_mtime_nsec == 0) && same_bytes(lower, upper)?)
        }
        FileType::Symlink => {
            let target = |named: Named<'_>| rustix::fs::readlinkat(named.0, named.1, Vec::new());
            Ok(old.st_mtime == new.st_mtime && target(lower)? == target(upper)?)
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            Ok(old.st_rdev == new.st_rdev && old.st_mtime == new.st_mtime)
        }
        FileType::Fifo | FileType::Socket | FileType::Unknown => Ok(old.st_mtime == new.st_mtime),
    }
}

fn same_bytes(lower: Named<'_>, upper: Named<'_>) -> Result<bool, Errno> {
    let (old, new) = (open_file(lower.0, lower.1, lower.2)?, open_file(upper.0, upper.1, upper.2)?);
    let (mut old_bytes, mut new_bytes) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    loop {
        let count = read_full(&old, &mut old_bytes)?;
        if count != read_full(&new, &mut new_bytes)? || old_bytes[..count] != new_bytes[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// Opens a regular file that was examined. ESTALE if the name has become another one.
fn open_file(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<std::fs::File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let opened = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile || opened.st_ino != stat.st_ino {
        return Err(Errno::STALE);
    }
    Ok(file.into())
}

fn read(mut file: &std::fs::File, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            Ok(count) => return Ok(count),
        }
    }
}

fn read_full(file: &std::fs::File, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match read(file, &mut buffer[done..])? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
