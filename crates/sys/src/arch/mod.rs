//! What depends on the processor architecture, one module per architecture.
//!
//! Both modules are always compiled, so that a mistake in one is seen when building on the other; [`NATIVE`] is the
//! one this program runs on.

pub mod aarch64;
pub mod x86_64;

/// The facts about an architecture that system call filters and records need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// The name as `uname -m` says it.
    pub name: &'static str,
    /// `AUDIT_ARCH_*`, as seccomp filters see it.
    pub audit_arch: u32,
    /// Numbers of the system calls that this crate makes itself.
    pub numbers: Numbers,
}

/// Numbers of the system calls that this crate makes without a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// `bpf(2)`
    pub bpf: i64,
    /// `clone3(2)`
    pub clone3: i64,
    /// `close_range(2)`
    pub close_range: i64,
    /// `mount_setattr(2)`
    pub mount_setattr: i64,
    /// `open_tree_attr(2)`, which libc does not know yet.
    pub open_tree_attr: i64,
    /// `waitid(2)`, whose fifth argument glibc hides.
    pub waitid: i64,
}

#[cfg(target_arch = "aarch64")]
pub use aarch64::ARCH as NATIVE;
#[cfg(target_arch = "x86_64")]
pub use x86_64::ARCH as NATIVE;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("gantry knows x86_64 and aarch64; add a module to crates/sys/src/arch");

#[cfg(test)]
mod tests {
    use super::{NATIVE, Numbers};

    #[test]
    fn the_native_numbers_are_those_of_libc() {
        let libc = Numbers {
            bpf: libc::SYS_bpf,
            clone3: libc::SYS_clone3,
            close_range: libc::SYS_close_range,
            mount_setattr: libc::SYS_mount_setattr,
            // Numbers from 403 on are the same everywhere.
            open_tree_attr: 467,
            waitid: libc::SYS_waitid,
        };
        assert_eq!(NATIVE.numbers, libc);
        assert_eq!(NATIVE.name, std::env::consts::ARCH);
    }
}
