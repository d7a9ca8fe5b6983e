//! Classes K and L: what other users of the host may reach, and what a container may by default.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use serde_json::json;

use crate::lab::{Bundle, Lab, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        'K',
        "state that other users can read or write",
        "CVE-2024-25621, CVE-2021-41103",
        Some("modes"),
        state_modes,
    ),
    attack(
        'K',
        "cgroups of the host writable in a user namespace",
        "CVE-2023-25809",
        Some("cgroup_mounts"),
        writable_cgroups,
    ),
    attack('L', "power counters by the default masks", "GHSA-7ww5-4wqc-m92c", Some("masks"), powercap),
    attack('L', "a user namespace outside of its cgroup", "CVE-2025-47291", Some("cgroup"), outside_cgroup),
];

/// Walks the state directory as another user could: what is reachable and not private.
fn exposed(path: &Path, reachable: bool, list: &mut Vec<String>) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    let mode = found.mode() & 0o7777;
    let kind = found.file_type();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if kind.is_dir() {
        if mode & 0o022 != 0 {
            list.push(format!("{name}/ {mode:o}"));
        }
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            exposed(&entry.path(), reachable && mode & 0o011 != 0, list);
        }
    } else if reachable && !kind.is_symlink() {
        let secret = name.ends_with(".json") || name == "status";
        let open = (secret && mode & 0o044 != 0) || mode & 0o022 != 0 || (kind.is_socket() && mode & 0o066 != 0);
        if open {
            list.push(format!("{name} {mode:o}"));
        }
    }
}

/// A caller whose umask is 0 must not make the state public: it holds the environment of the container.
fn state_modes(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "sleep 60");
    bundle.wrapper = ["sh", "-c", "umask 0; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    let mut list = Vec::new();
    exposed(&bundle.state(), true, &mut list);
    Verdict::of((!list.is_empty()).then(|| format!("open to others: {}", list.join(", "))), "private")
}

fn user_namespace(bundle: &mut Bundle) {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    for path in [bundle.rootfs(), bundle.volume()] {
        open_up(&path);
    }
}

/// The mapped users must reach the bundle.
fn open_up(path: &Path) {
    use std::os::unix::fs::chown;
    let _ = chown(path, Some(100_000), Some(100_000));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let kind = entry.file_type();
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            open_up(&entry.path());
        }
    }
}

/// Without a cgroup namespace, the cgroups that are seen are the host's: nothing of them may be writable.
fn writable_cgroups(lab: &Lab) -> Verdict {
    let script = "mkdir /sys/fs/cgroup/gantry-made 2>/dev/null && echo MADE; \
                  for f in $(ls -d /sys/fs/cgroup/*/ 2>/dev/null); do mkdir $f/gantry-made 2>/dev/null && echo MADE; done; \
                  grep /sys/fs/cgroup /proc/self/mountinfo | head -1; true";
    let mut said = Vec::new();
    for user in [false, true] {
        let mut bundle = Bundle::new(lab, script);
        bundle.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}));
        if user {
            user_namespace(&mut bundle);
        }
        let output = bundle.run();
        if output.text.contains("MADE") {
            return Verdict::Bites(format!("a cgroup was made from inside, user namespace: {user}"));
        }
        said.push(if output.ok() { "read-only".to_owned() } else { output.said() });
    }
    Verdict::Stopped(said.join(", "))
}

fn powercap(lab: &Lab) -> Verdict {
    let bundle = Bundle::new(lab, "true");
    let directory = bundle.directory.to_string_lossy().into_owned();
    let output = bundle.command(&["spec", "--bundle", &directory]);
    let Ok(text) = fs::read_to_string(bundle.directory.join("config.json")) else {
        return Verdict::Skipped(format!("no template: {}", output.said()));
    };
    let masked = text.contains("/sys/devices/virtual/powercap");
    Verdict::of((!masked).then(|| "the template leaves /sys/devices/virtual/powercap readable".to_owned()), "masked")
}

fn outside_cgroup(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "sleep 60");
    user_namespace(&mut bundle);
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    let state = bundle.command(&["state", &bundle.id]);
    let pid = serde_json::from_str::<serde_json::Value>(&state.text).ok().and_then(|state| state["pid"].as_u64());
    let text = fs::read_to_string(format!("/proc/{}/cgroup", pid.unwrap_or(0))).unwrap_or_default();
    let wanted = format!("gantry-attacks-{}/{}", std::process::id(), bundle.id);
    Verdict::of((!text.contains(&wanted)).then(|| format!("init is in {:?}", text.lines().last())), "inside")
}
