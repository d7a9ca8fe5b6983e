//! The root file system of a container without a mount namespace of its own: a mount that others see, and that must
//! be taken away when the container is gone.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::{Deserialize, Serialize};
use sys::mount::UnmountFlags;

use crate::{Error, Plan};

/// The mount of such a root. It was made at `path` over the mount `below`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedRoot {
    path: PathBuf,
    below: u64,
}

impl SharedRoot {
    /// What is there before the container of `plan` is made; nothing if its mounts are its own, or those of a
    /// namespace that it joins, where they end with that.
    pub(crate) fn before(plan: &Plan) -> Result<Option<Self>, Error> {
        if plan.spaces.has(sys::clone::flags::NEWNS) {
            return Ok(None);
        }
        let path = plan.root_path().to_owned();
        let below = mount_id(&path)
            .map_err(|errno| Error::host(format!("opening the root file system {}", path.display()), errno))?;
        Ok(Some(Self { path, below }))
    }

    /// Takes the mount away, with all mounts below it, if it is there.
    pub(crate) fn unmount(&self) {
        // Nothing more can be done about a failure; and a root that is gone has no mount.
        if mount_id(&self.path).is_ok_and(|id| id != self.below) {
            let _ = sys::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn mount_id(path: &Path) -> rustix::io::Result<u64> {
    Ok(rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id)
}
