//! What this runtime can do, as the document that engines ask for (runtime-spec, features).

use serde_json::{Value, json};

/// Options of mounts that do not belong to one file system.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

/// What every kernel from the floor on has, and at the end what newer ones have.
const SECCOMP_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The features document.
pub fn features() -> Value {
    let killable = sys::features().seccomp_wait_killable();
    let capabilities: Vec<String> = sys::caps::NAMES.iter().map(|name| format!("CAP_{name}")).collect();
    let architectures = if cfg!(target_arch = "x86_64") {
        vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"]
    } else {
        vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci::RUNTIME_SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE",
                            "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                              "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": architectures,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": if killable { &SECCOMP_FLAGS[..] } else { &SECCOMP_FLAGS[..3] },
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": ["MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                          "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE"],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
            "mountExtensions": {"idmap": {"enabled": sys::features().mount_setattr}},
            "netDevices": {"enabled": true},
        },
        // None changes what a container is: those of others are handed on to hooks and nothing else.
        "potentiallyUnsafeConfigAnnotations": [],
        "annotations": {"org.gantry.version": env!("CARGO_PKG_VERSION")},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document has the form of the specification, and names nothing that the parser does not know.
    #[test]
    fn the_document_is_well_formed() {
        let document = features();
        let parsed: oci::runtime::Features = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(parsed.hooks().as_ref().map(Vec::len), Some(6));
        let linux = &document["linux"];
        for mode in linux["memoryPolicy"]["modes"].as_array().unwrap() {
            let policy = json!({"mode": mode, "flags": linux["memoryPolicy"]["flags"]});
            assert!(serde_json::from_value::<oci::runtime::LinuxMemoryPolicy>(policy).is_ok(), "{mode}");
        }
        for kind in linux["namespaces"].as_array().unwrap() {
            assert!(serde_json::from_value::<oci::runtime::LinuxNamespace>(json!({"type": kind})).is_ok(), "{kind}");
        }
    }

    #[test]
    fn every_option_is_understood() {
        for option in MOUNT_OPTIONS {
            let parsed = mount::parse_options(&[(*option).to_owned()]).unwrap();
            assert!(parsed.data.is_empty(), "{option} is left to the file system");
        }
    }
}
