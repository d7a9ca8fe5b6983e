//! The program `criu`, started to serve one request over a socket (`criu swrk`), and the talk with it.
//!
//! ```text
//! Version ──▶ (Features) ──▶ Acting ◀──▶ notifications, answered by the caller
//!                               │ the answer
//!                               ▼
//!                            Ending ──▶ reaped
//! ```

use std::fs::File;
use std::io::{IoSliceMut, Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use sys::process::Exit;
use sys::spawn::{Child, Command};

use super::message::{Features, Kind, Options, Request, Response};
use crate::Error;

/// The socket's number in CRIU.
const SOCKET: RawFd = 3;
/// The first number in CRIU for descriptors to inherit: those before are the standard streams and the socket.
pub(super) const FIRST_INHERITED: RawFd = SOCKET + 1;
/// Longer than any answer; CRIU itself allows no more.
const MESSAGE_BYTES: usize = 64 * 1024;
/// The part of a log that is searched for the error.
const LOG_BYTES: u64 = 256 * 1024;
/// The first version that has all that is used here: external pid namespaces, the freezer of cgroup version 2, and the
/// notification that lazy pages are ready.
const MINIMUM: i32 = 31_500;

/// What CRIU does for this request.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) options: Options,
    /// Without these it is not tried.
    pub(super) needs: Features,
    /// The least version for an option of this request, with its name.
    pub(super) minimum: Option<(i32, &'static str)>,
    /// The directory of the log, and how it is called.
    pub(super) log: (OwnedFd, PathBuf),
    /// Files that the options refer to by number: kept until the end.
    pub(super) held: Vec<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Version,
    Features,
    Acting,
    Ending,
}

/// What CRIU said.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// A notification that waits for an answer.
    Notification { name: String, pid: i32, descriptor: Option<OwnedFd> },
    /// It did what was asked for, and has ended.
    Done,
}

/// A CRIU at work. Dropping it kills and reaps it.
#[derive(Debug)]
pub(super) struct Talk {
    child: Option<Child>,
    socket: Option<OwnedFd>,
    events: OwnedFd,
    phase: Phase,
    job: Job,
    version: i32,
    /// The restored process, as the answer has it.
    pub(super) restored: Option<i32>,
}

/// The standard streams of what is restored.
pub(super) type Streams = [OwnedFd; 3];

