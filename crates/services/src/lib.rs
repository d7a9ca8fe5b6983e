//! The gRPC services of gantryd, one file each: decode, check namespace and lease, call one engine, encode, map the
//! error.
//!
//! ```text
//! connection ─► RequestLayer ─► service ─► Blocking ─► engine
//!               (headers,       (decode,    (bounded     (metadata, content,
//!                panics)         encode)     threads)     snapshots, supervisor)
//! ```
//!
//! **Invariant:** no request, however empty or absurd, ends in anything but a status: engines and `model` validate, the
//! layer turns a panic into INTERNAL, and nothing is queued without a bound. No mechanism lives here.

mod authority;
mod blocking;
mod byte_stream;
mod containers;
mod content;
mod descriptor;
mod diagnosis;
mod diff;
mod engines;
mod error;
mod events;
mod images;
mod introspection;
mod layer;
mod leases;
mod mounts;
mod namespaces;
mod request;
mod sandboxes;
mod snapshots;
mod streaming;
mod streams;
mod tasks;
#[cfg(test)]
mod testing;
mod transfer;
mod version;
mod write;

pub use authority::AnyAuthority;
pub use blocking::Blocking;
pub use engines::{Engines, Health, Limits, MESSAGE_MAX_BYTES, routes};
pub use error::Error;
pub use introspection::{Plugin, Server};
pub use layer::{RequestLayer, RequestService};
pub use mounts::MountKeeper;
pub use streams::Streams;
