//! What the fuzz targets share: valid documents, and changes to them that bytes choose.

use runtime::{HostFeatures, Plan, PlanOptions};
use serde_json::{Value, json};
use std::sync::OnceLock;

/// What values of a document are replaced by.
fn values() -> &'static [Value] {
    static VALUES: OnceLock<Vec<Value>> = OnceLock::new();
    VALUES.get_or_init(|| {
        let long = "x".repeat(5000);
        let deep = (0..100).fold(json!("x"), |inner, _| json!([inner]));
        vec![
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(1),
            json!(-1),
            json!(i64::MIN),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(u32::MAX),
            json!(1.5),
            json!(""),
            json!("/"),
            json!("//"),
            json!("."),
            json!(".."),
            json!("../../x"),
            json!("/a/../../b"),
            json!("a:b:c"),
            json!("x\u{0}y"),
            json!("ä\u{feff}\u{1f600}"),
            json!("%s%n"),
            json!("rbind,ro"),
            json!("rbind"),
            json!("idmap"),
            json!("size=1e9"),
            json!("SCMP_ACT_NOTIFY"),
            json!("SCMP_ACT_ERRNO"),
            json!("CAP_SYS_ADMIN"),
            json!("pid"),
            json!("user"),
            json!("shared"),
            json!("net.ipv4.ip_forward"),
            json!("kernel.shmmax"),
            json!(long),
            json!([]),
            json!({}),
            json!([[], {}, null]),
            json!({"": ""}),
            json!({"containerID": 0, "hostID": u32::MAX, "size": 2}),
            deep,
        ]
    })
}

/// Replaces, removes or doubles parts of a document.
pub fn mutate(document: &mut Value, mut bytes: &[u8]) {
    let mut next = || {
        let (first, rest) = bytes.split_first()?;
        bytes = rest;
        Some(usize::from(*first))
    };
    while let (Some(high), Some(low), Some(operation), Some(value)) = (next(), next(), next(), next()) {
        let mut pointers = Vec::new();
        collect(document, &mut String::new(), &mut pointers);
        let Some(pointer) = pointers.get((high << 8 | low) % pointers.len().max(1)).cloned() else { return };
        let values = values();
        let new = values[value % values.len()].clone();
        let Some((parent, key)) = pointer.rsplit_once('/') else { continue };
        let key = key.replace("~1", "/").replace("~0", "~");
        match document.pointer_mut(parent) {
            Some(Value::Object(map)) => match operation % 4 {
                0 => drop(map.remove(&key)),
                1 => {
                    if let Some(name) = new.as_str() {
                        let old = map.remove(&key).unwrap_or_default();
                        map.insert(name.to_owned(), old);
                    }
                }
                _ => drop(map.insert(key, new)),
            },
            Some(Value::Array(list)) => {
                let Ok(index) = key.parse::<usize>() else { continue };
                match operation % 4 {
                    0 => drop(list.remove(index)),
                    1 if list.len() < 50 => list.push(list[index].clone()),
                    _ => list[index] = new,
                }
            }
            _ => {}
        }
    }
}

fn collect(value: &Value, path: &mut String, list: &mut Vec<String>) {
    if !path.is_empty() {
        list.push(path.clone());
    }
    let length = path.len();
    let mut below = |key: &str, value: &Value| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        collect(value, path, list);
        path.truncate(length);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value)),
        _ => {}
    }
}

/// The features of this host, probed once.
pub fn host() -> &'static HostFeatures {
    static HOST: OnceLock<HostFeatures> = OnceLock::new();
    HOST.get_or_init(|| HostFeatures::detect().expect("the features of this host"))
}

/// Plans a container. Whatever the specification says, this must not panic.
pub fn plan(spec: &oci::Spec) {
    let options = PlanOptions { id: "fuzz".to_owned(), bundle: "/bundle".into(), ..PlanOptions::default() };
    if let Ok(plan) = Plan::new(spec, host(), &options) {
        let root = plan.root_path();
        assert!(root.is_absolute(), "{root:?}");
        let _ = (plan.terminal(), plan.detached_root_suffices());
    }
}

/// A specification with something in every part.
pub fn full_spec() -> Value {
    let mut spec = serde_json::to_value(oci::default_spec().expect("the template")).expect("a document");
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 65536}]);
    let hook = json!([{"path": "/bin/hook", "args": ["hook", "x"], "env": ["A=b"], "timeout": 5}]);
    spec["domainname"] = json!("example");
    spec["annotations"] = json!({"org.example": "value"});
    spec["hooks"] = json!({"prestart": hook, "createRuntime": hook, "createContainer": hook, "startContainer": hook,
        "poststart": hook, "poststop": hook});
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts
        .push(json!({"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rro", "rshared"],
        "uidMappings": mapping, "gidMappings": mapping}));
    mounts.push(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "tmpcopyup"]}));
    let linux = &mut spec["linux"];
    linux["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}, {"type": "ipc"},
        {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}, {"type": "time"}]);
    linux["uidMappings"] = mapping.clone();
    linux["gidMappings"] = mapping;
    linux["timeOffsets"] = json!({"monotonic": {"secs": 1, "nanosecs": 2}, "boottime": {"secs": -1, "nanosecs": 0}});
    linux["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "65536"});
    linux["cgroupsPath"] = json!("/fuzz/container");
    linux["rootfsPropagation"] = json!("rslave");
    linux["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0,
        "gid": 0}, {"path": "/dev/pipe", "type": "p"}]);
    linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
        "memory": {"limit": 1048576, "reservation": 1, "swap": -1, "swappiness": 0, "disableOOMKiller": false},
        "cpu": {"shares": 1024, "quota": 100000, "period": 100000, "burst": 1, "idle": 0, "cpus": "0", "mems": "0"},
        "pids": {"limit": 10}, "blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 9223372036854775807_i64}],
        "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}, "unified": {"memory.high": "max"}});
    linux["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/run/agent.sock", "listenerMetadata": "m",
        "syscalls": [{"names": ["read", "write", "socket"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone", "bind"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    linux["personality"] = json!({"domain": "LINUX", "flags": []});
    linux["intelRdt"] = json!({"closID": "c", "l3CacheSchema": "L3:0=f"});
    linux["netDevices"] = json!({"eth0": {"name": "eth1"}});
    linux["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": []});
    linux["mountLabel"] = json!("");
    spec["process"] = full_process();
    spec
}

/// A process with something in every part.
pub fn full_process() -> Value {
    json!({
        "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
        "args": ["sh", "-c", "true"], "env": ["PATH=/bin:/usr/bin", "A=1", "A=2", "B"], "cwd": "/work",
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
        "noNewPrivileges": true, "apparmorProfile": "", "oomScoreAdj": 100, "selinuxLabel": "",
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 4},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "priority": 0, "flags": [], "runtime": 0, "deadline": 0,
            "period": 0},
        "execCPUAffinity": {"initial": "0-1", "final": "1"},
    })
}
