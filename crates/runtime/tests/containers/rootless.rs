//! Containers of a user who is not root: with one id, and with ranges of ids by `newuidmap` and `newgidmap`.

use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Bundle, end, exec, streams};

/// Run in passes of their own, as the user [`USER`].
pub(crate) const CASES: &[Case] = &[
    ("rootless: one id", one_id),
    ("rootless: ranges of ids", ranges),
    ("rootless: binds", binds),
    ("rootless: exec and delete", life),
    ("rootless: limits need a cgroup", limits),
    ("rootless: needs a user namespace", needs_user_namespace),
    ("rootless: somebody else's ids", ids_of_others),
];

/// Uid and gid of the passes.
pub(crate) const USER: u32 = 1000;
/// What the passes have in `/etc/subuid` and `/etc/subgid`: first id and number.
pub(crate) const RANGE: (u32, u32) = (700_000, 65_536);

fn map(ranges: &[(u32, u32, u32)]) -> Value {
    ranges
        .iter()
        .map(|(inside, outside, size)| json!({"containerID": inside, "hostID": outside, "size": size}))
        .collect()
}

fn rootless(script: &str, map: Value) -> Bundle {
    let single = map.as_array().unwrap().len() == 1;
    Bundle::new(script).with(|spec| {
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        // The user has no cgroups, and with one id no group 5.
        spec["linux"].as_object_mut().unwrap().remove("resources");
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if let (true, Some(options)) = (single, mount["options"].as_array_mut()) {
                options.retain(|option| option != "gid=5");
            }
        }
    })
}

fn one() -> Value {
    map(&[(0, USER, 1)])
}

fn one_id() {
    let output = rootless(
        "id -u; cat /proc/self/setgroups; touch /tmp/x; stat -c %u /tmp/x; echo x > /dev/null; stat -c %t:%T /dev/zero; \
         ls /proc/acpi | wc -l; cat /proc/keys | wc -c; touch /proc/sys/x 2>/dev/null || echo closed; hostname",
        one(),
    )
    .output();
    assert_eq!(output, "0\ndeny\n0\n1:5\n0\n0\nclosed\ninside\n");
}

fn ranges() {
    let output = rootless(
        "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; chown 7:8 /tmp; stat -c %u:%g /tmp",
        map(&[(0, USER, 1), (1, RANGE.0, 1000)]),
    )
    .output();
    let words: Vec<&str> = output.split_whitespace().collect();
    let lines = ["0", "1000", "1", "1", "700000", "1000"];
    assert_eq!(words, [&lines[..], &lines[..], &["allow", "7:8"]].concat(), "{output}");
}

fn binds() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("f"), "file\n").unwrap();
    let bundle = rootless(
        "cat /d/f; touch /d/x 2>/dev/null || echo refused; cat /sys/kernel/ostype 2>/dev/null; ls -d /m/pts",
        one(),
    )
    .with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/d", "source": host.path(), "type": "bind", "options": ["rbind", "ro"]}));
        // With mounts below, and attributes that are locked in a user namespace.
        mounts.push(json!({"destination": "/m", "source": "/dev", "type": "bind", "options": ["rbind", "rw", "suid"]}));
    });
    assert_eq!(bundle.output(), "file\nrefused\n/m/pts\n");
    let mapped = json!({"destination": "/d", "source": host.path(), "type": "bind", "options": ["rbind", "idmap"]});
    let error = rootless("true", one()).with(|spec| spec["mounts"].as_array_mut().unwrap().push(mapped)).error();
    assert!(error.contains("uidMappings"), "{error}");
}

fn life() {
    let bundle = rootless("sleep 1000", one());
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    runtime::wait(&mut container.start().unwrap()).unwrap();
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "id -u; pwd"]});
    assert_eq!(exec(&container, &process).unwrap().output, "0\n/\n");
    // Found again by another process, which has the state only.
    let spec = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap();
    let again = runtime::Container::open(&container.state(), &spec, &bundle.host, None).unwrap();
    assert_eq!(exec(&again, &process).unwrap().output, "0\n/\n");
    assert!(again.state().cgroup.is_empty() && again.pids().unwrap().is_empty());
    end(container);
}

fn limits() {
    let bundle = rootless("true", one()).with(|spec| spec["linux"]["resources"] = json!({"pids": {"limit": 100}}));
    let error = bundle.error();
    assert!(error.contains("pids"), "{error}");
}

fn needs_user_namespace() {
    let error = Bundle::new("true").error();
    assert!(error.contains("rootless container requires user namespaces"), "{error}");
}

fn ids_of_others() {
    let error = rootless("true", map(&[(0, USER, 1), (1, 1, 1000)])).error();
    assert!(error.contains("newuidmap"), "{error}");
}
