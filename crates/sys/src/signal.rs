//! Signals as data: blocked for the process, read from a descriptor.
//!
//! **Invariant:** nobody here installs a handler, so no code of ours ever runs in the middle of other code. A blocked
//! mask is inherited by children: whoever starts one gives it an empty mask ([`crate::spawn`] does).

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;

use crate::Result;

/// Signals that the calling process has blocked and reads from a descriptor instead.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks `signals` (`libc::SIGCHLD` and its kin) in the calling thread, which must be the only one, for the rest
    /// of the process's life.
    pub fn block_in_process(signals: &[i32]) -> Result<Self> {
        let set = set_of(signals)?;
        set.thread_block().map_err(errno)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(errno)?;
        Ok(Self { fd })
    }

    /// The next pending signal; `None` if none is pending. Does not block. Several of one kind may be told as one.
    pub fn next(&self) -> Result<Option<i32>> {
        match self.fd.read_signal() {
            Ok(info) => Ok(info.and_then(|info| i32::try_from(info.ssi_signo).ok())),
            Err(error) => Err(errno(error)),
        }
    }
}

impl AsFd for Signals {
    /// Readable when a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Keeps signals from the calling thread until [`unblock`]: they stay pending meanwhile, across an exec as well.
pub fn block(signals: &[i32]) -> Result<()> {
    set_of(signals)?.thread_block().map_err(errno)
}

/// Lets signals come to the calling thread, those that are pending at once.
pub fn unblock(signals: &[i32]) -> Result<()> {
    set_of(signals)?.thread_unblock().map_err(errno)
}

fn set_of(signals: &[i32]) -> Result<SigSet> {
    let mut set = SigSet::empty();
    for &signal in signals {
        set.add(Signal::try_from(signal).map_err(errno)?);
    }
    Ok(set)
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}
