//! Capability sets of the calling thread. Nothing here allocates, so the child of a clone may use it.

#![expect(unsafe_code, reason = "capset and the capability prctls are raw system calls")]

use crate::{Result, syscall};

const VERSION_3: u32 = 0x2008_0522;

/// Names in the order of their numbers (`linux/capability.h`), without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability by its name, with or without `CAP_`.
pub fn number(name: &str) -> Option<u32> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == bare).and_then(|index| u32::try_from(index).ok())
}

/// Three of the five sets, as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// What is checked.
    pub effective: u64,
    /// What may become effective.
    pub permitted: u64,
    /// What survives an exec of a file with inheritable capabilities.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn low(set: u64) -> u32 {
    (set & 0xffff_ffff) as u32
}

fn high(set: u64) -> u32 {
    (set >> 32) as u32
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

/// The sets of the calling thread.
pub fn get() -> Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    let arguments = [syscall::address_mut(&mut header), syscall::address_mut(&mut data), 0, 0, 0];
    // SAFETY: a header of version 3 makes the kernel write two data structures, which are there.
    unsafe { syscall::call(libc::SYS_capget, arguments) }?;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Replaces the sets of the calling thread.
pub fn set(sets: Sets) -> Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [
        Data { effective: low(sets.effective), permitted: low(sets.permitted), inheritable: low(sets.inheritable) },
        Data { effective: high(sets.effective), permitted: high(sets.permitted), inheritable: high(sets.inheritable) },
    ];
    let arguments = [syscall::address(&header), syscall::address(&data), 0, 0, 0];
    // SAFETY: a header of version 3 makes the kernel read two data structures, which are there.
    unsafe { syscall::call(libc::SYS_capset, arguments) }.map(drop)
}

fn prctl(option: i32, first: usize, second: usize) -> Result<i64> {
    // SAFETY: the options used here take numbers only.
    unsafe { syscall::call(libc::SYS_prctl, [option as usize, first, second, 0, 0]) }
}

/// Whether a capability is in the bounding set; EINVAL if the kernel does not know it.
pub fn bounding_has(capability: u32) -> Result<bool> {
    prctl(libc::PR_CAPBSET_READ, capability as usize, 0).map(|answer| answer == 1)
}

/// How many capabilities the kernel knows.
pub fn known() -> u32 {
    let named = u32::try_from(NAMES.len()).unwrap_or(u32::MAX);
    // The last one that has a name here came with Linux 5.9: mostly one question is enough.
    if bounding_has(named).is_err() {
        return named;
    }
    (named..64).find(|capability| bounding_has(*capability).is_err()).unwrap_or(64)
}

/// Takes a capability out of the bounding set, for ever.
pub fn bounding_drop(capability: u32) -> Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability as usize, 0).map(drop)
}

/// Empties the ambient set.
pub fn ambient_clear() -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize, 0).map(drop)
}

/// Adds to the ambient set a capability that is permitted and inheritable.
pub fn ambient_raise(capability: u32) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as usize, capability as usize).map(drop)
}

/// Whether the permitted set survives a change of the user ids away from 0.
pub fn keep(yes: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, usize::from(yes), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (name, want) in [
            ("CAP_CHOWN", Some(0)),
            ("SYS_ADMIN", Some(21)),
            ("CAP_CHECKPOINT_RESTORE", Some(40)),
            ("CAP_X", None),
            ("", None),
        ] {
            assert_eq!(number(name), want, "{name}");
        }
    }

    #[test]
    fn the_sets_agree_with_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let sets = get().unwrap();
        assert_eq!(sets.effective, field("CapEff:"));
        assert_eq!(sets.permitted, field("CapPrm:"));
        let bounding = (0..known()).filter(|number| bounding_has(*number).unwrap()).fold(0, |set, bit| set | 1 << bit);
        assert_eq!(bounding, field("CapBnd:"));
        assert!(bounding_has(known()).is_err());
        set(sets).unwrap();
        assert_eq!(get().unwrap(), sets);
    }
}
