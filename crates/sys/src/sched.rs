//! How the calling thread is scheduled, where its memory comes from and which kernel it believes to run on.
//!
//! Every function here changes the calling thread only, and allocates nothing.

#![expect(unsafe_code, reason = "scheduling calls that no library wraps")]

use crate::{Result, syscall};

/// `struct sched_attr` of the second version, with the utilization clamps (Linux 5.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the policies that share time fairly, -20 to 19.
    pub nice: i32,
    /// For the real-time policies, 1 to 99.
    pub priority: u32,
    /// For deadline scheduling, nanoseconds.
    pub runtime: u64,
    /// For deadline scheduling, nanoseconds.
    pub deadline: u64,
    /// For deadline scheduling, nanoseconds.
    pub period: u64,
    utilization: [u32; 2],
}

/// Numbers of the scheduling policies (`include/uapi/linux/sched.h`).
pub mod policies {
    /// The default, time shared fairly.
    pub const OTHER: u32 = 0;
    /// Real-time, first in first out.
    pub const FIFO: u32 = 1;
    /// Real-time, in turns.
    pub const ROUND_ROBIN: u32 = 2;
    /// As the default, for work that nobody waits for.
    pub const BATCH: u32 = 3;
    /// Reserved by the kernel and not implemented.
    pub const ISO: u32 = 4;
    /// Only what nobody else wants.
    pub const IDLE: u32 = 5;
    /// Earliest deadline first.
    pub const DEADLINE: u32 = 6;
}

/// Sets policy and parameters. EPERM without CAP_SYS_NICE where the policy needs it, or for a deadline if the thread
/// may not run on all processors; EBUSY if the deadline cannot be met.
pub fn set_attributes(attributes: &Attributes) -> Result<()> {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..*attributes };
    let arguments = [0, syscall::address(&attributes), 0, 0, 0];
    // SAFETY: the structure says its own size and outlives the call.
    unsafe { syscall::call(libc::SYS_sched_setattr, arguments) }.map(drop)
}

/// Limits the thread to the processors in `mask`, one bit each, lowest first. Longer masks than the kernel's are cut.
/// EINVAL if none of them is left.
pub fn set_affinity(mask: &[u64]) -> Result<()> {
    let arguments = [0, size_of_val(mask), mask.as_ptr() as usize, 0, 0];
    // SAFETY: the mask is as long as is said and outlives the call.
    unsafe { syscall::call(libc::SYS_sched_setaffinity, arguments) }.map(drop)
}

/// Sets the I/O priority: the class in the bits from 13 on, the level below. EPERM for the real-time class without
/// CAP_SYS_ADMIN or CAP_SYS_NICE.
pub fn set_io_priority(value: u32) -> Result<()> {
    const WHO_PROCESS: usize = 1;
    // SAFETY: numbers only.
    unsafe { syscall::call(libc::SYS_ioprio_set, [WHO_PROCESS, 0, value as usize, 0, 0]) }.map(drop)
}

/// Sets the default memory policy: `mode` with its flags, and the nodes it is about, one bit each. EINVAL for a
/// combination that makes no sense or a node that does not exist; ENOSYS without NUMA support.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel looks at one bit less than it is told of.
    let (address, bits) = if nodes.is_empty() { (0, 0) } else { (nodes.as_ptr() as usize, nodes.len() * 64 + 1) };
    // SAFETY: the mask has as many bits as the kernel reads and outlives the call.
    unsafe { syscall::call(libc::SYS_set_mempolicy, [mode as usize, address, bits, 0, 0]) }.map(drop)
}

/// Sets the execution domain (`personality(2)`).
pub fn set_personality(domain: u32) -> Result<()> {
    // SAFETY: numbers only.
    unsafe { syscall::call(libc::SYS_personality, [domain as usize, 0, 0, 0, 0]) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: nothing of it may stay.
    fn apart(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 56);
    }

    #[test]
    fn policies_and_priorities() {
        apart(|| {
            set_attributes(&Attributes { policy: policies::BATCH, nice: 7, ..Attributes::default() }).unwrap();
            let thread = rustix::thread::gettid().as_raw_nonzero();
            let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            assert_eq!((fields[16], fields[38]), ("7", "3"), "{stat}");
            assert!(set_attributes(&Attributes { policy: 99, ..Attributes::default() }).is_err());
            set_io_priority(3 << 13).unwrap();
            assert!(set_io_priority(7 << 13).is_err());
            set_personality(0x8).unwrap();
            set_personality(0).unwrap();
        });
    }

    #[test]
    fn masks() {
        apart(|| {
            set_affinity(&[1]).unwrap();
            set_affinity(&[u64::MAX; 128]).unwrap();
            assert!(set_affinity(&[0]).is_err());
        });
    }
}
