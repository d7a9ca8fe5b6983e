//! 64-bit ARM, with 32-bit ARM beside it.

use oci::runtime::Arch;

use super::{Abi, Family, Machine, table};

#[cfg_attr(not(any(test, target_arch = "aarch64")), expect(dead_code, reason = "compiled everywhere, used at home"))]
pub(crate) const FAMILY: Family = Family {
    machines: &[
        Machine {
            audit_arch: 0xc000_00b7,
            abis: &[Abi {
                name: Arch::ScmpArchAarch64,
                native: true,
                bit: 0,
                narrow: false,
                table: native,
                multiplexers: &[],
            }],
        },
        Machine {
            audit_arch: 0x4000_0028,
            abis: &[Abi {
                name: Arch::ScmpArchArm,
                native: false,
                bit: 0,
                narrow: true,
                table: arm,
                multiplexers: &[],
            }],
        },
    ],
};

fn native() -> Vec<(&'static str, u32)> {
    table(|number| syscalls::aarch64::Sysno::new(number).map(|call| call.name()))
}

/// The private calls of the architecture, `__ARM_NR_BASE` and up.
const PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

fn arm() -> Vec<(&'static str, u32)> {
    let mut names = table(|number| syscalls::arm::Sysno::new(number).map(|call| call.name()));
    names.extend(PRIVATE);
    names
}
