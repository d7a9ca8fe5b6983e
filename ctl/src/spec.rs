//! The runtime-spec document of a container that `run` starts: the usual isolation, the image's configuration, the
//! user's wishes on top.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Capabilities that a container keeps, as Docker and containerd have them by default.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Kernel files that tell about the host or change it.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the user asked for.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// Words to run; the image's own when empty.
    pub(crate) command: Vec<String>,
    /// `KEY=VALUE`, over the image's.
    pub(crate) environment: Vec<String>,
    /// Working directory, over the image's.
    pub(crate) cwd: Option<String>,
    /// `uid[:gid]` in numbers, over the image's.
    pub(crate) user: Option<String>,
    /// Bytes of memory.
    pub(crate) memory: Option<i64>,
    /// Processors, for instance 0.5.
    pub(crate) cpus: Option<f64>,
    /// Processes and threads.
    pub(crate) pids: Option<i64>,
    /// Name inside.
    pub(crate) hostname: Option<String>,
    /// Whether the root file system cannot be written.
    pub(crate) read_only: bool,
    /// Whether there is a pseudo terminal.
    pub(crate) terminal: bool,
    /// Cgroup path below the hierarchies' roots.
    pub(crate) cgroup: String,
    /// `source:target[:ro]` of directories or files of the host.
    pub(crate) volumes: Vec<String>,
    /// Whether the host's network is used.
    pub(crate) host_network: bool,
}

/// The document, from the image's configuration and the wishes.
pub(crate) fn spec(image: &Value, wishes: &Wishes) -> Result<Value> {
    let config = &image["config"];
    let words = |key: &str| -> Vec<String> {
        config[key].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut arguments = words("Entrypoint");
    arguments.extend(if wishes.command.is_empty() { words("Cmd") } else { wishes.command.clone() });
    if arguments.is_empty() {
        bail!("the image names no command: give one behind the image");
    }
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    if !wishes.host_network {
        namespaces.push(json!({"type": "network"}));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "hostname": wishes.hostname.clone().unwrap_or_default(),
        "process": {
            "terminal": wishes.terminal,
            "user": user(wishes.user.as_deref().or(config["User"].as_str()))?,
            "args": arguments,
            "env": environment(&words("Env"), &wishes.environment, wishes.terminal),
            "cwd": wishes.cwd.as_deref().or(config["WorkingDir"].as_str()).filter(|cwd| !cwd.is_empty()).unwrap_or("/"),
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "mounts": mounts(wishes)?,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": wishes.cgroup,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources(wishes)?
        }
    }))
}

/// The process document of an additional process: the container's own, with other words.
pub(crate) fn exec_process(spec: &Value, command: &[String], terminal: bool) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(terminal);
    process
}

/// Later variables replace earlier ones of the same name; a terminal gets a `TERM`.
fn environment(image: &[String], wishes: &[String], terminal: bool) -> Vec<String> {
    let mut by_name: BTreeMap<&str, &str> = BTreeMap::new();
    by_name.insert("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if terminal {
        by_name.insert("TERM", "xterm");
    }
    for variable in image.iter().chain(wishes) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        by_name.insert(name, value);
    }
    by_name.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Numbers only: a name would have to be looked up in files that the image controls.
fn user(text: Option<&str>) -> Result<Value> {
    let text = text.unwrap_or_default();
    if text.is_empty() || text == "root" {
        return Ok(json!({"uid": 0, "gid": 0}));
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| -> Result<u32> {
        text.parse().with_context(|| format!("user {text:?}: give --user with numbers, as in 1000:1000"))
    };
    Ok(json!({"uid": number(uid)?, "gid": number(gid)?}))
}

fn mounts(wishes: &Wishes) -> Result<Vec<Value>> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for volume in &wishes.volumes {
        let parts: Vec<&str> = volume.split(':').collect();
        let (source, target, access) = match parts.as_slice() {
            [source, target] => (source, target, "rw"),
            [source, target, access @ ("ro" | "rw")] => (source, target, *access),
            _ => bail!("volume {volume:?}: want SOURCE:TARGET or SOURCE:TARGET:ro"),
        };
        if !source.starts_with('/') || !target.starts_with('/') {
            bail!("volume {volume:?}: both paths must be absolute");
        }
        mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", access]}));
    }
    Ok(mounts)
}

fn resources(wishes: &Wishes) -> Result<Value> {
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(memory) = wishes.memory {
        resources["memory"] = json!({"limit": memory});
    }
    if let Some(cpus) = wishes.cpus {
        // A quota per period of 100 ms, as Docker translates --cpus.
        const PERIOD_US: f64 = 100_000.0;
        if !(0.01..=10_000.0).contains(&cpus) {
            bail!("--cpus {cpus}: want at least 0.01");
        }
        resources["cpu"] = json!({"period": PERIOD_US as u64, "quota": (cpus * PERIOD_US) as i64});
    }
    if let Some(pids) = wishes.pids {
        resources["pids"] = json!({"limit": pids});
    }
    Ok(resources)
}

/// Bytes from a number with an optional suffix k, m or g.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1i64 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        Some(b'g') => (&lower[..lower.len() - 1], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let number: i64 = digits.parse().map_err(|_| format!("{text:?} is no size: want for instance 512k, 64m or 2g"))?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("512k"), Ok(512 << 10));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "m", "-1", "12x", "99999999999g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_image_and_the_wishes_meet() {
        let image = json!({"config": {"Env": ["A=1", "B=2"], "Entrypoint": ["/run"], "Cmd": ["x"], "User": "33:33", "WorkingDir": "/w"}});
        let wishes = Wishes { command: vec!["y".into()], environment: vec!["B=3".into()], ..Wishes::default() };
        let spec = spec(&image, &wishes).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/run", "y"]));
        assert_eq!(spec["process"]["cwd"], "/w");
        assert_eq!(spec["process"]["user"], json!({"uid": 33, "gid": 33}));
        let environment = spec["process"]["env"].as_array().unwrap();
        assert!(environment.contains(&json!("A=1")) && environment.contains(&json!("B=3")), "{environment:?}");
    }

    #[test]
    fn a_user_by_name_is_refused_with_the_way_out() {
        assert!(user(Some("www-data")).unwrap_err().to_string().contains("--user"));
    }
}
