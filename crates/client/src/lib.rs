//! An async client of the containerd API: what `gantryctl` and the tests talk through.
//!
//! [`Client`] is a connection with a namespace and perhaps a lease; its methods give the generated service clients
//! with those headers set. [`image`], [`stdio`] and [`transfer`] hold the parts of a client's work that take more than one call.
//!
//! **Invariant:** nothing here knows gantry from another containerd: every function works against both.

mod connection;
mod error;
pub mod image;
pub mod stdio;
pub mod transfer;

pub use connection::{Client, Scope};
pub use error::Error;
