//! Root and state directory, with the modes that containerd gives them.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Nobody but the daemon reads images and records.
const ROOT_MODE: u32 = 0o700;
/// Processes of user namespaces pass through to their bundle.
const STATE_MODE: u32 = 0o711;

/// Makes both directories and sets their modes, at each start.
pub(crate) fn prepare(root: &Path, state: &Path) -> anyhow::Result<()> {
    for (path, mode) in [(root, ROOT_MODE), (state, STATE_MODE)] {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("make directory {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(mode))
            .with_context(|| format!("set the mode of {}", path.display()))?;
    }
    Ok(())
}
