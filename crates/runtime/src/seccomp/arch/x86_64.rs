//! x86-64, with x32 and i386 beside it.

use oci::runtime::Arch;

use super::{Abi, Family, Machine, table};

/// `__X32_SYSCALL_BIT`.
const X32_BIT: u32 = 0x4000_0000;

pub(crate) const FAMILY: Family = Family {
    machines: &[
        Machine {
            audit_arch: 0xc000_003e,
            narrow: false,
            abis: &[
                Abi { name: Arch::ScmpArchX86_64, native: true, bit: 0, table: native },
                Abi { name: Arch::ScmpArchX32, native: false, bit: X32_BIT, table: x32 },
            ],
        },
        Machine {
            audit_arch: 0x4000_0003,
            narrow: true,
            abis: &[Abi { name: Arch::ScmpArchX86, native: false, bit: 0, table: i386 }],
        },
    ],
};

fn native() -> Vec<(&'static str, u32)> {
    table(|number| syscalls::x86_64::Sysno::new(number).map(|call| call.name()))
}

fn i386() -> Vec<(&'static str, u32)> {
    table(|number| syscalls::x86::Sysno::new(number).map(|call| call.name()))
}

/// Calls that have another number on x32, from 512 on (`syscall_64.tbl`, ABI `x32`).
const X32_CALLS: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

fn x32() -> Vec<(&'static str, u32)> {
    let mut names = native();
    names.retain(|(name, _)| !X32_CALLS.contains(name));
    names.extend(X32_CALLS.into_iter().zip(512..));
    names
}
