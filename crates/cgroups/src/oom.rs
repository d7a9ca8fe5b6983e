//! Being told that the kernel killed a process for lack of memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags, inotify};
use sys::Errno;

use crate::Result;
use crate::dir::Dir;

/// A descriptor that becomes readable when memory of a group ran out.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
}

impl OomWatch {
    /// Version 1: an eventfd registered with the memory controller. It also fires when the group is removed.
    pub(crate) fn v1(memory: &Dir) -> Result<Self> {
        let register = || {
            let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let control = rustix::fs::openat(memory.fd()?, "memory.oom_control", flags, Mode::empty())?;
            memory.try_write("cgroup.event_control", &format!("{} {}", fd.as_raw_fd(), control.as_raw_fd()))?;
            Ok(Self { fd })
        };
        register().map_err(|source| memory.read_error("memory.oom_control", source))
    }

    /// Version 2: a watch on the file of counters, which the kernel marks modified when one grows.
    pub(crate) fn v2(group: &Dir) -> Result<Self> {
        let register = || {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = format!("{}/memory.events", sys::fs::proc_path(group.fd()?));
            inotify::add_watch(&fd, events, inotify::WatchFlags::MODIFY)?;
            Ok(Self { fd })
        };
        register().map_err(|source| group.read_error("memory.events", source))
    }

    /// Takes the notifications that are there; call it when the descriptor is readable. Whether a process was killed
    /// says the counter: [`crate::Cgroup::oom_kills`]. Does not block.
    pub fn drain(&self) -> Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(source) => {
                    let file = "the watch for lack of memory".to_owned();
                    return Err(crate::Error::Read { path: String::new(), file, source });
                }
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
