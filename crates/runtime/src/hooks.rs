//! Hooks that run on the host's side, one after the other, without blocking.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use oci::runtime::Hook;
use rustix::event::epoll;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde_json::json;
use sys::process::Exit;
use sys::spawn::{Child, Command};
use sys::undefended::{Defence, left_out};

use crate::{Error, Plan};

/// How much of a hook's standard error is kept, for an error.
const SHOWN_BYTES: usize = 1024;

/// How often a pipe is read before the caller gets a turn: what a pipe holds, in pieces of 4 KiB.
const READS_PER_TURN: u32 = 16;

/// The container's state as a JSON document, cut where the pid goes.
pub(crate) fn state_around_pid(plan: &Plan, status: &str) -> (Vec<u8>, Vec<u8>) {
    let text = json!({
        "ociVersion": plan.oci_version,
        "id": plan.id,
        "status": status,
        "bundle": plan.bundle,
        "annotations": plan.annotations,
    })
    .to_string();
    // An object never is empty here: the pid becomes its first member.
    let rest = text.get(1..).unwrap_or_default();
    (b"{\"pid\":".to_vec(), [b",", rest.as_bytes()].concat())
}

/// What a hook is told about the container.
#[derive(Clone, Debug)]
pub(crate) struct HookState {
    pub(crate) around_pid: (Vec<u8>, Vec<u8>),
    pub(crate) bundle: std::path::PathBuf,
}

impl HookState {
    /// The document for a hook. A prestart hook reads `created`: runtime-spec 1.0 ran it at `start`, and what was written
    /// for it then may insist on that.
    fn of(&self, kind: &str, pid: u32) -> Vec<u8> {
        if kind == "prestart" { self.with_status("created").document(pid) } else { self.document(pid) }
    }

    /// The whole document, with the pid of the container's init.
    pub(crate) fn document(&self, pid: u32) -> Vec<u8> {
        [self.around_pid.0.as_slice(), pid.to_string().as_bytes(), self.around_pid.1.as_slice()].concat()
    }

    /// The same with another status.
    pub(crate) fn with_status(&self, status: &str) -> Self {
        // Parsed, because an annotation may look like the status.
        let text = [b"{", self.around_pid.1.get(1..).unwrap_or_default()].concat();
        let mut document: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(found) = document.get_mut("status") {
            *found = status.into();
        }
        let text = document.to_string();
        let rest = format!(",{}", text.get(1..).unwrap_or_default());
        Self { around_pid: (self.around_pid.0.clone(), rest.into_bytes()), bundle: self.bundle.clone() }
    }
}

/// A list of hooks under way.
#[derive(Debug)]
pub(crate) struct HookRunner {
    /// What is left, the next one last.
    left: Vec<(&'static str, Hook)>,
    index: usize,
    state: HookState,
    pid: u32,
    current: Option<Running>,
    /// Readable when the current hook has ended or its time is over.
    events: OwnedFd,
}

#[derive(Debug)]
struct Running {
    kind: &'static str,
    child: Child,
    errors: Errors,
    timer: Option<OwnedFd>,
}

impl HookRunner {
    pub(crate) fn new(hooks: &[(&'static str, Hook)], state: &HookState, pid: u32) -> Result<Self, Error> {
        let mut left = hooks.to_vec();
        left.reverse();
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::host("making an event descriptor", errno))?;
        Ok(Self { left, index: 0, state: state.clone(), pid, current: None, events })
    }

    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Starts, ends and judges hooks as far as possible without waiting. True when all have ended well. An error ends
    /// the list; the failed hook is gone then.
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        loop {
            if self.current.is_none() {
                let Some((kind, hook)) = self.left.pop() else { return Ok(true) };
                self.start(kind, &hook)?;
            }
            let Some(mut running) = self.current.take() else { return Ok(true) };
            let problem = |problem: String| Error::Hook { kind: running.kind, index: self.index, problem };
            running.errors.take(&self.events);
            let ended = sys::process::reap(running.child.pidfd.as_fd())
                .map_err(|errno| problem(format!("waiting for it: {errno}")))?;
            match ended {
                Some(end) if end.exit == Exit::Code(0) => self.index += 1,
                Some(end) => {
                    let how = match end.exit {
                        Exit::Code(code) => format!("exit status {code}"),
                        Exit::Signal(signal) => format!("signal {signal}"),
                    };
                    running.errors.take(&self.events);
                    let said = running.errors.said();
                    let (kind, index) = (running.kind, self.index);
                    return Err(Error::Hook { kind, index, problem: how + &said });
                }
                None if running.timer.as_ref().is_some_and(expired) => {
                    kill(&running);
                    running.errors.take(&self.events);
                    let said = running.errors.said();
                    let (kind, index) = (running.kind, self.index);
                    return Err(Error::Hook { kind, index, problem: "did not end in time".to_owned() + &said });
                }
                None => {
                    self.current = Some(running);
                    return Ok(false);
                }
            }
        }
    }

