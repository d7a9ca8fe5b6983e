//! Classes F and G: what an image says about users, and what a process is allowed.

use std::fs;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::lab::{Bundle, Lab, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('F', "HOME with a line break or of somebody else", "CVE-2026-15809", Some("home"), home),
    attack('F', "/etc/passwd that never ends", "CVE-2026-47262", Some("passwd"), endless_passwd),
    attack('G', "inheritable capabilities", "CVE-2022-24769, CVE-2022-29162", Some("inheritable"), inheritable),
    attack('G', "supplementary groups of the caller", "CVE-2022-2995, CVE-2023-25173", Some("groups"), groups),
    attack('G', "user ids that overflow", "CVE-2024-40635", None, overflow),
    attack('G', "exec -u: names, signs, other bases", "CVE-2026-30892", Some("ids"), exec_user),
    attack('G', "a number that is somebody's name", "CVE-2026-46680", None, numeric_name),
];

fn home(lab: &Lab) -> Verdict {
    let passwd = "a:x:7:7::/ok\nb:x:1000:1000::/evil\\nroot:x:0:0::/x:/bin/sh\n:x:8:8::/none\n\
                  c:x:9:9::relative:/bin/sh\nroot2:x:00007:0::/wrong:\n1000:x:0:0::/asname:\n";
    let mut said = Vec::new();
    for (uid, wanted) in [(7, "/ok"), (9, "/"), (4_000_000_000_u32, "/")] {
        let mut bundle = Bundle::new(lab, "env; echo END");
        fs::write(bundle.rootfs().join("etc/passwd"), passwd).expect("write passwd");
        bundle.spec["process"]["user"] = json!({"uid": uid, "gid": 7});
        bundle.spec["process"]["env"] = json!(["PATH=/bin"]);
        let output = bundle.run();
        if !output.ok() {
            said.push(output.said());
            continue;
        }
        let found = output.text.lines().find_map(|line| line.strip_prefix("HOME=")).unwrap_or("/");
        if found != wanted {
            return Verdict::Bites(format!("HOME of user {uid} is {found:?}, not {wanted:?}"));
        }
        said.push(format!("{uid}: {found}"));
    }
    Verdict::Stopped(said.join(", "))
}

/// A FIFO, a huge file, a directory and a link out must not hold up the start or fill the memory.
fn endless_passwd(lab: &Lab) -> Verdict {
    let mut said = Vec::new();
    for kind in ["fifo", "huge", "endless"] {
        let mut bundle = Bundle::new(lab, "echo ran");
        let path = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&path).expect("remove passwd");
        match kind {
            "fifo" => mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("make a FIFO"),
            "huge" => fs::File::create(&path).and_then(|file| file.set_len(64 << 30)).expect("make a huge file"),
            _ => std::os::unix::fs::symlink("/dev/zero", &path).expect("make a link"),
        }
        bundle.spec["process"]["env"] = json!(["PATH=/bin"]);
        bundle.spec["process"]["user"] = json!({"uid": 1234, "gid": 1234});
        let output = bundle.run();
        if output.hung || output.peak_kib > 256 << 10 {
            let how = if output.hung { "the start hangs" } else { "memory is filled" };
            return Verdict::Bites(format!("{kind}: {how}, {} KiB", output.peak_kib));
        }
        said.push(format!("{kind}: {} ms", output.took.as_millis()));
    }
    Verdict::Stopped(said.join(", "))
}

fn status_line<'text>(text: &'text str, name: &str) -> &'text str {
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

fn inheritable(lab: &Lab) -> Verdict {
    let script = "grep -E '^Cap(Inh|Amb)' /proc/self/status";
    let output = Bundle::new(lab, script).run();
    let bundle = Bundle::new(lab, "sleep 60");
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    let exec = bundle.exec(&["--cap=CAP_NET_ADMIN", "--user=1000", "/bin/sh", "-c", script]);
    for (how, text) in [("of init", &output.text), ("of an exec with --cap", &exec.text)] {
        for set in ["CapInh:", "CapAmb:"] {
            let value = status_line(text, set);
            if !value.trim_start_matches('0').is_empty() {
                return Verdict::Bites(format!("{set} {how} is {value}"));
            }
        }
    }
    Verdict::of(None, "none in init, none in an exec with --cap")
}

