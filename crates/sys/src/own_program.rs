//! The program that this process runs, taken out of a container's reach.
//!
//! A process that sets up a container runs our program until it executes the container's, and the kernel looks for the
//! interpreter of a script before that: `#!/proc/self/exe` is our program, executed inside, with a handle on the host's
//! file for whoever looks (CVE-2019-5736). No check of the script can prevent it, because the script may change after
//! the check. So the process lets go of the file first: it goes on with the same pages through a private mount of the
//! same file, which then is made the program that `/proc/self/exe` names, read-only and not executable.

#![expect(unsafe_code, reason = "the mappings of the running program are replaced in place")]

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::mount::{MountAttr, attr, mount_setattr};
use crate::syscall::{self, address};
use crate::{Result, features};

/// More loadable segments than any linker makes.
const SEGMENTS_MAX: usize = 8;

/// A part of the program's file in memory, in whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segment {
    start: usize,
    length: usize,
    offset: usize,
    writable: bool,
}

/// A private mount of the running program, for one child to go on with.
#[derive(Debug)]
pub struct OwnProgram {
    mount: OwnedFd,
    file: OwnedFd,
    segments: [Segment; SEGMENTS_MAX],
    count: usize,
}

/// `struct prctl_mm_map`.
#[repr(C)]
#[derive(Default)]
struct MemoryMap {
    /// From `start_code` to `env_end`, eleven addresses; then the address of the auxiliary vector.
    addresses: [u64; 12],
    auxv_size: u32,
    exe_fd: u32,
}

impl OwnProgram {
    /// Makes the mount. In the parent: needs CAP_SYS_ADMIN and the mount namespace that the program was started in.
    /// ENOSYS where the kernel has no detached mounts.
    pub fn open() -> Result<Self> {
        if !(features().new_mount_api && features().mount_setattr) {
            return Err(Errno::NOSYS);
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, c"/proc/self/exe", flags)?;
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let (segments, count) = segments()?;
        Ok(Self { mount, file, segments, count })
    }

    /// What it holds, for somebody else to close.
    pub fn into_descriptors(self) -> [OwnedFd; 2] {
        [self.mount, self.file]
    }

    /// Lets go of the program's file. Neither allocates nor locks. After an error the process can go on, still with the
    /// program in reach.
    ///
    /// # Safety
    /// The process is a fork's child with one thread and never drops `self`. The program's file was not changed in
    /// place since it was started.
    pub unsafe fn leave(&self) -> Result<()> {
        // SAFETY: passed on to the caller.
        let result = unsafe { self.replace() };
        let nothing = MountAttr { set: attr::RDONLY | attr::NOEXEC, ..MountAttr::default() };
        let result = result.and_then(|()| mount_setattr(self.mount.as_fd(), c"", false, &nothing));
        // SAFETY: the caller never drops `self`, so nobody closes this number again.
        unsafe { libc::close(self.file.as_raw_fd()) };
        result
    }

