//! Processes by pidfd: identity, signals, and an end that can be looked at before it is reaped.

#![expect(unsafe_code, reason = "waitid with rusage has no wrapper elsewhere")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::arch::NATIVE;
use crate::{Result, fs, syscall};

/// A process that cannot be mistaken for another one: pids are reused, the pair of pid and start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Pid in the caller's pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited by itself with this code.
    Code(u32),
    /// This signal ended it.
    Signal(u32),
}

impl Exit {
    /// The exit status that the containerd API shows: the code, or 128 plus the signal.
    pub fn status(self) -> u32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// The signal that ended the process; 0 where it exited by itself.
    pub fn signal(self) -> u32 {
        match self {
            Self::Code(_) => 0,
            Self::Signal(signal) => signal,
        }
    }
}

/// What a process and its reaped descendants used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Its pid.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
    /// What it used.
    pub usage: Usage,
}

/// Who a process is, from `/proc`. ESRCH if there is none with this pid. A zombie still has an identity.
///
/// To be sure of a process, open its pidfd first and ask for the identity afterwards: [`pidfd_of`].
pub fn identity(pid: u32) -> Result<ProcessIdentity> {
    let stat = read_stat(pid)?;
    let start_time = stat_field(&stat, 22).and_then(|field| field.parse().ok()).ok_or(Errno::PROTO)?;
    Ok(ProcessIdentity { pid, start_time })
}

/// Opens a pidfd and checks that it is of the very process that `identity` names; ESRCH if that one is gone.
pub fn pidfd_of(expected: ProcessIdentity) -> Result<OwnedFd> {
    let pidfd = pidfd_open(expected.pid)?;
    // The process that the pidfd holds keeps its pid until it is reaped, so what /proc says now is about it, unless it
    // was reaped in between; then /proc says ESRCH or shows a later start time.
    if identity(expected.pid)? == expected { Ok(pidfd) } else { Err(Errno::SRCH) }
}

/// The exit status word of a zombie, from field 52 of `/proc/<pid>/stat`, for someone who is not its parent.
/// `None` while the process has not ended. Needs ptrace access to the process; without it the kernel shows 0.
pub fn zombie_exit(pid: u32) -> Result<Option<Exit>> {
    let stat = read_stat(pid)?;
    if !matches!(stat_field(&stat, 3), Some("Z" | "X")) {
        return Ok(None);
    }
    let word: u32 = stat_field(&stat, 52).and_then(|field| field.parse().ok()).ok_or(Errno::PROTO)?;
    let signal = word & 0x7f;
    Ok(Some(if signal == 0 { Exit::Code((word >> 8) & 0xff) } else { Exit::Signal(signal) }))
}

/// Whether user and group of this process were root's, the real, the effective and (being the same) the saved ones, when
/// its program was started. Asks nobody: the kernel told the program.
pub fn has_root_ids() -> bool {
    let told = [libc::AT_UID, libc::AT_EUID, libc::AT_GID, libc::AT_EGID];
    // SAFETY: asks for a value of the auxiliary vector; what is missing reads as 0, so the vector must be there at all.
    let value = |kind| unsafe { libc::getauxval(kind) };
    value(libc::AT_PAGESZ) != 0 && told.into_iter().all(|kind| value(kind) == 0)
}

/// Closes all descriptors from `first` to `last`, which the caller owned.
pub(crate) fn close_range(first: i32, last: i32) {
    let arguments = [first.unsigned_abs() as usize, last.unsigned_abs() as usize, 0, 0, 0];
    // SAFETY: the caller has given up the ownership of these numbers; whoever has the call never fails for them.
    let _ = unsafe { syscall::call(NATIVE.numbers.close_range, arguments) };
}

/// The effective user of this process when its program was started, as the kernel told the program.
pub fn effective_user() -> u32 {
    // SAFETY: asks for a value of the auxiliary vector.
    u32::try_from(unsafe { libc::getauxval(libc::AT_EUID) }).unwrap_or(u32::MAX)
}

