use std::path::Path;

use serde_json::{Value, json};
use sys::clone::flags;

use super::*;

fn host() -> HostFeatures {
    HostFeatures {
        cgroups: cgroups::Host::V1 { controllers: Vec::new() },
        capabilities: 0b1_0000_0001,
        capabilities_known: 41,
        rootless: false,
        mounts: true,
        device_nodes: true,
        kcore: true,
        descriptor_limit: 1024,
        own_program: (0, 0),
        root_ids: true,
        few_descriptors: false,
    }
}

fn plan(change: impl FnOnce(&mut Value)) -> Result<Plan, Error> {
    let mut spec = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
    change(&mut spec);
    let spec = oci::parse_spec(spec.to_string().as_bytes()).unwrap();
    let options = PlanOptions { id: "id".to_owned(), bundle: PathBuf::from("/bundle"), ..PlanOptions::default() };
    Plan::new(&spec, &host(), &options)
}

#[test]
fn the_template() {
    let plan = plan(|_| {}).unwrap();
    let all = flags::NEWPID | flags::NEWNET | flags::NEWIPC | flags::NEWUTS | flags::NEWNS | flags::NEWCGROUP;
    assert_eq!((plan.spaces.new, plan.spaces.kinds(), plan.spaces.needs_intermediate()), (all, all, false));
    assert_eq!(plan.root_path, Path::new("/bundle/rootfs"));
    assert_eq!(plan.cgroup.to_string(), "/gantry/id");
    assert!(plan.root_read_only && plan.fill_dev && plan.process.terminal && plan.detached_root_suffices());
    assert_eq!(plan.devices.len(), 6);
    // Denied first, then what the spec says, then what every container may use.
    assert!(!plan.device_rules[0].allow() && plan.device_rules[2..].iter().all(|rule| rule.allow()));
    // The host has none of its three capabilities.
    assert_eq!(plan.process.capabilities.unwrap().effective, 0);
    assert!(plan.process.warnings[0].contains("CAP_KILL"), "{:?}", plan.process.warnings);
}

#[test]
fn which_namespaces_need_a_process_in_between() {
    let space = |kind: &str, path: Option<&str>| match path {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    };
    for (list, want) in [
        (vec![space("pid", None)], false),
        (vec![space("network", Some("/n"))], false),
        (vec![space("pid", Some("/p"))], true),
        (vec![space("user", Some("/u"))], true),
        (vec![space("user", None)], false),
        (vec![space("user", None), space("network", Some("/n"))], true),
    ] {
        let spaces = plan(|spec| {
            let user = list.iter().any(|space| space["type"] == "user" && space.get("path").is_none());
            let mut list = list.clone();
            list.push(json!({"type": "mount"}));
            spec["linux"]["namespaces"] = json!(list);
            spec["hostname"] = json!("");
            if user {
                let map = json!([{"containerID": 0, "hostID": 1000, "size": 5}]);
                spec["linux"]["uidMappings"] = map.clone();
                spec["linux"]["gidMappings"] = map;
            }
        });
        let spaces = spaces.unwrap().spaces;
        assert_eq!(spaces.needs_intermediate(), want, "{spaces:?}");
        assert_eq!(spaces.uid_map.is_empty(), spaces.new & flags::NEWUSER == 0);
    }
}

#[test]
fn paths_stay_below_the_root() {
    for (path, want) in
        [("/", ""), ("/a/b", "a/b"), ("a//b/", "a/b"), ("/a/./b/../c", "a/c"), ("/../../etc", "etc"), ("../..", "")]
    {
        assert_eq!(fold_path(Path::new(path)).unwrap().to_str().unwrap(), want, "{path}");
    }
}

#[test]
fn where_the_program_is_looked_for() {
    for (path, program, want, searched) in [
        ("/a:/b/c", "x", vec!["/a/x", "/b/c/x"], true),
        (":.:rel:/a", "x", vec!["/a/x"], true),
        ("/a", "./x", vec!["./x"], false),
        ("/a", "/x", vec!["/x"], false),
        ("", "x", vec![], true),
    ] {
        let plan = plan(|spec| {
            spec["process"]["args"] = json!([program]);
            spec["process"]["env"] = json!(["PATH=/first", "B=1", format!("PATH={path}")]);
        });
        let (candidates, from_path) = plan.unwrap().process.candidates();
        let candidates: Vec<_> = candidates.iter().map(|text| text.to_str().unwrap()).collect();
        assert_eq!((candidates, from_path), (want, searched), "{path}");
    }
}

#[test]
fn devices_of_the_spec_win() {
    let plan = plan(|spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/../dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o100_600},
            {"path": "/dev/x/y", "type": "b", "major": 8, "minor": 1}]);
    });
    let devices = plan.unwrap().devices;
    let find = |name: &str| devices.iter().filter(|device| device.name.to_str() == Ok(name)).collect::<Vec<_>>();
    assert_eq!(find("null").iter().map(|device| device.mode).collect::<Vec<_>>(), [0o600]);
    assert_eq!(find("y")[0].parent.to_str(), Ok("dev/x"));
    assert_eq!(devices.len(), 7);
}

