//! Files by descriptor: paths resolved inside a root, files replaced as a whole, trees removed.
//!
//! **Invariant:** nothing here follows a symbolic link out of the directory descriptor it was given, whoever changes
//! the tree meanwhile.

mod remove;
mod resolve;
mod write;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;

pub use remove::remove_tree;
pub use resolve::{create_in_root, mkdir_in_root, mkfile_in_root, open_in_root, parent_in_root};
pub use write::{fsync_dir, replace_file, write_atomic, write_durable};

/// A path under `/proc/self/fd` that names the open file itself, for calls that take only paths.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes room for bytes `from .. from + length` of a file without changing its length. ENOSPC where there is none,
/// EOPNOTSUPP where the file system makes no promises.
pub fn reserve(fd: BorrowedFd<'_>, from: u64, length: u64) -> Result<()> {
    rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, from, length)
}

/// Gives such room back; bytes of the file that lie in it become zero.
pub fn release(fd: BorrowedFd<'_>, from: u64, length: u64) -> Result<()> {
    rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE, from, length)
}

/// Closes descriptors, neighbours in one call.
pub fn close_all(mut descriptors: Vec<OwnedFd>) {
    if !crate::features().close_range {
        return;
    }
    descriptors.sort_unstable_by_key(AsRawFd::as_raw_fd);
    let mut numbers = descriptors.into_iter().map(IntoRawFd::into_raw_fd).peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        crate::process::close_range(first, last);
    }
}

/// Reads a file of `/proc` that is shorter than 2 KiB and has one record: what the kernel gives of it at once is all.
pub fn read_short(dir: impl AsFd, path: impl rustix::path::Arg) -> Result<String> {
    let file = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    let mut bytes = Vec::with_capacity(2048);
    while let Err(errno) = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
        if errno != Errno::INTR {
            return Err(errno);
        }
    }
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}

/// Reads a small file (at most 1 MiB; EFBIG beyond) of `/proc`, `/sys` or our own making as text. EILSEQ where it is
/// not UTF-8.
pub fn read_small(dir: impl AsFd, path: impl rustix::path::Arg) -> Result<String> {
    const LIMIT: usize = 1 << 20;
    let file = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) if bytes.len() > LIMIT => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}

/// Waits until `fd` is readable or hung up; false if `timeout` passed first. `None` waits without limit. Blocks.
pub fn poll_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    poll(fd, PollFlags::IN, timeout)
}

/// Waits until `fd` has an exceptional condition, as `cgroup.events` and mountinfo show a change; false if `timeout`
/// passed first. Blocks.
pub fn poll_priority(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    poll(fd, PollFlags::PRI, timeout)
}

fn poll(fd: BorrowedFd<'_>, events: PollFlags, timeout: Option<Duration>) -> Result<bool> {
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let rest = rest.map(Timespec::try_from).transpose().map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(&mut [PollFd::new(&fd, events)], rest.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_closed_and_their_neighbours_are_not() {
        let open = |least| {
            let file = std::fs::File::open("/dev/null").unwrap();
            rustix::io::fcntl_dupfd_cloexec(file, least).unwrap()
        };
        // Numbers that no other test gets meanwhile.
        let all: Vec<OwnedFd> = (600..606).map(open).collect();
        let numbers: Vec<i32> = all.iter().map(AsRawFd::as_raw_fd).collect();
        let (kept, closed): (Vec<_>, Vec<_>) = all.into_iter().partition(|fd| fd.as_raw_fd() % 3 == 0);
        let still: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
        close_all(closed);
        for number in numbers {
            let open = std::path::Path::new(&format!("/proc/self/fd/{number}")).is_symlink();
            assert_eq!(open, still.contains(&number), "{number}");
        }
    }

    #[test]
    fn a_short_file_is_read_whole() {
        let own = read_short(rustix::fs::CWD, "/proc/self/stat").unwrap();
        assert!(own.ends_with('\n') && own.starts_with(&std::process::id().to_string()), "{own}");
    }
}
