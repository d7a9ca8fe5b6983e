//! Loop devices: a file as a block device.

#![expect(unsafe_code, reason = "the loop ioctls have no wrapper elsewhere")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Result, syscall};

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
/// How often a free device may be snatched away by somebody else.
const MAX_RETRIES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device that goes away by itself when its last user does: this value, or a mount of it.
#[derive(Debug)]
pub struct LoopDevice {
    /// The device, open.
    pub fd: OwnedFd,
    /// Where it is, `/dev/loop7` for instance.
    pub path: String,
}

/// Longest name of a device's file that the kernel keeps.
pub const NAME_MAX_BYTES: usize = 63;

/// Says whether a device stays without users (`true`), or goes away with its last one.
pub fn keep(device: BorrowedFd<'_>, stay: bool) -> Result<()> {
    let mut info = status(device)?;
    info.flags = if stay { info.flags & !FLAG_AUTOCLEAR } else { info.flags | FLAG_AUTOCLEAR };
    // SAFETY: info is a whole struct loop_info64 and outlives the call; the descriptor is open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) };
    syscall::check(result.into()).map(drop)
}

/// The name that [`attach`] was given for the file behind a device, cut as the kernel keeps it. ENXIO for a device without
/// a file, ENOTTY for anything else.
pub fn backing_name(device: BorrowedFd<'_>) -> Result<String> {
    let name = status(device)?.file_name;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

fn status(device: BorrowedFd<'_>) -> Result<Info> {
    let mut info = information("", 0);
    // SAFETY: info is a whole struct loop_info64 that the kernel fills; the descriptor is open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    syscall::check(result.into()).map(|_| info)
}

/// Puts `file` behind a free loop device. `name` is what `losetup` shows, cut to 63 bytes.
///
/// ENOENT where the host has no loop devices.
pub fn attach(file: BorrowedFd<'_>, name: &str, read_only: bool, direct_io: bool) -> Result<LoopDevice> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let control = rustix::fs::openat(CWD, "/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..MAX_RETRIES {
        // SAFETY: this ioctl takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = syscall::check(number.into())?;
        let path = format!("/dev/loop{number}");
        let fd = rustix::fs::openat(CWD, &path, access | OFlags::CLOEXEC, Mode::empty())?;
        let config = configuration(file, name, read_only, direct_io);
        // SAFETY: config is a whole struct loop_config and outlives the call; both descriptors are open.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match syscall::check(result.into()) {
            Ok(_) => return Ok(LoopDevice { fd, path }),
            // Somebody else took the device between the two calls.
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::BUSY)
}

fn configuration(file: BorrowedFd<'_>, name: &str, read_only: bool, direct_io: bool) -> Config {
    let mut flags = FLAG_AUTOCLEAR;
    if read_only {
        flags |= FLAG_READ_ONLY;
    }
    if direct_io {
        flags |= FLAG_DIRECT_IO;
    }
    Config { fd: file.as_raw_fd().unsigned_abs(), block_size: 0, info: information(name, flags), reserved: [0; 8] }
}

fn information(name: &str, flags: u32) -> Info {
    let mut file_name = [0_u8; 64];
    let shown = &name.as_bytes()[..name.len().min(NAME_MAX_BYTES)];
    file_name[..shown.len()].copy_from_slice(shown);
    Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_structures_have_the_size_of_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
    }

    #[test]
    fn a_file_shows_as_a_device_and_goes_away_with_it() {
        let mut backing = tempfile::tempfile().unwrap();
        backing.write_all(&[b'x'; 8192]).unwrap();
        let device = match attach(backing.as_fd(), "test", true, false) {
            Err(Errno::NOENT | Errno::PERM) => {
                println!("SKIP loop devices");
                return;
            }
            result => result.unwrap(),
        };
        let number = device.path.trim_start_matches("/dev/").to_owned();
        let mut bytes = Vec::new();
        std::fs::File::from(device.fd).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [b'x'; 8192]);
        // The last user is gone: autoclear takes the backing file away.
        assert!(!std::path::Path::new(&format!("/sys/block/{number}/loop/backing_file")).exists());
    }

    #[test]
    fn a_kept_device_stays_until_it_is_given_back() {
        let backing = tempfile::tempfile().unwrap();
        backing.set_len(8192).unwrap();
        let device = match attach(backing.as_fd(), "kept", false, false) {
            Err(Errno::NOENT | Errno::PERM) => {
                println!("SKIP loop devices");
                return;
            }
            result => result.unwrap(),
        };
        keep(device.fd.as_fd(), true).unwrap();
        let path = device.path.clone();
        drop(device);
        let again = std::fs::File::open(&path).unwrap();
        assert_eq!(backing_name(again.as_fd()).unwrap(), "kept");
        keep(again.as_fd(), false).unwrap();
        drop(again);
        let file = format!("/sys/block/{}/loop/backing_file", path.trim_start_matches("/dev/"));
        assert!(!std::path::Path::new(&file).exists());
        assert!(backing_name(backing.as_fd()).is_err());
    }
}
