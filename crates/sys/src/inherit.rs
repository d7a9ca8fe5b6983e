//! Descriptors that the parent left open for us on purpose.

#![expect(unsafe_code, reason = "a number becomes an owned descriptor")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::Result;

/// Takes over descriptor `number`, which the program that started us passed by agreement, and makes it close-on-exec.
/// EBADF if it is not open; EINVAL for the standard streams.
///
/// Call it once per number, before anything else opens descriptors: after that a number says nothing.
pub fn take_inherited(number: RawFd) -> Result<OwnedFd> {
    if number < 3 {
        return Err(Errno::INVAL);
    }
    // SAFETY: F_GETFD only looks at the table of descriptors.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and by the contract above nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