/// Whether a process that was forked has executed a program since. Works for one that has ended and is not reaped.
pub fn has_executed(pid: u32) -> Result<bool> {
    /// `PF_FORKNOEXEC` of the kernel, in field 9.
    const FORKED_ONLY: u64 = 0x40;
    let stat = read_stat(pid)?;
    let flags: u64 = stat_field(&stat, 9).and_then(|field| field.parse().ok()).ok_or(Errno::PROTO)?;
    Ok(flags & FORKED_ONLY == 0)
}

/// How many threads the calling process has.
pub fn thread_count() -> Result<usize> {
    let status = fs::read_small(CWD, "/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"))
        .and_then(|count| count.trim().parse().ok())
        .ok_or(Errno::PROTO)
}

fn read_stat(pid: u32) -> Result<String> {
    fs::read_short(CWD, format!("/proc/{pid}/stat"))
        .map_err(|errno| if errno == Errno::NOENT { Errno::SRCH } else { errno })
}

/// Field `number` (from 1, as proc(5) counts) of a stat line. The second field is the name in parentheses, which may
/// hold anything, parentheses and spaces too: fields are counted from the last `)`.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// A pidfd for a process. ESRCH if there is none.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Sends signal number `signal` to the process of a pidfd; 0 only checks. ESRCH once it is reaped.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let arguments = [pidfd.as_fd().as_raw_fd() as usize, signal as usize, 0, 0, 0];
    // SAFETY: the descriptor is borrowed for the call; a null siginfo pointer is allowed.
    unsafe { syscall::call(libc::SYS_pidfd_send_signal, arguments) }.map(drop)
}

/// Looks at the end of a child without reaping it: `None` while it lives. ECHILD if it is not a child of ours or was
/// reaped. Does not block.
pub fn waitid_pidfd_peek(pidfd: BorrowedFd<'_>) -> Result<Option<Exited>> {
    waitid(Who::Pidfd(pidfd), libc::WEXITED | libc::WNOWAIT | libc::WNOHANG)
}

/// Reaps a child that has ended: `None` while it lives. Does not block.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Exited>> {
    waitid(Who::Pidfd(pidfd), libc::WEXITED | libc::WNOHANG)
}

