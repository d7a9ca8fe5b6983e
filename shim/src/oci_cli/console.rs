//! Standard streams, terminals and signals of commands that stay in the foreground.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use runtime::ProcessIo;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::{OptionalActions, OutputModes, Termios};
use sys::signal::Signals;

use super::Error;
use super::args::Words;
use super::notify::Notify;

/// The streams of this process, or a new terminal.
pub(crate) fn own_io(terminal: bool) -> ProcessIo {
    if terminal { ProcessIo::Console { size: None } } else { ProcessIo::Inherited }
}

/// What these streams are: a checkpoint keeps it, so that a restore can put other pipes in their place.
pub(crate) fn streams(terminal: bool) -> Vec<String> {
    let of = |number: u32| std::fs::read_link(format!("/proc/self/fd/{number}")).ok().filter(|_| !terminal);
    (0..3).map(|number| of(number).map_or_else(|| "/dev/null".to_owned(), |path| path.display().to_string())).collect()
}

/// Descriptors from 3 on that socket activation passed to this very process (sd_listen_fds(3)).
pub(crate) fn listen_fds() -> u32 {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match (variable("LISTEN_FDS"), variable("LISTEN_PID")) {
        (Some(number), Some(pid)) if pid == std::process::id() => number,
        _ => 0,
    }
}

/// How many descriptors from 3 on the new process keeps. All that `--preserve-fds` counts must be open. To be called
/// before anything else is opened.
pub(crate) fn preserved(words: &Words) -> Result<u32, Error> {
    let (passed, wanted) = (listen_fds(), words.number::<u32>("preserve-fds")?.unwrap_or(0));
    for index in 0..wanted {
        let path = format!("/proc/self/fd/{}", 3 + passed + index);
        rustix::fs::access(&path, rustix::fs::Access::EXISTS)
            .map_err(|errno| Error::io(format!("unable to stat preserved-fd {index} (of {wanted})"), errno))?;
    }
    Ok(passed + wanted)
}

/// Connects to the socket that gets the terminal, where one is needed.
pub(crate) fn socket_for(terminal: bool, path: Option<&str>, detached: bool) -> Result<Option<UnixStream>, Error> {
    let refuse = |text: &str| Err(Error::Usage(text.to_owned()));
    match path {
        None if terminal && detached => {
            refuse("cannot allocate tty if the container is detached without setting console socket")
        }
        Some(_) if !(terminal && detached) => {
            refuse("cannot use console socket if the container is not detached or has no terminal")
        }
        None => Ok(None),
        Some(path) => connect("console", path).map(Some),
    }
}

pub(crate) fn connect(what: &str, path: &str) -> Result<UnixStream, Error> {
    UnixStream::connect(path).map_err(|source| Error::io(format!("connecting to {what} socket {path}"), source))
}

/// Sends a descriptor with a name.
pub(crate) fn send(socket: &UnixStream, name: &[u8], descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(name)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|errno| Error::io("sending a descriptor to a socket", errno))
}

/// Signals that a foreground command hands on.
const FORWARDED: [i32; 14] = [1, 2, 3, 10, 12, 14, 15, CHILD_ENDED, 18, 20, 21, 22, 23, WINDOW_CHANGED];
/// Not handed on: for us.
const CHILD_ENDED: i32 = 17;
const WINDOW_CHANGED: i32 = 28;

/// From here on signals wait to be read.
pub(crate) fn watch_signals() -> Result<Signals, Error> {
    Signals::block_in_process(&FORWARDED).map_err(|errno| Error::io("watching signals", errno))
}

