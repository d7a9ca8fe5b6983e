//! Extended attributes of a directory's entry, whatever that entry is, without following it.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Most bytes of one attribute and of a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX_BYTES: usize = 64 << 10;

/// Overlayfs's mark of a directory that hides what lies below it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// The entry as a path for the calls that know only paths. The descriptor leads to the directory whatever happens to
/// its name, and none of the calls below follows the last component.
fn path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    path
}

pub(crate) fn set(dir: BorrowedFd<'_>, name: &[u8], key: &[u8], value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(path(dir, name), key, value, XattrFlags::empty())
}

/// The value of an attribute; `None` if there is none, or the file system has no attributes.
pub(crate) fn value(dir: BorrowedFd<'_>, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    // Most values are short.
    for size in [256, MAX_BYTES] {
        let mut value = vec![0; size];
        match rustix::fs::lgetxattr(path(dir, name), key, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::TOOBIG)
}

/// The names of all attributes.
pub(crate) fn keys(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    for size in [1024, MAX_BYTES] {
        let mut list = vec![0_u8; size];
        match rustix::fs::llistxattr(path(dir, name), &mut list[..]) {
            Ok(length) => {
                list.truncate(length);
                return Ok(list.split(|byte| *byte == 0).filter(|key| !key.is_empty()).map(<[u8]>::to_vec).collect());
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::TOOBIG)
}

/// Copies all attributes from one entry to another. What the target's file system does not take is left out.
pub(crate) fn copy(
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<(), Errno> {
    for key in keys(from.0, from.1)? {
        if !wanted(&key) {
            continue;
        }
        if let Some(value) = value(from.0, from.1, &key)? {
            match set(to.0, to.1, &key, &value) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}
