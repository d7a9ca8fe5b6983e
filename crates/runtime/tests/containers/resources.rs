//! Limits as the cgroup shows them, and what is left of it afterwards.

use std::path::PathBuf;

use cgroups::Host;
use runtime::{Creating, Plan, PlanOptions, Rootfs};
use serde_json::json;

use crate::Case;
use crate::fixture::{Bundle, document, end, exec, running, streams};

pub(crate) const CASES: &[Case] = &[
    ("limits", limits),
    ("update", update),
    ("cgroup mounts", cgroup_mounts),
    ("inner groups", inner_groups),
    ("device rules", device_rules),
    ("too little memory", too_little),
    ("a tiny limit of memory", tiny),
    ("one process", one_process),
    ("device rules of an update", device_update),
    ("a delegated cgroup", delegated),
    ("systemd where there is none", no_systemd),
];

/// Whether this host has a controller.
fn has(controller: &str) -> bool {
    match Host::detect().unwrap() {
        Host::V1 { controllers } => controllers.iter().any(|(name, _)| name == controller),
        Host::V2 { mount } => {
            let list = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap();
            list.split_whitespace().any(|name| name == controller)
        }
    }
}

/// Where a controller's files of the bundle's cgroup are; `None` where this host has no such controller.
fn place(bundle: &Bundle, controller: &str) -> Option<PathBuf> {
    let path = bundle.spec["linux"]["cgroupsPath"].as_str().unwrap().trim_start_matches('/');
    match &bundle.host.cgroups {
        Host::V1 { controllers } => {
            controllers.iter().find(|(name, _)| name == controller).map(|(_, mount)| mount.join(path))
        }
        Host::V2 { mount } => Some(mount.join(path)),
    }
}

fn value(bundle: &Bundle, controller: &str, v1: &str, v2: &str) -> Option<String> {
    let file = if bundle.host.cgroups.is_v2() { v2 } else { v1 };
    let text = std::fs::read_to_string(place(bundle, controller)?.join(file)).ok()?;
    Some(text.trim().to_owned())
}

fn limits() {
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        let limits = json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 17},
                            "cpu": {"shares": 512, "quota": 20000, "period": 100_000}});
        for (controller, limit) in limits.as_object().unwrap().iter().filter(|(name, _)| has(name)) {
            spec["linux"]["resources"][controller] = limit.clone();
        }
    });
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    if let Some(limit) = value(&bundle, "memory", "memory.limit_in_bytes", "memory.max") {
        assert_eq!(limit, "33554432");
    }
    if let Some(limit) = value(&bundle, "pids", "pids.max", "pids.max") {
        assert_eq!(limit, "17");
    }
    if let Some(procs) = value(&bundle, "pids", "cgroup.procs", "cgroup.procs") {
        assert_eq!(procs, container.pid().to_string());
    }
    assert_eq!(container.pids().unwrap(), [container.pid()]);
    let gone = place(&bundle, "memory");
    end(container);
    assert!(gone.is_none_or(|path| !path.exists()), "the cgroup is left");
}

fn update() {
    let bundle = Bundle::new("sleep 1000");
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    let resources = oci::parse_resources(br#"{"pids":{"limit":77}}"#).unwrap();
    if place(&bundle, "pids").is_some_and(|path| path.join("pids.max").exists()) {
        container.update(&resources).unwrap();
        assert_eq!(value(&bundle, "pids", "pids.max", "pids.max").unwrap(), "77");
    }
    end(container);
}

fn cgroup_mounts() {
    for own in [true, false] {
        let bundle = Bundle::new("cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /proc/self/mountinfo | grep -c cgroup")
            .with(|spec| {
                if !own {
                    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "cgroup");
                }
            });
        let output = bundle.output();
        let path = bundle.spec["linux"]["cgroupsPath"].as_str().unwrap();
        assert_eq!(output.contains(path), !own, "{output}");
        if let Host::V1 { controllers } = &bundle.host.cgroups {
            for (name, _) in controllers.iter().filter(|(name, _)| !name.is_empty() && !name.starts_with("name=")) {
                assert!(output.lines().any(|line| line == name), "{name}: {output}");
            }
        }
        let write = Bundle::new("touch /sys/fs/cgroup/x 2>/dev/null || echo refused");
        assert_eq!(write.output(), "refused\n");
    }
}

