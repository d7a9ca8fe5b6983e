//! The vocabulary of gantry: validated names, digests, labels, filters, timestamps and error classes.
//!
//! **Invariant:** nothing here does input or output, and nothing here knows a wire format; every other crate may use
//! this one. A value of one of the newtypes below has passed the rule in its docs, so callers never check twice.

mod any;
mod code;
mod digest;
pub mod filter;
mod id;
mod labels;
mod mount;
pub mod record;
pub mod template;
mod timestamp;

pub use any::Any;
pub use code::{Code, Coded, render};
pub use digest::{Digest, DigestError};
pub use id::{ContainerId, ExecId, IdentifierError, Namespace, check_identifier};
pub use labels::{LabelError, Labels, check_label, merge_labels};
pub use mount::Mount;
pub use timestamp::Timestamp;

mod build;
pub use build::BUILD;