fn groups(lab: &Lab) -> Verdict {
    let wrapper = ["setpriv", "--groups", "4242,4343"].map(str::to_owned).to_vec();
    let script = "grep ^Groups: /proc/self/status";
    let mut bundle = Bundle::new(lab, script);
    bundle.wrapper.clone_from(&wrapper);
    let output = bundle.run();
    let mut bundle = Bundle::new(lab, "sleep 60");
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    bundle.wrapper = wrapper;
    let exec = bundle.exec(&["/bin/sh", "-c", script]);
    for (how, text) in [("init", &output.text), ("an exec", &exec.text)] {
        if text.contains("4242") {
            return Verdict::Bites(format!("{how} has the groups {}", status_line(text, "Groups:")));
        }
    }
    Verdict::Stopped("neither init nor an exec has them".to_owned())
}

fn overflow(lab: &Lab) -> Verdict {
    let mut said = String::new();
    let numbers: [Value; 5] = [
        json!(4_294_967_296_u64),
        json!(-4_294_967_296_i64),
        json!(-1),
        json!(1_u64 << 40),
        json!(18_446_744_073_709_551_615_u64),
    ];
    for number in numbers {
        let mut bundle = Bundle::new(lab, "id -u; grep ^Uid: /proc/self/status");
        bundle.spec["process"]["user"] = json!({"uid": number, "gid": number});
        let output = bundle.run();
        let uid = status_line(&output.text, "Uid:").split_whitespace().next().unwrap_or_default().to_owned();
        if output.ok() && uid == "0" {
            return Verdict::Bites(format!("user {number} becomes root"));
        }
        said = output.said();
    }
    Verdict::Stopped(said)
}

/// What a process is asked to run as, and runs as, by `exec -u`.
fn exec_as(bundle: &Bundle, user: &str) -> (bool, String, String) {
    let output = bundle.exec(&[&format!("--user={user}"), "/bin/sh", "-c", "grep -E '^[UG]id:' /proc/self/status"]);
    let first = |name| status_line(&output.text, name).split_whitespace().next().unwrap_or_default().to_owned();
    (output.ok(), first("Uid:"), first("Gid:"))
}

fn exec_user(lab: &Lab) -> Verdict {
    let mut bundle = Bundle::new(lab, "sleep 60");
    bundle.spec["process"]["user"] = json!({"uid": 500, "gid": 500});
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    for (user, uid) in [("1", "1"), ("1000:7", "1000"), ("65534", "65534")] {
        let (ok, found, _) = exec_as(&bundle, user);
        if ok && found != uid {
            return Verdict::Bites(format!("-u {user} runs as user {found}"));
        }
    }
    for user in [
        "nobody",
        "4294967296",
        "-1",
        "+0",
        "0x3e8",
        "1e3",
        "",
        ":",
        "1000:",
        " 1000",
        "1000:nogroup",
        "1000:4294967296",
    ] {
        let (ok, uid, gid) = exec_as(&bundle, user);
        if ok && (uid == "0" || gid == "0") {
            return Verdict::Bites(format!("-u {user:?} runs as {uid}:{gid}"));
        }
    }
    Verdict::Stopped("numbers are taken as they are, all else is refused or harmless".to_owned())
}

fn numeric_name(lab: &Lab) -> Verdict {
    let bundle = Bundle::new(lab, "sleep 60");
    fs::write(bundle.rootfs().join("etc/passwd"), "1000:x:0:0::/root:/bin/sh\nroot:x:0:0::/root:/bin/sh\n")
        .expect("write passwd");
    fs::write(bundle.rootfs().join("etc/group"), "1000:x:0:\n").expect("write group");
    if let Err(output) = bundle.start() {
        return Verdict::Skipped(format!("no container: {}", output.said()));
    }
    let (ok, uid, gid) = exec_as(&bundle, "1000:1000");
    let reached = (ok && (uid == "0" || gid == "0")).then(|| format!("-u 1000:1000 runs as {uid}:{gid}"));
    Verdict::of(reached, format!("runs as {uid}:{gid}"))
}
