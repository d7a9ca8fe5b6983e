use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;

/// A process whose end can be awaited, whoever its parent is.
#[derive(Debug)]
pub(crate) struct Pidfd {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Pidfd {
    /// Watches the process that `fd` holds. Needs a tokio runtime.
    #[expect(deprecated, reason = "unsound only for types that do not own their descriptor; the replacement is unsafe")]
    pub(crate) fn new(pid: u32, fd: OwnedFd) -> Result<Self, Error> {
        let fd = AsyncFd::with_interest(fd, Interest::READABLE).map_err(|source| Error::Process {
            operation: "watch",
            pid,
            source,
        })?;
        Ok(Self { pid, fd })
    }

    /// The pid, which may belong to another process once this one has ended and was reaped.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns once the process has ended, reaped or not. Cancel safe, and may be awaited again.
    pub(crate) async fn ended(&self) {
        // Readiness is never cleared, because a process ends once. An error means that the runtime shuts down.
        if self.fd.readable().await.is_err() {
            std::future::pending().await
        }
    }

    /// Sends a signal; a process that has ended is no error.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Error> {
        match sys::process::pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(sys::Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::Process { operation: "signal", pid: self.pid, source: io::Error::from(errno) }),
        }
    }

    /// Reaps the process if it is our child and has ended; a shim that an earlier daemon started is not our child.
    pub(crate) fn reap(&self) {
        match sys::process::reap(self.fd.get_ref().as_fd()) {
            Ok(_) | Err(sys::Errno::CHILD) => {}
            Err(errno) => tracing::warn!(pid = self.pid, %errno, "cannot reap a shim"),
        }
    }
}
