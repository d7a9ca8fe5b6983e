//! Documents of the OCI runtime specification: parse, validate, defaults.
//!
//! The types are those of the crate `oci-spec`, re-exported as [`runtime`]. What this crate adds is a front door for
//! hostile input: a document is bounded in size before it is parsed, every rule that needs no look at the host is
//! checked, and an error names the field and the rule.
//!
//! **Invariant:** nothing here opens a file or asks the kernel; a [`Spec`] that left [`parse_spec`] has a 1.x version
//! and an absolute working directory, and no text in it holds a NUL byte where the kernel would need a C string.

mod defaults;
mod error;
mod parse;
mod repair;
mod validate;

pub use defaults::{default_process, default_spec};
pub use error::Error;
pub use oci_spec::image;
pub use oci_spec::runtime;
pub use oci_spec::runtime::{LinuxResources, Process, Spec};
pub use parse::{
    MAX_DOCUMENT_BYTES, parse_process, parse_process_noting, parse_resources, parse_spec, parse_spec_noting,
};
pub use validate::{validate_process, validate_spec};

/// The newest version of the runtime specification that gantry follows.
pub const RUNTIME_SPEC_VERSION: &str = "1.3.0";