/// A container that has moved its init into a group below its own, as systemd does, can still be entered.
fn inner_groups() {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    let detected = Host::detect().unwrap();
    let mount = match &detected {
        Host::V2 { mount } => mount.clone(),
        Host::V1 { .. } => UNIFIED.into(),
    };
    let controllers = std::fs::read_to_string(mount.join("cgroup.subtree_control")).unwrap_or_default();
    let Some(controller) = controllers.split_whitespace().find(|name| matches!(*name, "hugetlb" | "memory")) else {
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), "SKIP inner_groups: no controller for groups below {}", mount.display());
        return;
    };
    let script = "cd /sys/fs/cgroup && mkdir inner && echo 1 > inner/cgroup.procs && sleep 1000";
    let mut bundle = Bundle::new(script).with(|spec| {
        for mount in spec["mounts"].as_array_mut().unwrap() {
            mount["options"].as_array_mut().into_iter().for_each(|options| options.retain(|option| option != "ro"));
        }
    });
    bundle.host.cgroups = Host::V2 { mount: mount.clone() };
    let container = running(&bundle);
    let path = mount.join(bundle.spec["linux"]["cgroupsPath"].as_str().unwrap().trim_start_matches('/'));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !std::fs::read_to_string(path.join("cgroup.procs")).unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "init does not move");
        std::thread::yield_now();
    }
    std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let outcome = exec(&container, &document("grep ^0: /proc/self/cgroup")).unwrap();
    assert_eq!(outcome.output, "0::/inner\n");
    end(container);
}

fn device_rules() {
    // /dev/kmsg (1:11) may be made, as CAP_MKNOD is there, but not opened.
    let bundle =
        Bundle::new("mknod /dev/k c 1 11 && (: < /dev/k) 2>/dev/null || echo refused; : < /dev/zero && echo ok");
    let output = bundle.output();
    if bundle.host.cgroups.is_v2() || place(&bundle, "devices").is_some() {
        assert_eq!(output, "refused\nok\n");
    }
}

fn too_little() {
    if !has("memory") {
        return;
    }
    let bundle = Bundle::new("true").with(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 4096}));
    let error = bundle.run().map(|outcome| outcome.status);
    // Killed at its set-up, or when the program is executed: never a hang.
    match error {
        Ok(status) => assert_eq!(status, 137),
        Err(error) => {
            let text = model::render(&error);
            assert!(text.contains("out of memory") || text.contains("memory"), "{text}");
        }
    }
}

fn tiny() {
    if !has("memory") {
        return;
    }
    for limit in [1 << 20, 512 << 10] {
        let bundle = Bundle::new("").with(|spec| {
            spec["process"]["args"] = json!(["true"]);
            spec["linux"]["resources"]["memory"] = json!({"limit": limit});
        });
        bundle.output();
    }
}

fn one_process() {
    if !has("pids") {
        return;
    }
    // A joined namespace makes an intermediate process, which must not count.
    for join in [false, true] {
        let bundle = Bundle::new("").with(|spec| {
            spec["process"]["args"] = json!(["true"]);
            spec["linux"]["resources"]["pids"] = json!({"limit": 0});
            if join {
                for space in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                    if space["type"] == "pid" {
                        space["path"] = json!("/proc/self/ns/pid");
                    }
                }
            }
        });
        bundle.output();
    }
}

fn device_update() {
    // Reading the kernel's log takes the capability, too, where the host restricts it.
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYSLOG"));
        }
    });
    if !bundle.host.cgroups.is_v2() && place(&bundle, "devices").is_none() {
        return;
    }
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let process = |script: &str| {
        let mut process = bundle.spec["process"].clone();
        process["args"] = json!(["sh", "-c", script]);
        process
    };
    let probe = "test -e /dev/k || mknod /dev/k c 1 11; (: < /dev/k) 2>/dev/null && echo opened || echo refused";
    for (rules, expected) in [
        (r#"[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]"#, "opened\n"),
        (r#"[{"allow":false,"access":"rwm"}]"#, "refused\n"),
    ] {
        let resources = oci::parse_resources(format!(r#"{{"devices":{rules}}}"#).as_bytes()).unwrap();
        container.update(&resources).unwrap();
        let outcome = exec(&container, &process(probe)).unwrap();
        assert_eq!(outcome.output, expected, "{rules}");
        // The null device, in whose place the shell's errors go, is always allowed.
        assert_eq!(exec(&container, &process("echo x > /dev/null && echo fine")).unwrap().output, "fine\n");
    }
    end(container);
}

fn delegated() {
    let bundle = Bundle::new("mkdir /sys/fs/cgroup/below && echo made; rmdir /sys/fs/cgroup/below").with(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["type"] == "cgroup" {
                mount["options"].as_array_mut().unwrap().retain(|option| option != "ro");
            }
        }
    });
    if !bundle.host.cgroups.is_v2() {
        return;
    }
    for path in [bundle.directory.path().to_owned(), bundle.rootfs()] {
        std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
    }
    assert!(bundle.output().starts_with("made\n"));
}

fn no_systemd() {
    let bundle = Bundle::new("true").with(|spec| spec["linux"]["cgroupsPath"] = json!("system.slice:gantry:x"));
    let plan = |options: PlanOptions| {
        let spec = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap();
        Plan::new(&spec, &bundle.host, &options)
    };
    let options = PlanOptions { systemd: Some(cgroups::Manager::System), ..bundle.options() };
    if std::path::Path::new("/run/systemd/system").exists() {
        return;
    }
    let plan = plan(options).unwrap();
    let (io, _) = streams();
    let error = Creating::begin(plan, &bundle.host, Rootfs::Path(bundle.rootfs()), io, None).unwrap_err();
    let text = model::render(&error);
    assert!(text.contains("systemd not running on this host"), "{text}");
}