#[test]
fn refusals_name_the_field() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 7] = [
        ("linux.cgroupsPath", |spec| spec["linux"]["cgroupsPath"] = json!("/a/../../b")),
        ("linux.rootfsPropagation", |spec| spec["linux"]["rootfsPropagation"] = json!("odd")),
        ("linux.timeOffsets", |spec| spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}})),
        ("mounts[7].options", |spec| {
            let mount = json!({"destination": "/x", "type": "proc", "options": ["tmpcopyup"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("mounts[7].source", |spec| {
            spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "bind"}));
        }),
        ("mounts[7].uidMappings", |spec| {
            let mount = json!({"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("linux.devices", |spec| {
            spec["linux"]["devices"] = json!([{"path": "/", "type": "c", "major": 1, "minor": 1}])
        }),
    ];
    for (field, change) in cases {
        let text = plan(change).unwrap_err().to_string();
        assert!(text.starts_with(field), "{field}: {text}");
    }
}

#[test]
fn an_empty_destination_or_absurd_text_never_panics() {
    let long = "x/".repeat(2000);
    for text in ["", "/", "..", "a\nb", "\u{0}", &long] {
        for field in ["cgroupsPath", "mountLabel", "rootfsPropagation"] {
            let mut spec = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
            spec["linux"][field] = json!(text);
            if let Ok(spec) = oci::parse_spec(spec.to_string().as_bytes()) {
                let options = PlanOptions { id: text.to_owned(), ..PlanOptions::default() };
                let _ = Plan::new(&spec, &host(), &options);
            }
        }
    }
}

#[test]
fn a_label_reaches_the_mounts_that_carry_one() {
    let mut plan = plan(|spec| {
        spec["linux"]["mountLabel"] = json!("a:b:c:s0:c1,c2");
        spec["mounts"].as_array_mut().unwrap().extend([
            json!({"destination": "/own", "type": "tmpfs", "source": "t", "options": ["context=x"]}),
            json!({"destination": "/bound", "type": "bind", "source": "/", "options": ["bind"]}),
        ]);
    })
    .unwrap();
    assert_eq!(plan.mount_label.as_deref(), Some("a:b:c:s0:c1,c2"));
    label_mounts(&mut plan.mounts, "a:b:c:s0:c1,c2");
    for mount in &plan.mounts {
        let labels: Vec<&String> = mount.options.data.iter().filter(|option| option.starts_with("context=")).collect();
        let want: &[&str] = match mount.destination.to_str().unwrap() {
            "/dev" | "/dev/pts" | "/dev/shm" => &["context=a:b:c:s0:c1,c2"],
            "/own" => &["context=x"],
            _ => &[],
        };
        assert_eq!(labels, want, "{mount:?}");
    }
}

#[test]
fn hostile_values_are_refused_by_field() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 14] = [
        ("linux.mountLabel", |spec| spec["linux"]["mountLabel"] = json!("a\"b")),
        ("linux.mountLabel", |spec| spec["linux"]["mountLabel"] = json!("a\u{0}b")),
        ("process.apparmorProfile", |spec| spec["process"]["apparmorProfile"] = json!("x\ny")),
        ("process.selinuxLabel", |spec| spec["process"]["selinuxLabel"] = json!("x\u{0}")),
        ("process.user.additionalGids", |spec| {
            spec["process"]["user"]["additionalGids"] = json!((0..70_000).collect::<Vec<u32>>());
        }),
        ("linux.netDevices", |spec| spec["linux"]["netDevices"] = json!({"a\u{0}": {}})),
        ("linux.netDevices", |spec| spec["linux"]["netDevices"] = json!({"a": {"name": "../b"}})),
        ("linux.intelRdt.closID", |spec| spec["linux"]["intelRdt"] = json!({"closID": "../x"})),
        ("linux.sysctl", |spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward+kernel.core_pattern": "1"})),
        ("linux.sysctl", |spec| spec["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/bin/x"})),
        ("linux.sysctl", |spec| spec["linux"]["sysctl"] = json!({"kernel/../net/ipv4": "1"})),
        ("linux.sysctl", |spec| spec["linux"]["sysctl"] = json!({"kernel.hostname": "x"})),
        ("linux.sysctl", |spec| spec["linux"]["sysctl"] = json!({"user.max_user_namespaces": "1"})),
        ("vm", |spec| spec["vm"] = json!({"kernel": {"path": "/k"}})),
    ];
    for (field, change) in cases {
        let text = plan(change).unwrap_err().to_string();
        assert!(text.starts_with(field), "{field}: {text}");
    }
    // A value is one value, whatever is in it.
    let value = "1\nkernel.core_pattern=|/bin/x";
    let plan = plan(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": value})).unwrap();
    assert_eq!(plan.sysctls, [(c"sys/net/ipv4/ip_forward".to_owned(), value.as_bytes().to_vec())]);
}
