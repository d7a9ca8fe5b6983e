//! The start of a program without the runtime of Rust's standard library.

#![expect(unsafe_code, reason = "standard streams have fixed numbers, and dispositions are raw")]

use std::os::fd::{BorrowedFd, IntoRawFd as _};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::Result;

/// What a program needs that begins at C's `main`: its standard streams are open, so that no file of ours gets one of
/// their numbers, and a pipe that nobody reads is an error, not its end. The library's own start does twenty calls more,
/// for a message about a stack that overflows and for the name of a thread.
///
/// To be called first, with one thread.
pub fn begin_in_process() -> Result<()> {
    // SAFETY: only asked about; a number that is not open is told.
    let stream = |number| unsafe { BorrowedFd::borrow_raw(number) };
    let mut polled = [0, 1, 2].map(|number| PollFd::from_borrowed_fd(stream(number), PollFlags::empty()));
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let closed = polled.iter().filter(|stream| stream.revents().contains(PollFlags::NVAL)).count();
    for _ in 0..closed {
        // The lowest free number, which the closed stream has.
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR, Mode::empty())?;
        let _ = null.into_raw_fd();
    }
    // SAFETY: to ignore is valid for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    Ok(())
}
