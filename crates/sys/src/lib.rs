//! Safe wrappers over the Linux interfaces that `std` and `rustix` do not offer, or do not offer safely.
//!
//! Errors are plain [`Errno`] values: this layer does not know what a call is made for, its callers do and say so.
//! Nothing here logs, allocates global state or changes the process, except where a function says so in its name.
//!
//! **Invariant:** every file descriptor that leaves this crate is owned, and close-on-exec from birth. Raw system
//! calls of the workspace live here and nowhere else (the child module of `runtime` builds on these).
//!
//! How to add a wrapper: take it from `rustix` if it is there and safe; else add one function with one `unsafe` block
//! per operation and a SAFETY line; if the kernel floor (5.15) lacks the call, add a field to [`Features`] and a
//! fallback that the tests run with `GANTRY_FORCE_FALLBACKS=1`.

pub mod arch;
pub mod bpf;
pub mod caps;
pub mod clone;
pub mod crash;
mod features;
pub mod fs;
mod inherit;
pub mod loopdev;
pub mod memory;
pub mod mount;
mod own_program;
pub mod process;
mod replace;
pub mod sched;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod start;
mod syscall;
pub mod undefended;
pub mod userns;

pub use features::{FORCE_FALLBACKS_VARIABLE, Features, features};
pub use inherit::take_inherited;
pub use own_program::OwnProgram;
pub use replace::replace_process;
pub use rustix::io::Errno;

/// What every function of this crate returns.
pub type Result<T> = core::result::Result<T, Errno>;

use std::sync::OnceLock;

/// The id of the running boot (`/proc/sys/kernel/random/boot_id`), read once. It tells records of this boot from
/// those that an earlier kernel left behind.
pub fn boot_id() -> Result<&'static str> {
    static BOOT_ID: OnceLock<Result<String>> = OnceLock::new();
    BOOT_ID
        .get_or_init(|| {
            fs::read_small(rustix::fs::CWD, "/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
        })
        .as_ref()
        .map(String::as_str)
        .map_err(|errno| *errno)
}

#[cfg(test)]
mod tests {
    #[test]
    fn boot_id_is_a_uuid_and_stable() {
        let id = super::boot_id().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id, super::boot_id().unwrap());
    }
}
