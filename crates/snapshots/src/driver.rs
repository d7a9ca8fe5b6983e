use std::path::Path;

use model::{Labels, Mount};
use serde::{Deserialize, Serialize};

use crate::Error;

/// What a snapshot is. The lower-case names are those of the filter field `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only look at a committed snapshot.
    View,
    /// Writable; becomes committed.
    Active,
    /// Frozen; can be a parent.
    Committed,
}

impl Kind {
    /// `view`, `active` or `committed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What a snapshot takes on disk, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes in allocated blocks; a file with several names counts once.
    pub size: u64,
    /// Files, directories and all else that has an inode.
    pub inodes: u64,
}

/// A way to keep file trees in directories. All calls block.
///
/// A driver knows no names and no clients: ids come from [`crate::Snapshotter`], and it may rely on each id being
/// prepared once. `parents` is nearest first and complete down to the snapshot without a parent. `labels` are the
/// inherited ones ([`crate::INHERITED_PREFIX`], [`crate::TARGET_LABEL`]) and come from clients: untrusted.
///
/// Every driver passes [`crate::conformance::run`].
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// The snapshotter's name in the API, `overlayfs` for instance.
    fn name(&self) -> &str;

    /// The directory of everything that this driver keeps.
    fn root(&self) -> &Path;

    /// What the driver can do beyond the common rules, in containerd's words: `rebase` for instance.
    fn capabilities(&self) -> &'static [&'static str] {
        &[]
    }

    /// Makes the directories of a new snapshot of kind `View` or `Active`. They appear whole or not at all. Directories
    /// that an earlier, lost snapshot left under this id are moved away.
    fn prepare(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<(), Error>;

    /// The mounts that show an active snapshot or a view. Directories of an active snapshot that were lost at a power
    /// cut are made anew: its contents were nobody's promise.
    fn mounts(&self, id: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>, Error>;

    /// Brings the files of an active snapshot to disk, and measures them. The directory stays as it is, so the call may
    /// be repeated, and its caller may still change its mind.
    fn commit(&self, id: u64) -> Result<Usage, Error>;

    /// Measures the files that belong to this snapshot alone.
    fn usage(&self, id: u64) -> Result<Usage, Error>;

    /// Removes the directories; there need not be any. Their name is free at once, without a flush.
    fn remove(&self, id: u64) -> Result<(), Error>;

    /// Every id that has directories.
    fn ids(&self) -> Result<Vec<u64>, Error>;

    /// Removes what earlier removals left half done. May block long.
    fn sweep(&self) -> Result<(), Error> {
        Ok(())
    }
}