/// Our own terminal in raw mode, joined to that of the container. Dropping it gives the old mode back.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: File,
    /// Ours, where we have one, with its mode before.
    own: Option<(OwnedFd, Termios)>,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> Result<Self, Error> {
        let failed = |what: &'static str| move |errno: Errno| Error::io(what, errno);
        // Lines end as the program ends them, not with a carriage return added: our own terminal does that.
        let mut mode = rustix::termios::tcgetattr(&master).map_err(failed("reading the mode of the terminal"))?;
        mode.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&master, OptionalActions::Now, &mode)
            .map_err(failed("setting the mode of the terminal"))?;
        let own = own_terminal();
        if let Some((descriptor, mode)) = &own {
            let mut raw = mode.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(descriptor, OptionalActions::Now, &raw)
                .map_err(failed("setting the terminal to raw mode"))?;
        }
        let terminal = Self { master: master.into(), own };
        terminal.resize();
        Ok(terminal)
    }

    fn resize(&self) {
        let Some((own, _)) = &self.own else { return };
        if let Ok(size) = rustix::termios::tcgetwinsize(own) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some((own, mode)) = &self.own {
            let _ = rustix::termios::tcsetattr(own, OptionalActions::Now, mode);
        }
    }
}

/// The terminal that we run on, by a standard stream, or by its own name if all three lead elsewhere.
fn own_terminal() -> Option<(OwnedFd, Termios)> {
    let stream = |stream: BorrowedFd<'_>| {
        let mode = rustix::termios::tcgetattr(stream).ok()?;
        Some((rustix::io::fcntl_dupfd_cloexec(stream, 3).ok()?, mode))
    };
    let by_name = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let own = rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()?;
        let mode = rustix::termios::tcgetattr(&own).ok()?;
        Some((own, mode))
    };
    stream(std::io::stderr().as_fd())
        .or_else(|| stream(std::io::stdout().as_fd()))
        .or_else(|| stream(std::io::stdin().as_fd()))
        .or_else(by_name)
}

/// Reaps children that are not the one we wait for: as a subreaper we inherit what containers leave behind.
fn reap_others(process: BorrowedFd<'_>) -> Result<(), Errno> {
    while let Some(ended) = sys::process::peek_any()? {
        if sys::fs::poll_readable(process, Some(std::time::Duration::ZERO))? {
            return Ok(());
        }
        let _ = sys::process::reap_pid(ended.pid);
    }
    Ok(())
}

/// Waits for the end of a process, hands signals on and moves bytes between the terminals. Reaps the process and gives
/// its exit status.
pub(crate) fn follow(
    process: BorrowedFd<'_>,
    signals: Signals,
    mut terminal: Option<Terminal>,
    mut notify: Option<Notify>,
    kill: impl Fn(i32),
) -> Result<u32, Error> {
    let waiting = |errno: Errno| Error::io("waiting for the process", errno);
    let (stdin, mut stdin_open) = (std::io::stdin(), terminal.is_some());
    loop {
        let mut polled = vec![
            PollFd::from_borrowed_fd(process, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        let from_container = notify.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd);
        polled.push(PollFd::from_borrowed_fd(from_container, PollFlags::IN));
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
        let ended = || sys::process::wait(process).map(|end| end.exit.status()).map_err(waiting);
        if let (Some(true), None) = (ready.first(), &terminal) {
            // Nobody is left to hand a signal to, and nothing to show.
            return ended();
        }
        while let Some(signal) = signals.next().map_err(waiting)? {
            match (signal, &terminal) {
                (WINDOW_CHANGED, Some(terminal)) => terminal.resize(),
                (WINDOW_CHANGED, None) => {}
                (CHILD_ENDED, _) => reap_others(process).map_err(waiting)?,
                _ => kill(signal),
            }
        }
        if let Some(true) = ready.get(2)
            && let Some(waiting) = &notify
            && waiting.pass_on(std::process::id())?
        {
            notify = None;
        }
        if let Some(joined) = &mut terminal {
            if ready.get(4) == Some(&true) {
                stdin_open = copy(&mut stdin.lock(), &mut joined.master);
            }
            // At the end of the process the rest of what it wrote is still in the terminal.
            let done = ready.first() == Some(&true);
            if ready.get(3) == Some(&true) && !copy(&mut joined.master, &mut std::io::stdout()) || done && drain(joined)
            {
                terminal = None;
            }
        }
        if ready.first() == Some(&true) {
            return ended();
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
