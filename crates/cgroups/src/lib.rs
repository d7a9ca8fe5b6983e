//! Control groups: make one, limit it, count what it used, freeze, kill and remove it.
//!
//! Version 1 hierarchies (also a hybrid host, whose `unified` mount has no controllers of use) and version 2 have one
//! front, [`Cgroup`]; limits are those of the runtime specification.
//!
//! Groups are made in the file system, or as transient scopes of systemd (the two drivers of runc); only the second
//! ever talks to anybody.
//!
//! Nothing here starts a thread or waits without a bound, so a process with one thread can call it between two events.
//!
//! **Invariant:** a path with `..` in it never reaches the kernel; a limit that the host cannot enforce is an error
//! that names the controller; and the mounts are looked up once, in [`Host::detect`], not per group.

mod cgroup;
mod dir;
mod error;
mod host;
mod limits;
mod oom;
mod path;
mod stats;
mod systemd;
mod text;
mod tree;
mod v1;
mod v2;

pub use cgroup::Cgroup;
pub use error::Error;
pub use host::Host;
pub use oom::OomWatch;
pub use path::CgroupPath;
pub use stats::{
    BlkioEntry, BlkioV1, CpuV1, CpuV2, HugetlbV1, HugetlbV2, IoEntryV2, IoV2, MemoryEntry, MemoryEventsV2, MemoryV1,
    MemoryV2, OomControlV1, Pids, Psi, PsiLine, Rdma, RdmaEntry, Stats, StatsV1, StatsV2,
};
pub use systemd::{Manager, Scope, Unit};

/// What every function of this crate returns.
pub type Result<T> = core::result::Result<T, Error>;
