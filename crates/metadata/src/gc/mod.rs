//! The collection of what nothing refers to.
//!
//! ```text
//! deletion ─▶ dirty ─ 100 ms ─▶ mark on a view ─▶ nothing? done, nothing was written
//!                                     │ garbage
//!                                     ▼
//!               one transaction: mark again, remove records, events ─▶ remove bytes and directories, without a lock
//! ```
//!
//! Conditional references (`containerd.io/gc.cond.*`) are not known here: what only such a label protects is collected.
//! What is unknown in a label is ignored. Things outside of the store take part by their keepers ([`Collectible`]).
//!
//! **Invariant:** records are removed by a transaction that has itself found them unreferenced; bytes are removed only
//! when, after that, no record and no request in flight refers to them ([`crate::guard`]). A run that finds nothing
//! writes nothing.

mod collect;
mod control;
mod graph;
mod labels;
mod outside;
mod worker;

pub(crate) use control::Control;
pub(crate) use labels::EXPIRE as EXPIRE_LABEL;
pub(crate) use outside::Outside;
pub use outside::{Collectible, Member};
pub(crate) use worker::{Runs, Worker};
