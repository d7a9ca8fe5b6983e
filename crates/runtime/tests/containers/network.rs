//! Network devices that move into a container, from a network namespace that stands for the host's.

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::Case;
use crate::fixture::Bundle;

pub(crate) const CASES: &[Case] = &[
    ("network devices", moved),
    ("network devices to a given namespace", given),
    ("network devices and a user namespace", user_space),
    ("network devices refused", refused),
];

/// A network namespace that lives as long as this.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs `ip` in it.
    fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("ip").args(arguments.split(' '));
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Runs something with this as the network of the calling process.
    fn within<T>(&self, action: impl FnOnce() -> T) -> T {
        let ours = std::fs::File::open("/proc/self/ns/net").unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::fs::File::open(self.path()).unwrap().as_fd(), kind).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        move_into_link_name_space(ours.as_fd(), kind).unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host with a pair of devices; `None` where they cannot be made.
fn host() -> Option<Space> {
    let space = Space::new();
    let said = space.ip("link add one type veth peer name two");
    if !said.is_empty() {
        println(&format!("SKIP network devices: {said}"));
        return None;
    }
    for line in [
        "link set one mtu 1400 address 02:00:00:00:00:07",
        "link set one up",
        "link set two up",
        "addr add 10.9.8.7/24 dev one",
        "addr add 10.9.8.6/32 dev one",
        "addr add 169.254.9.9/16 scope link dev one",
    ] {
        assert_eq!(space.ip(line), "", "{line}");
    }
    // Where there is IPv6.
    space.ip("addr add 2001:db8::5/64 dev one nodad");
    Some(space)
}

fn println(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn check(shown: &str, six: bool) {
    for want in ["inet 10.9.8.7/24", "inet 10.9.8.6/32", "mtu 1400", "02:00:00:00:00:07", "UP"] {
        assert!(shown.contains(want), "{want}: {shown}");
    }
    assert!(!shown.contains("169.254"), "{shown}");
    assert!(!six || shown.contains("2001:db8::5/64"), "{shown}");
}

fn moved() {
    let Some(host) = host() else { return };
    let six = host.ip("addr show dev one").contains("2001:db8::5");
    let bundle = Bundle::new("ip addr show dev eth7; ip link show dev two").with(|spec| {
        spec["linux"]["netDevices"] = json!({"one": {"name": "eth7"}, "two": {}});
    });
    let output = host.within(|| bundle.output());
    check(&output, six);
    assert!(output.contains(" two"), "{output}");
    assert!(host.ip("link show").lines().count() <= 2, "nothing but lo is left");
}

fn given() {
    let (Some(host), target) = (host(), Space::new()) else { return };
    let bundle = Bundle::new("ip addr show dev one").with(|spec| {
        spec["linux"]["netDevices"] = json!({"one": {}});
        for space in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if space["type"] == "network" {
                space["path"] = json!(target.path());
            }
        }
    });
    check(&host.within(|| bundle.output()), false);
    // It outlives the container with the namespace.
    check(&target.ip("addr show dev one"), false);
    assert!(host.ip("link show dev one").contains("does not exist"));
}

fn user_space() {
    let Some(host) = host() else { return };
    let bundle = Bundle::new("ip addr show dev one").with(|spec| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        spec["linux"]["netDevices"] = json!({"one": {}});
    });
    check(&host.within(|| bundle.output()), false);
}

fn refused() {
    let with = |devices: Value| Bundle::new("true").with(|spec| spec["linux"]["netDevices"] = devices);
    let host = Space::new();
    let error = host.within(|| with(json!({"nope": {}})).error());
    assert!(error.contains("linux.netDevices: link not found for interface nope"), "{error}");
    let long = "x".repeat(16);
    for devices in [
        json!({"a/b": {}}),
        json!({"": {}}),
        json!({"..": {}}),
        json!({"a": {"name": "b c"}}),
        json!({"a": {"name": long}}),
        json!({"a": {"name": "c"}, "b": {"name": "c"}}),
    ] {
        let error = with(devices.clone()).error();
        assert!(error.contains("linux.netDevices"), "{devices}: {error}");
    }
    let error = with(json!({"lo": {}}))
        .with(|spec| {
            let spaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            spaces.retain(|space| space["type"] != "network");
        })
        .error();
    assert!(error.contains("unable to move network devices without a NET namespace"), "{error}");
}
