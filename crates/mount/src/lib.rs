//! A [`model::Mount`] becomes system calls, and can be undone.
//!
//! Mounts are built detached wherever the kernel can (`fsopen`, `fsmount`, `open_tree`), with all their attributes set
//! before anybody can see them, and attached by descriptor. With `GANTRY_FORCE_FALLBACKS=1`, or without the calls,
//! `mount(2)` does the same in several steps.
//!
//! **Invariant:** a target is resolved inside its root by descriptor, so a symbolic link below a root that a container
//! controls cannot lead a mount elsewhere; an option that nobody understands is an error, never ignored; and what
//! fails half way is undone.

mod attach;
mod build;
mod error;
mod idmap;
mod legacy;
mod options;
mod overlay;
mod unmount;

pub use attach::{attach, attach_in, mount_all, mount_all_in, mount_apart, mount_on};
pub use build::{detached, detached_bind, detached_filesystem, detached_with, set_propagation};
pub use error::{Error, Feature};
pub use idmap::{IdMap, IdRange};
pub use options::{Attributes, Bind, Loop, ParsedOptions, Propagation, parse_options};
pub use sys::mount::UnmountFlags;
pub use unmount::{unmount_all, unmount_recursive};

/// What every function of this crate returns.
pub type Result<T> = core::result::Result<T, Error>;
