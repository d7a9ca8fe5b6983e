//! The state of a container in the form in which runc keeps it, so that `runc --root DIR list` and `state` show ours.
//!
//! The facts are those of runc's `libcontainer` (`State` and `BaseState`, the same in 1.1 and 1.5): what is written here
//! is what these commands read; our own record stands beside it in the same document.

use std::collections::BTreeMap;
use std::path::Path;

use oci::Spec;
use oci::runtime::LinuxNamespaceType;
use runtime::{Container, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The record of a container, in its directory.
pub(crate) const STATE: &str = "state.json";
/// The specification, beside it.
pub(crate) const SPEC: &str = "config.json";
/// As with runc, this FIFO is there as long as the container waits to be started.
pub(crate) const START: &str = "exec.fifo";

/// Our own part of `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) state: State,
    /// When it was created, RFC 3339.
    pub(crate) created: String,
    /// Who created it.
    pub(crate) owner: u32,
    /// What its standard streams were then, as `/proc/<pid>/fd` shows them.
    #[serde(default)]
    pub(crate) streams: Vec<String>,
}

/// The whole record.
pub(crate) fn document(saved: &Saved, spec: &Spec, container: &Container) -> serde_json::Result<Value> {
    let mut document = state(saved, spec, container);
    document["gantry"] = serde_json::to_value(saved)?;
    Ok(document)
}

/// What runc reads of it.
fn state(saved: &Saved, spec: &Spec, container: &Container) -> Value {
    let pid = saved.state.init.pid;
    let cgroups: BTreeMap<&str, &Path> = container.cgroup().locations().into_iter().collect();
    let namespaces: BTreeMap<&str, String> =
        KINDS.iter().map(|(_, name, file)| (*name, format!("/proc/{pid}/ns/{file}"))).collect();
    json!({
        "id": saved.state.id,
        "init_process_pid": pid,
        "init_process_start": saved.state.init.start_time,
        "created": saved.created,
        "config": config(saved, spec),
        "rootless": saved.owner != 0,
        "cgroup_paths": cgroups,
        "namespace_paths": namespaces,
        "external_descriptors": saved.streams,
    })
}

const KINDS: [(LinuxNamespaceType, &str, &str); 8] = [
    (LinuxNamespaceType::Mount, "NEWNS", "mnt"),
    (LinuxNamespaceType::Network, "NEWNET", "net"),
    (LinuxNamespaceType::Uts, "NEWUTS", "uts"),
    (LinuxNamespaceType::Ipc, "NEWIPC", "ipc"),
    (LinuxNamespaceType::Pid, "NEWPID", "pid"),
    (LinuxNamespaceType::User, "NEWUSER", "user"),
    (LinuxNamespaceType::Cgroup, "NEWCGROUP", "cgroup"),
    (LinuxNamespaceType::Time, "NEWTIME", "time"),
];

fn config(saved: &Saved, spec: &Spec) -> Value {
    let root = spec.root().as_ref();
    let rootfs = root.map(|root| saved.state.bundle.join(root.path())).unwrap_or_default();
    let linux = spec.linux().as_ref();
    let namespaces: Vec<Value> = linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten()
        .filter_map(|space| {
            let (_, name, _) = KINDS.iter().find(|(kind, _, _)| *kind == space.typ())?;
            Some(json!({"type": name, "path": space.path().clone().unwrap_or_default()}))
        })
        .collect();
    // The bundle and the annotations travel as labels.
    let mut labels: Vec<String> =
        spec.annotations().iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort_unstable();
    labels.push(format!("bundle={}", saved.state.bundle.display()));
    json!({
        "version": spec.version(),
        "rootfs": rootfs,
        "readonlyfs": root.and_then(oci::runtime::Root::readonly).unwrap_or(false),
        "hostname": spec.hostname().clone().unwrap_or_default(),
        "namespaces": namespaces,
        // `devices` makes the embedded resources exist, without which runc refuses to look at the group.
        "cgroups": {"path": format!("/{}", saved.state.cgroup), "devices": []},
        "mounts": null,
        "devices": null,
        "labels": labels,
        "rootless_euid": saved.owner != 0,
        "rootless_cgroups": saved.owner != 0,
    })
}
