//! Documents like Docker's, and the bundle around them.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

/// What the table of variants varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What tables call it.
    pub name: &'static str,
    /// A network namespace.
    pub net: bool,
    /// A cgroup namespace.
    pub cgroup_space: bool,
    /// A profile like Docker's.
    pub seccomp: bool,
}

/// The variants of the tables.
pub const VARIANTS: [Variant; 4] = [
    Variant { name: "pid ipc uts mnt", net: false, cgroup_space: false, seccomp: false },
    Variant { name: "+ net", net: true, cgroup_space: false, seccomp: false },
    Variant { name: "+ net, seccomp", net: true, cgroup_space: false, seccomp: true },
    Variant { name: "+ net, cgroup, seccomp", net: true, cgroup_space: true, seccomp: true },
];

impl Variant {
    /// The words that the floor program takes.
    pub fn words(self, v1: bool) -> String {
        let words = [("net", self.net), ("cgroup", self.cgroup_space), ("seccomp", self.seccomp), ("v1", v1)];
        words.iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect::<Vec<_>>().join(",")
    }
}

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
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

/// System calls that administer the machine: what a profile like Docker's does not allow.
const REFUSED: [&str; 57] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "clone",
    "clone3",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "socket",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

/// A profile of Docker's size and kinds of rules: everything that does not administer the machine is allowed, some
/// calls by their arguments, and `clone3` looks as if it did not exist.
fn profile() -> Value {
    let mut names: Vec<&str> = syscalls::x86_64::Sysno::iter()
        .map(|call| call.name())
        .chain(syscalls::x86::Sysno::iter().map(|call| call.name()))
        .filter(|name| !REFUSED.contains(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    let allow = "SCMP_ACT_ALLOW";
    let argument = |index: u64, value: u64, two: u64, op: &str| json!([{"index": index, "value": value, "valueTwo": two, "op": op}]);
    let mut rules = vec![json!({"names": names, "action": allow})];
    for persona in [0x0_u64, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(json!({"names": ["personality"], "action": allow, "args": argument(0, persona, 0, "SCMP_CMP_EQ")}));
    }
    rules.push(json!({"names": ["socket"], "action": allow, "args": argument(0, 40, 0, "SCMP_CMP_NE")}));
    rules.push(
        json!({"names": ["clone"], "action": allow, "args": argument(0, 2_114_060_288, 0, "SCMP_CMP_MASKED_EQ")}),
    );
    rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules
    })
}

/// A profile: the one at `path`, or one of our own making.
pub fn seccomp(path: Option<&Path>) -> Result<Value> {
    Ok(match path {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => profile(),
    })
}

fn mounts(hosts: &Path) -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]},
        {"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind", "rprivate"]}
    ])
}

/// The `config.json` of a bundle.
pub fn document(variant: Variant, command: &[&str], hosts: &Path, cgroup: &str, seccomp: &Value) -> Value {
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    namespaces.extend(variant.net.then_some("network"));
    namespaces.extend(variant.cgroup_space.then_some("cgroup"));
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({"type": kind})).collect();
    let device = |kind: &str, major: i64, minor: i64| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm"});
    let mut document = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "noNewPrivileges": true, "oomScoreAdj": 0,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench", "HOME=/root"],
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES}
        },
        "mounts": mounts(hosts),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                device("c", 1, 5), device("c", 1, 3), device("c", 1, 9), device("c", 1, 8), device("c", 5, 0),
                device("c", 5, 1), {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
            ]},
            "maskedPaths": [
                "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    if variant.seccomp {
        document["linux"]["seccomp"] = seccomp.clone();
    }
    document
}

/// A root file system of one static busybox.
pub fn rootfs(place: &Path) -> Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(place.join(directory))?;
    }
    std::fs::copy("/bin/busybox", place.join("bin/busybox"))?;
    for name in ["sh", "true", "sleep"] {
        std::os::unix::fs::symlink("busybox", place.join("bin").join(name))?;
    }
    std::fs::write(place.join("etc/hosts"), "")?;
    std::fs::write(place.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}
