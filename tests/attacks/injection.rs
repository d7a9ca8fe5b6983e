//! Class J: values that mean more than they should to whoever reads them next.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::lab::{Bundle, Lab, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('J', "sysctls of the host", "CVE-2022-0811", Some("sysctls"), host_sysctls),
    attack('J', "sysctls by path", "CVE-2022-0811", Some("sysctls"), sysctl_paths),
    attack('J', "cgroupsPath with ..", "crun 1.28 delegate-cgroup", Some("cgroup_path"), cgroup_path),
    attack('J', "annotations as properties or hooks", "CVE-2024-3154, CVE-2023-6476", None, annotations),
    attack('J', "a container's id as a path", "CVE-2016-9962 kin", Some("container_id"), container_id),
];

/// What the host has is written again, so that nothing changes where it is accepted.
fn host_sysctls(lab: &Lab) -> Verdict {
    for key in ["kernel.core_pattern", "vm.overcommit_memory", "kernel.printk_ratelimit", "fs.suid_dumpable"] {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let Ok(value) = fs::read_to_string(&path) else { continue };
        let mut bundle = Bundle::new(lab, "true");
        bundle.spec["linux"]["sysctl"] = json!({key: value.trim_end()});
        if bundle.run().ok() {
            return Verdict::Bites(format!("{key} of the host was written"));
        }
    }
    Verdict::Stopped("refused".to_owned())
}

fn sysctl_paths(lab: &Lab) -> Verdict {
    let value = fs::read_to_string("/proc/sys/kernel/printk_ratelimit").unwrap_or_default();
    let keys = [
        "net/../kernel/printk_ratelimit",
        "net.ipv4./../../kernel/printk_ratelimit",
        "fs.mqueue/../../kernel/printk_ratelimit",
        "net//..//kernel/printk_ratelimit",
        "/kernel/printk_ratelimit",
    ];
    for key in keys {
        let mut bundle = Bundle::new(lab, "true");
        bundle.spec["linux"]["sysctl"] = json!({key: value.trim_end()});
        if bundle.run().ok() {
            return Verdict::Bites(format!("{key:?} was written"));
        }
    }
    Verdict::Stopped("refused".to_owned())
}

fn cgroup_path(lab: &Lab) -> Verdict {
    let mut said = String::new();
    let name = format!("gantry-attacks-{}", std::process::id());
    for path in [
        format!("/{name}/x/../../{name}-out/y"),
        format!("../../../../../../../{name}-out/y"),
        format!("/{name}/../{name}-out/y"),
    ] {
        let script = "sleep 60";
        let mut bundle = Bundle::new(lab, script);
        bundle.spec["linux"]["cgroupsPath"] = json!(path);
        match bundle.start() {
            Ok(()) => {
                let state = bundle.command(&["state", &bundle.id]);
                let pid =
                    serde_json::from_str::<serde_json::Value>(&state.text).ok().and_then(|state| state["pid"].as_u64());
                let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.unwrap_or(0))).unwrap_or_default();
                drop(bundle);
                remove_groups(&format!("{name}-out"));
                if text.contains(&format!("{name}-out")) && path.starts_with('/') {
                    return Verdict::Bites(format!("{path:?} led to another cgroup"));
                }
                if text.contains("..") {
                    return Verdict::Bites(format!("{path:?} led above the root"));
                }
                said = "held below the root".to_owned();
            }
            Err(output) => said = output.said(),
        }
    }
    Verdict::Stopped(said)
}

/// Removes a cgroup that an attack has made, in every hierarchy.
pub(crate) fn remove_groups(name: &str) {
    let mut tops = vec![Path::new("/sys/fs/cgroup").to_owned()];
    tops.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for top in tops {
        remove_group(&top.join(name));
    }
}

fn remove_group(group: &Path) {
    let Ok(list) = fs::read_dir(group) else { return };
    for entry in list.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

/// Annotations that engines or other runtimes act upon must not become commands or files here.
fn annotations(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    let file = bundle.directory.join("injected");
    let touch = format!("/bin/touch {}", file.display());
    bundle.spec["annotations"] = json!({
        "org.systemd.property.ExecStartPre": format!("['{touch}']"),
        "run.oci.hooks.stdout": file.display().to_string(),
        "run.oci.hooks.stderr": file.display().to_string(),
        "run.oci.delegate-cgroup": "../../../gantry-attacks-delegated",
        "run.oci.systemd.subgroup": "../../gantry-attacks-delegated",
        "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
        "containerd.io/restart.loguri": format!("binary:///bin/touch?{}", file.display()),
    });
    // The annotation about hooks' output is read when hooks run.
    bundle.spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo said"]}]});
    let output = bundle.run();
    let outside = Path::new("/sys/fs/cgroup/gantry-attacks-delegated").exists();
    remove_groups("gantry-attacks-delegated");
    let reached = if file.exists() {
        Some("an annotation names a file of the host, and it is made".to_owned())
    } else {
        outside.then(|| "a cgroup was made outside".to_owned())
    };
    Verdict::of(reached, output.said())
}

fn container_id(lab: &Lab) -> Verdict {
    let bundle = Bundle::new(lab, "true");
    bundle.save();
    let directory = bundle.directory.to_string_lossy().into_owned();
    for id in ["../outside", "..", ".", "a/../../outside", ""] {
        bundle.command(&["create", "--bundle", &directory, id]);
        let made = bundle.directory.join("outside");
        if made.exists() {
            bundle.command(&["delete", "--force", id]);
            return Verdict::Bites(format!("id {id:?} is a directory outside of the state"));
        }
    }
    Verdict::Stopped("refused".to_owned())
}
