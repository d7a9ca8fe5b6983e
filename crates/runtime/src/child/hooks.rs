//! Hooks that run inside the container, made by its first process.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use sys::clone::{Forked, exit_now};
use sys::process::Exit;

use super::path::Text;
use super::{Child, Hook, Kind};

/// What a hook that could not be executed ends with, as in a shell.
const NOT_EXECUTED: i32 = 127;

impl Child<'_> {
    pub(super) fn run_hook(&self, hook: &Hook) -> Result<(), Errno> {
        match self.run_hook_process(hook) {
            Ok(()) => Ok(()),
            Err((errno, status)) => self.fail(Kind::Hook, errno, status),
        }
    }

    /// Runs a hook to its end. The error has either an error number or the exit status, which is the negative
    /// number of the signal that ended it.
    pub(super) fn run_hook_process(&self, hook: &Hook) -> Result<(), (i32, i32)> {
        let input = write_state(hook).map_err(|errno| (errno.raw_os_error(), 0))?;
        // SAFETY: this process has one thread; the new one only duplicates descriptors and executes.
        #[expect(unsafe_code, reason = "hooks need a process of their own")]
        let forked = unsafe { sys::clone::fork(0, None) };
        let pidfd = match forked {
            Ok(Forked::Child) => execute(hook, input.as_fd()),
            Ok(Forked::Parent { pidfd, .. }) => pidfd,
            Err(errno) => return Err((errno.raw_os_error(), 0)),
        };
        let timeout = hook.timeout_ms.map(|milliseconds| Timespec {
            tv_sec: i64::from(milliseconds / 1000),
            tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
        });
        let mut poll = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        let in_time = loop {
            match rustix::event::poll(&mut poll, timeout.as_ref()) {
                Ok(ready) => break ready > 0,
                Err(Errno::INTR) => {}
                Err(errno) => return Err((errno.raw_os_error(), 0)),
            }
        };
        if !in_time {
            let _ = sys::process::pidfd_send_signal(&pidfd, libc::SIGKILL);
        }
        let end = sys::process::wait(pidfd.as_fd()).map_err(|errno| (errno.raw_os_error(), 0))?;
        match end.exit {
            _ if !in_time => Err((libc::ETIMEDOUT, 0)),
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => Err((0, code.cast_signed())),
            Exit::Signal(signal) => Err((0, -signal.cast_signed())),
        }
    }
}

/// The state document with our pid in it, as standard input: a file, so that nobody has to read it.
fn write_state(hook: &Hook) -> Result<std::os::fd::OwnedFd, Errno> {
    let file = rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)?;
    let mut pid = Text::new();
    pid.append_number(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs())?;
    for part in [hook.state.0.as_slice(), pid.as_c_str()?.to_bytes(), hook.state.1.as_slice()] {
        let mut left = part;
        while !left.is_empty() {
            let written = rustix::io::write(&file, left)?;
            left = left.get(written..).unwrap_or_default();
        }
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

fn execute(hook: &Hook, input: BorrowedFd<'_>) -> ! {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null = rustix::fs::open(c"/dev/null", OFlags::WRONLY, Mode::empty());
    if super::program::duplicate(input, 0).is_err() {
        exit_now(NOT_EXECUTED);
    }
    if let Ok(null) = null {
        let _ = super::program::duplicate(null.as_fd(), 1);
        let _ = super::program::duplicate(null.as_fd(), 2);
    }
    let path: &CStr = &hook.path;
    let (arguments, environment) = (hook.arguments.as_ptr(), hook.environment.as_ptr());
    // SAFETY: the path is a C string; both arrays end with null and their strings live in `hook`.
    #[expect(unsafe_code, reason = "execve takes raw pointers")]
    unsafe {
        libc::execve(path.as_ptr(), arguments, environment)
    };
    exit_now(NOT_EXECUTED)
}
