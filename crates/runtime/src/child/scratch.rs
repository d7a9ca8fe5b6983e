//! Descriptors that are done with.
//!
//! All of them close by themselves at the exec that is about to come; closing each before is a tenth of the calls that a
//! container's birth takes. But the caller's limit of descriptors, or the container's own, may be too small for that.

use std::cell::Cell;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};

/// Numbers that are kept track of.
const TRACKED: usize = 512;

/// What is open and of no use any more.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Close everything at once.
    thrifty: bool,
    open: [Cell<u64>; TRACKED / 64],
}

impl Scratch {
    pub(super) fn new(thrifty: bool) -> Self {
        Self { thrifty, open: [const { Cell::new(0) }; TRACKED / 64] }
    }

    /// Takes a descriptor that nothing will be done with.
    pub(super) fn put(&self, fd: OwnedFd) {
        let number = usize::try_from(fd.as_raw_fd()).unwrap_or(TRACKED);
        match self.open.get(number / 64) {
            Some(word) if !self.thrifty => {
                word.set(word.get() | 1 << (number % 64));
                // Closed by `empty`, or by the exec.
                let _ = fd.into_raw_fd();
            }
            _ => drop(fd),
        }
    }

    /// Closes what was put here.
    pub(super) fn empty(&self) {
        for (index, word) in self.open.iter().enumerate() {
            let set = word.take();
            for bit in (0..64).filter(|bit| set & (1 << bit) != 0) {
                let number = i32::try_from(index * 64 + bit).unwrap_or(-1);
                // SAFETY: the number came from an owned descriptor, which nobody else has closed.
                #[expect(unsafe_code, reason = "the owner was given up in `put`")]
                unsafe {
                    rustix::io::close(number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use super::*;

    fn is_open(number: RawFd) -> bool {
        std::path::Path::new(&format!("/proc/self/fd/{number}")).is_symlink()
    }

    #[test]
    fn closed_at_once_or_later() {
        // A number that no other test gets meanwhile.
        let open = |least| {
            let file = std::fs::File::open("/dev/null").unwrap();
            rustix::io::fcntl_dupfd_cloexec(file, least).unwrap()
        };
        let (now, later) = (open(400), open(420));
        let numbers = (now.as_raw_fd(), later.as_raw_fd());
        Scratch::new(true).put(now);
        let scratch = Scratch::new(false);
        scratch.put(later);
        assert_eq!((is_open(numbers.0), is_open(numbers.1)), (false, true));
        scratch.empty();
        scratch.empty();
        assert!(!is_open(numbers.1));
    }
}
