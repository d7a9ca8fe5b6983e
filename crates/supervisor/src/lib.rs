//! Tasks: one actor per task, which launches a shim, talks to it, learns of exits and cleans up.
//!
//! ```text
//! services ─► Supervisor ─► Task (state snapshot) ◄─ actor ─► ShimClient ══ ttrpc ══► shim
//!                 │                                    │
//!                 └ adoption from the bundles' records  └► journal: create < start < … < exit < delete
//! ```
//!
//! **Invariant:** everything here can be rebuilt from the bundles on disk; the memory of this crate is a cache of them.
//! Reading a task's state never waits for a shim. Every await on a shim has a deadline, except the pending `Wait`.
//! A shim is judged dead by its pidfd alone, never by silence. The events of one container reach the journal in the
//! order above, and each before the reply of the request that caused it.

mod actor;
mod adopt;
mod bootstrap;
mod bundle;
mod catch_up;
mod config;
mod ends;
mod error;
mod failures;
mod forward;
mod info;
mod keep;
mod late;
mod launch;
mod manager;
mod oom;
mod pidfd;
mod program;
mod published;
mod recheck;
mod records;
mod remove;
mod report;
mod runtimes;
mod shim;
mod shim_log;
mod start;
mod survey;
mod task;
mod why;

pub use adopt::Adopted;
pub use config::{Config, Runtimes, Timeouts};
pub use error::Error;
pub use forward::{EventServer, publish};
pub use manager::Supervisor;
pub use task::{CreateTask, ExecTask, Exit, Pid, ProcessState};

#[cfg(test)]
mod tests;
