//! Paths inside the root file system, resolved without allocation.
//!
//! **Invariant:** whatever the tree below the root holds, and however it changes meanwhile, a descriptor that comes out
//! of here is of something inside the root, and no magic link of `/proc` was followed.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sys::undefended::{Defence, left_out};

/// As many as the kernel follows.
const MAX_LINKS: u32 = 40;
const PATH_BYTES: usize = 4096;

/// Opens `path` inside `root` with `O_PATH`; `extra` may add `O_DIRECTORY` or `O_NOFOLLOW`.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, extra: OFlags) -> Result<OwnedFd, Errno> {
    resolve(root, path, extra, MAX_LINKS)
}

/// As [`open`], following no link at all: ELOOP if there is one.
pub(super) fn open_ordinary(root: BorrowedFd<'_>, path: &CStr, extra: OFlags) -> Result<OwnedFd, Errno> {
    resolve(root, path, extra, 0)
}

fn resolve(root: BorrowedFd<'_>, path: &CStr, extra: OFlags, max_links: u32) -> Result<OwnedFd, Errno> {
    if left_out(Defence::Paths) {
        let path = if path.is_empty() { c"." } else { path };
        return rustix::fs::openat(root, path, OFlags::PATH | OFlags::CLOEXEC | extra, Mode::empty());
    }
    if !sys::features().openat2 {
        return walk(root, path, extra, Missing::Error, max_links);
    }
    let path = if path.is_empty() { c"." } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC | extra;
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if max_links == 0 {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // The kernel gives up on `..` while something is renamed or mounted anywhere (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a directory inside `root`, making it and those above it where they are missing.
pub(super) fn directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    match open(root, path, OFlags::DIRECTORY) {
        Err(Errno::NOENT) if left_out(Defence::Paths) => careless(root, path),
        Err(Errno::NOENT) => walk(root, path, OFlags::DIRECTORY, Missing::Directories, MAX_LINKS),
        result => result,
    }
}

/// As [`directory`], following no link at all: ELOOP if there is one.
pub(super) fn ordinary_directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    match open_ordinary(root, path, OFlags::DIRECTORY) {
        Err(Errno::NOENT) => walk(root, path, OFlags::DIRECTORY, Missing::Directories, 0),
        result => result,
    }
}

/// Opens something inside `root` that is not a directory, making an empty file where it is missing.
pub(super) fn file(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    match open(root, path, OFlags::empty()) {
        Err(Errno::NOENT) if left_out(Defence::Paths) => {}
        Err(Errno::NOENT) => return walk(root, path, OFlags::empty(), Missing::File, MAX_LINKS),
        result => return result,
    }
    let mut parent = Text::new();
    let name = split(path, &mut parent)?;
    let directory = directory(root, parent.as_c_str()?)?;
    make_file(directory.as_fd(), name)?;
    open(root, path, OFlags::empty())
}

/// Makes an empty file, unless the name is taken.
fn make_file(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match make_new_file(directory, name) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Makes an empty file; EEXIST if the name is taken.
pub(super) fn make_new_file(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// Splits the last name off a relative path without a trailing slash.
pub(super) fn split<'path>(path: &'path CStr, parent: &mut Text) -> Result<&'path CStr, Errno> {
    let bytes = path.to_bytes();
    let cut = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = path.to_bytes_with_nul().get(cut..).ok_or(Errno::INVAL)?;
    let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
    if name.is_empty() {
        return Err(Errno::INVAL);
    }
    parent.set(bytes.get(..cut.saturating_sub(1)).unwrap_or_default())?;
    Ok(name)
}

