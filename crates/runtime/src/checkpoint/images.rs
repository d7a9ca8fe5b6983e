//! The directories of a checkpoint as hostile input: an archive of a checkpoint may come from anywhere, and CRIU opens
//! the files in it by name, as root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Error;

/// The link to the images that an incremental dump is based on; CRIU makes and follows it.
const PARENT: &str = "parent";
/// More links to parents than anybody has pre-dumps.
const MAX_PARENTS: usize = 64;
/// What the standard streams of a container were when it was dumped.
const DESCRIPTORS: &str = "descriptors.json";
/// A document of three short texts is far smaller.
const MAX_DESCRIPTORS_BYTES: usize = 64 * 1024;

/// An opened directory and how it is called.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Directory {
    /// Opens a directory; its last name must not be a link, or is resolved by the caller.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Error::host(format!("opening {}", path.display()), errno))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// As [`Directory::open`], making it where it is missing.
    pub(super) fn make(path: &Path) -> Result<Self, Error> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path),
            Err(errno) => Err(Error::host(format!("making {}", path.display()), errno)),
        }
    }

    pub(super) fn copy(&self) -> Result<OwnedFd, Error> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 3).map_err(|errno| Error::host("copying a descriptor", errno))
    }

    /// Refuses what would lead CRIU out of an image directory, or block it: everything that is neither a file nor a
    /// directory, except a relative link `parent`, whose directory obeys the same rules.
    pub(super) fn check_images(&self, parents: Parents) -> Result<(), Error> {
        let mut next = check(self.fd.as_fd(), &self.path, parents)?;
        for _ in 0..MAX_PARENTS {
            let Some(parent) = next else { return Ok(()) };
            next = check(parent.fd.as_fd(), &parent.path, parents)?;
        }
        Err(refused(&self.path, "has too many parents"))
    }

    /// Refuses names that CRIU writes to when they are not files: it would follow a link.
    pub(super) fn check_written(&self, names: &[&str]) -> Result<(), Error> {
        for name in names {
            match rustix::fs::statat(&self.fd, *name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {}
                Ok(_) => return Err(refused(&self.path.join(name), "is not a regular file")),
                Err(errno) => return Err(Error::host(format!("looking at {}", self.path.join(name).display()), errno)),
            }
        }
        Ok(())
    }

    /// Writes what the standard streams are, as runc does.
    pub(super) fn write_descriptors(&self, descriptors: &[String]) -> Result<(), Error> {
        let text = serde_json::to_vec(descriptors).map_err(|error| Error::invalid(DESCRIPTORS, error.to_string()))?;
        sys::fs::write_atomic(self.fd.as_fd(), DESCRIPTORS, &text, 0o600)
            .map_err(|errno| Error::host(format!("writing {}", self.path.join(DESCRIPTORS).display()), errno))
    }

    /// Reads it.
    pub(super) fn read_descriptors(&self) -> Result<Vec<String>, Error> {
        let path = self.path.join(DESCRIPTORS);
        let failed = |source: std::io::Error| Error::host(format!("reading {}", path.display()), source);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, DESCRIPTORS, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let mut bytes = Vec::new();
        let limit = MAX_DESCRIPTORS_BYTES as u64 + 1;
        std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), limit), &mut bytes)
            .map_err(failed)?;
        if bytes.len() > MAX_DESCRIPTORS_BYTES {
            return Err(refused(&path, "is too large"));
        }
        serde_json::from_slice(&bytes).map_err(|error| refused(&path, &error.to_string()))
    }
}

/// Whether images may be based on others in a directory outside of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parents {
    /// No: for images that somebody else made.
    #[default]
    Refused,
    /// Yes, by a relative link: the caller vouches for where it leads.
    Followed,
}

fn refused(path: &Path, problem: &str) -> Error {
    Error::invalid(path.display().to_string(), problem.to_owned())
}

/// Checks one directory and gives the one that `parent` leads to.
fn check(directory: BorrowedFd<'_>, path: &Path, parents: Parents) -> Result<Option<Directory>, Error> {
    let failed = |errno: Errno| Error::host(format!("reading {}", path.display()), errno);
    let mut parent = None;
    for entry in Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let shown = path.join(name.to_string_lossy().as_ref());
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink if name.to_bytes() == PARENT.as_bytes() && parents == Parents::Followed => {
                parent = Some(open_parent(directory, &shown)?);
            }
            FileType::Symlink => return Err(refused(&shown, "is a link, which no image may be")),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Err(refused(&shown, "is neither a file nor a directory")),
        }
    }
    Ok(parent)
}

