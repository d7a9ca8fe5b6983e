//! Namespaces: new, joined, and what is set in them.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::Case;
use crate::fixture::{Bundle, end, streams};

pub(crate) const CASES: &[Case] = &[
    ("sysctls by name", sysctl_names),
    ("namespaces new", new_ones),
    ("namespaces of the host", host_ones),
    ("namespaces joined", joined),
    ("pid namespace joined", joined_pid),
    ("user namespace", user),
    ("user namespace and a network of somebody else", user_joined_net),
    ("user namespace joined", joined_user),
    ("time namespace", time),
    ("hostname and domainname", names),
    ("sysctl", sysctl),
    ("loopback", loopback),
    ("wrong namespace paths", wrong),
];

const KINDS: [(&str, &str); 6] =
    [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("cgroup", "cgroup")];

fn own(name: &str) -> u64 {
    std::fs::metadata(format!("/proc/self/ns/{name}")).unwrap().ino()
}

fn inside(bundle: &Bundle) -> String {
    bundle.output()
}

const LIST: &str = "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";

fn new_ones() {
    let output = inside(&Bundle::new(LIST));
    for (_, name) in KINDS {
        assert!(!output.contains(&format!("{name}:[{}]", own(name))), "{name} is the host's: {output}");
    }
    assert_eq!(Bundle::new("echo $$").output(), "1\n");
}

fn host_ones() {
    let bundle = Bundle::new(LIST).with(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
        spec["hostname"] = json!("");
        // A procfs of the host's pid namespace is allowed; a sysfs of its network namespace too.
    });
    let output = inside(&bundle);
    for (_, name) in KINDS.iter().filter(|(_, name)| *name != "mnt") {
        assert!(output.contains(&format!("{name}:[{}]", own(name))), "{name} is not the host's: {output}");
    }
}

fn joined() {
    let first = Bundle::new("sleep 1000");
    let (io, _) = streams();
    let mut container = first.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.pid());
    let second = Bundle::new(LIST).with(|spec| {
        spec["hostname"] = json!("");
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"},
            {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")},
            {"type": "uts", "path": path("uts")}]);
    });
    let output = inside(&second);
    for name in ["net", "ipc", "uts"] {
        let theirs = std::fs::metadata(path(name)).unwrap().ino();
        assert!(output.contains(&format!("{name}:[{theirs}]")), "{name}: {output}");
    }
    end(container);
}

fn joined_pid() {
    let first = Bundle::new("sleep 1000");
    let (io, _) = streams();
    let mut container = first.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let second = Bundle::new("echo $$; ps -o args").with(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "pid", "path": format!("/proc/{}/ns/pid", container.pid())}]);
    });
    let output = second.output();
    assert!(!output.starts_with("1\n") && output.contains("sleep 1000"), "{output}");
    end(container);
}

fn with_user(bundle: Bundle) -> Bundle {
    // The root file system belongs to the users of the namespace, as an engine would have arranged.
    for path in ["", "tmp", "etc"] {
        std::os::unix::fs::chown(bundle.rootfs().join(path), Some(100_000), Some(100_000)).unwrap();
    }
    bundle.with(|spec| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    })
}

fn user() {
    let bundle = with_user(Bundle::new(
        "cat /proc/self/uid_map; id -u; stat -c %t:%T:%F /dev/null; echo x > /dev/null; touch /tmp/mine; stat -c %u /tmp/mine; echo a > /dev/shm/x; ls -d /dev/pts/ptmx",
    ));
    let output = bundle.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"], "{output}");
    assert_eq!(&lines[1..], ["0", "1:3:character special file", "0", "/dev/pts/ptmx"], "{output}");
    assert_eq!(std::fs::metadata(bundle.rootfs().join("tmp/mine")).unwrap().uid(), 100_000);
    // The engine's directories may be closed to the container's users.
    let closed = with_user(Bundle::new("true"));
    std::fs::set_permissions(closed.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    if !sys::features().forced_fallbacks {
        closed.output();
    }
    let unmapped = Bundle::new("true").with(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
    assert!(unmapped.error().contains("linux.uidMappings"));
}

fn user_joined_net() {
    let first = Bundle::new("sleep 1000");
    let (io, _) = streams();
    let mut container = first.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let path = format!("/proc/{}/ns/net", container.pid());
    let bundle = with_user(Bundle::new("readlink /proc/self/ns/net; id -u; echo $$")).with(|spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
        // The network belongs to another user namespace: its sysfs is the host's, bound.
    });
    let output = bundle.output();
    let theirs = std::fs::metadata(&path).unwrap().ino();
    assert_eq!(output, format!("net:[{theirs}]\n0\n1\n"));
    end(container);
}

fn joined_user() {
    let first = with_user(Bundle::new("sleep 1000"));
    let (io, _) = streams();
    let mut container = first.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.pid());
    let second = with_user(Bundle::new("readlink /proc/self/ns/user; id -u")).with(|spec| {
        spec["linux"].as_object_mut().unwrap().remove("uidMappings");
        spec["linux"].as_object_mut().unwrap().remove("gidMappings");
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "user", "path": path("user")}, {"type": "network", "path": path("net")}]);
    });
    let theirs = std::fs::metadata(path("user")).unwrap().ino();
    assert_eq!(second.output(), format!("user:[{theirs}]\n0\n"));
    end(container);
}

