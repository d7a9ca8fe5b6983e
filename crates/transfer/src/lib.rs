//! Pipelines between the engines. So far one: [`apply`], from a layer blob to the files of a snapshot.
//!
//! ```text
//! blob ─► decompress ─► hash ─►│ bounded queue │─► tar ─► files
//!        (thread of its own)                     (calling thread)
//! ```
//!
//! **Invariant:** gantryd's mount namespace is never changed for a layer: what cannot be written directly into the
//! directory behind a mount is refused with UNIMPLEMENTED. The digest returned covers every byte of the uncompressed
//! stream, also those behind the tar's end mark.

mod apply;
mod error;
mod queue;
mod target;

pub use apply::{Layer, apply};
pub use error::Error;
pub use target::Target;

/// Media type of what [`apply`] has applied: a layer without compression.
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
