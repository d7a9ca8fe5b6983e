//! The standard streams of a process, as the shim sees them.
//!
//! ```text
//!  client ── reads ── FIFO ◀── writes ── process          no byte passes through the shim
//!                      └ the shim holds a read end: no EPIPE, nothing lost while no client reads
//!  client ── writes ─▶ FIFO ── reads ──▶ process
//!                      └ the shim holds a write end until CloseIO: no end of file when a client dies
//! ```
//! A terminal's bytes, and those of a process whose user may not open the client's FIFO again through `/dev/stdout`,
//! are relayed (see [`relay`]).
//!
//! When the process has ended the write ends are gone, so a client that reads sees the rest and then the end of file,
//! as it must before it calls Delete; the read ends stay until Delete, so that the rest is still there for a client
//! that comes back later.

mod fifo;
mod logger;
mod relay;
mod uri;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use model::record::StdioPaths;
use runtime::{ConsoleSize, ProcessIo};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::watch::watch;
use fifo::{Sink, Source};
pub(crate) use logger::Logger;
use relay::TerminalSink;
use uri::Output;

/// How long the end of output is waited for at Delete, while some process still has the stream open.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Who must own a process's streams so that it can open them again; root's need no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The shim's ends of the streams of one process.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    /// Held until CloseIO.
    stdin_writer: Option<OwnedFd>,
    /// The client's FIFO, until the terminal is there to copy it to.
    stdin_reader: Option<OwnedFd>,
    /// Where the terminal's output goes, until the terminal is there. A FIFO is never closed and opened in between:
    /// a client that reads meanwhile would take that for the end.
    terminal_sink: Option<TerminalSink>,
    /// Read ends of the output FIFOs, held until Delete.
    outputs: Vec<Arc<OwnedFd>>,
    /// Everything that copies or lingers; ended with this value.
    tasks: Vec<JoinHandle<()>>,
    /// Each is closed when an output has been copied to its end: no process has that stream open any more.
    copying: Vec<oneshot::Receiver<()>>,
    /// Copying of input.
    input: Option<JoinHandle<()>>,
    console: Option<Arc<AsyncFd<OwnedFd>>>,
    /// The program that reads the outputs.
    logger: Option<Arc<logger::Process>>,
}

impl Stdio {
    /// Opens the streams that a client named, and makes what the process gets. `owner`: see [`Owner`]. With a terminal
    /// [`Stdio::attach`] follows once it exists. `logger` is what [`Logger::start`] made of the same paths. Does not wait
    /// for the client.
    pub(crate) fn open(
        paths: &StdioPaths,
        owner: Option<Owner>,
        logger: Option<Logger>,
    ) -> Result<(Self, ProcessIo), Error> {
        let mut stdio = Self::default();
        let mut logger = logger.map(|Logger { stdout, stderr, process }| {
            stdio.logger = Some(process);
            (stdout, stderr)
        });
        let (stdout, stderr) = uri::outputs(paths)?;
        let stdin = uri::input(paths)?.map(|path| fifo::open_source(&path)).transpose()?;
        if paths.terminal {
            stdio.terminal_sink = Some(match stdout {
                Output::Null | Output::SameAsStdout => TerminalSink::Null,
                Output::Program => match logger.take() {
                    Some((stdout, _)) => {
                        nonblocking(&stdout)?;
                        TerminalSink::Fifo(stdout)
                    }
                    None => TerminalSink::Null,
                },
                Output::Append(path) => TerminalSink::File(fifo::open_append(&path)?),
                Output::Existing(path) => match fifo::open_sink(&path)? {
                    Sink::Other(fd) => TerminalSink::File(fd),
                    Sink::Fifo { reader, writer } => {
                        nonblocking(&writer)?;
                        stdio.outputs.push(Arc::new(reader));
                        TerminalSink::Fifo(writer)
                    }
                },
            });
            if let Some(Source::Fifo { reader, writer }) = stdin {
                stdio.stdin_reader = Some(reader);
                stdio.stdin_writer = Some(writer);
            }
            return Ok((stdio, ProcessIo::Console { size: None }));
        }
        let stdin = stdio.input(stdin, owner)?;
        if let Some((stdout, stderr)) = logger {
            return Ok((stdio, ProcessIo::Streams { stdin, stdout, stderr }));
        }
        let stdout = stdio.output(stdout, None, owner)?;
        let stderr = stdio.output(stderr, Some(&stdout), owner)?;
        Ok((stdio, ProcessIo::Streams { stdin, stdout, stderr }))
    }

    fn input(&mut self, source: Option<Source>, owner: Option<Owner>) -> Result<OwnedFd, Error> {
        match (source, owner) {
            (None, _) => fifo::open_null(),
            (Some(Source::Other(fd)), _) => Ok(fd),
            (Some(Source::Fifo { reader, writer }), None) => {
                self.stdin_writer = Some(writer);
                Ok(reader)
            }
            (Some(Source::Fifo { reader, writer }), Some(owner)) => {
                self.stdin_writer = Some(writer);
                let (for_process, ours) = pipe(owner)?;
                let failed = |source| Error::System { operation: "relay standard input", source };
                let source = fifo::reopen_nonblocking(&reader, OFlags::RDONLY).map_err(failed)?;
                nonblocking(&ours)?;
                self.input = Some(tokio::spawn(async move {
                    // An error is the process's end of the pipe being gone: nobody is left to tell.
                    let _ = relay::splice(source, ours).await;
                }));
                Ok(for_process)
            }
        }
    }

