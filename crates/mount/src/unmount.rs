//! Undoing mounts.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use sys::Errno;
use sys::mount::UnmountFlags;

use crate::{Error, Result};

/// How often a busy mount is tried again, and how long each wait is: containerd's figures.
const BUSY_RETRIES: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// More mounts than anybody stacks on one place.
const MAX_STACKED: usize = 1024;

/// Unmounts everything that is mounted on `target`, one mount over the other, until nothing is. A target that is not
/// mounted, or does not exist, is fine.
///
/// A busy mount is tried again for 2.5 s, blocking: the kernel has nothing to wait on. With
/// [`UnmountFlags::DETACH`] nothing is ever busy; a process with one thread uses that.
pub fn unmount_all(target: &Path, flags: UnmountFlags) -> Result<()> {
    // What is unmounted is what the caller sees at the path, as containerd has it; only a link that somebody put in
    // place of the target is not followed.
    for _ in 0..MAX_STACKED {
        match unmount_once(target, flags) {
            Ok(()) => {}
            // Not a mount point (any more), or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(source) => return Err(Error::Unmount { target: target.display().to_string(), source }),
        }
    }
    Err(Error::Unmount { target: target.display().to_string(), source: Errno::BUSY })
}

fn unmount_once(target: &Path, flags: UnmountFlags) -> sys::Result<()> {
    for _ in 0..BUSY_RETRIES {
        match sys::mount::unmount(target, flags | UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                let pause = Timespec::try_from(BUSY_PAUSE).map_err(|_| Errno::INVAL)?;
                match poll(&mut [], Some(&pause)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            result => return result,
        }
    }
    Err(Errno::BUSY)
}

/// As [`unmount_all`], for everything mounted below `target` first, deepest first.
pub fn unmount_recursive(target: &Path, flags: UnmountFlags) -> Result<()> {
    let failed = |source| Error::Unmount { target: target.display().to_string(), source };
    let fd = match rustix::fs::openat(CWD, target, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.map_err(failed)?,
    };
    let real = sys::fs::proc_path(std::os::fd::AsFd::as_fd(&fd));
    let real = rustix::fs::readlinkat(CWD, real, Vec::new()).map_err(failed)?;
    drop(fd);
    let root = Path::new(std::ffi::OsStr::from_bytes(real.as_bytes()));
    // The table lists a mount after the one that it is on, so backwards is deepest first.
    for place in mount_points()?.into_iter().rev().filter(|place| place.starts_with(root) && place != root) {
        unmount_all(&place, flags)?;
    }
    unmount_all(root, flags)
}

/// All mount points of the caller's mount namespace, in the order of the table.
fn mount_points() -> Result<Vec<PathBuf>> {
    // Read whole and not as small text: a host may have many mounts, and names need not be UTF-8.
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::MountTable { source: Errno::from_io_error(&error).unwrap_or(Errno::IO) })?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape).collect())
}

/// Undoes the `\040` notation of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digit: u8| (b'0'..=b'7').contains(&digit).then(|| u32::from(digit - b'0'));
        let code = match after {
            [a, b, c, ..] if *first == b'\\' => {
                octal(*a).zip(octal(*b)).zip(octal(*c)).and_then(|((a, b), c)| u8::try_from(a * 64 + b * 8 + c).ok())
            }
            _ => None,
        };
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_table_are_unescaped() {
        for (field, plain) in [
            (&b"/plain"[..], "/plain"),
            (br"/a\040b", "/a b"),
            (br"/tab\011end", "/tab\tend"),
            (br"/back\134slash", r"/back\slash"),
            (br"/odd\04", r"/odd\04"),
            (br"/odd\999", r"/odd\999"),
            (br"/over\777", r"/over\777"),
        ] {
            assert_eq!(unescape(field), Path::new(plain));
        }
    }

    #[test]
    fn what_is_not_mounted_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), &directory.path().join("missing")] {
            unmount_all(path, UnmountFlags::empty()).unwrap();
            unmount_recursive(path, UnmountFlags::empty()).unwrap();
        }
    }
}
