//! Pipelines between the engines. They block.
//!
//! ```text
//! apply   blob ─► decompress ─► hash ─►│ bounded queue │─► tar ─► files
//!                (thread of its own)                     (calling thread)
//! import  stream ─► tar ─► blobs ─► documents, labelled ─► snapshots ─► names
//! export  names ─► documents ─► plan ─► tar ─► stream
//! tag     name ─► names
//! diff    two trees ─► tar ─► hash ─► compress ─► blob
//! ```
//!
//! **Invariant:** gantryd's mount namespace is never changed for a layer: it is written directly into the directory behind a
//! snapshot's mount, and what else must be mounted is mounted detached, seen by nobody. The digest returned covers every byte of the uncompressed
//! stream, also those behind the tar's end mark. What a transfer makes is in a lease from the first byte on, and a transfer
//! that fails leaves nothing that is not.

mod apply;
mod diff;
mod document;
mod error;
mod export;
mod image_store;
mod import;
mod platform;
mod queue;
mod reference;
mod session;
mod tag;
mod target;
mod time;
mod tree;
mod unpack;
mod walk;

#[cfg(test)]
mod tests;

pub use apply::{Layer, apply};
pub use diff::{DiffOptions, diff};
pub use document::Descriptor;
pub use error::Error;
pub use export::{ExportOptions, export};
pub use image_store::{ImageStore, Reference, Unpack};
pub use import::{ImportOptions, import};
pub use platform::Platform;
pub use session::Session;
pub use tag::tag;
pub use target::Target;

/// Media type of what [`apply`] has applied: a layer without compression.
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Label of a compressed layer: the digest that it has without its compression.
pub const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

/// How far a transfer is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What happens. Clients show it, and tell by `saved` which images there are.
    pub event: &'a str,
    /// To what.
    pub name: &'a str,
    /// What that is.
    pub descriptor: Option<&'a Descriptor>,
}
