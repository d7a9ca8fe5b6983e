//! The label that files of the container's own file systems get (`linux.mountLabel`).

use oci::runtime::Linux;

use super::{MountKind, MountPlan};
use crate::Error;

/// File systems whose files are labelled by the policy, or are no files.
const LABELLED_BY_POLICY: [&str; 4] = ["proc", "sysfs", "mqueue", "cgroup2"];

/// The label, if there is one.
pub(crate) fn mount_label(linux: Option<&Linux>) -> Result<Option<String>, Error> {
    let label = linux.and_then(|linux| linux.mount_label().clone()).filter(|label| !label.is_empty());
    match &label {
        Some(text) if text.len() > 4000 || text.chars().any(|letter| letter.is_control() || letter == '"') => {
            Err(Error::invalid("linux.mountLabel", "must be one line of at most 4000 bytes without quotes"))
        }
        _ => Ok(label),
    }
}

/// Adds the label to each mount of a new file system that does not bring its own. What is bound keeps its labels.
pub(crate) fn label_mounts(mounts: &mut [MountPlan], label: &str) {
    for mount in mounts {
        let MountKind::Filesystem(kind, _) = &mount.kind else { continue };
        let own = mount.options.data.iter().any(|option| option.starts_with("context="));
        if !own && !LABELLED_BY_POLICY.contains(&kind.as_str()) {
            mount.options.data.push(format!("context={label}"));
        }
    }
}
