//! Hooks of all six kinds: where they run, in which order, what they are told, and what their failure does.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Bundle, streams};

pub(crate) const CASES: &[Case] = &[
    ("hooks", order),
    ("hook failures", failures),
    ("hook timeouts", timeouts),
    ("hook environments", environments),
    ("failed poststart", failed_poststart),
    ("hooks find the process in its cgroup", cgroup),
];

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that notes its kind, its network namespace and the state document in a file that both sides can reach.
fn noting(bundle: &Bundle, kind: &str) -> Value {
    let inside = kind == "startContainer";
    let log = if inside { "/log".to_owned() } else { bundle.rootfs().join("log").to_str().unwrap().to_owned() };
    let program = if inside { "/bin/sh" } else { "/bin/busybox" };
    let script =
        format!("read state; echo {kind} $VALUE $state >> {log}; echo ns $(readlink /proc/self/ns/net) >> {log}");
    let arguments = if inside { json!(["sh", "-c", script]) } else { json!(["busybox", "sh", "-c", script]) };
    json!({"path": program, "args": arguments, "env": ["VALUE=from-env", "PATH=/bin:/usr/bin"], "timeout": 20})
}

fn order() {
    let bundle = Bundle::new("echo payload >> /log");
    let hooks: serde_json::Map<String, Value> =
        KINDS.iter().map(|kind| ((*kind).to_owned(), json!([noting(&bundle, kind)]))).collect();
    let bundle = bundle.with(|spec| {
        spec["hooks"] = Value::Object(hooks);
        spec["annotations"] = json!({"key": "value"});
    });
    assert_eq!(bundle.run().unwrap().status, 0);
    let log = std::fs::read_to_string(bundle.rootfs().join("log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("ns ")).collect();
    let ours = format!("{}", std::fs::read_link("/proc/self/ns/net").unwrap().display());
    let mut kinds: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    // The payload may be quicker than the poststart hook.
    kinds.retain(|kind| *kind != "payload");
    assert_eq!(kinds, KINDS, "{log}");
    for line in lines.iter().filter(|line| !line.starts_with("payload")) {
        let mut parts = line.splitn(3, ' ');
        let (kind, value, state) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(value, "from-env");
        let state: Value = serde_json::from_str(state).unwrap();
        let status = match kind {
            "prestart" | "startContainer" => "created",
            "poststart" => "running",
            "poststop" => "stopped",
            _ => "creating",
        };
        assert_eq!(state["status"], status, "{kind}");
        assert_eq!(state["id"], bundle.id.as_str());
        assert_eq!(state["annotations"]["key"], "value");
        assert!(state["pid"].as_u64().unwrap() > 0);
        let after = log.lines().skip_while(|other| other != line).nth(1).unwrap();
        if !after.starts_with("payload") {
            assert_eq!(after == format!("ns {ours}"), !kind.ends_with("Container"), "{kind}: {after}");
        }
    }
}

fn failing(kind: &str) -> Bundle {
    let bundle = Bundle::new("true");
    let program = if kind == "startContainer" { "/bin/sh" } else { "/bin/busybox" };
    let arguments = if kind == "startContainer" {
        json!(["sh", "-c", "echo why >&2; exit 3"])
    } else {
        json!(["busybox", "sh", "-c", "echo why >&2; exit 3"])
    };
    bundle.with(|spec| spec["hooks"] = json!({kind: [{"path": program, "args": arguments}]}))
}

fn failures() {
    for kind in KINDS {
        let bundle = failing(kind);
        let (io, _) = streams();
        let text = match bundle.create(io) {
            Err(error) => model::render(&error),
            Ok(mut container) => {
                let started = container.start().and_then(|mut starting| runtime::wait(&mut starting));
                crate::fixture::reap(container.pidfd().try_clone_to_owned().unwrap());
                let deleted = container.delete(false).and_then(|mut deleting| runtime::wait(&mut deleting));
                match (started, deleted) {
                    (Err(error), _) | (Ok(()), Err(error)) => model::render(&error),
                    (Ok(()), Ok(())) => panic!("{kind}: no error"),
                }
            }
        };
        assert!(text.contains(&format!("{kind} hook #0: exit status 3")), "{kind}: {text}");
        assert!(text.contains("why"), "{kind}: {text}");
    }
    let missing = Bundle::new("true").with(|spec| spec["hooks"] = json!({"prestart": [{"path": "/nope"}]})).error();
    assert!(missing.contains("prestart hook #0") && missing.to_lowercase().contains("no such file"), "{missing}");
    let bundle = Bundle::new("true");
    let script = bundle.directory.path().join("plain");
    std::fs::write(&script, "x").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o644)).unwrap();
    let error = bundle.with(|spec| spec["hooks"] = json!({"createRuntime": [{"path": script}]})).error();
    assert!(error.to_lowercase().contains("permission denied"), "{error}");
}