    fn start(&mut self, kind: &'static str, hook: &Hook) -> Result<(), Error> {
        let index = self.index;
        let problem = |error: std::io::Error| Error::Hook { kind, index, problem: error.to_string() };
        let input = memory_file(&self.state.of(kind, self.pid)).map_err(problem)?;
        let (errors, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| problem(errno.into()))?;
        rustix::io::ioctl_fionbio(&errors, true).map_err(|errno| problem(errno.into()))?;
        let mut command = Command::new(hook.path()).cwd(&self.state.bundle);
        let arguments = hook.args().as_deref().unwrap_or_default();
        if let Some((name, rest)) = arguments.split_first() {
            command = command.arg0(name).args(rest);
        }
        for entry in hook.env().iter().flatten() {
            command = command.env_assignment(entry);
        }
        let child = command
            .fd(0, input.into())
            .borrow_fd(1, write.as_fd())
            .map(|command| command.fd(2, write))
            .and_then(Command::spawn)
            .map_err(|errno| problem(errno.into()))?;
        let watch = |fd: BorrowedFd<'_>| {
            epoll::add(&self.events, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
                .map_err(|errno| problem(errno.into()))
        };
        watch(child.pidfd.as_fd())?;
        watch(errors.as_fd())?;
        let timer = match hook.timeout() {
            Some(seconds) => {
                let timer = timer(Duration::from_secs(seconds.unsigned_abs())).map_err(|e| problem(e.into()))?;
                watch(timer.as_fd())?;
                Some(timer)
            }
            None => None,
        };
        let errors = Errors { pipe: Some(errors), kept: Vec::new() };
        self.current = Some(Running { kind, child, errors, timer });
        Ok(())
    }
}

impl Drop for HookRunner {
    fn drop(&mut self) {
        if let Some(running) = &self.current {
            kill(running);
        }
    }
}

fn kill(running: &Running) {
    let _ = sys::process::pidfd_send_signal(&running.child.pidfd, libc::SIGKILL);
    let _ = sys::process::wait(running.child.pidfd.as_fd());
}

fn memory_file(content: &[u8]) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create(c"hook", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// The end of what a hook writes to its standard error. It may write without end: no more than that is kept.
#[derive(Debug)]
struct Errors {
    /// Does not block. `None`: everybody has closed it.
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl Errors {
    /// Takes what is there. What comes faster than it is taken waits for the next turn.
    fn take(&mut self, events: &OwnedFd) {
        let Some(pipe) = &self.pipe else { return };
        let mut buffer = [0_u8; 4096];
        for _ in 0..READS_PER_TURN {
            match rustix::io::read(pipe, &mut buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => {
                    // At its end it would wake the caller for ever.
                    let _ = epoll::delete(events, pipe);
                    self.pipe = None;
                    return;
                }
                Ok(length) => {
                    self.kept.extend(buffer.iter().take(length));
                    let spare = self.kept.len().saturating_sub(SHOWN_BYTES);
                    if !left_out(Defence::HookOutput) {
                        self.kept.drain(..spare);
                    }
                }
            }
        }
    }

    fn said(&self) -> String {
        shown(&self.kept)
    }
}

/// What a hook said, as the end of an error.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    if text.trim().is_empty() { String::new() } else { format!(", stderr: {}", text.trim()) }
}

fn timer(after: Duration) -> rustix::io::Result<OwnedFd> {
    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec { tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: none, it_value: value },
    )?;
    Ok(timer)
}

fn expired(timer: &OwnedFd) -> bool {
    let mut count = [0; 8];
    rustix::io::read(timer, &mut count).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_status_changes() {
        let rest = br#","annotations":{"status":"creating"},"id":"x","status":"creating"}"#;
        let state =
            HookState { around_pid: (b"{\"pid\":".to_vec(), rest.to_vec()), bundle: std::path::PathBuf::from("/") };
        let document: serde_json::Value = serde_json::from_slice(&state.with_status("stopped").document(7)).unwrap();
        let want = json!({"annotations": {"status": "creating"}, "id": "x", "status": "stopped", "pid": 7});
        assert_eq!(document, want);
    }
}
