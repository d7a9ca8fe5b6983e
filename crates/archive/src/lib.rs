//! Layer streams: a hostile tar becomes files inside one directory, and nothing else.
//!
//! - [`decompress`] turns a blob into its tar by media type, with bounded memory; [`Compressor`] is the way back.
//! - [`TarReader`] reads any tar, [`TarWriter`] writes one.
//! - [`Digesting`] hashes a stream as it flows, so that the uncompressed digest costs no second read.
//! - [`apply`] writes a layer's changes into a directory, as an overlay upper directory or by removing in place.
//! - [`diff`] makes a layer of what differs between two trees.
//! - [`copy_tree`] and [`copy_entry`] copy files with everything they have.
//!
//! **Invariant:** whatever bytes a stream has, nothing outside of the root directory is created, changed, linked to or
//! removed: each path is resolved by descriptor inside the root (`openat2`), its last component is never followed, and
//! names are cleaned before. Memory does not depend on what the stream claims; see [`Limits`].

mod apply;
mod compression;
mod copy;
mod diff;
mod error;
mod lower;
mod pax;
mod reader;
mod sparse;
mod writer;
mod xattr;

pub use apply::{Applied, ApplyOptions, Limits, Whiteouts, apply};
pub use compression::{Compression, Compressor, Digesting, decompress, decompress_any};
pub use copy::{copy_entry, copy_tree};
pub use diff::diff;
pub use error::Error;
pub use reader::{Entry, Kind, TarReader};
pub use writer::TarWriter;

#[cfg(test)]
mod hostile;