impl Talk {
    /// Starts CRIU and asks for its version; `inherited` gets the numbers from [`FIRST_INHERITED`] on.
    pub(super) fn begin(job: Job, streams: Option<Streams>, inherited: Vec<OwnedFd>) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::host("starting criu", errno);
        let program = find_program().ok_or(Error::CriuMissing)?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
        // It runs other programs (tar, ip), for which it needs the search path.
        let mut command = Command::new(&program).arg("swrk").arg(SOCKET.to_string()).inherit_env().fd(SOCKET, theirs);
        for (number, stream) in (0..).zip(streams.into_iter().flatten()) {
            command = command.fd(number, stream);
        }
        for (number, descriptor) in (FIRST_INHERITED..).zip(inherited) {
            command = command.fd(number, descriptor);
        }
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        let talk = Self {
            child: Some(child),
            socket: Some(ours),
            events,
            phase: Phase::Version,
            job,
            version: 0,
            restored: None,
        };
        let watched = [talk.socket.as_ref().map(AsFd::as_fd), talk.child.as_ref().map(|child| child.pidfd.as_fd())];
        for descriptor in watched.into_iter().flatten() {
            talk.watch(descriptor)?;
        }
        talk.say(&Request::Version)?;
        Ok(talk)
    }

    /// Makes another descriptor wake the caller too.
    pub(super) fn watch(&self, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        epoll::add(&self.events, descriptor, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(|errno| Error::host("watching criu", errno))
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// CRIU's own pid.
    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid)
    }

    /// The request, which may still be changed until CRIU acts.
    pub(super) fn options(&mut self) -> &mut Options {
        &mut self.job.options
    }

    /// Answers a notification.
    pub(super) fn answer(&self, success: bool) -> Result<(), Error> {
        self.say(&Request::Notified { success })
    }

    fn say(&self, request: &Request<'_>) -> Result<(), Error> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match rustix::net::send(socket, request.encode().as_bytes(), SendFlags::NOSIGNAL) {
            // That it is gone is heard next.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(Error::host("asking criu", errno)),
        }
    }

    /// Goes on until CRIU has said something for the caller.
    pub(super) fn advance(&mut self) -> Result<Heard, Error> {
        loop {
            if self.phase == Phase::Ending {
                return self.end();
            }
            let Some((response, descriptor)) = self.hear()? else { return Ok(Heard::Nothing) };
            if !response.success {
                return Err(self.refused(&response));
            }
            match (self.phase, response.kind) {
                (Phase::Version, Some(Kind::Version)) => {
                    self.version = response.version;
                    self.check_version()?;
                    if self.job.needs == Features::default() {
                        self.act()?;
                    } else {
                        self.phase = Phase::Features;
                        self.say(&Request::FeatureCheck(self.job.needs))?;
                    }
                }
                (Phase::Features, Some(Kind::FeatureCheck)) => {
                    self.check_features(response.features)?;
                    self.act()?;
                }
                (Phase::Acting, Some(Kind::Notify)) => {
                    let (name, pid) = response.notification.unwrap_or_default();
                    return Ok(Heard::Notification { name, pid, descriptor });
                }
                (Phase::Acting, Some(kind)) if kind == self.job.kind => {
                    self.restored = response.restored;
                    self.socket = None;
                    self.phase = Phase::Ending;
                }
                _ => return Err(self.failed("its answer is of another kind than the request".to_owned())),
            }
        }
    }

    fn act(&mut self) -> Result<(), Error> {
        self.phase = Phase::Acting;
        self.say(&Request::Act(self.job.kind, &self.job.options))
    }

    fn check_version(&self) -> Result<(), Error> {
        let base = (MINIMUM, "this runtime");
        let Some((least, what)) = [Some(base), self.job.minimum].into_iter().flatten().find(|(v, _)| self.version < *v)
        else {
            return Ok(());
        };
        let dotted = |version: i32| format!("{}.{}", version / 10_000, version / 100 % 100);
        Err(Error::Criu {
            operation: self.operation(),
            problem: format!("{what} needs criu {} or newer, this is {}", dotted(least), dotted(self.version)),
        })
    }

    fn check_features(&self, there: Features) -> Result<(), Error> {
        let missing = [
            (self.job.needs.memory_tracking && !there.memory_tracking, "MemTrack"),
            (self.job.needs.lazy_pages && !there.lazy_pages, "LazyPages"),
        ];
        match missing.into_iter().find(|(missing, _)| *missing) {
            None => Ok(()),
            Some((_, name)) => Err(Error::Criu {
                operation: self.operation(),
                problem: format!("criu is missing features: {name} (criu or the kernel is without it)"),
            }),
        }
    }

    fn operation(&self) -> &'static str {
        match self.job.kind {
            Kind::Restore => "restore",
            Kind::Dump | Kind::PreDump | Kind::Notify | Kind::FeatureCheck | Kind::Version => "checkpoint",
        }
    }

    /// The next answer, if there is one, with a descriptor that came along.
    fn hear(&mut self) -> Result<Option<(Response, Option<OwnedFd>)>, Error> {
        loop {
            let Some(socket) = &self.socket else { return Ok(None) };
            let mut bytes = vec![0; MESSAGE_BYTES];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let length = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => 0,
                Err(errno) => return Err(Error::host("hearing criu", errno)),
            };
            if length == 0 {
                return Err(self.failed("it ended without an answer".to_owned()));
            }
            let descriptor = control.drain().find_map(|message| {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
            });
            return match Response::decode(bytes.get(..length).unwrap_or_default()) {
                Ok(response) => Ok(Some((response, descriptor))),
                Err(_) => Err(self.failed("its answer cannot be read".to_owned())),
            };
        }
    }

    fn end(&mut self) -> Result<Heard, Error> {
        let Some(child) = &self.child else { return Ok(Heard::Done) };
        let ended = sys::process::reap(child.pidfd.as_fd()).map_err(|errno| Error::host("waiting for criu", errno))?;
        let Some(ended) = ended else { return Ok(Heard::Nothing) };
        self.child = None;
        match ended.exit {
            Exit::Code(0) => Ok(Heard::Done),
            // After a pre-dump it waits for the next one, and the closed socket is an error to it.
            _ if self.job.kind == Kind::PreDump => Ok(Heard::Done),
            Exit::Code(code) => Err(self.failed(format!("exit status {code}"))),
            Exit::Signal(signal) => Err(self.failed(format!("signal {signal}"))),
        }
    }

    /// An error that says what is in the log.
    pub(super) fn failed(&self, problem: String) -> Error {
        let (directory, path) = &self.job.log;
        let log = path.display();
        let problem = match errors_in(directory.as_fd(), &self.job.options.log_file) {
            Some(lines) => format!("{problem}: {lines} (log file: {log})"),
            None => format!("{problem} (no log file at {log})"),
        };
        Error::Criu { operation: self.operation(), problem }
    }

    fn refused(&self, response: &Response) -> Error {
        let kind = response.kind.map_or("unknown", Kind::name);
        self.failed(format!("criu failed: type {kind} errno {}", response.errno))
    }
}

impl Talk {
    /// Ends CRIU, wherever it stands.
    pub(super) fn kill(&mut self) {
        self.socket = None;
        if let Some(child) = self.child.take() {
            let _ = sys::process::pidfd_send_signal(&child.pidfd, libc::SIGKILL);
            let _ = sys::process::wait(child.pidfd.as_fd());
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `criu` in the search path of this process.
fn find_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin".into());
    // An empty or relative entry would be the working directory, which is the bundle for some callers.
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("criu"))
        .find(|program| {
            rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok() && Path::new(program).is_file()
        })
}

/// What a log tells of errors: the first, which is the cause, and the last; without any, the last line.
fn errors_in(directory: BorrowedFd<'_>, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let length = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    summary(&String::from_utf8_lossy(&bytes))
}

fn summary(log: &str) -> Option<String> {
    let mut errors = log.lines().map(str::trim).filter(|line| line.contains("Error ("));
    match (errors.next(), errors.next_back()) {
        (Some(first), Some(last)) => Some(format!("{first} ... {last}")),
        (Some(only), None) => Some(only.to_owned()),
        (None, _) => log.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn the_cause_and_the_end_of_a_log() {
        let log = "(0.1) start\n(0.2) Error (a.c:1): cause\n(0.3) Error (b.c:2): between\n(0.4) Error (c.c:3): end\n(0.5) bye\n\n";
        assert_eq!(summary(log).unwrap(), "(0.2) Error (a.c:1): cause ... (0.4) Error (c.c:3): end");
        assert_eq!(summary("x\nError (a.c:1): only\ny").unwrap(), "Error (a.c:1): only");
        assert_eq!((summary("x\n y \n"), summary("")), (Some("y".to_owned()), None));
    }
}
