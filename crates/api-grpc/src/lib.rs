//! The containerd API in Rust: messages, clients and servers generated from `proto/`, and the few conversions that
//! every door needs.
//!
//! Generated modules mirror the packages on the wire ([`containerd`], [`google`], [`io`], [`runtimeoptions`]);
//! [`services`] and the other short names below are the same modules under names fit for use. Every message implements
//! [`prost::Name`], whose full name is the message's type URL.
//!
//! **Invariant:** there is one encoder for each thing that Go clients read differently when it is absent: timestamps
//! ([`encode::timestamp`]) and error text ([`status`]).

#[expect(clippy::allow_attributes, unused_qualifications, reason = "generated code does not follow our lints")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub mod decode;
pub mod encode;
mod field;
mod status;
pub mod type_url;

pub use field::event_field;
pub use generated::{containerd, gantry, google, io, runtimeoptions};
pub use status::{status, status_with};

/// The gRPC services by name, each with its messages, client and server.
pub mod services {
    pub use crate::generated::containerd::services::containers::v1 as containers;
    pub use crate::generated::containerd::services::content::v1 as content;
    pub use crate::generated::containerd::services::diff::v1 as diff;
    pub use crate::generated::containerd::services::events::v1 as events;
    pub use crate::generated::containerd::services::images::v1 as images;
    pub use crate::generated::containerd::services::introspection::v1 as introspection;
    pub use crate::generated::containerd::services::leases::v1 as leases;
    pub use crate::generated::containerd::services::mounts::v1 as mounts;
    pub use crate::generated::containerd::services::namespaces::v1 as namespaces;
    pub use crate::generated::containerd::services::sandbox::v1 as sandbox;
    pub use crate::generated::containerd::services::snapshots::v1 as snapshots;
    pub use crate::generated::containerd::services::streaming::v1 as streaming;
    pub use crate::generated::containerd::services::tasks::v1 as tasks;
    pub use crate::generated::containerd::services::transfer::v1 as transfer;
    pub use crate::generated::containerd::services::version::v1 as version;
    pub use crate::generated::gantry::diagnosis::v1 as diagnosis;
}

/// Types that several services share (`containerd.types`).
pub use generated::containerd::types;

/// Sources, destinations and streams of transfers (`containerd.types.transfer`).
pub use generated::containerd::types::transfer as transfer_types;

/// Processes and their status (`containerd.v1.types`).
pub use generated::containerd::v1::types as task_types;

/// Payloads of events (`containerd.events`); those of images are in [`services::images`].
pub use generated::containerd::events;

/// The shim's task service (`containerd.task.v3`; v2 has the same messages).
pub use generated::containerd::task::v3 as shim_task;

/// Options of OCI runtimes (`containerd.runc.v1`).
pub use generated::containerd::runc::v1 as runc_options;

/// Metrics of cgroup v1 (`io.containerd.cgroups.v1`).
pub use generated::io::containerd::cgroups::v1 as cgroups_v1;

/// Metrics of cgroup v2 (`io.containerd.cgroups.v2`).
pub use generated::io::containerd::cgroups::v2 as cgroups_v2;
