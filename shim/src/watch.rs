//! Waiting for a descriptor in the event loop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, which must not block, with the event loop.
#[expect(deprecated, reason = "its replacement is unsafe for other types; an OwnedFd is open for as long as it lives")]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// As [`watch`] for reading, with a copy of a descriptor that stays its owner's.
pub(crate) fn watch_readable(fd: impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(rustix::io::fcntl_dupfd_cloexec(fd, 0)?, Interest::READABLE)
}
