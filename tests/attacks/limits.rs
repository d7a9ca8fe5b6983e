//! Classes I and M: documents and helpers that want all the memory or time, and lengths that do not fit.

use std::fs;

use serde_json::json;

use crate::lab::{Bundle, Lab, Output, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('I', "a specification without end", "CVE-2022-1708 kin", Some("documents"), huge_document),
    attack('I', "JSON nested without end", "CVE-2022-1708 kin", None, deep_document),
    attack('I', "a hook that talks without end", "CVE-2022-31030 kin", Some("hook_output"), talking_hook),
    attack('I', "thousands of mounts and annotations", "CVE-2023-25153 kin", None, many_mounts),
    attack('M', "mappings and paths too long for the bootstrap", "CVE-2021-43784", Some("lengths"), long_bootstrap),
];

/// More than this is more than any runtime needs for any document.
const MEMORY_KIB: u64 = 64 << 10;

fn judge(output: &Output) -> Option<String> {
    if output.hung {
        return Some("it hangs".to_owned());
    }
    if let Some(signal) = output.signal {
        return Some(format!("it crashes with signal {signal}"));
    }
    if output.text.contains("goroutine ") || output.text.contains("panicked at") {
        return Some("it crashes".to_owned());
    }
    (output.peak_kib > MEMORY_KIB).then(|| format!("it takes {} MiB", output.peak_kib >> 10))
}

fn told(output: &Output) -> String {
    format!("{} MiB, {} ms: {}", output.peak_kib >> 10, output.took.as_millis(), output.said())
}

fn huge_document(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    bundle.save();
    let path = bundle.directory.join("config.json");
    let text = bundle.spec.to_string();
    let padding = format!("{{\"padding\":[{}0],", "\"xxxxxxxx\",".repeat(8 << 20));
    fs::write(&path, text.replacen('{', &padding, 1)).expect("write config.json");
    bundle.spec = json!(null);
    let output = bundle.saved_run();
    Verdict::of(judge(&output), told(&output))
}

fn deep_document(lab: &Lab) -> Verdict {
    let bundle = Bundle::new(lab, "true");
    bundle.save();
    let path = bundle.directory.join("config.json");
    let text = bundle.spec.to_string();
    let depth = 3_000_000 / 2;
    let nested = format!("{{\"deep\":{}{},", "[".repeat(depth), "]".repeat(depth));
    fs::write(&path, text.replacen('{', &nested, 1)).expect("write config.json");
    let output = bundle.saved_run();
    Verdict::of(judge(&output), told(&output))
}

/// The output of a hook goes nowhere or into bounded memory, and its time is limited.
fn talking_hook(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    // 128 MiB to both streams: real memory of the host if somebody keeps them.
    let script = format!(
        "head -c 134217728 /dev/zero >&2; head -c 134217728 /dev/zero; \
         awk '/^(Shmem|MemFree):/ {{print $1 $2}}' /proc/meminfo > {}/after; exit 0",
        bundle.directory.display()
    );
    bundle.spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 10}]});
    let shared = || field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Shmem:");
    let before = shared();
    let output = bundle.run();
    let after =
        field(&fs::read_to_string(bundle.directory.join("after")).unwrap_or_default().replace(':', ": "), "Shmem:");
    let kept = after.saturating_sub(before) >> 10;
    let reached =
        judge(&output).or_else(|| (kept > 64).then(|| format!("{kept} MiB of its output are kept in memory")));
    Verdict::of(reached, format!("{kept} MiB kept; {}", told(&output)))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn many_mounts(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    for number in 0..2000 {
        bundle.mount(json!({"destination": format!("/tmp/m/{number}"), "type": "bind", "source": bundle.volume(), "options": ["bind"]}));
    }
    let annotations: serde_json::Map<String, serde_json::Value> =
        (0..5000).map(|number| (format!("org.example.{number}"), json!("x".repeat(100)))).collect();
    bundle.spec["annotations"] = json!(annotations);
    let output = bundle.run();
    Verdict::of(judge(&output), told(&output))
}

/// Lengths beyond 16 bits, and more mappings than the kernel takes: an error, not a container with other settings.
fn long_bootstrap(lab: &Lab) -> Verdict {
    let mut said = String::new();
    for (what, entries, path) in
        [("path", 0, 70_000), ("mappings", 6000, 0), ("both", 2000, 66_000), ("a page", 330, 0)]
    {
        let mut bundle = Bundle::new(lab, "readlink /proc/self/ns/user; cat /proc/self/uid_map; echo RAN");
        let list = bundle.spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        if entries > 0 {
            list.push(json!({"type": "user"}));
        }
        if path > 0 {
            list.push(json!({"type": "cgroup", "path": format!("/proc/{}self/ns/cgroup", "./".repeat(path / 2))}));
        }
        let map: Vec<_> =
            (0..entries).map(|number| json!({"containerID": number, "hostID": 100_000 + number, "size": 1})).collect();
        if entries > 0 {
            bundle.spec["linux"]["uidMappings"] = json!(map);
            bundle.spec["linux"]["gidMappings"] = json!(map);
        }
        let output = bundle.run();
        if let Some(reached) = judge(&output) {
            return Verdict::Bites(format!("{what}: {reached}"));
        }
        if output.text.contains("RAN") && !output.text.contains(&format!("{} {} 1", entries - 1, 100_000 + entries - 1))
        {
            return Verdict::Bites(format!("{what}: the container runs with other settings"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}
