//! The mount manager: mounts that need more than a system call are prepared on the host and kept under a name.
//!
//! ```text
//! Activate(name, mounts) ─► plan ──────► nothing to do: UNIMPLEMENTED, the caller mounts by itself
//!                             │
//!                             ├─ all before the last that needs us: transformed, mounted at <state>/t/<number>/<index>
//!                             └─ the rest: transformed at most, and returned for the caller to mount
//! Deactivate(name), or the collector ─► unmounted, the last one first; directories removed
//! ```
//!
//! A type may carry transformers: `format/overlay`, `mkfs/ext4`, `mkdir/bind`, `format/mkdir/overlay` (containerd 2.2,
//! core/mount/manager). The type `loop` is handled here: a file becomes a device.
//!
//! **Invariant:** a directory `<number>` whose record does not say "active, of this boot" belongs to nobody: it is
//! unmounted and removed at the next start or collection. Removal goes by `umount`, `unlink` and `rmdir` alone, so
//! nothing that was mounted ever loses a file. Whatever a client names as a path is looked up below the directories
//! that this daemon owns. All calls block.

mod error;
mod format;
mod loops;
mod manager;
mod mkdir;
mod mkfs;
mod plan;
mod record;
mod roots;

pub use error::Error;
pub use manager::{Activate, Manager};
pub use plan::needs_help;
pub use record::{Activation, ActiveMount};

#[cfg(test)]
mod tests;
