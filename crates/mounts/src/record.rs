//! What is active, as it is kept in a file beside the mounts.

use std::path::Path;

use model::{Labels, Mount, Timestamp};
use serde::{Deserialize, Serialize};

/// A mount that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveMount {
    /// As it was made: transformed.
    pub mount: Mount,
    /// Where, on the host.
    pub mount_point: String,
    /// When.
    pub mounted_at: Timestamp,
}

/// Mounts that were made under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// Their name.
    pub name: String,
    /// Those that are made.
    pub active: Vec<ActiveMount>,
    /// Those that are the caller's to make.
    pub system: Vec<Mount>,
    /// Labels; those of garbage collection steer how long the mounts live.
    pub labels: Labels,
}

/// The file of one activation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Mounts do not outlive the kernel that made them.
    pub(crate) boot_id: String,
    pub(crate) namespace: String,
    pub(crate) lease: Option<String>,
    pub(crate) activation: Activation,
}

impl Record {
    /// Reads a file; `None` for one that is not a record of this boot.
    pub(crate) fn read(path: &Path, boot_id: &str) -> Option<Self> {
        let record: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.boot_id == boot_id).then_some(record)
    }
}
