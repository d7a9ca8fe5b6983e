//! 64-bit ARM.

use super::{Arch, Numbers};

/// 64-bit ARM: the generic table, `include/uapi/asm-generic/unistd.h`.
pub const ARCH: Arch = Arch {
    name: "aarch64",
    audit_arch: 0xc000_00b7,
    numbers: Numbers { bpf: 280, clone3: 435, close_range: 436, mount_setattr: 442, open_tree_attr: 467, waitid: 95 },
};
