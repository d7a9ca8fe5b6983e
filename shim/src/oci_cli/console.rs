//! Standard streams, terminals and signals of commands that stay in the foreground.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use runtime::ProcessIo;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::{OptionalActions, Termios};
use sys::signal::Signals;

use super::Error;

/// The streams of this process, or a new terminal.
pub(crate) fn plain_io(terminal: bool) -> Result<ProcessIo, Error> {
    if terminal {
        return Ok(ProcessIo::Console { size: None });
    }
    let copy = |stream: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(stream, 3).map_err(|errno| Error::io("copying a standard stream", errno))
    };
    Ok(ProcessIo::Streams {
        stdin: copy(std::io::stdin().as_fd())?,
        stdout: copy(std::io::stdout().as_fd())?,
        stderr: copy(std::io::stderr().as_fd())?,
    })
}

/// Descriptors that systemd's socket activation passes on.
pub(crate) fn listen_fds() -> u32 {
    std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Connects to the socket that gets the terminal, where one is needed.
pub(crate) fn socket_for(terminal: bool, path: Option<&str>, detached: bool) -> Result<Option<UnixStream>, Error> {
    match (terminal, path) {
        (true, None) if detached => Err(Error::Usage(
            "cannot allocate tty if the container is detached without setting console socket".to_owned(),
        )),
        (false, Some(_)) => {
            Err(Error::Usage("cannot use console socket if the container will not allocate a tty".to_owned()))
        }
        (_, None) => Ok(None),
        (true, Some(path)) => UnixStream::connect(path)
            .map(Some)
            .map_err(|source| Error::io(format!("connecting to console socket {path}"), source)),
    }
}

/// Sends the master of a terminal.
pub(crate) fn send(socket: &UnixStream, master: OwnedFd) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|errno| Error::io("sending the terminal to the console socket", errno))
}

/// Signals that a foreground command hands on.
const FORWARDED: [i32; 9] = [1, 2, 3, 10, 12, 14, 15, 18, 28];
const WINDOW_CHANGED: i32 = 28;

/// From here on signals wait to be read.
pub(crate) fn watch_signals() -> Result<Signals, Error> {
    Signals::block_in_process(&FORWARDED).map_err(|errno| Error::io("watching signals", errno))
}

/// Our own terminal in raw mode, joined to that of the container. Dropping it gives the old mode back.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: File,
    before: Option<Termios>,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> Result<Self, Error> {
        let before = rustix::termios::tcgetattr(std::io::stdin()).ok();
        if let Some(mode) = &before {
            let mut raw = mode.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
                .map_err(|errno| Error::io("setting the terminal to raw mode", errno))?;
        }
        let terminal = Self { master: master.into(), before };
        terminal.resize();
        Ok(terminal)
    }

    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(mode) = &self.before {
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, mode);
        }
    }
}

/// Waits for the end of a process, hands signals on and moves bytes between the terminals. Reaps the process and gives
/// its exit status.
pub(crate) fn follow(
    process: BorrowedFd<'_>,
    signals: Signals,
    mut terminal: Option<Terminal>,
    kill: impl Fn(i32),
) -> Result<u32, Error> {
    let waiting = |errno: Errno| Error::io("waiting for the process", errno);
    let (stdin, mut stdin_open) = (std::io::stdin(), terminal.is_some());
    loop {
        let mut polled = vec![
            PollFd::from_borrowed_fd(process, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if let Some(terminal) = &terminal {
            polled.push(PollFd::from_borrowed_fd(terminal.master.as_fd(), PollFlags::IN));
            if stdin_open {
                polled.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            other => other.map_err(waiting)?,
        };
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        while let Some(signal) = signals.next().map_err(waiting)? {
            match &terminal {
                Some(terminal) if signal == WINDOW_CHANGED => terminal.resize(),
                _ => kill(signal),
            }
        }
        if let Some(joined) = &mut terminal {
            if ready.get(3) == Some(&true) {
                stdin_open = copy(&mut stdin.lock(), &mut joined.master);
            }
            // At the end of the process the rest of what it wrote is still in the terminal.
            let done = ready.first() == Some(&true);
            if ready.get(2) == Some(&true) && !copy(&mut joined.master, &mut std::io::stdout()) || done && drain(joined)
            {
                terminal = None;
            }
        }
        if ready.first() == Some(&true) {
            return sys::process::wait(process).map(|end| end.exit.status()).map_err(waiting);
        }
    }
}

/// Moves what is there; false at the end.
fn copy(from: &mut impl std::io::Read, to: &mut impl std::io::Write) -> bool {
    let mut buffer = [0; 8192];
    match from.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok(),
    }
}

/// Moves all that the container wrote before its end.
fn drain(terminal: &mut Terminal) -> bool {
    while sys::fs::poll_readable(terminal.master.as_fd(), Some(std::time::Duration::ZERO)).unwrap_or(false) {
        let mut buffer = [0; 8192];
        match terminal.master.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let _ = std::io::stdout().write_all(&buffer[..count]);
            }
        }
    }
    let _ = std::io::stdout().flush();
    true
}
