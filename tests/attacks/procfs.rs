//! Class B: what the runtime reads and writes in procfs, led astray.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::lab::{Bundle, Lab, Verdict};
use crate::race::race;
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('B', "something else mounted on /proc", "CVE-2019-19921", Some("proc_place"), covered_proc),
    attack('B', "mount over a part of /proc by a link", "CVE-2025-52881", Some("proc_place"), linked_proc),
    attack('B', "masks of a /proc that is swapped", "CVE-2023-27561, CVE-2023-28642", Some("proc_masks"), swapped_proc),
    attack(
        'B',
        "sysctl and oom_score_adj written to files of the image",
        "CVE-2019-19921",
        Some("proc_writes"),
        faked_files,
    ),
];

fn covered_proc(lab: &Lab) -> Verdict {
    let mut said = String::new();
    for (destination, kind) in [("/proc", "tmpfs"), ("/proc", "bind"), ("/proc/self", "tmpfs"), ("/proc/sys", "bind")] {
        let mut bundle = Bundle::new(lab, "true");
        if destination == "/proc" {
            bundle.unmount("/proc");
            bundle.spec["linux"]["maskedPaths"] = json!([]);
            bundle.spec["linux"]["readonlyPaths"] = json!([]);
        }
        let source = bundle.volume();
        match kind {
            "bind" => bundle
                .mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]})),
            _ => bundle.mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"})),
        }
        let output = bundle.run();
        if output.ok() {
            return Verdict::Bites(format!("a {kind} mount lies on {destination}"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

fn linked_proc(lab: &Lab) -> Verdict {
    let mut said = String::new();
    for (target, destination, place) in [
        ("/proc", "/x/sys", "/proc/sys"),
        ("/proc/sys", "/x/kernel", "/proc/sys/kernel"),
        ("/proc/irq", "/x", "/proc/irq"),
    ] {
        let mut bundle = Bundle::new(lab, &format!("grep -q 'tmpfs {place} ' /proc/mounts && echo COVERED"));
        symlink(target, bundle.rootfs().join("x")).expect("make a link");
        bundle.mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
        bundle.spec["linux"]["readonlyPaths"] = json!([]);
        let output = bundle.run();
        if output.text.contains("COVERED") {
            return Verdict::Bites(format!("a tmpfs lies on {place}"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

/// `/proc` of the image is a link into a volume. Masks and read-only paths must be laid on the procfs that was mounted,
/// not on what the link names later.
fn swapped_proc(lab: &Lab) -> Verdict {
    let script = "for p in /vol/one /vol/two; do [ -e $p/self/status ] && echo changed > $p/sys/kernel/hostname && \
                  [ \"$(hostname)\" = changed ] && echo UNPROTECTED; done; true";
    let mut bundle = Bundle::new(lab, script);
    let mounts = bundle.spec["mounts"].as_array_mut().expect("mounts");
    let proc = mounts.remove(0);
    bundle.share("/vol");
    bundle.mount(proc);
    let dir = bundle.rootfs().join("proc");
    fs::remove_dir(&dir).expect("remove /proc");
    symlink("vol/one", &dir).expect("make a link");
    for name in ["one", "two"] {
        fs::create_dir_all(bundle.volume().join(name).join("sys/kernel")).expect("make a directory");
    }
    bundle.save();
    race(lab, &bundle.volume().join("one"), &bundle.volume().join("two"), || {
        let output = bundle.saved_run();
        bundle.delete();
        (output.text.contains("UNPROTECTED").then(|| "/proc/sys can be written".to_owned()), output)
    })
}

/// Without a procfs in the container, what the runtime has to write must not end in files of the image.
fn faked_files(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "true");
    bundle.unmount("/proc");
    bundle.spec["linux"]["maskedPaths"] = json!([]);
    bundle.spec["linux"]["readonlyPaths"] = json!([]);
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    bundle.spec["process"]["oomScoreAdj"] = json!(500);
    let files = ["sys/net/ipv4/ip_forward", "self/oom_score_adj", "self/attr/exec", "thread-self/attr/exec"];
    let place = |bundle: &Bundle, file: &str| bundle.rootfs().join("proc").join(file);
    for file in files {
        let path = place(&bundle, file);
        fs::create_dir_all(path.parent().expect("a file has a parent")).expect("make a directory");
        fs::write(path, "untouched").expect("write a file");
    }
    let output = bundle.run();
    let written: Vec<&str> = files
        .into_iter()
        .filter(|file| fs::read_to_string(place(&bundle, file)).unwrap_or_default() != "untouched")
        .collect();
    Verdict::of((!written.is_empty()).then(|| format!("written: {}", written.join(" "))), output.said())
}
