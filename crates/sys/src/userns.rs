//! A user namespace that exists only to carry id maps, as id-mapped mounts need one.

#![expect(unsafe_code, reason = "a namespace needs a process in it until a descriptor holds it")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{Result, process, syscall};

/// Makes a user namespace with these maps (lines as in `/proc/<pid>/uid_map`: inside, outside, length) and returns a
/// descriptor of it.
///
/// A short-lived child holds the namespace meanwhile. It runs nothing but three system calls on a copy of our memory,
/// so threads and locks of this process do not matter to it. EINVAL for maps that the kernel refuses.
pub fn with_maps(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = clone_holder(reader.as_fd(), writer.as_raw_fd())?;
    drop(reader);
    let result = write_maps(pid, uid_map, gid_map).and_then(|()| {
        rustix::fs::openat(CWD, format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    });
    // The child ends when it reads the end of the pipe.
    drop(writer);
    process::wait(pidfd.as_fd())?;
    result
}

fn write_maps(pid: u32, uid_map: &str, gid_map: &str) -> Result<()> {
    for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        let path = format!("/proc/{pid}/{file}");
        let fd = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // The kernel takes a map in one write only.
        rustix::io::write(&fd, map.as_bytes())?;
    }
    Ok(())
}

/// Clones the child that holds the namespace: it waits for the end of the pipe, or our death, and exits.
fn clone_holder(reader: BorrowedFd<'_>, writer: RawFd) -> Result<(u32, OwnedFd)> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD;
    let mut pidfd: RawFd = -1;
    // No exit signal, so that no SIGCHLD handler of ours is disturbed. Without CLONE_VM the child gets a copy of the
    // stack and goes on from here.
    // SAFETY: a null stack with a copied address space is allowed; pidfd is writable.
    let pid = unsafe { libc::syscall(libc::SYS_clone, i64::from(flags), 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    if pid == 0 {
        hold(reader.as_raw_fd(), writer);
    }
    let pid = u32::try_from(syscall::check(pid)?).map_err(|_| rustix::io::Errno::PROTO)?;
    // SAFETY: the kernel has just given us this descriptor; pidfds are born close-on-exec.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// What the child does: only async-signal-safe system calls.
fn hold(reader: RawFd, writer: RawFd) -> ! {
    let mut byte = 0_u8;
    // Should the parent die before it can close its end, which other children might hold a copy of.
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // SAFETY: closes our own copy, so that the end of the pipe can come.
    unsafe { libc::syscall(libc::SYS_close, writer) };
    // SAFETY: byte is writable for the one byte asked for.
    unsafe { libc::syscall(libc::SYS_read, reader, &raw mut byte, 1_usize) };
    loop {
        // SAFETY: numbers only; does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_carried_and_the_child_is_gone() {
        let first = with_maps("0 100000 65536\n", "0 200000 65536\n").unwrap();
        let second = with_maps("0 100000 65536\n", "0 200000 65536\n").unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        assert_ne!(
            inode(&first),
            std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/user").unwrap())
        );
    }

    #[test]
    fn a_bad_map_is_refused() {
        assert_eq!(with_maps("nonsense\n", "0 0 1\n").unwrap_err(), rustix::io::Errno::INVAL);
    }
}
