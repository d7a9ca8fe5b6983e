//! The container's root file system.
//!
//! **Invariant:** nothing is mounted where the host sees it unless somebody on the host may have to look at it, and
//! the shim's own mount namespace is never changed (dockerd mounts after the shim was started).

use std::path::Path;

use model::{Coded as _, Mount};
use oci::runtime::{LinuxNamespace, LinuxNamespaceType};
use runtime::Rootfs;

use crate::error::Error;

/// Where mounts for the root go when the host has to see them (containerd's convention).
const ROOTFS_DIR: &str = "rootfs";

/// Makes the root file system of a create request. The flag says whether it is mounted in the bundle now.
pub(super) fn prepare(mounts: &[Mount], spec: &oci::Spec, bundle: &Path) -> Result<(Rootfs, bool), Error> {
    let path = bundle.join(spec.root().as_ref().map_or(Path::new(ROOTFS_DIR), |root| root.path().as_path()));
    let target = bundle.join(ROOTFS_DIR);
    match mounts {
        // The client mounted it, or will, before start (dockerd).
        [] => return Ok((Rootfs::Path(path), false)),
        [mount] if mount.target.is_empty() && path == target && nobody_looks(spec) => match mount::detached(mount) {
            Ok(fd) => return Ok((Rootfs::Detached(fd), false)),
            // Only a kernel that cannot: any other error would come again, and less clear.
            Err(error) if error.code() == model::Code::Unimplemented => {}
            Err(error) => return Err(Error::Mount(error)),
        },
        _ => {}
    }
    mount_in_bundle(mounts, bundle)?;
    Ok((Rootfs::Path(path), true))
}

/// Mounts where the host sees it.
pub(super) fn mount_in_bundle(mounts: &[Mount], bundle: &Path) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    let target = bundle.join(ROOTFS_DIR);
    std::fs::create_dir_all(&target).map_err(|source| Error::file("make", &target, source))?;
    mount::mount_all(mounts, &target).map_err(Error::Mount)
}

/// Undoes what [`prepare`] mounted in the bundle.
pub(super) fn undo(bundle: &Path) -> Result<(), Error> {
    mount::unmount_recursive(&bundle.join(ROOTFS_DIR), mount::UnmountFlags::empty()).map_err(Error::Unmount)
}

/// The container has a mount namespace of its own, and no hook runs on the host that might look into its root.
fn nobody_looks(spec: &oci::Spec) -> bool {
    let private = own_namespace(spec, LinuxNamespaceType::Mount);
    let hooks = spec.hooks().as_ref();
    let on_host = hooks.is_some_and(|hooks| {
        let lists = [hooks.prestart(), hooks.create_runtime(), hooks.poststart(), hooks.poststop()];
        lists.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
    });
    private && !on_host
}

/// Whether the container gets a new namespace of a kind, rather than sharing the host's or another container's.
pub(super) fn own_namespace(spec: &oci::Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    namespaces.iter().any(|namespace: &LinuxNamespace| namespace.typ() == kind && namespace.path().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> oci::Spec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn who_looks_at_the_root() {
        for (json, hidden) in [
            (serde_json::json!({"linux": {"namespaces": [{"type": "mount"}]}}), true),
            (serde_json::json!({"linux": {"namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}]}}), false),
            (serde_json::json!({"linux": {"namespaces": [{"type": "pid"}]}}), false),
            (serde_json::json!({}), false),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount"}]}, "hooks": {"createRuntime": [{"path": "/x"}]}}),
                false,
            ),
            (
                serde_json::json!({"linux": {"namespaces": [{"type": "mount"}]}, "hooks": {"startContainer": [{"path": "/x"}]}}),
                true,
            ),
        ] {
            let mut json = json;
            json["ociVersion"] = "1.0.2".into();
            assert_eq!(nobody_looks(&spec(json.clone())), hidden, "{json}");
        }
    }

    #[test]
    fn a_client_that_mounts_itself() {
        let spec = spec(serde_json::json!({"ociVersion": "1.0.2", "root": {"path": "/elsewhere"}}));
        let (rootfs, mounted) = prepare(&[], &spec, Path::new("/b")).unwrap();
        assert!(matches!(rootfs, Rootfs::Path(path) if path == Path::new("/elsewhere")));
        assert!(!mounted);
    }
}
