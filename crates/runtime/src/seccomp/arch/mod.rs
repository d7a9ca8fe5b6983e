//! Processor architectures as filters see them, one module each. Both are compiled everywhere.

mod aarch64;
mod x86_64;

use oci::runtime::Arch;

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::FAMILY as NATIVE;
#[cfg(test)]
pub(super) use aarch64::FAMILY as AARCH64;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::FAMILY as NATIVE;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use x86_64::FAMILY as X86_64;

/// What a processor runs.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) machines: &'static [Machine],
}

/// What the kernel tells apart by `seccomp_data.arch`.
#[derive(Debug)]
pub(super) struct Machine {
    /// `AUDIT_ARCH_*`.
    pub(super) audit_arch: u32,
    pub(super) abis: &'static [Abi],
}

impl Machine {
    /// The bits of a number that tell the machine's tables apart.
    pub(super) fn bits(&self) -> u32 {
        self.abis.iter().fold(0, |bits, abi| bits | abi.bit)
    }
}

/// One table of system call numbers.
#[derive(Debug)]
pub(super) struct Abi {
    pub(super) name: Arch,
    /// Filtered whether the profile lists it or not.
    pub(super) native: bool,
    /// Set in every number of this table.
    pub(super) bit: u32,
    /// Whether arguments have 32 bits: of the numbers in a profile and of what the kernel shows the lower half counts.
    pub(super) narrow: bool,
    /// Names with their numbers, without `bit`, ascending.
    pub(super) table: fn() -> Vec<(&'static str, u32)>,
    /// Calls that are ways to others.
    pub(super) multiplexers: &'static [Multiplexer],
}

/// A call whose first argument says which call is meant.
#[derive(Debug)]
pub(super) struct Multiplexer {
    pub(super) name: &'static str,
    /// The calls with the value of the argument.
    pub(super) calls: &'static [(&'static str, u32)],
}

/// The largest number that is looked for. All tables end below; 32-bit ARM has a few private calls far above, which
/// profiles name too.
const MAX_NUMBER: u32 = 1024;

/// A table from a function that knows the name of each number.
fn table(name: impl Fn(usize) -> Option<&'static str>) -> Vec<(&'static str, u32)> {
    let known = |number| {
        let name = name(usize::try_from(number).ok()?)?;
        // The crate writes `break` as Rust has to.
        Some((name.strip_prefix("r#").unwrap_or(name), number))
    };
    (0..MAX_NUMBER).filter_map(known).collect()
}
