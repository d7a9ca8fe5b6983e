//! Being told that the kernel killed a process for lack of memory, and whose limit it was that ran out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags, inotify};
use sys::Errno;

use crate::dir::Dir;
use crate::{CgroupPath, Error, Host, Result, text};

/// Below this a limit of version 1 is one: without one the file has the largest number of pages.
const UNLIMITED_V1: u64 = 1 << 62;

/// A group whose largest use came so close to its limit had to do without something.
const NEAR_BYTES: u64 = 64 << 10;

/// A descriptor that becomes readable when memory of a group ran out. It holds no other descriptor.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    /// The group in the hierarchy of the memory controller.
    location: PathBuf,
    v2: bool,
}

impl OomWatch {
    /// Watches the group at `path`; `None` where the host has no memory controller. [`Error::Gone`] if the group does
    /// not exist.
    pub fn open(host: &Host, path: &CgroupPath) -> Result<Option<Self>> {
        let open = |mount: &Path| {
            let location = mount.join(path.as_str());
            Dir::open(location.clone()).map_err(|source| match source {
                Errno::NOENT | Errno::NODEV => Error::Gone { path: location.display().to_string() },
                _ => Error::Read { path: location.display().to_string(), file: String::new(), source },
            })
        };
        match host {
            Host::V1 { controllers } => match controllers.iter().find(|(name, _)| name == "memory") {
                Some((_, mount)) => Self::v1(&open(mount)?).map(Some),
                None => Ok(None),
            },
            Host::V2 { mount } => {
                let group = open(mount)?;
                if group.has("memory.events") { Self::v2(&group).map(Some) } else { Ok(None) }
            }
        }
    }

    /// Version 1: an eventfd registered with the memory controller. It fires before the kernel kills anything, and
    /// also when the group is removed.
    pub(crate) fn v1(memory: &Dir) -> Result<Self> {
        let register = || {
            let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let control = rustix::fs::openat(memory.fd()?, "memory.oom_control", flags, Mode::empty())?;
            memory.try_write("cgroup.event_control", &format!("{} {}", fd.as_raw_fd(), control.as_raw_fd()))?;
            Ok(Self { fd, location: memory.location().to_owned(), v2: false })
        };
        register().map_err(|source| memory.read_error("memory.oom_control", source))
    }

    /// Version 2: a watch on the file of counters, which the kernel marks modified when one grows.
    pub(crate) fn v2(group: &Dir) -> Result<Self> {
        let register = || {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = format!("{}/memory.events", sys::fs::proc_path(group.fd()?));
            inotify::add_watch(&fd, events, inotify::WatchFlags::MODIFY)?;
            Ok(Self { fd, location: group.location().to_owned(), v2: true })
        };
        register().map_err(|source| group.read_error("memory.events", source))
    }

    /// Takes the notifications that are there; call it when the descriptor is readable. Whether a process was killed
    /// says the counter: [`OomWatch::kills`]. Does not block.
    pub fn drain(&self) -> Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(source) => {
                    let file = "the watch for lack of memory".to_owned();
                    return Err(Error::Read { path: String::new(), file, source });
                }
            }
        }
    }

    /// How many processes of the group the kernel has killed for lack of memory, by now. On version 1 a notification
    /// comes shortly before the count. [`Error::Gone`] once the group is removed.
    pub fn kills(&self) -> Result<u64> {
        let group = Dir::open(self.location.clone()).map_err(|source| match source {
            Errno::NOENT | Errno::NODEV => Error::Gone { path: self.location.display().to_string() },
            _ => Error::Read { path: self.location.display().to_string(), file: String::new(), source },
        })?;
        kills(&group, self.v2)
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The count of a group; 0 where the kernel keeps none.
pub(crate) fn kills(group: &Dir, v2: bool) -> Result<u64> {
    let file = if v2 { "memory.events" } else { "memory.oom_control" };
    Ok(group.read_optional(file)?.map_or(0, |text| text::value_of(&text, "oom_kill")))
}

/// Which group's limit was reached when something in `group` was killed: the nearest one, from the group itself up to
/// `mount`, that has run into its own. `/` if none has, as it is when the host ran out.
///
/// Version 2 counts a group's own cases apart (`memory.events.local`). Version 1 counts how often a limit was hit,
/// or tells that use came up to it, which may have had no consequence: there the answer is a good guess.
pub(crate) fn origin(group: &Path, mount: &Path, v2: bool) -> String {
    let ran_out = |directory: &Path| {
        let read = |file: &str| std::fs::read_to_string(directory.join(file)).unwrap_or_default();
        let limited = |stem: &str| {
            let figure = |name: &str| text::number(&read(&format!("{stem}.{name}")));
            let limit = figure("limit_in_bytes");
            // Linux 6.18 does not count failures of memory and swap together.
            let near = || figure("max_usage_in_bytes").saturating_add(NEAR_BYTES) >= limit;
            (1..UNLIMITED_V1).contains(&limit) && (figure("failcnt") > 0 || near())
        };
        if v2 {
            text::value_of(&read("memory.events.local"), "oom") > 0
        } else {
            limited("memory") || limited("memory.memsw") || limited("memory.kmem")
        }
    };
    let nearest = group.ancestors().take_while(|level| *level != mount && level.starts_with(mount));
    let found = nearest.into_iter().find(|level| ran_out(level)).and_then(|level| level.strip_prefix(mount).ok());
    found.map_or_else(|| "/".to_owned(), |below| format!("/{}", below.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_nearest_group_that_ran_out() {
        let mount = tempfile::tempdir().unwrap();
        let mount = mount.path();
        let group = mount.join("a/b/c");
        fs::create_dir_all(&group).unwrap();
        let write = |below: &str, file: &str, text: &str| fs::write(mount.join(below).join(file), text).unwrap();
        for (below, oom) in [("a", 3), ("a/b", 0), ("a/b/c", 0)] {
            write(below, "memory.events.local", &format!("low 0\nmax 9\noom {oom}\noom_kill 1\n"));
        }
        assert_eq!(origin(&group, mount, true), "/a");
        write("a/b/c", "memory.events.local", "oom 1\n");
        assert_eq!(origin(&group, mount, true), "/a/b/c");
        write("a", "memory.limit_in_bytes", "4194304\n");
        write("a", "memory.failcnt", "2\n");
        write("a/b", "memory.limit_in_bytes", "9223372036854771712\n");
        write("a/b", "memory.failcnt", "2\n");
        assert_eq!(origin(&group, mount, false), "/a");
        write("a", "memory.failcnt", "0\n");
        assert_eq!(origin(&group, mount, false), "/");
    }
}
