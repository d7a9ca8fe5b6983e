//! x86-64, with x32 and i386 beside it.

use oci::runtime::Arch;

use super::{Abi, Family, Machine, Multiplexer, table};

/// `__X32_SYSCALL_BIT`.
const X32_BIT: u32 = 0x4000_0000;

pub(crate) const FAMILY: Family = Family {
    machines: &[
        Machine {
            audit_arch: 0xc000_003e,
            abis: &[
                Abi {
                    name: Arch::ScmpArchX86_64,
                    native: true,
                    bit: 0,
                    narrow: false,
                    table: native,
                    multiplexers: &[],
                },
                Abi {
                    name: Arch::ScmpArchX32,
                    native: false,
                    bit: X32_BIT,
                    narrow: true,
                    table: x32,
                    multiplexers: &[],
                },
            ],
        },
        Machine {
            audit_arch: 0x4000_0003,
            abis: &[Abi {
                name: Arch::ScmpArchX86,
                native: false,
                bit: 0,
                narrow: true,
                table: i386,
                multiplexers: &I386_MULTIPLEXERS,
            }],
        },
    ],
};

fn native() -> Vec<(&'static str, u32)> {
    table(|number| syscalls::x86_64::Sysno::new(number).map(|call| call.name()))
}

fn i386() -> Vec<(&'static str, u32)> {
    table(|number| syscalls::x86::Sysno::new(number).map(|call| call.name()))
}

/// `socketcall(2)` and `ipc(2)` with the values of `linux/net.h` and `linux/ipc.h`.
const I386_MULTIPLEXERS: [Multiplexer; 2] = [
    Multiplexer {
        name: "socketcall",
        calls: &[
            ("socket", 1),
            ("bind", 2),
            ("connect", 3),
            ("listen", 4),
            ("accept", 5),
            ("getsockname", 6),
            ("getpeername", 7),
            ("socketpair", 8),
            ("send", 9),
            ("recv", 10),
            ("sendto", 11),
            ("recvfrom", 12),
            ("shutdown", 13),
            ("setsockopt", 14),
            ("getsockopt", 15),
            ("sendmsg", 16),
            ("recvmsg", 17),
            ("accept4", 18),
            ("recvmmsg", 19),
            ("sendmmsg", 20),
        ],
    },
    Multiplexer {
        name: "ipc",
        calls: &[
            ("semop", 1),
            ("semget", 2),
            ("semctl", 3),
            ("semtimedop", 4),
            ("msgsnd", 11),
            ("msgrcv", 12),
            ("msgget", 13),
            ("msgctl", 14),
            ("shmat", 21),
            ("shmdt", 22),
            ("shmget", 23),
            ("shmctl", 24),
        ],
    },
];

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

/// Calls that x32 does not have (`syscall_64.tbl`, ABI `64`).
const NOT_X32: [&str; 13] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "uretprobe",
    "uprobe",
];

fn x32() -> Vec<(&'static str, u32)> {
    let mut names = native();
    names.retain(|(name, _)| !X32_CALLS.contains(name) && !NOT_X32.contains(name));
    names.extend(X32_CALLS.into_iter().zip(512..));
    names
}
