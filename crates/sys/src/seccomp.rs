//! Installing a system call filter on the calling thread. Nothing here allocates.

#![expect(unsafe_code, reason = "seccomp(2) has no wrapper elsewhere")]

use std::os::fd::OwnedFd;

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

/// Whether the kernel knows the return action `action` (`SECCOMP_RET_*`).
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32, which is there.
    unsafe { syscall::call(libc::SYS_seccomp, [GET_ACTION_AVAIL, 0, syscall::address(&action), 0, 0]) }.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions() {
        assert!(action_available(0x7fff_0000), "allow");
        assert!(!action_available(0x1234_0000));
    }

    #[test]
    fn a_program_that_is_none_is_refused() {
        assert_eq!(install(&[], 0).unwrap_err(), Errno::INVAL);
    }
}
