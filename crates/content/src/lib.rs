//! The blob store: bytes under their digest, written through resumable ingests.
//!
//! ```text
//! <root>/blobs/<algorithm>/<hex>          committed blobs, mode 0444; read by other programs too
//! <root>/ingest/<sha256 of the key>/ref   total, start time and key of an unfinished blob
//! <root>/ingest/<sha256 of the key>/data  its bytes so far
//!
//!   writer(key) ──► ingest ──commit──► blob
//!                     │  ▲ dropped: kept on disk, resumed by writer(key)
//!                     └──┘ abort(key): gone
//! ```
//!
//! Keys are opaque and untrusted: they never become file names. Who may see which blob is not known here; that is
//! `metadata`'s.
//!
//! **Invariant:** whatever lies under `blobs/` is whole, verified against its name, and was on disk (file and directory
//! entry) before `commit` returned. One writer at most holds a key.

mod blob;
pub mod conformance;
mod error;
mod hash;
mod ingest;
mod store;

pub use blob::{Blob, BlobReader};
pub use error::Error;
pub use hash::{Algorithm, Hasher};
pub use ingest::{Ingest, Status};
pub use store::{BlobInfo, ContentStore};
