//! Namespaces and what is set in them.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::scratch::Scratch;

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Enters the namespace of a namespace descriptor, or those of a process by its pidfd.
pub(super) fn join(namespace: BorrowedFd<'_>, kinds: u64) -> Result<(), Errno> {
    let kinds = i32::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: setns takes numbers; the descriptor is borrowed for the call.
    #[expect(unsafe_code, reason = "rustix has no setns with flags of both kinds")]
    let result = unsafe { libc::setns(namespace.as_raw_fd(), kinds) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Enters several namespaces, one of which may be a user namespace that owns the others or not: what can be entered
/// with the rights from before is, then the user namespace, then the rest.
pub(super) fn join_deferred(list: &[(OwnedFd, u64)]) -> Result<(), Errno> {
    let mut deferred = 0_u64;
    for (namespace, kind) in list {
        if *kind == sys::clone::flags::NEWUSER {
            continue;
        }
        match join(namespace.as_fd(), *kind) {
            Ok(()) => {}
            Err(Errno::PERM) => deferred |= kind,
            Err(errno) => return Err(errno),
        }
    }
    for (namespace, kind) in list {
        if *kind == sys::clone::flags::NEWUSER {
            join(namespace.as_fd(), *kind)?;
        }
    }
    for (namespace, kind) in list {
        if deferred & kind != 0 {
            join(namespace.as_fd(), *kind)?;
        }
    }
    Ok(())
}

pub(super) fn unshare(kinds: u64) -> Result<(), Errno> {
    let kinds = i32::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: only namespace flags come here; memory and descriptors stay shared with nobody.
    #[expect(unsafe_code, reason = "unshare is unsafe for the flags that are not used here")]
    let result = unsafe { libc::unshare(kinds) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Sets the offsets of a new time namespace, by `write`, and enters it. They can only be set while nobody is in it, and `unshare`
/// leaves the caller outside (time_namespaces(7)).
pub(super) fn time_offsets(write: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    unshare(sys::clone::flags::NEWTIME)?;
    write()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(c"/proc/self/ns/time_for_children", flags, Mode::empty())?;
    join(namespace.as_fd(), sys::clone::flags::NEWTIME)
}

/// Writes to a file below `proc` of the container, whatever that is: what `proc::write` is there to avoid, for the
/// undefended build.
pub(super) fn write_below(root: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<(), Errno> {
    let directory = rustix::fs::openat(root, c"proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file = rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(drop)
}

pub(super) fn set_hostname(name: &[u8]) -> Result<(), Errno> {
    rustix::system::sethostname(name)
}

pub(super) fn set_domainname(name: &[u8]) -> Result<(), Errno> {
    rustix::system::setdomainname(name)
}

/// Brings up `lo`, the only interface of a new network namespace.
pub(super) fn loopback_up(scratch: &Scratch) -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid ifreq.
    #[expect(unsafe_code, reason = "ifreq is a C structure with a union")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is there.
    #[expect(unsafe_code, reason = "interface flags are set by ioctl")]
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    let outcome = if result == 0 { Ok(()) } else { Err(last_errno()) };
    scratch.put(socket);
    outcome
}
