//! Device programs of cgroup v2: load one, attach it, see and remove what is attached.
//!
//! Only programs of type `BPF_PROG_TYPE_CGROUP_DEVICE` are known here; what they decide is the business of crate
//! `cgroups`.

#![expect(unsafe_code, reason = "bpf(2) has no wrapper elsewhere")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::arch::NATIVE;
use crate::{Result, syscall};

const PROG_LOAD: usize = 5;
const PROG_ATTACH: usize = 8;
const PROG_DETACH: usize = 9;
const PROG_GET_FD_BY_ID: usize = 13;
const PROG_QUERY: usize = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
const F_REPLACE: u32 = 4;

/// One instruction: `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high ones.
    pub registers: u8,
    /// Signed offset of a jump or of a memory access.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// `bpf_attr` of `BPF_PROG_LOAD`, as far as the floor's kernel needs it.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `bpf_attr` of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// `bpf_attr` of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// `bpf_attr` of `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ByIdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Why a program was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// What the kernel said.
    pub errno: Errno,
    /// What its verifier said; may be empty.
    pub log: String,
}

/// Loads a device program. It lives as long as somebody holds the descriptor or a group has it attached.
pub fn load_device_program(instructions: &[Instruction]) -> core::result::Result<OwnedFd, LoadError> {
    let load = |log: &mut [u8]| {
        let mut attr = LoadAttr {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
            insns: instructions.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: u32::try_from(log.len()).unwrap_or(0),
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            expected_attach_type: ATTACH_CGROUP_DEVICE,
            ..LoadAttr::default()
        };
        attr.prog_name[..14].copy_from_slice(b"gantry_devices");
        let arguments = [PROG_LOAD, syscall::address(&attr), size_of::<LoadAttr>(), 0, 0];
        // SAFETY: attr and what it points to outlive the call; the log is writable for its whole length.
        let fd = unsafe { syscall::call(NATIVE.numbers.bpf, arguments) }?;
        // SAFETY: the kernel has just given us this descriptor; bpf descriptors are born close-on-exec.
        unsafe { syscall::own(fd) }
    };
    load(&mut []).map_err(|errno| {
        // Once more with a log: the verifier's reason is worth the time on this path.
        let mut log = vec![0_u8; 16 * 1024];
        drop(load(&mut log));
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        LoadError { errno, log: String::from_utf8_lossy(&log[..end]).trim().to_owned() }
    })
}

/// Attaches `program` to the group that `cgroup` is the directory of, beside what is attached there, or in the place
/// of `replaced`. All programs attached to a group and to the groups above it must allow an access.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI | if replaced.is_some() { F_REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, raw),
    };
    let arguments = [PROG_ATTACH, syscall::address(&attr), size_of::<AttachAttr>(), 0, 0];
    // SAFETY: attr is whole and outlives the call; the descriptors are borrowed for it.
    unsafe { syscall::call(NATIVE.numbers.bpf, arguments) }.map(drop)
}

/// Takes `program` off the group.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    let arguments = [PROG_DETACH, syscall::address(&attr), size_of::<AttachAttr>(), 0, 0];
    // SAFETY: attr is whole and outlives the call; the descriptors are borrowed for it.
    unsafe { syscall::call(NATIVE.numbers.bpf, arguments) }.map(drop)
}

/// The device programs attached to the group itself, in order; at most 64.
pub fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    let arguments = [PROG_QUERY, syscall::address_mut(&mut attr), size_of::<QueryAttr>(), 0, 0];
    // SAFETY: attr is whole and writable, ids has room for prog_cnt numbers, both outlive the call.
    unsafe { syscall::call(NATIVE.numbers.bpf, arguments) }?;
    let count = usize::try_from(attr.prog_cnt).unwrap_or(0).min(ids.len());
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        match program_by_id(*id) {
            Ok(program) => programs.push(program),
            // It was taken off in between.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

fn program_by_id(id: u32) -> Result<OwnedFd> {
    let attr = ByIdAttr { prog_id: id, ..ByIdAttr::default() };
    let arguments = [PROG_GET_FD_BY_ID, syscall::address(&attr), size_of::<ByIdAttr>(), 0, 0];
    // SAFETY: attr is whole and outlives the call.
    let fd = unsafe { syscall::call(NATIVE.numbers.bpf, arguments) }?;
    // SAFETY: the kernel has just given us this descriptor; bpf descriptors are born close-on-exec.
    unsafe { syscall::own(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instruction(code: u8, registers: u8, immediate: i32) -> Instruction {
        Instruction { code, registers, offset: 0, immediate }
    }

    #[test]
    fn a_program_that_allows_everything_loads_and_a_bad_one_says_why() {
        // r0 = 1; exit
        load_device_program(&[instruction(0xb7, 0, 1), instruction(0x95, 0, 0)]).unwrap();
        // exit with r0 never set
        let error = load_device_program(&[instruction(0x95, 0, 0)]).unwrap_err();
        assert!(error.log.contains("R0"), "{error:?}");
    }
}