/// Makes directories as if nobody had put links into the root: what [`walk`] is there to avoid, for the undefended build.
fn careless(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let (mut rest, mut done, mut name) = (Text::new(), Text::new(), Text::new());
    rest.set(path.to_bytes())?;
    while rest.pop_front(&mut name)? {
        done.push(name.bytes())?;
        match rustix::fs::mkdirat(root, done.as_c_str()?, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::openat(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What [`walk`] does about a name that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Error,
    Directories,
    /// The last one becomes an empty file, those before it directories.
    File,
}

/// What `openat2` with `RESOLVE_IN_ROOT` does, one component at a time: no component is ever followed by the kernel,
/// links are read and continued in the root, and `..` starts again from the root with one name less. What is missing is
/// made also where a dangling link points.
fn walk(root: BorrowedFd<'_>, path: &CStr, extra: OFlags, missing: Missing, max_links: u32) -> Result<OwnedFd, Errno> {
    let mut rest = Text::new();
    let mut done = Text::new();
    let mut name = Text::new();
    rest.set(path.to_bytes())?;
    let mut here = rustix::io::fcntl_dupfd_cloexec(root, 3)?;
    let mut links = 0;
    let mut steps = 0;
    while rest.pop_front(&mut name)? {
        steps += 1;
        if steps > PATH_BYTES {
            return Err(Errno::LOOP);
        }
        if name.is(b"..") {
            done.drop_last();
            let mut again = Text::new();
            again.set(done.bytes())?;
            rest.prepend(again.bytes())?;
            done.set(b"")?;
            here = rustix::io::fcntl_dupfd_cloexec(root, 3)?;
            continue;
        }
        let last = rest.is_empty();
        let missing = if missing == Missing::File && !last { Missing::Directories } else { missing };
        let next = component(here.as_fd(), name.as_c_str()?, missing)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode);
        if kind == FileType::Symlink && !(last && extra.contains(OFlags::NOFOLLOW)) {
            links += 1;
            if links > max_links {
                return Err(Errno::LOOP);
            }
            let target = read_link(next.as_fd(), &mut name)?;
            if target {
                done.set(b"")?;
                here = rustix::io::fcntl_dupfd_cloexec(root, 3)?;
            }
            rest.prepend(name.bytes())?;
            continue;
        }
        if kind != FileType::Directory && (!last || extra.contains(OFlags::DIRECTORY)) {
            return Err(Errno::NOTDIR);
        }
        done.push(name.bytes())?;
        here = next;
    }
    Ok(here)
}

fn component(here: BorrowedFd<'_>, name: &CStr, missing: Missing) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(here, name, flags, Mode::empty()) {
        Err(Errno::NOENT) if missing != Missing::Error => {
            if missing == Missing::File {
                make_file(here, name)?;
            } else {
                match rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            rustix::fs::openat(here, name, flags, Mode::empty())
        }
        result => result,
    }
}

/// Reads the link that `link` is into `text`; whether it is absolute.
fn read_link(link: BorrowedFd<'_>, text: &mut Text) -> Result<bool, Errno> {
    let buffer = text.bytes.get_mut(..PATH_BYTES - 1).ok_or(Errno::NAMETOOLONG)?;
    text.length = rustix::fs::readlinkat_raw(link, c"", buffer)?;
    Ok(text.bytes.first() == Some(&b'/'))
}

/// A path of at most `PATH_MAX` bytes on the stack.
pub(super) struct Text {
    bytes: [u8; PATH_BYTES],
    length: usize,
}

impl Text {
    pub(super) fn new() -> Self {
        Self { bytes: [0; PATH_BYTES], length: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn is(&self, text: &[u8]) -> bool {
        self.bytes() == text
    }

    fn is_empty(&self) -> bool {
        self.bytes().iter().all(|byte| *byte == b'/')
    }

    pub(super) fn set(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.length = 0;
        self.append(text)
    }

    pub(super) fn append(&mut self, text: &[u8]) -> Result<(), Errno> {
        let end = self.length + text.len();
        // One byte stays for the NUL.
        if end >= PATH_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.get_mut(self.length..end).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(text);
        self.length = end;
        Ok(())
    }

    /// Appends a number in decimal.
    pub(super) fn append_number(&mut self, number: u32) -> Result<(), Errno> {
        self.append_digits(number, 10)
    }

    /// Appends a number in octal, as modes are written.
    pub(super) fn append_octal(&mut self, number: u32) -> Result<(), Errno> {
        self.append_digits(number, 8)
    }

    fn append_digits(&mut self, number: u32, base: u32) -> Result<(), Errno> {
        let mut digits = [0_u8; 11];
        let mut first = digits.len();
        let mut left = number;
        loop {
            first -= 1;
            digits[first] = b'0' + (left % base) as u8;
            left /= base;
            if left == 0 {
                return self.append(digits.get(first..).unwrap_or_default());
            }
        }
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        if self.length > 0 {
            self.append(b"/")?;
        }
        self.append(name)
    }

    fn drop_last(&mut self) {
        self.length = self.bytes().iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    }

    fn prepend(&mut self, text: &[u8]) -> Result<(), Errno> {
        let shift = text.len() + 1;
        let end = self.length + shift;
        if end >= PATH_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(..self.length, shift);
        self.bytes.get_mut(..text.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(text);
        self.bytes[shift - 1] = b'/';
        self.length = end;
        Ok(())
    }

    /// Moves the first name into `name`; false if there is none. `.` and empty names are skipped.
    fn pop_front(&mut self, name: &mut Self) -> Result<bool, Errno> {
        loop {
            let bytes = self.bytes();
            let start = bytes.iter().take_while(|byte| **byte == b'/').count();
            let taken = bytes.iter().skip(start).take_while(|byte| **byte != b'/').count();
            if taken == 0 {
                self.length = 0;
                return Ok(false);
            }
            name.set(bytes.get(start..start + taken).unwrap_or_default())?;
            self.bytes.copy_within(start + taken..self.length, 0);
            self.length -= start + taken;
            if !name.is(b".") {
                return Ok(true);
            }
        }
    }

    pub(super) fn as_c_str(&mut self) -> Result<&CStr, Errno> {
        let length = self.length;
        *self.bytes.get_mut(length).ok_or(Errno::NAMETOOLONG)? = 0;
        let bytes = self.bytes.get(..=length).ok_or(Errno::NAMETOOLONG)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Errno::INVAL)
    }
}

/// `/proc/self/fd/<fd>` of the host's procfs, for calls that take only paths. Before the root is changed only.
pub(super) fn magic(fd: BorrowedFd<'_>, text: &mut Text) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    text.set(b"/proc/self/fd/")?;
    text.append_number(fd.as_raw_fd().unsigned_abs())
}

/// Removes `name`, unless it is a directory.
pub(super) fn unlink(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::fs::symlink;

    use super::*;

    fn same(a: &OwnedFd, path: &std::path::Path) -> bool {
        let a = rustix::fs::fstat(a).unwrap();
        let b = rustix::fs::lstat(path).unwrap();
        (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
    }

    #[test]
    fn both_ways_agree_and_never_leave_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        std::fs::create_dir_all(top.join("root/a/b")).unwrap();
        std::fs::write(top.join("secret"), "x").unwrap();
        std::fs::write(top.join("root/a/file"), "x").unwrap();
        symlink("/a", top.join("root/abs")).unwrap();
        symlink("../../../../secret", top.join("root/a/up")).unwrap();
        symlink("b/../file", top.join("root/a/dots")).unwrap();
        symlink("loop", top.join("root/loop")).unwrap();
        symlink("/proc/self/root", top.join("root/magic")).unwrap();
        let root = std::fs::File::open(top.join("root")).unwrap();
        let cases: [(&str, Result<&str, Errno>); 10] = [
            ("", Ok("root")),
            ("a/b", Ok("root/a/b")),
            ("abs/file", Ok("root/a/file")),
            ("a/dots", Ok("root/a/file")),
            ("../../a", Ok("root/a")),
            ("a/up", Err(Errno::NOENT)),
            ("loop", Err(Errno::LOOP)),
            ("magic/etc", Err(Errno::NOENT)),
            ("a/file/x", Err(Errno::NOTDIR)),
            ("a//./b/", Ok("root/a/b")),
        ];
        for (path, want) in cases {
            let path = CString::new(path).unwrap();
            for result in [
                open(root.as_fd(), &path, OFlags::empty()),
                walk(root.as_fd(), &path, OFlags::empty(), Missing::Error, MAX_LINKS),
            ] {
                match (result, want) {
                    (Ok(fd), Ok(want)) => assert!(same(&fd, &top.join(want)), "{path:?}"),
                    (Err(errno), Err(want)) => assert_eq!(errno, want, "{path:?}"),
                    (got, want) => panic!("{path:?}: {got:?}, not {want:?}"),
                }
            }
        }
    }

    #[test]
    fn ordinary_means_without_links() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        std::fs::create_dir_all(top.join("real/below")).unwrap();
        symlink("real", top.join("link")).unwrap();
        let root = std::fs::File::open(top).unwrap();
        for (path, want) in [(c"real/below", Ok(())), (c"link", Err(Errno::LOOP)), (c"link/below", Err(Errno::LOOP))] {
            assert_eq!(open_ordinary(root.as_fd(), path, OFlags::empty()).map(drop), want, "{path:?}");
            assert_eq!(walk(root.as_fd(), path, OFlags::empty(), Missing::Error, 0).map(drop), want, "{path:?}");
        }
        ordinary_directory(root.as_fd(), c"real/new/deep").unwrap();
        assert_eq!(ordinary_directory(root.as_fd(), c"link/new").unwrap_err(), Errno::LOOP);
        assert!(top.join("real/new/deep").is_dir());
    }

    #[test]
    fn missing_things_are_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        std::fs::create_dir(top.join("root")).unwrap();
        symlink("/../../made", top.join("root/link")).unwrap();
        let root = std::fs::File::open(top.join("root")).unwrap();
        directory(root.as_fd(), c"x/y/z").unwrap();
        directory(root.as_fd(), c"link/below").unwrap();
        assert!(top.join("root/made/below").is_dir() && !top.join("made").exists());
        let file = file(root.as_fd(), c"link/f").unwrap();
        assert!(same(&file, &top.join("root/made/f")));
    }

    #[test]
    fn texts() {
        let mut text = Text::new();
        magic(std::io::stdin().as_fd(), &mut text).unwrap();
        assert_eq!(text.as_c_str().unwrap(), c"/proc/self/fd/0");
        text.append_number(u32::MAX).unwrap();
        assert_eq!(text.as_c_str().unwrap(), c"/proc/self/fd/04294967295");
        text.set(b"").unwrap();
        text.append_octal(0o1777).unwrap();
        assert_eq!(text.as_c_str().unwrap(), c"1777");
        assert_eq!(text.append(&[b'x'; PATH_BYTES]), Err(Errno::NAMETOOLONG));
        let mut parent = Text::new();
        assert_eq!(split(c"a/b/c", &mut parent).unwrap(), c"c");
        assert_eq!(parent.as_c_str().unwrap(), c"a/b");
        assert_eq!(split(c"c", &mut parent).unwrap(), c"c");
        assert_eq!(parent.as_c_str().unwrap(), c"");
    }
}
