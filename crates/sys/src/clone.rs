//! A fork with namespaces: the child runs on a copy of the caller's memory.
//!
//! **Invariant:** all signals are blocked from before the clone until the child has reset its dispositions, so that no
//! handler of the parent ever runs in the child, where it would write into the parent's shared self-pipe.

#![expect(unsafe_code, reason = "fork-like clone has no safe form")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::arch::NATIVE;
use crate::{Result, features, syscall};

/// `CLONE_NEW*` and its like for [`fork`].
pub mod flags {
    /// New time namespace: `clone3` only.
    pub const NEWTIME: u64 = 0x80;
    /// New mount namespace.
    pub const NEWNS: u64 = 0x0002_0000;
    /// New cgroup namespace.
    pub const NEWCGROUP: u64 = 0x0200_0000;
    /// New UTS namespace.
    pub const NEWUTS: u64 = 0x0400_0000;
    /// New IPC namespace.
    pub const NEWIPC: u64 = 0x0800_0000;
    /// New user namespace.
    pub const NEWUSER: u64 = 0x1000_0000;
    /// New pid namespace.
    pub const NEWPID: u64 = 0x2000_0000;
    /// New network namespace.
    pub const NEWNET: u64 = 0x4000_0000;
    /// The child becomes a sibling: its parent is the caller's parent.
    pub const PARENT: u64 = 0x8000;
}

const PIDFD: u64 = 0x1000;
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of a [`fork`] runs.
#[derive(Debug)]
pub enum Forked {
    /// The caller.
    Parent {
        /// The child's pid in the caller's pid namespace.
        pid: u32,
        /// The child's pidfd.
        pidfd: OwnedFd,
    },
    /// The new process, with default signal handlers and an empty signal mask.
    Child,
}

/// Makes a child process on a copy of the caller's memory, with the namespaces in `new` ([`flags`]).
///
/// With `cgroup` (a cgroup v2 directory) the child is born in it; ENOSYS if the kernel or the forced fallbacks do not
/// allow that: ask [`crate::features`] first. With [`flags::PARENT`] the child belongs to the caller's parent, but the
/// pidfd is the caller's. Does not block, allocates nothing.
///
/// # Safety
/// The process has one thread, or the child must confine itself to async-signal-safe code: no allocation, no locks.
/// The child must end by `_exit` or an exec and never return from the function that called this.
pub unsafe fn fork(new: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let blocked = block_signals()?;
    let mut pidfd: i32 = -1;
    // SAFETY: passed on to the caller.
    let result = unsafe { clone(new, cgroup, &mut pidfd) };
    match result {
        Ok(0) => {
            // Dispositions first: with the mask still full nothing can be delivered in between.
            if !features().clone3 {
                reset_handlers();
            }
            default_handler(libc::SIGPIPE);
            unblock_signals();
            Ok(Forked::Child)
        }
        Ok(pid) => {
            restore_signals(&blocked);
            // SAFETY: the kernel has just stored a new descriptor here.
            let pidfd = unsafe { syscall::own(pidfd.into()) }?;
            Ok(Forked::Parent { pid: u32::try_from(pid).map_err(|_| Errno::INVAL)?, pidfd })
        }
        Err(errno) => {
            restore_signals(&blocked);
            Err(errno)
        }
    }
}

/// # Safety
/// As [`fork`].
unsafe fn clone(new: u64, cgroup: Option<BorrowedFd<'_>>, pidfd: &mut i32) -> Result<i64> {
    // With CLONE_PARENT the exit signal is that of the caller; the kernel refuses another (clone(2)).
    let exit_signal = if new & flags::PARENT == 0 { libc::SIGCHLD.unsigned_abs().into() } else { 0 };
    if features().clone3 {
        let args = CloneArgs {
            flags: new | PIDFD | CLEAR_SIGHAND | if cgroup.is_some() { INTO_CGROUP } else { 0 },
            pidfd: syscall::address_mut(pidfd) as u64,
            exit_signal,
            cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
            ..CloneArgs::default()
        };
        // SAFETY: a whole struct clone_args without a stack, which makes this a fork; pidfd is writable.
        return unsafe {
            syscall::call(NATIVE.numbers.clone3, [syscall::address(&args), size_of::<CloneArgs>(), 0, 0, 0])
        };
    }
    if cgroup.is_some() || new & flags::NEWTIME != 0 {
        return Err(Errno::NOSYS);
    }
    let word = usize::try_from(new | PIDFD | exit_signal).map_err(|_| Errno::INVAL)?;
    // The third argument of clone(2) takes the pidfd on every architecture; the others are unused here.
    // SAFETY: no stack, which makes this a fork; pidfd is writable.
    unsafe { syscall::call(libc::SYS_clone, [word, 0, syscall::address_mut(pidfd), 0, 0]) }
}

fn block_signals() -> Result<libc::sigset_t> {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `all` is writable and of the right type.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both sets are valid; the call only touches this thread's mask.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    syscall::check(result.into())?;
    // SAFETY: zeroed before the call and then filled by it.
    Ok(unsafe { before.assume_init() })
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the set came from the kernel; a null old set is allowed.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

fn unblock_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `none` is writable and of the right type.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set is valid; a null old set is allowed.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
}

fn default_handler(signal: i32) {
    // SAFETY: SIG_DFL is valid for every signal; for those that cannot be caught the call fails harmlessly.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// What `CLONE_CLEAR_SIGHAND` does in one flag.
fn reset_handlers() {
    for signal in 1..=64 {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null new action only asks; `action` is writable.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: zeroed before the call; every bit pattern is valid.
        let handler = unsafe { action.assume_init() }.sa_sigaction;
        if asked == 0 && handler != libc::SIG_IGN && handler != libc::SIG_DFL {
            default_handler(signal);
        }
    }
}

/// The kind of a namespace, as its `CLONE_NEW*` flag; ENOTTY for a descriptor of something else.
pub fn namespace_kind(namespace: BorrowedFd<'_>) -> Result<u64> {
    const NS_GET_NSTYPE: usize = 0xb703;
    // SAFETY: this ioctl takes no argument, and other files refuse the number.
    let kind = unsafe { syscall::call(libc::SYS_ioctl, [namespace.as_raw_fd() as usize, NS_GET_NSTYPE, 0, 0, 0]) }?;
    u64::try_from(kind).map_err(|_| Errno::INVAL)
}

/// Ends a child of [`fork`] at once: no destructor, no buffer, no exit handler runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any value and does not return.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::process::{self, Exit};

    #[test]
    fn a_child_runs_and_ends() {
        // SAFETY: the child calls _exit and nothing else.
        match unsafe { fork(flags::NEWUTS, None) }.unwrap() {
            Forked::Child => exit_now(if rustix::process::getpid().as_raw_nonzero().get() > 1 { 7 } else { 8 }),
            Forked::Parent { pid, pidfd } => {
                let end = process::wait(pidfd.as_fd()).unwrap();
                assert_eq!((end.pid, end.exit), (pid, Exit::Code(7)));
            }
        }
    }

    #[test]
    fn impossible_flags_are_an_error() {
        // SAFETY: the kernel refuses CLONE_NEWUSER with CLONE_FS (0x200): no child comes to be.
        let result = unsafe { fork(flags::NEWUSER | 0x200, None) };
        assert_eq!(result.unwrap_err(), Errno::INVAL);
    }
}
