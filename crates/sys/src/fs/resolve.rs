//! Resolving an untrusted path inside a root directory.
//!
//! `openat2(RESOLVE_IN_ROOT)` does it in the kernel. The fallback walks component by component: each step opens one
//! name with `O_PATH | O_NOFOLLOW` relative to the descriptor of the step before, symbolic links are expanded by us as
//! text, and `..` goes back to a descriptor already held, never through the file system. A name that is swapped
//! between two steps can therefore only lead to another place below the root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Result, features};

/// The kernel's own limit (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// More components than any path of `PATH_MAX` can have, after expansion of some links.
const MAX_COMPONENTS: usize = 8192;
/// How often a lookup is repeated that a concurrent change made uncertain.
const MAX_RETRIES: usize = 128;

/// Opens `path` as a process would whose root directory is `root`: absolute paths and links start at `root`, and `..`
/// does not leave it. Symbolic links are followed (the last one too, unless `flags` has `O_NOFOLLOW`), magic links of
/// `/proc` never. The empty path is `root` itself. `O_CLOEXEC` is implied; for `O_CREAT` use [`create_in_root`].
///
/// EAGAIN where a hostile process keeps changing the tree faster than the lookup can finish.
pub fn open_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd> {
    create_in_root(root, path, flags, Mode::empty())
}

/// As [`open_in_root`], with a mode for a file that `O_CREAT` makes.
pub fn create_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let path = if path.as_ref().as_os_str().is_empty() { Path::new("/") } else { path.as_ref() };
    if !features().openat2 {
        return walk(root, path, flags | OFlags::CLOEXEC, mode);
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_RETRIES {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // A rename or mount raced with a `..` in the path.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Makes the directory `path` inside `root` and all that are missing above it, with `mode` (less the umask), and
/// returns it open for reading. What exists is left as it is; ENOTDIR where it is not a directory. A dangling symbolic
/// link is made good: the directory that it names inside `root` is made.
pub fn mkdir_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>, mode: Mode) -> Result<OwnedFd> {
    let path = path.as_ref();
    match open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut walk = Walk { root, above: Vec::new(), pending: components_of(path)?, links: 0 };
    for _ in 0..MAX_COMPONENTS {
        let Some(name) = walk.pending.pop_front() else { return reopen_directory(walk.current()) };
        if name == ".." {
            walk.above.pop();
            continue;
        }
        match walk.step(&name) {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(walk.current(), name.as_os_str(), mode) {
                // What is there now, made by us or by somebody else, is entered or expanded like anything else.
                Ok(()) | Err(Errno::EXIST) => walk.step(&name)?,
                Err(errno) => return Err(errno),
            },
            result => result?,
        }
    }
    Err(Errno::NAMETOOLONG)
}

/// Makes sure that `path` inside `root` exists as something that is not a directory, making directories (0755) and an
/// empty file with `mode` where needed, and returns it opened with `O_PATH`: a place to mount a file on. EISDIR where it is
/// a directory.
pub fn mkfile_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>, mode: Mode) -> Result<OwnedFd> {
    let path = path.as_ref();
    let found = match open_in_root(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {
            let (parent, _) = split(path)?;
            drop(mkdir_in_root(root, parent, Mode::from_raw_mode(0o755))?);
            let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            drop(create_in_root(root, path, flags, mode)?);
            open_in_root(root, path, OFlags::PATH)?
        }
        result => result?,
    };
    if file_type(found.as_fd())? == FileType::Directory { Err(Errno::ISDIR) } else { Ok(found) }
}