/// Nothing else asks for the cgroup early: there is neither a namespace nor a mount of cgroups.
fn cgroup() {
    let bundle = Bundle::new("true");
    let log = bundle.rootfs().join("log");
    let script = format!("pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); cat /proc/$pid/cgroup > {}", log.display());
    let bundle = bundle.with(|spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", script]}]});
        for (list, name) in [("/linux/namespaces", "type"), ("/mounts", "type")] {
            let entries = spec.pointer_mut(list).and_then(Value::as_array_mut).unwrap();
            entries.retain(|entry| entry[name] != "cgroup");
        }
    });
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    let path = container.cgroup().path().as_str().to_owned();
    let now = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let then = std::fs::read_to_string(&log).unwrap();
    let mut deleting = container.delete(true).unwrap();
    runtime::wait(&mut deleting).unwrap();
    for seen in [then, now] {
        assert!(!path.is_empty() && seen.lines().any(|line| line.ends_with(&path)), "{path} is not in {seen}");
    }
}

fn timeouts() {
    for kind in ["prestart", "createContainer"] {
        let bundle = Bundle::new("true").with(|spec| {
            spec["hooks"] =
                json!({kind: [{"path": "/bin/busybox", "args": ["busybox", "sleep", "1000"], "timeout": 1}]});
        });
        let begin = std::time::Instant::now();
        let error = bundle.error();
        assert!(error.contains(&format!("{kind} hook #0: did not end in time")), "{error}");
        assert!(begin.elapsed().as_secs() < 20);
    }
}

/// A startContainer hook without an environment has that of the program (as with runc); others have none.
fn environments() {
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo $ONE $HOME > /log"]}]);
    let bundle = Bundle::new("true").with(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "ONE=two", "HOME="]);
        spec["hooks"] = json!({"startContainer": hook});
    });
    assert_eq!(bundle.run().unwrap().status, 0);
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join("log")).unwrap(), "two /root\n");
    let bundle = Bundle::new("true");
    let log = bundle.rootfs().join("log");
    let script = format!("echo ${{ONE-unset}} > {}", log.display());
    let hook = json!([{"path": "/bin/busybox", "args": ["busybox", "sh", "-c", script]}]);
    let bundle = bundle.with(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
        spec["hooks"] = json!({"createContainer": hook});
    });
    assert_eq!(bundle.run().unwrap().status, 0);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "unset\n");
}

/// It ends the container.
fn failed_poststart() {
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        spec["hooks"] = json!({"poststart": [
            {"path": "/bin/busybox", "args": ["busybox", "true"]},
            {"path": "/bin/busybox", "args": ["busybox", "sh", "-c", "kill -9 $$"]}]});
    });
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    let error = runtime::wait(&mut container.start().unwrap()).unwrap_err();
    assert!(error.to_string().contains("error running poststart hook #1: signal 9"), "{error}");
    assert_eq!(crate::fixture::reap(container.pidfd().try_clone_to_owned().unwrap()), 137);
    runtime::wait(&mut container.delete(false).unwrap()).unwrap();
}
