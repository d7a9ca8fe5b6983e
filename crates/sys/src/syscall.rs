//! The one place where a system call number meets its arguments.

#![expect(unsafe_code, reason = "raw system calls that no library wraps safely")]

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::Result;

/// Turns the return value of a libc call into a result.
pub(crate) fn check(value: i64) -> Result<i64> {
    if value < 0 { Err(last_errno()) } else { Ok(value) }
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// A system call whose pointer arguments all come from live references of the caller.
///
/// # Safety
/// `args` must satisfy the contract of system call `number`: each pointer in it is valid for what the kernel reads or
/// writes through it, for the duration of the call.
pub(crate) unsafe fn call(number: i64, args: [usize; 5]) -> Result<i64> {
    // SAFETY: the caller upholds the contract of the system call.
    let value = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    check(value)
}

/// The address of a value, as a system call argument.
pub(crate) fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<c_void>() as usize
}

/// The address of a value that the kernel fills, as a system call argument.
pub(crate) fn address_mut<T>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<c_void>() as usize
}

/// Takes ownership of a descriptor that a system call has just returned.
///
/// # Safety
/// `fd` is open and nobody else owns it.
pub(crate) unsafe fn own(fd: i64) -> Result<OwnedFd> {
    let raw = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the caller says that the descriptor is open and unowned.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
