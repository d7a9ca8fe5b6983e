//! x86-64.

use super::{Arch, Numbers};

/// x86-64: `arch/x86/entry/syscalls/syscall_64.tbl`.
pub const ARCH: Arch = Arch {
    name: "x86_64",
    audit_arch: 0xc000_003e,
    numbers: Numbers { bpf: 321, clone3: 435, close_range: 436, mount_setattr: 442, open_tree_attr: 467, waitid: 247 },
};