/// Opens the directory that holds `path` inside `root` (following links on the way to it) and gives the last name,
/// which need not exist. EINVAL where the path has no last name, as `/` and `..` have none.
pub fn parent_in_root(root: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<(OwnedFd, OsString)> {
    let (parent, name) = split(path.as_ref())?;
    Ok((open_in_root(root, parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
}

/// The path without its last name, and that name.
fn split(path: &Path) -> Result<(OsString, OsString)> {
    let mut components = components_of(path)?;
    match components.pop_back() {
        Some(name) if name != ".." => Ok((join(&components), name)),
        _ => Err(Errno::INVAL),
    }
}

/// The names of a path, without empty ones and `.`; `..` stays.
fn components_of(path: &Path) -> Result<Components> {
    let names = path.as_os_str().as_bytes().split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let components: Components = names.map(|name| OsString::from_vec(name.to_vec())).collect();
    if components.len() > MAX_COMPONENTS { Err(Errno::NAMETOOLONG) } else { Ok(components) }
}

type Components = VecDeque<OsString>;

fn join(components: &Components) -> OsString {
    let mut path = OsString::from("/");
    for name in components {
        if path.len() > 1 {
            path.push("/");
        }
        path.push(name);
    }
    path
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn reopen_directory(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The fallback for `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`.
pub(super) fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let mut walk = Walk { root, above: Vec::new(), pending: components_of(path)?, links: 0 };
    let trailing_slash = path.as_os_str().as_bytes().ends_with(b"/");
    let flags = if trailing_slash { flags | OFlags::DIRECTORY } else { flags };
    for _ in 0..MAX_COMPONENTS {
        let Some(name) = walk.pending.pop_front() else {
            // The path is the root, or ended in `..`: reopen the directory that the walk stands in.
            return rustix::fs::openat(walk.current(), ".", flags.difference(OFlags::CREATE | OFlags::EXCL), mode);
        };
        if name == ".." {
            walk.above.pop();
        } else if walk.pending.is_empty() {
            if let Some(found) = walk.last(&name, flags, mode, trailing_slash)? {
                return Ok(found);
            }
        } else {
            walk.step(&name)?;
        }
    }
    Err(Errno::NAMETOOLONG)
}

struct Walk<'root> {
    root: BorrowedFd<'root>,
    /// The directories from the root (exclusive) to where the walk stands.
    above: Vec<OwnedFd>,
    pending: Components,
    links: usize,
}

impl Walk<'_> {
    fn current(&self) -> BorrowedFd<'_> {
        self.above.last().map_or(self.root, AsFd::as_fd)
    }

    /// Goes into `name`, or replaces it by what it links to.
    fn step(&mut self, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(self.current(), name, flags, Mode::empty())?;
        match file_type(next.as_fd())? {
            FileType::Symlink => self.expand(next.as_fd()),
            FileType::Directory => {
                self.above.push(next);
                Ok(())
            }
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(Errno::NOTDIR),
        }
    }

    /// Opens the last name with the caller's flags; `None` where it was a link, which is expanded now.
    fn last(&mut self, name: &OsStr, flags: OFlags, mode: Mode, slash: bool) -> Result<Option<OwnedFd>> {
        for _ in 0..MAX_RETRIES {
            let looked = rustix::fs::openat(
                self.current(),
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let follow = slash || !flags.contains(OFlags::NOFOLLOW);
            match looked {
                Ok(found) if file_type(found.as_fd())? == FileType::Symlink => {
                    if flags.contains(OFlags::CREATE | OFlags::EXCL) {
                        return Err(Errno::EXIST);
                    }
                    if follow {
                        self.expand(found.as_fd())?;
                        return Ok(None);
                    }
                }
                Ok(_) => {}
                Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => {}
                Err(errno) => return Err(errno),
            }
            match rustix::fs::openat(self.current(), name, flags | OFlags::NOFOLLOW, mode) {
                // It became a link, or went away, between the two calls: look again.
                Err(Errno::LOOP) if follow => {}
                Ok(found)
                    if follow && flags.contains(OFlags::PATH) && file_type(found.as_fd())? == FileType::Symlink => {}
                result => return result.map(Some),
            }
        }
        Err(Errno::AGAIN)
    }

    /// Puts the target of a symbolic link in front of what is left of the path.
    fn expand(&mut self, link: BorrowedFd<'_>) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes();
        // Magic links show as links whose text names nothing below this root, `socket:[1]` or a host path; the kernel
        // variant refuses them with ELOOP, here the text is looked up like any other and leads nowhere outside.
        if target.first() == Some(&b'/') {
            self.above.clear();
        }
        for name in components_of(Path::new(OsStr::from_bytes(&target)))?.into_iter().rev() {
            self.pending.push_front(name);
        }
        if self.pending.len() > MAX_COMPONENTS { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A tree with links of every kind. What must never be reached lies beside the root.
    fn tree() -> (tempfile::TempDir, fs::File) {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(top.path().join("secret"), "host").unwrap();
        fs::write(root.join("file"), "file").unwrap();
        fs::write(root.join("secret"), "container").unwrap();
        fs::write(root.join("a/b/c"), "c").unwrap();
        for (target, link) in [
            ("/a", "absolute"),
            ("a/b", "relative"),
            ("../../../secret", "up"),
            ("/../../secret", "absolute-up"),
            ("b/../../file", "a/around"),
            ("loop2", "loop1"),
            ("loop1", "loop2"),
            ("nowhere/at/all", "dangling"),
            ("/made", "dangling-file"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let dir = fs::File::open(&root).unwrap();
        (top, dir)
    }

    fn text(fd: OwnedFd) -> String {
        std::io::read_to_string(fs::File::from(fd)).unwrap()
    }

    /// Both ways of resolving, whatever the environment forces.
    fn both(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> [Result<OwnedFd>; 2] {
        let kernel = rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            mode,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        [kernel, walk(root, Path::new(path), flags | OFlags::CLOEXEC, mode)]
    }

    #[test]
    fn the_walk_reads_what_the_kernel_reads() {
        let (_top, root) = tree();
        for (path, expected) in [
            ("file", Ok("file")),
            ("/file", Ok("file")),
            ("a/b/c", Ok("c")),
            ("a//./b/c", Ok("c")),
            ("a/b/../b/c", Ok("c")),
            ("../../file", Ok("file")),
            ("absolute/b/c", Ok("c")),
            ("relative/c", Ok("c")),
            ("up", Ok("container")),
            ("absolute-up", Ok("container")),
            ("a/around", Ok("file")),
            ("loop1", Err(Errno::LOOP)),
            ("loop1/x", Err(Errno::LOOP)),
            ("dangling", Err(Errno::NOENT)),
            ("missing/x", Err(Errno::NOENT)),
            ("file/x", Err(Errno::NOTDIR)),
            ("file/", Err(Errno::NOTDIR)),
            ("file/..", Err(Errno::NOTDIR)),
        ] {
            for (way, result) in both(root.as_fd(), path, OFlags::RDONLY, Mode::empty()).into_iter().enumerate() {
                assert_eq!(result.map(text), expected.map(str::to_owned), "{path} way {way}");
            }
        }
    }

    #[test]
    fn the_walk_finds_the_same_directories() {
        let (_top, root) = tree();
        for path in ["/", ".", "..", "a", "a/", "absolute", "absolute/", "relative/..", "a/b/../..", "up/.."] {
            for flags in [OFlags::PATH | OFlags::DIRECTORY, OFlags::RDONLY | OFlags::DIRECTORY] {
                let [kernel, walk] = both(root.as_fd(), path, flags, Mode::empty())
                    .map(|result| result.map(|fd| fs::File::from(fd).metadata().unwrap().ino()));
                assert_eq!(kernel, walk, "{path} {flags:?}");
            }
        }
    }

    #[test]
    fn a_last_link_is_opened_itself_if_asked() {
        let (_top, root) = tree();
        for result in both(root.as_fd(), "dangling", OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            assert_eq!(file_type(result.unwrap().as_fd()).unwrap(), FileType::Symlink);
        }
        for result in both(root.as_fd(), "up", OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty()) {
            assert_eq!(result.unwrap_err(), Errno::LOOP);
        }
    }

    #[test]
    fn creation_stays_inside() {
        for way in 0..2 {
            let (top, root) = tree();
            let mode = Mode::from_raw_mode(0o600);
            let open = |path: &str, flags: OFlags| -> Result<OwnedFd> {
                let path = Path::new(path);
                match way {
                    0 => walk(root.as_fd(), path, flags | OFlags::CLOEXEC, mode),
                    _ => create_in_root(root.as_fd(), path, flags, mode),
                }
            };
            open("dangling-file", OFlags::CREATE | OFlags::WRONLY).unwrap();
            assert!(top.path().join("root/made").exists());
            assert_eq!(
                open("dangling-file", OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).unwrap_err(),
                Errno::EXIST
            );
            open("a/new", OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).unwrap();
            assert!(top.path().join("root/a/new").exists());
            assert_eq!(open("no/such", OFlags::CREATE | OFlags::WRONLY).unwrap_err(), Errno::NOENT);
        }
    }

    #[test]
    fn directories_are_made_inside_only() {
        let (top, root) = tree();
        let inside = |path: &str| top.path().join("root").join(path);
        let mode = Mode::from_raw_mode(0o755);
        for (path, made) in [
            ("x/y/z", Some("x/y/z")),
            ("absolute/n/m", Some("a/n/m")),
            ("/../../q", Some("q")),
            ("dangling/more", Some("nowhere/at/all/more")),
            ("a/b", Some("a/b")),
            ("", None),
        ] {
            let fd = mkdir_in_root(root.as_fd(), path, mode).unwrap();
            let expected = made.map_or_else(|| top.path().join("root"), &inside);
            assert_eq!(fs::File::from(fd).metadata().unwrap().ino(), fs::metadata(expected).unwrap().ino(), "{path}");
        }
        assert_eq!(mkdir_in_root(root.as_fd(), "file", mode).unwrap_err(), Errno::NOTDIR);
        assert_eq!(mkdir_in_root(root.as_fd(), "file/x", mode).unwrap_err(), Errno::NOTDIR);
        assert_eq!(mkdir_in_root(root.as_fd(), "loop1", mode).unwrap_err(), Errno::LOOP);
        let beside: Vec<PathBuf> = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
    }

    #[test]
    fn mount_points_for_files_are_made() {
        let (top, root) = tree();
        for path in ["dev/deep/null", "file", "dangling-file"] {
            mkfile_in_root(root.as_fd(), path, Mode::from_raw_mode(0o644)).unwrap();
        }
        assert!(top.path().join("root/dev/deep/null").is_file() && top.path().join("root/made").is_file());
        assert_eq!(mkfile_in_root(root.as_fd(), "a", Mode::empty()).unwrap_err(), Errno::ISDIR);
    }

    #[test]
    fn parents_have_a_last_name() {
        let (top, root) = tree();
        let (parent, name) = parent_in_root(root.as_fd(), "absolute/new").unwrap();
        assert_eq!(name, "new");
        let inode = fs::File::from(parent).metadata().unwrap().ino();
        assert_eq!(inode, fs::metadata(top.path().join("root/a")).unwrap().ino());
        for bad in ["/", "", "..", "a/.."] {
            assert_eq!(parent_in_root(root.as_fd(), bad).unwrap_err(), Errno::INVAL, "{bad}");
        }
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_never_leads_out() {
        let (top, root) = tree();
        let inside = top.path().join("root/swap");
        fs::create_dir(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/file"), "host").unwrap();
        fs::create_dir(top.path().join("root/real")).unwrap();
        fs::write(top.path().join("root/real/file"), "container").unwrap();
        symlink(top.path().join("outside"), top.path().join("root/evil")).unwrap();
        fs::rename(top.path().join("root/real"), &inside).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let dir = fs::File::open(top.path().join("root")).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&dir, "swap", &dir, "evil", flags).unwrap();
                }
            });
            for _ in 0..3000 {
                for result in both(root.as_fd(), "swap/file", OFlags::RDONLY, Mode::empty()) {
                    match result {
                        Ok(fd) => assert_eq!(text(fd), "container"),
                        Err(errno) => assert!(matches!(errno, Errno::NOENT | Errno::AGAIN | Errno::LOOP), "{errno}"),
                    }
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