    fn output(&mut self, output: Output, stdout: Option<&OwnedFd>, owner: Option<Owner>) -> Result<OwnedFd, Error> {
        match (output, stdout) {
            (Output::SameAsStdout, Some(stdout)) => rustix::io::fcntl_dupfd_cloexec(stdout, 0)
                .map_err(|errno| Error::system("duplicate standard output", errno)),
            (Output::Null | Output::SameAsStdout | Output::Program, _) => fifo::open_null(),
            (Output::Append(path), _) => fifo::open_append(&path),
            (Output::Existing(path), _) => match (fifo::open_sink(&path)?, owner) {
                (Sink::Other(fd), _) => Ok(fd),
                (Sink::Fifo { reader, writer }, None) => {
                    self.outputs.push(Arc::new(reader));
                    Ok(writer)
                }
                (Sink::Fifo { reader, .. }, Some(owner)) => {
                    let reader = Arc::new(reader);
                    self.outputs.push(Arc::clone(&reader));
                    let (ours, for_process) = pipe(owner)?;
                    let failed = |source| Error::System { operation: "relay an output", source };
                    let sink = fifo::reopen_nonblocking(&reader, OFlags::WRONLY).map_err(failed)?;
                    nonblocking(&ours)?;
                    self.copy(relay::splice(ours, sink), Some(reader));
                    Ok(for_process)
                }
            },
        }
    }

    /// Connects the terminal of the process, which exists now, with the client's FIFOs.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<(), Error> {
        nonblocking(&master)?;
        let failed = |source| Error::System { operation: "watch the terminal", source };
        let master = Arc::new(watch(master, Interest::READABLE | Interest::WRITABLE).map_err(failed)?);
        let sink = self.terminal_sink.take().unwrap_or(TerminalSink::Null);
        let terminal = Arc::clone(&master);
        self.copy(relay::from_terminal(terminal, sink), self.outputs.first().map(Arc::clone));
        if let Some(source) = self.stdin_reader.take() {
            nonblocking(&source)?;
            let terminal = Arc::clone(&master);
            self.input = Some(tokio::spawn(async move {
                let _ = relay::to_terminal(source, terminal).await;
            }));
        }
        self.console = Some(master);
        Ok(())
    }

    /// Lets standard input end once the client has closed its end too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// Sets the size of the terminal; without one nothing happens, as in containerd.
    pub(crate) fn resize(&self, size: ConsoleSize) -> Result<(), Error> {
        let Some(console) = &self.console else { return Ok(()) };
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console.get_ref(), size)
            .map_err(|errno| Error::system("resize the terminal", errno))
    }

    /// The process has ended. Its input is let go; output that nobody has read yet stays readable.
    pub(crate) fn ended(&mut self) {
        self.stdin_writer = None;
        self.stdin_reader = None;
        if let Some(input) = self.input.take() {
            input.abort();
        }
        if self.copying.is_empty() {
            for reader in self.outputs.iter().filter(|reader| fifo::unread(reader) > 0) {
                let reader = Arc::clone(reader);
                self.tasks.push(tokio::spawn(async move { relay::linger(&reader).await }));
            }
        }
    }

    /// What Delete waits for before it closes everything: output on its way from the process to the FIFO.
    pub(crate) fn draining(&mut self) -> Draining {
        Draining { copying: std::mem::take(&mut self.copying), logger: self.logger.take() }
    }

    /// Copies an output in the background. A failure ends the copying: there is nobody to tell but the client, who
    /// sees the end of file.
    fn copy(&mut self, relay: impl Future<Output = io::Result<()>> + Send + 'static, reader: Option<Arc<OwnedFd>>) {
        let (done, copying) = oneshot::channel();
        self.copying.push(copying);
        self.tasks.push(tokio::spawn(async move {
            let _ = relay.await;
            drop::<oneshot::Sender<()>>(done);
            if let Some(reader) = reader {
                relay::linger(&reader).await;
            }
        }));
    }
}

/// Output that is being copied.
#[derive(Debug)]
pub(crate) struct Draining {
    copying: Vec<oneshot::Receiver<()>>,
    logger: Option<Arc<logger::Process>>,
}

impl Draining {
    /// Waits for the end of the output, at most 10 s: a process that outlives its container's may hold it open
    /// forever.
    pub(crate) async fn finish(self) {
        let all = async {
            for copying in self.copying {
                // Nothing is ever sent; the error is the end.
                let _ = copying.await;
            }
            if let Some(logger) = &self.logger {
                logger.finish().await;
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err()
            && let Some(logger) = &self.logger
        {
            logger.end().await;
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        for task in self.tasks.drain(..).chain(self.input.take()) {
            task.abort();
        }
    }
}

fn pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |errno| Error::system("make a pipe", errno);
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    // Both ends are one inode.
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    rustix::fs::fchown(&writer, Some(uid), Some(gid)).map_err(failed)?;
    Ok((reader, writer))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), Error> {
    let failed = |errno| Error::system("make a descriptor non-blocking", errno);
    let flags = rustix::fs::fcntl_getfl(fd).map_err(failed)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(failed)
}

#[cfg(test)]
mod tests;