fn open_parent(directory: BorrowedFd<'_>, shown: &Path) -> Result<Directory, Error> {
    let failed = |errno: Errno| Error::host(format!("opening {}", shown.display()), errno);
    let target = rustix::fs::readlinkat(directory, PARENT, Vec::new()).map_err(failed)?;
    if target.to_bytes().starts_with(b"/") {
        return Err(refused(shown, "is an absolute link"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = if sys::features().openat2 {
        // One link is what was looked at; further ones could be anything.
        let target = target.as_c_str();
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(directory, target, flags, Mode::empty(), resolve).map_err(failed)?
    } else {
        rustix::fs::openat(directory, target.as_c_str(), flags | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?
    };
    Ok(Directory { fd, path: shown.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn images_are_files_and_the_parent_is_relative() {
        let top = tempfile::tempdir().unwrap();
        let images = top.path().join("images");
        let directory = Directory::make(&images).unwrap();
        std::fs::write(images.join("core-1.img"), "").unwrap();
        directory.check_images(Parents::Refused).unwrap();

        std::fs::create_dir(top.path().join("before")).unwrap();
        symlink("../before", images.join("parent")).unwrap();
        directory.check_images(Parents::Followed).unwrap();
        let error = directory.check_images(Parents::Refused).unwrap_err();
        assert!(error.to_string().contains("images/parent: is a link"), "{error}");
        // What the parent holds is looked at too, and so is a parent that leads back.
        symlink("/etc/shadow", top.path().join("before/pages-1.img")).unwrap();
        assert!(directory.check_images(Parents::Followed).is_err());
        std::fs::remove_file(top.path().join("before/pages-1.img")).unwrap();
        symlink("../images", top.path().join("before/parent")).unwrap();
        let error = directory.check_images(Parents::Followed).unwrap_err();
        assert!(error.to_string().contains("too many parents"), "{error}");

        std::fs::remove_file(images.join("parent")).unwrap();
        symlink("/etc", images.join("parent")).unwrap();
        let error = directory.check_images(Parents::Followed).unwrap_err();
        assert!(error.to_string().contains("absolute"), "{error}");
    }

    #[test]
    fn nothing_leads_out_of_an_image_directory() {
        let top = tempfile::tempdir().unwrap();
        let directory = Directory::open(top.path()).unwrap();
        symlink("/etc/shadow", top.path().join("core-1.img")).unwrap();
        assert!(directory.check_images(Parents::Followed).is_err());
        std::fs::remove_file(top.path().join("core-1.img")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(top.path().join("socket")).unwrap();
        assert!(directory.check_images(Parents::Followed).is_err());
        drop(socket);

        symlink("/etc/passwd", top.path().join("dump.log")).unwrap();
        let error = directory.check_written(&["dump.log"]).unwrap_err();
        assert!(error.to_string().contains("dump.log"), "{error}");
        directory.check_written(&["restore.log"]).unwrap();
    }

    #[test]
    fn descriptors_are_written_over_links_and_read_from_files_only() {
        let top = tempfile::tempdir().unwrap();
        let directory = Directory::open(top.path()).unwrap();
        let outside = top.path().join("outside");
        std::fs::write(&outside, "untouched").unwrap();
        symlink(&outside, top.path().join(DESCRIPTORS)).unwrap();
        assert!(directory.read_descriptors().is_err());
        let streams = ["/dev/null", "pipe:[12]", "pipe:[13]"].map(str::to_owned);
        directory.write_descriptors(&streams).unwrap();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(directory.read_descriptors().unwrap(), streams);
        std::fs::write(top.path().join(DESCRIPTORS), "x".repeat(MAX_DESCRIPTORS_BYTES + 1)).unwrap();
        assert!(directory.read_descriptors().is_err());
        std::fs::write(top.path().join(DESCRIPTORS), "null").unwrap();
        assert_eq!(directory.read_descriptors().unwrap_or_default(), Vec::<String>::new());
    }
}
