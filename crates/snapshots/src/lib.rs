//! Snapshots: the writable and the committed file trees that containers are made of.
//!
//! There is one level of names. A record in the store, under (namespace, snapshotter, key), holds a numeric id; a
//! [`Driver`] knows only ids and directories. [`Snapshotter`] joins the two: it hands out ids, and it protects a
//! directory whose record is not yet written from being taken for garbage.
//!
//! ```text
//!   prepare ──► active ──commit──► committed ◄── parent of further snapshots
//!   view ─────► view (read-only, never committed)
//! ```
//!
//! A client's request becomes calls in this order:
//!
//! | request | calls |
//! |---|---|
//! | Prepare, View | [`records::Table::parents`] (read) → [`Snapshotter::prepare`] → [`records::Table::create`] (write) → [`Pending::keep`] → [`Driver::mounts`] |
//! | Mounts | [`records::Table::mountable`] (read) → [`Driver::mounts`] |
//! | Commit | [`records::Table::committable`] (read) → [`Driver::commit`] → [`records::Table::commit`] (write) |
//! | Remove | [`records::Table::remove`] (write) → [`Driver::remove`] |
//!
//! **Invariant:** a committed snapshot's files were on disk before its record said "committed". A directory without a
//! record is garbage and harms nobody; an active record without its directories is healed by [`Driver::mounts`].

pub mod conformance;
mod dirs;
mod driver;
mod error;
mod idmap;
mod native;
mod overlay;
pub mod records;
mod snapshotter;
mod tree;

pub use driver::{Driver, Kind, Usage};
pub use error::Error;
pub use native::Native;
pub use overlay::{Overlay, OverlayOptions};
pub use snapshotter::{Pending, Snapshotter};

/// Labels with this prefix are inherited by a driver: they say how the directories are made.
pub const INHERITED_PREFIX: &str = "containerd.io/snapshot/";
/// The label that names the committed snapshot a client wants to arrive at.
pub const TARGET_LABEL: &str = "containerd.io/snapshot.ref";
/// Label of the user id mapping, `container:host:length` triples joined by commas.
pub const UID_MAPPING_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// Label of the group id mapping, in the form of [`UID_MAPPING_LABEL`].
pub const GID_MAPPING_LABEL: &str = "containerd.io/snapshot/gidmapping";
