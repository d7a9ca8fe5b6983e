//! Hooks that run inside the container, made by its first process.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, SeekFrom};
use rustix::io::Errno;
use sys::clone::{Forked, exit_now};
use sys::process::Exit;

use super::path::Text;
use super::{Child, Hook, HookKind, Kind, MESSAGE_BYTES, RECORD_BYTES, Record, StringArray};

/// What a hook that could not be executed ends with, as in a shell.
const NOT_EXECUTED: i32 = 127;

/// Why a hook failed, with the descriptor of what it said.
pub(super) struct Failure {
    errno: i32,
    /// Its exit status, or the signal that ended it, negative.
    status: i32,
    said: Option<OwnedFd>,
}

impl Failure {
    fn new(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error(), status: 0, said: None }
    }

    /// Tells the parent, with the end of what the hook said.
    pub(super) fn report(&self, to: BorrowedFd<'_>, step: u32) {
        let record = Record { kind: Kind::Hook, step, errno: self.errno, value: self.status };
        let mut message = [0_u8; MESSAGE_BYTES];
        let (head, text) = message.split_at_mut(RECORD_BYTES);
        head.copy_from_slice(&record.to_bytes());
        let mut length = RECORD_BYTES;
        if let Some(said) = &self.said {
            let end = rustix::fs::seek(said, SeekFrom::End(0)).unwrap_or(0);
            let start = end.saturating_sub(text.len() as u64);
            if rustix::fs::seek(said, SeekFrom::Start(start)).is_ok() {
                length += rustix::io::read(said, text).unwrap_or(0);
            }
        }
        let message = message.get(..length).unwrap_or_default();
        while rustix::io::write(to, message) == Err(Errno::INTR) {}
    }
}

impl Child<'_> {
    pub(super) fn run_hook(&self, hook: &Hook) -> Result<(), Errno> {
        match self.run_hook_process(hook, None) {
            Ok(()) => Ok(()),
            Err(failure) => {
                failure.report(self.sync, self.step);
                exit_now(1)
            }
        }
    }

    /// Runs a hook to its end. Without an environment of its own it has `environment`.
    pub(super) fn run_hook_process(&self, hook: &Hook, environment: Option<&StringArray>) -> Result<(), Failure> {
        let input = write_state(hook).map_err(Failure::new)?;
        let said = rustix::fs::memfd_create(c"said", MemfdFlags::CLOEXEC).map_err(Failure::new)?;
        // A hook of createContainer finds the root file system where it stands, before it is the root.
        let place = if hook.kind == HookKind::CreateContainer { self.root().ok() } else { None };
        let environment = environment.filter(|_| hook.environment.is_empty()).unwrap_or(&hook.environment);
        // SAFETY: this process has one thread; the new one only duplicates descriptors and executes.
        #[expect(unsafe_code, reason = "hooks need a process of their own")]
        let forked = unsafe { sys::clone::fork(0, None) };
        let pidfd = match forked {
            Ok(Forked::Child) => execute(hook, environment, place, input.as_fd(), said.as_fd()),
            Ok(Forked::Parent { pidfd, .. }) => pidfd,
            Err(errno) => return Err(Failure::new(errno)),
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
                Err(errno) => return Err(Failure::new(errno)),
            }
        };
        if !in_time {
            let _ = sys::process::pidfd_send_signal(&pidfd, libc::SIGKILL);
        }
        let end = sys::process::wait(pidfd.as_fd()).map_err(Failure::new)?;
        let (errno, status) = match end.exit {
            _ if !in_time => (libc::ETIMEDOUT, 0),
            Exit::Code(0) => return Ok(()),
            Exit::Code(code) => (0, code.cast_signed()),
            Exit::Signal(signal) => (0, -signal.cast_signed()),
        };
        Err(Failure { errno, status, said: Some(said) })
    }
}

/// The state document with our pid in it, as standard input: a file, so that nobody has to read it.
fn write_state(hook: &Hook) -> Result<OwnedFd, Errno> {
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

fn execute(
    hook: &Hook,
    environment: &StringArray,
    place: Option<BorrowedFd<'_>>,
    input: BorrowedFd<'_>,
    said: BorrowedFd<'_>,
) -> ! {
    if place.is_some_and(|place| rustix::process::fchdir(place).is_err()) {
        exit_now(NOT_EXECUTED);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for (descriptor, number) in [(input, 0), (said, 1), (said, 2)] {
        if super::program::duplicate(descriptor, number).is_err() {
            exit_now(NOT_EXECUTED);
        }
    }
    let path: &CStr = &hook.path;
    let (arguments, environment) = (hook.arguments.as_ptr(), environment.as_ptr());
    // SAFETY: the path is a C string; both arrays end with null and their strings outlive the call.
    #[expect(unsafe_code, reason = "execve takes raw pointers")]
    unsafe {
        libc::execve(path.as_ptr(), arguments, environment)
    };
    // Why, for the error of whoever wanted it.
    let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    let _ = rustix::io::write(said, describe(errno));
    exit_now(NOT_EXECUTED)
}

/// The usual reasons in words: nothing may be allocated here.
fn describe(errno: Errno) -> &'static [u8] {
    match errno {
        Errno::NOENT => b"no such file or directory",
        Errno::ACCESS => b"permission denied",
        Errno::NOEXEC => b"exec format error",
        _ => b"cannot be executed",
    }
}
