//! Installing a system call filter on the calling thread. Nothing here allocates.

#![expect(unsafe_code, reason = "seccomp(2) has no wrapper elsewhere")]

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::{Result, syscall};

/// One instruction of a classic BPF program, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Flags of [`install`].
pub mod flags {
    /// Apply to all threads of the process.
    pub const TSYNC: u32 = 1;
    /// Log what the filter does other than allow.
    pub const LOG: u32 = 2;
    /// Leave speculative store bypass as it is.
    pub const SPEC_ALLOW: u32 = 4;
    /// Return a descriptor for notifications.
    pub const NEW_LISTENER: u32 = 8;
    /// A notified process can only be killed while it waits (Linux 5.19).
    pub const WAIT_KILLABLE_RECV: u32 = 32;
}

#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

const SET_MODE_FILTER: usize = 1;
const GET_ACTION_AVAIL: usize = 2;

/// Installs a filter on the calling thread, for ever. Needs `no_new_privs` or CAP_SYS_ADMIN. With
/// [`flags::NEW_LISTENER`] the result is the notification descriptor, close-on-exec.
pub fn install(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, filter: program.as_ptr() };
    let arguments = [SET_MODE_FILTER, flags as usize, syscall::address(&program), 0, 0];
    // SAFETY: the program points at `length` instructions that outlive the call.
    let value = unsafe { syscall::call(libc::SYS_seccomp, arguments) }?;
    if flags & flags::NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the kernel returns a new descriptor.
    unsafe { syscall::own(value) }.map(Some)
}

/// Copies descriptor `number` of the process of a pidfd (`pidfd_getfd(2)`, Linux 5.6), close-on-exec: the listener of a
/// process whose filter may forbid it to send anything. Needs the right to trace the process; EPERM without.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, number: i32) -> Result<OwnedFd> {
    let number = usize::try_from(number).map_err(|_| Errno::BADF)?;
    if crate::features().forced_fallbacks {
        return Err(Errno::NOSYS);
    }
    let arguments = [pidfd.as_raw_fd() as usize, number, 0, 0, 0];
    // SAFETY: the call takes numbers only.
    let value = unsafe { syscall::call(libc::SYS_pidfd_getfd, arguments) }?;
    // SAFETY: the kernel has returned a new descriptor.
    unsafe { syscall::own(value) }
}

/// Whether the kernel knows the filter flags `flags`.
pub fn flags_available(flags: u32) -> bool {
    // SAFETY: flags that are not known are refused first (EINVAL), then a null program is (EFAULT).
    let result = unsafe { syscall::call(libc::SYS_seccomp, [SET_MODE_FILTER, flags as usize, 0, 0, 0]) };
    result == Err(Errno::FAULT)
}

/// Whether the kernel knows the return action `action` (`SECCOMP_RET_*`).
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32, which is there.
    unsafe { syscall::call(libc::SYS_seccomp, [GET_ACTION_AVAIL, 0, syscall::address(&action), 0, 0]) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn actions() {
        assert!(action_available(0x7fff_0000), "allow");
        assert!(!action_available(0x1234_0000));
    }

    #[test]
    fn flags_are_probed() {
        for flag in [flags::TSYNC, flags::LOG, flags::SPEC_ALLOW, flags::NEW_LISTENER] {
            assert!(flags_available(flag), "{flag}");
        }
        assert!(!flags_available(1 << 20));
    }

    #[test]
    fn a_descriptor_of_another_process() {
        use std::io::{Read as _, Seek as _, Write as _};
        let mut file = std::fs::File::from(rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"shared").unwrap();
        let own = crate::process::pidfd_open(std::process::id()).unwrap();
        if crate::features().forced_fallbacks {
            assert_eq!(take_descriptor(own.as_fd(), file.as_raw_fd()).unwrap_err(), Errno::NOSYS);
            return;
        }
        let mut copy = std::fs::File::from(take_descriptor(own.as_fd(), file.as_raw_fd()).unwrap());
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared");
        assert_eq!(take_descriptor(own.as_fd(), -1).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn a_program_that_is_none_is_refused() {
        assert_eq!(install(&[], 0).unwrap_err(), Errno::INVAL);
    }
}
