//! Logging to a program (`binary://` and `binary-v2://`, containerd's): it reads what the process says from descriptors
//! 3 and 4, and tells by descriptor 5 that it is ready.
//!
//! No byte passes through the shim. The program is a child of ours and gets nothing but what the client named: the
//! query as arguments, and the container's id and namespace in its environment.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::record::StdioPaths;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use sys::spawn::Command;
use tokio::io::Interest;

use super::{Owner, uri};
use crate::error::Error;
use crate::watch::{watch, watch_readable};

/// How long a program may take to be ready.
const READY: Duration = Duration::from_secs(10);

/// How long it may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(2);

/// A program to log to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Version 2: a byte says that it is ready, and its end says that it is not.
    pub(super) answers: bool,
}

/// A program that is ready to read.
#[derive(Debug)]
pub(crate) struct Logger {
    /// What it reads, to be given to a process.
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) process: Arc<Process>,
}

/// The program's process. It ends when nobody can write to it any more; when this goes, it is asked to.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
}

impl Logger {
    /// Starts the program that the streams name, if they do, and waits until it is ready. `id` is that of the container
    /// or of the additional process. Cancelled, it ends the program.
    pub(crate) async fn start(
        paths: &StdioPaths,
        owner: Option<Owner>,
        id: &str,
        namespace: &str,
    ) -> Result<Option<Self>, Error> {
        let Some(program) = uri::program(paths)? else { return Ok(None) };
        let failed = |source: io::Error| Error::OpenStdio { uri: paths.stdout.clone(), source };
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> { Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?) };
        let (for_stdout, stdout) = pipe().map_err(failed)?;
        let (for_stderr, stderr) = pipe().map_err(failed)?;
        let (ready, for_ready) = pipe().map_err(failed)?;
        if let Some(Owner { uid, gid }) = owner {
            let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
            for end in [&stdout, &stderr] {
                rustix::fs::fchown(end, Some(uid), Some(gid)).map_err(|errno| failed(errno.into()))?;
            }
        }
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .env("CONTAINER_ID", id)
            .env("CONTAINER_NAMESPACE", namespace)
            .fd(3, for_stdout)
            .fd(4, for_stderr)
            .fd(5, for_ready)
            .spawn()
            .map_err(|errno| failed(errno.into()))?;
        let logger = Self { stdout, stderr, process: Arc::new(Process { pidfd: child.pidfd }) };
        let mut byte = [0];
        let ready = watch(ready, Interest::READABLE).map_err(failed)?;
        let reading = ready.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut byte)?));
        let count = match tokio::time::timeout(READY, reading).await {
            Ok(count) => count.map_err(failed)?,
            Err(_) => {
                return Err(Error::Deadline { operation: "start of the logging program", seconds: READY.as_secs() });
            }
        };
        if count == 0 && (program.answers || logger.process.ended()) {
            return Err(failed(io::Error::other("the logging program has ended before it was ready")));
        }
        Ok(Some(logger))
    }
}

impl Process {
    fn ended(&self) -> bool {
        sys::process::waitid_pidfd_peek(std::os::fd::AsFd::as_fd(&self.pidfd)).map_or(true, |exited| exited.is_some())
    }

    /// Waits for the program's end; it has come once all that was said is read.
    pub(super) async fn finish(&self) {
        // An error means that it cannot be watched, and then there is nothing to wait for.
        let Ok(watched) = watch_readable(&self.pidfd) else { return };
        drop(watched.readable().await);
    }

    /// Asks the program to end, and ends it.
    pub(super) async fn end(&self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.finish()).await.is_err() {
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, signal: Signal) {
        // One that has ended needs none.
        let _ = sys::process::pidfd_send_signal(&self.pidfd, signal.as_raw());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal(Signal::TERM);
        }
    }
}