/// Waits for a child's end and reaps it. Blocks.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<Exited> {
    loop {
        match waitid(Who::Pidfd(pidfd), libc::WEXITED) {
            Ok(Some(exited)) => return Ok(exited),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Looks at any child that has ended, an adopted orphan too, without reaping it. `None` if none has ended or there is
/// no child. Does not block.
pub fn peek_any() -> Result<Option<Exited>> {
    none_without_children(waitid(Who::Any, libc::WEXITED | libc::WNOWAIT | libc::WNOHANG))
}

/// Looks at the end of the child with this pid without reaping it: `None` while it lives. Does not block. Sure only for
/// a child that nobody else reaps.
pub fn peek_pid(pid: u32) -> Result<Option<Exited>> {
    waitid(Who::Pid(pid), libc::WEXITED | libc::WNOWAIT | libc::WNOHANG)
}

/// Reaps the child with this pid if it has ended. Does not block. Sure only for a child that nobody else reaps.
pub fn reap_pid(pid: u32) -> Result<Option<Exited>> {
    waitid(Who::Pid(pid), libc::WEXITED | libc::WNOHANG)
}

fn none_without_children(result: Result<Option<Exited>>) -> Result<Option<Exited>> {
    match result {
        Err(Errno::CHILD) => Ok(None),
        other => other,
    }
}

/// Makes the calling process the one that orphaned descendants are given to, instead of init.
pub fn set_subreaper() -> Result<()> {
    // Any pid switches it on: the kernel reads the argument as a boolean.
    rustix::process::set_child_subreaper(Some(Pid::INIT))
}

enum Who<'fd> {
    Pidfd(BorrowedFd<'fd>),
    Pid(u32),
    Any,
}

/// `waitid(2)` with its fifth argument, which glibc hides. Unlike `wait4` it can leave the zombie in place.
fn waitid(who: Who<'_>, options: i32) -> Result<Option<Exited>> {
    let (kind, id) = match who {
        Who::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as usize),
        Who::Pid(pid) => (libc::P_PID, pid as usize),
        Who::Any => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // __WALL: a container's init is cloned without SIGCHLD where that suits, and is a child all the same.
    let options = (options | libc::__WALL) as usize;
    let arguments = [kind as usize, id, syscall::address_mut(&mut info), options, syscall::address_mut(&mut usage)];
    // SAFETY: info and usage are writable, of the kernel's size, and outlive the call.
    unsafe { syscall::call(NATIVE.numbers.waitid, arguments) }?;
    // SAFETY: zeroed before the call; all bit patterns are valid.
    let info = unsafe { info.assume_init() };
    // SAFETY: as above.
    let usage = unsafe { usage.assume_init() };
    // SAFETY: for waitid the kernel fills the SIGCHLD member of the union, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() }.unsigned_abs();
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status & 0xff) } else { Exit::Signal(status) };
    Ok(Some(Exited {
        pid: pid.unsigned_abs(),
        exit,
        usage: Usage {
            user: duration(usage.ru_utime),
            system: duration(usage.ru_stime),
            max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        },
    }))
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::Command;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0";
        assert_eq!(stat_field(stat, 3), Some("S"));
        assert_eq!(stat_field(stat, 4), Some("1"));
        assert_eq!(stat_field(stat, 2), None);
        assert_eq!(stat_field(stat, 40), None);
        assert_eq!(stat_field("garbage", 3), None);
    }

    #[test]
    fn identity_is_stable_and_checked() {
        let me = identity(std::process::id()).unwrap();
        assert_eq!(me, identity(std::process::id()).unwrap());
        assert!(pidfd_of(me).is_ok());
        let other = ProcessIdentity { start_time: me.start_time + 1, ..me };
        assert_eq!(pidfd_of(other).unwrap_err(), Errno::SRCH);
        assert_eq!(identity(u32::MAX).unwrap_err(), Errno::SRCH);
        assert_eq!(pidfd_open(0).unwrap_err(), Errno::SRCH);
    }

    #[test]
    fn an_end_is_seen_twice_and_reaped_once() {
        let child = Command::new("/bin/sh").args(["-c", "exit 42"]).spawn().unwrap();
        fs::poll_readable(child.pidfd.as_fd(), Some(Duration::from_secs(30))).unwrap();
        let seen = waitid_pidfd_peek(child.pidfd.as_fd()).unwrap().unwrap();
        assert_eq!((seen.pid, seen.exit), (child.pid, Exit::Code(42)));
        assert!(seen.usage.max_rss_kib > 0, "{seen:?}");
        assert_eq!(zombie_exit(child.pid).unwrap(), Some(Exit::Code(42)));
        assert_eq!(waitid_pidfd_peek(child.pidfd.as_fd()).unwrap(), Some(seen));
        assert_eq!(reap(child.pidfd.as_fd()).unwrap(), Some(seen));
        assert_eq!(reap(child.pidfd.as_fd()).unwrap_err(), Errno::CHILD);
    }

    #[test]
    fn a_fork_is_told_from_a_program() {
        use crate::clone::{Forked, exit_now, fork};
        // SAFETY: the child calls _exit and nothing else.
        let Forked::Parent { pid, pidfd } = (unsafe { fork(0, None) }).unwrap() else { exit_now(0) };
        fs::poll_readable(pidfd.as_fd(), Some(Duration::from_secs(30))).unwrap();
        assert!(!has_executed(pid).unwrap());
        wait(pidfd.as_fd()).unwrap();
        let child = Command::new("/bin/true").spawn().unwrap();
        fs::poll_readable(child.pidfd.as_fd(), Some(Duration::from_secs(30))).unwrap();
        assert!(has_executed(child.pid).unwrap());
        wait(child.pidfd.as_fd()).unwrap();
    }

    #[test]
    fn a_signal_is_a_signal() {
        let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        assert_eq!(waitid_pidfd_peek(child.pidfd.as_fd()).unwrap(), None);
        assert_eq!(zombie_exit(child.pid).unwrap(), None);
        pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
        let end = wait(child.pidfd.as_fd()).unwrap();
        assert_eq!(end.exit, Exit::Signal(9));
        assert_eq!((end.exit.status(), end.exit.signal()), (137, 9));
        assert_eq!(pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap_err(), Errno::SRCH);
    }
}
