//! The OCI runtime: a specification becomes a running container, by system calls of this process and of the
//! container's first process, without any other program.
//!
//! ```text
//!             Plan::new              Creating::begin        advance()             start() … advance()
//! oci::Spec ───────────▶ Plan (pure) ──────────────▶ Creating ─────────▶ Container(created) ─────────▶ running
//!                                                       │ error or drop                       │ exit, reaped by the caller
//!                                                       ▼                                     ▼
//!                                               everything undone                    delete() … advance() ─▶ gone
//! ```
//!
//! Nothing here blocks: what has to wait for another process ([`Creating`], [`Starting`], [`Execing`], [`Deleting`])
//! is a state machine with a file descriptor to poll and an `advance` to call when it is readable; `advance` returns
//! `None` until it is finished. [`wait`] drives one for a caller that has nothing else to do.
//!
//! **Invariants**
//! - The process has one thread; otherwise every call that clones is refused ([`Error::Threads`]).
//! - Between clone and exec only the code in `child` runs: it allocates nothing, takes no lock and works off a list of
//!   steps that the parent made before.
//! - The container's init and its execs are children of the caller, who reaps them by pidfd. Hooks and intermediate
//!   processes are reaped here; a caller that reaps unknown children must leave those alone while an operation runs.
//! - No path below the root file system is ever resolved from outside of it: mounts are made detached and attached by
//!   descriptor.

mod assemble;
mod checkpoint;
mod child;
mod container;
mod create;
mod describe;
mod error;
mod exec;
mod features;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod host;
mod io;
mod limits;
mod lsm;
mod maps;
mod netdev;
mod operations;
mod plan;
mod resctrl;
mod seccomp;
mod shared;

pub use checkpoint::{CgroupMode, CheckpointOptions, Checkpointing, CriuOptions, Parents, RestoreOptions, Restoring};
pub use container::{Container, ScopeState, State, Status};
pub use create::{Creating, Launching, Rootfs};
pub use error::Error;
pub use exec::{ExecOptions, ExecProcess, Execing, SubCgroup};
pub use features::features;
pub use host::HostFeatures;
pub use io::{ConsoleSize, ProcessIo};
pub use operations::{Deleting, Starting};
pub use plan::{Gate, Plan, PlanOptions};
pub use shared::SharedRoot;

use std::os::fd::BorrowedFd;

/// An operation that waits for another process.
pub trait Operation {
    /// What it yields at the end.
    type Output;

    /// Readable when [`Operation::advance`] can do something. The same descriptor for the operation's whole life.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Whether there is nothing to do before [`Operation::poll_fd`] is readable: an `advance` would be in vain.
    fn waits(&self) -> bool {
        false
    }

    /// Goes on as far as possible without waiting. `None`: poll again. Must not be called again after it returned
    /// anything else.
    fn advance(&mut self) -> Result<Option<Self::Output>, Error>;
}

/// Drives an operation to its end, waiting for it.
pub fn wait<O: Operation>(operation: &mut O) -> Result<O::Output, Error> {
    let mut waits = operation.waits();
    loop {
        if !waits && let Some(output) = operation.advance()? {
            return Ok(output);
        }
        waits = false;
        let mut poll = [rustix::event::PollFd::from_borrowed_fd(operation.poll_fd(), rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut poll, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::Wait { source: errno.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller may keep them in a task of an executor that wants this, one thread or not.
    #[test]
    fn operations_can_be_sent() {
        fn send<T: Send>() {}
        send::<(Plan, Creating, Container, Starting, Execing, Deleting, Checkpointing, Restoring)>();
    }
}
