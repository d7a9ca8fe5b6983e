//! Walking the groups below a group.
//!
//! A container may nest groups deeper than any path may be long, so the walk holds one descriptor and goes up by `..`:
//! the kernel never moves a group to another parent.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir as Entries, FileType, Mode, OFlags};
use sys::Errno;

use crate::dir::Dir;
use crate::{Error, Result};

/// How long a removal waits for processes that are about to go.
pub(crate) const DELETE_PATIENCE: Duration = Duration::from_secs(2);

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Visits the group and all below it: `enter` from the top down, `leave` for each below, from the bottom up, with its
/// parent and name.
fn walk(
    top: BorrowedFd<'_>,
    mut enter: impl FnMut(BorrowedFd<'_>) -> sys::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CString) -> sys::Result<()>,
) -> sys::Result<()> {
    let mut current = rustix::fs::openat(top, ".", OPEN, Mode::empty())?;
    enter(current.as_fd())?;
    let mut path: Vec<CString> = Vec::new();
    let mut pending = vec![children(current.as_fd())?];
    while let Some(siblings) = pending.last_mut() {
        if let Some(name) = siblings.pop() {
            let child = match rustix::fs::openat(&current, &name, OPEN, Mode::empty()) {
                // Removed meanwhile.
                Err(Errno::NOENT | Errno::NODEV) => continue,
                result => result?,
            };
            enter(child.as_fd())?;
            pending.push(children(child.as_fd())?);
            path.push(name);
            current = child;
        } else {
            pending.pop();
            let Some(name) = path.pop() else { break };
            current = rustix::fs::openat(&current, "..", OPEN, Mode::empty())?;
            leave(current.as_fd(), &name)?;
        }
    }
    Ok(())
}

fn children(dir: BorrowedFd<'_>) -> sys::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Entries::read_from(dir)? {
        let entry = match entry {
            // The group was removed while we read it.
            Err(Errno::NOENT | Errno::NODEV) => break,
            result => result?,
        };
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// The pids in the group and in those below.
pub(crate) fn processes(dir: &Dir) -> Result<BTreeSet<u32>> {
    let mut pids = BTreeSet::new();
    let read = |dir: BorrowedFd<'_>| {
        match sys::fs::read_small(dir, "cgroup.procs") {
            // 0 is a process that this pid namespace cannot see.
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &u32| *pid != 0)),
            // A threaded group: its processes show in the group that is the root of its domain.
            Err(Errno::OPNOTSUPP | Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    };
    if !dir.exists() {
        return Err(Error::Gone { path: dir.shown() });
    }
    let walked = dir.fd().and_then(|top| walk(top, read, |_, _| Ok(())));
    walked.map_err(|source| dir.read_error("cgroup.procs", source))?;
    Ok(pids)
}

/// Sends SIGKILL to everything in the group and below until nothing new shows. With the group frozen that is one
/// round; without, a process may fork faster than we look, so the rounds are bounded.
pub(crate) fn kill_each(dir: &Dir) -> Result<()> {
    const MAX_ROUNDS: usize = 64;
    let mut killed = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let fresh: Vec<u32> = processes(dir)?.difference(&killed).copied().collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            kill(pid).map_err(|source| Error::Write {
                path: dir.shown(),
                file: "cgroup.procs".to_owned(),
                value: format!("SIGKILL to {pid}"),
                source,
            })?;
            killed.insert(pid);
        }
    }
    Ok(())
}

fn kill(pid: u32) -> sys::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return Ok(()) };
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Err(Errno::SRCH) => Ok(()),
        result => result,
    }
}

/// Removes the group and those below, waiting for processes that are about to go until `deadline`. A group that is
/// gone is fine.
pub(crate) fn delete(dir: &Dir, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        let busy = match delete_once(dir) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY) => Errno::BUSY,
            Err(source) => return Err(Error::Delete { path: dir.shown(), source }),
        };
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(Error::Delete { path: dir.shown(), source: busy });
        }
        wait_for_change(dir, pause.min(rest));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Removes the group if nothing is in it or below; false if something is. One that is gone is fine.
pub(crate) fn delete_empty(dir: &Dir) -> Result<bool> {
    match rustix::fs::unlinkat(CWD, dir.location(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(source) => Err(Error::Delete { path: dir.shown(), source }),
    }
}

fn delete_once(dir: &Dir) -> sys::Result<()> {
    // The plain case first: nothing below.
    match rustix::fs::unlinkat(CWD, dir.location(), AtFlags::REMOVEDIR) {
        // Version 1 says ENOTEMPTY or EBUSY for a group that has some below.
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        result => return result,
    }
    walk(
        dir.fd()?,
        |_| Ok(()),
        |parent, name| match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            result => result,
        },
    )?;
    rustix::fs::unlinkat(CWD, dir.location(), AtFlags::REMOVEDIR)
}

/// Waits until the group's events change (version 2), at most for `pause`. Version 1 has no notice of an emptied group
/// that works without a helper program, so there the pause is all there is.
fn wait_for_change(dir: &Dir, pause: Duration) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events: Option<OwnedFd> =
        dir.fd().and_then(|dir| rustix::fs::openat(dir, "cgroup.events", flags, Mode::empty())).ok();
    match &events {
        Some(events) => {
            // Reading arms the notice; what is read does not matter, the removal is tried again either way.
            let _ = rustix::io::read(events, &mut [0_u8; 256]);
            let _ = sys::fs::poll_priority(events.as_fd(), Some(pause));
        }
        None => sleep(pause),
    }
}

/// A pause with nothing to wait on. Every use is bounded by a deadline.
pub(crate) fn sleep(pause: Duration) {
    if let Ok(pause) = rustix::event::Timespec::try_from(pause) {
        // EINTR makes the pause shorter, which is fine.
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}