fn time() {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return;
    }
    let add = |offsets: serde_json::Value| {
        move |spec: &mut serde_json::Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = offsets;
        }
    };
    let plain = Bundle::new("readlink /proc/self/ns/time").with(add(json!({}))).output();
    assert_ne!(plain.trim(), format!("time:[{}]", own("time")));
    let moved = Bundle::new("cut -d. -f1 /proc/uptime").with(add(json!({"boottime": {"secs": 1_000_000}}))).output();
    assert!(moved.trim().parse::<u64>().unwrap() >= 1_000_000, "{moved}");
}

fn names() {
    let output = Bundle::new("hostname; cat /proc/sys/kernel/domainname")
        .with(|spec| spec["domainname"] = json!("example.org"))
        .output();
    assert_eq!(output, "inside\nexample.org\n");
    let refused = Bundle::new("true").with(|spec| spec["linux"]["namespaces"] = json!([{"type": "mount"}])).error();
    assert!(refused.contains("hostname") && refused.contains("UTS namespace"), "{refused}");
}

fn sysctl() {
    let output = Bundle::new("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax")
        .with(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"}))
        .output();
    assert_eq!(output, "1\n4096\n");
    for (key, why) in [
        ("kernel.core_pattern", "not in a separate kernel namespace"),
        ("net/../kernel/core_pattern", "no name of a sysctl"),
        ("", "no name of a sysctl"),
        ("vm.swappiness", "not in a separate kernel namespace"),
    ] {
        let error = Bundle::new("true").with(|spec| spec["linux"]["sysctl"] = json!({key: "1"})).error();
        assert!(error.contains("linux.sysctl") && error.contains(why), "{error}");
    }
}

fn loopback() {
    let output = Bundle::new("ip addr show lo").output();
    assert!(output.contains("127.0.0.1"), "{output}");
}

fn wrong() {
    for (path, why) in [
        ("/proc/self/ns/uts", "is of another kind"),
        ("/etc/passwd", "opening namespace"),
        ("/nope", "no such file or directory"),
        ("relative", "is not absolute"),
    ] {
        let bundle = Bundle::new("true").with(|spec| {
            spec["linux"]["namespaces"] =
                json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": path}]);
        });
        let error = bundle.error().to_lowercase();
        assert!(error.contains(why), "{path}: {error}");
    }
}

/// Both separators, and a parameter of the host's network refused when its namespace is joined.
fn sysctl_names() {
    let output =
        Bundle::new("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/lo/rp_filter /proc/sys/kernel/sem")
            .with(|spec| {
                spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/rp_filter": "2",
                "kernel.sem": "32000 1024000000 500 32001"});
            })
            .output();
    assert_eq!(output, "1\n2\n32000\t1024000000\t500\t32001\n");
    let joined = Bundle::new("true").with(|spec| {
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        for space in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if space["type"] == "network" {
                space["path"] = json!(format!("/proc/{}/ns/net", std::process::id()));
            }
        }
    });
    let error = joined.error();
    assert!(error.contains("linux.sysctl") && error.contains("host network namespace"), "{error}");
    let error = Bundle::new("true").with(|spec| spec["linux"]["sysctl"] = json!({"net.no.such": "1"})).error();
    assert!(error.contains("setting linux.sysctl: writing /proc/sys/net/no/such"), "{error}");
}