    /// Attaches the mount to a file of a tree that is about to be taken down with all that is below it. What is never
    /// attached anywhere is taken down by whoever closes it last, who waits for the kernel to do so.
    pub fn attach(&self, file: &CStr) -> Result<()> {
        move_mount(&self.mount, c"", CWD, file, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// # Safety
    /// As [`OwnProgram::leave`].
    unsafe fn replace(&self) -> Result<()> {
        let mut code = 0;
        for segment in self.segments.iter().take(self.count) {
            if segment.writable {
                // SAFETY: passed on to the caller.
                unsafe { copy(segment) }?;
            } else {
                code = segment.start;
                // SAFETY: passed on to the caller.
                unsafe { self.map(segment) }?;
            }
        }
        let mut map = MemoryMap { exe_fd: self.file.as_raw_fd().unsigned_abs(), ..MemoryMap::default() };
        // Where code and data are matters only to people who look. Any address of ours passes the kernel's checks, the
        // end of the code must be above its start.
        for address in map.addresses.iter_mut().take(11) {
            *address = code as u64;
        }
        map.addresses[1] += 1;
        let arguments =
            [libc::PR_SET_MM as usize, libc::PR_SET_MM_MAP as usize, address(&map), size_of::<MemoryMap>(), 0];
        // SAFETY: the map is whole and outlives the call, which changes nothing that the program uses.
        unsafe { syscall::call(libc::SYS_prctl, arguments) }.map(drop)
    }

    /// # Safety
    /// As [`OwnProgram::leave`].
    unsafe fn map(&self, segment: &Segment) -> Result<()> {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let offset = libc::off_t::try_from(segment.offset).map_err(|_| Errno::OVERFLOW)?;
        let (start, file) = (segment.start as *mut libc::c_void, self.file.as_raw_fd());
        // SAFETY: the same bytes of the same file come to the same place, in one step.
        let place = unsafe { libc::mmap(start, segment.length, protection, flags, file, offset) };
        if place == libc::MAP_FAILED { Err(syscall::last_errno()) } else { Ok(()) }
    }
}

/// Replaces a writable part by anonymous memory with the same bytes.
///
/// # Safety
/// As [`OwnProgram::leave`].
unsafe fn copy(segment: &Segment) -> Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let fresh = unsafe { libc::mmap(std::ptr::null_mut(), segment.length, protection, flags, -1, 0) };
    if fresh == libc::MAP_FAILED {
        return Err(syscall::last_errno());
    }
    let start = segment.start as *mut libc::c_void;
    // SAFETY: both are mapped for the whole length and do not overlap; nobody writes meanwhile, there is one thread.
    unsafe { std::ptr::copy_nonoverlapping(start.cast::<u8>().cast_const(), fresh.cast::<u8>(), segment.length) };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the same bytes come to the same place, in one step.
    let place = unsafe { libc::mremap(fresh, segment.length, segment.length, flags, start) };
    if place == libc::MAP_FAILED { Err(syscall::last_errno()) } else { Ok(()) }
}

/// The loadable segments of the running program, neighbours of one kind as one.
fn segments() -> Result<([Segment; SEGMENTS_MAX], usize)> {
    // SAFETY: asks for a value of the auxiliary vector.
    let table = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    // SAFETY: as above.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) } as usize;
    if table == 0 || count == 0 || count > 64 {
        return Err(Errno::NOEXEC);
    }
    // SAFETY: the kernel says that the program's headers, which are never written, are at this place.
    let headers = unsafe { std::slice::from_raw_parts(table as *const libc::Elf64_Phdr, count) };
    // SAFETY: as above.
    let page = unsafe { libc::getauxval(libc::AT_PAGESZ) } as usize;
    if page.is_power_of_two() { collect(headers, table, page) } else { Err(Errno::NOEXEC) }
}

fn collect(headers: &[libc::Elf64_Phdr], table: usize, page: usize) -> Result<([Segment; SEGMENTS_MAX], usize)> {
    let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    // A program that says nothing of its header table was not moved.
    let shift = headers
        .iter()
        .find(|header| header.p_type == libc::PT_PHDR)
        .map_or(0, |header| table.wrapping_sub(number(header.p_vaddr)));
    let mut list = [Segment::default(); SEGMENTS_MAX];
    let mut count = 0_usize;
    let mut covers_table = false;
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_filesz > 0) {
        let first = number(header.p_vaddr).wrapping_add(shift);
        let start = first & !(page - 1);
        let end = first.wrapping_add(number(header.p_filesz)).wrapping_add(page - 1) & !(page - 1);
        let segment = Segment {
            start,
            length: end.wrapping_sub(start),
            offset: number(header.p_offset) & !(page - 1),
            writable: header.p_flags & libc::PF_W != 0,
        };
        covers_table |= (start..end).contains(&table);
        if let Some(last) = count.checked_sub(1).and_then(|last| list.get_mut(last))
            && last.writable == segment.writable
            && last.start + last.length == segment.start
            // What is copied comes from memory, not from the file.
            && (last.writable || last.offset + last.length == segment.offset)
        {
            last.length += segment.length;
            continue;
        }
        *list.get_mut(count).ok_or(Errno::NOEXEC)? = segment;
        count += 1;
    }
    // What is not where it says it is must not be replaced.
    if covers_table { Ok((list, count)) } else { Err(Errno::NOEXEC) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, flags: u32, offset: u64, place: u64, size: u64) -> libc::Elf64_Phdr {
        libc::Elf64_Phdr {
            p_type: kind,
            p_flags: flags,
            p_offset: offset,
            p_vaddr: place,
            p_paddr: place,
            p_filesz: size,
            p_memsz: size,
            p_align: 0x1000,
        }
    }

    #[test]
    fn neighbours_become_one() {
        let headers = [
            header(libc::PT_LOAD, 4, 0, 0x40_0000, 0x518),
            header(libc::PT_LOAD, 5, 0x1000, 0x40_1000, 0x1ad1),
            header(libc::PT_LOAD, 4, 0x3000, 0x40_3000, 0x10),
            header(libc::PT_LOAD, 6, 0x3698, 0x40_5698, 0x1900),
            header(libc::PT_LOAD, 6, 0x6000, 0x40_7000, 0x800),
        ];
        let (list, count) = collect(&headers, 0x40_0040, 0x1000).unwrap();
        assert_eq!(count, 2);
        assert_eq!(list[0], Segment { start: 0x40_0000, length: 0x4000, offset: 0, writable: false });
        assert_eq!(list[1], Segment { start: 0x40_5000, length: 0x3000, offset: 0x3000, writable: true });
        // The table is somewhere else: nothing is where it seems to be.
        assert_eq!(collect(&headers, 0x1000, 0x1000).unwrap_err(), Errno::NOEXEC);
    }

    #[test]
    fn a_moved_program_is_found() {
        let headers = [header(libc::PT_PHDR, 4, 0x40, 0x40, 0x200), header(libc::PT_LOAD, 5, 0, 0, 0x1800)];
        let (list, count) = collect(&headers, 0x5555_0040, 0x1000).unwrap();
        assert_eq!((list[0].start, list[0].length, count), (0x5555_0000, 0x2000, 1));
    }

    #[test]
    fn this_program_has_segments() {
        let (list, count) = segments().unwrap();
        assert!(count >= 2 && list[..count].iter().any(|segment| segment.writable), "{list:x?}");
    }
}
