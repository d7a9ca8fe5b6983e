use serde::{Deserialize, Serialize};

/// A mount as the API describes it: what `mount(8)` would be told. It does nothing by itself; crate `mount` performs
/// it, and treats every field as untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type, `bind` or `overlay` for instance.
    #[serde(rename = "type")]
    pub kind: String,
    /// Device, directory or pseudo source.
    pub source: String,
    /// Path below the root that the mount is made for; usually empty: the root itself.
    #[serde(default)]
    pub target: String,
    /// Options in fstab style.
    #[serde(default)]
    pub options: Vec<String>,
}
