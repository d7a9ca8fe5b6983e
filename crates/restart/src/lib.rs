//! Keeps containers in the state that their labels ask for, as containerd's restart monitor does, without its poll.
//!
//! | label `containerd.io/restart.…` | says |
//! |---|---|
//! | `status` | `running` or `stopped`: what is wanted; without it a container is left alone |
//! | `policy` | `no`, `always` (also when empty), `on-failure`, `on-failure:N`, `unless-stopped` |
//! | `count` | how often it was started again; counted here |
//! | `explicitly-stopped` | `true` when a user stopped it, for `unless-stopped` |
//! | `loguri` | where its output goes: a FIFO, `file://` or `binary://`; nowhere without it |
//!
//! While one is started again it has the label `pending`, so that a daemon that dies in between leaves the start to the
//! next.
//!
//! An exit, a new or changed container and the start of the daemon each make the container looked at; nothing is looked
//! at without a reason. To start again means: delete the ended task, make a new one on the container's snapshot, start
//! it.
//!
//! **Invariant:** a label that the container's image carries with the same value counts for nothing here. Clients copy
//! the labels of an image to its containers, and `loguri` names a program that runs as root on the host
//! (CVE-2026-53488).

mod agenda;
mod image;
mod monitor;
mod policy;

pub use monitor::Monitor;
