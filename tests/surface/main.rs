//! What `ctr` says at gantryd and at containerd: the same lines are typed at both, and what they print and how they end is
//! compared, apart from times, process ids and the names of directories.
//!
//! Debian's `ctr` and containerd by default; others by `PATH`. `GANTRY_SURFACE_TABLE` names a file for the table.

mod lines;

use std::path::{Path, PathBuf};
use std::process::Command;

use lines::{LINES, Line};
use regex::Regex;
use testkit::{Containerd, Daemon, Output, skip};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// A daemon and where its things are.
struct Place {
    address: String,
    directory: PathBuf,
    cgroup: String,
}

impl Place {
    fn new(address: String, directory: &Path, cgroup: &str) -> Self {
        let directory = directory.join("surface");
        std::fs::create_dir_all(&directory).unwrap();
        testkit::busybox_image(&directory.join("busybox.tar"), IMAGE).unwrap();
        testkit::rootfs_tar(&directory.join("rootfs.tar")).unwrap();
        Self { address, directory, cgroup: cgroup.to_owned() }
    }

    /// Types a line and gives what it printed, without what can never be the same.
    fn say(&self, line: &Line) -> Output {
        let directory = self.directory.to_string_lossy();
        let run =
            format!("ctr run --cgroup {}/a --fifo-dir {directory}/fifo --runc-root {directory}/runtime", self.cgroup);
        let text = line.text.replace("{run}", &run).replace("{image}", IMAGE).replace("{dir}", &directory);
        let script = format!("ctr() {{ command ctr --address {} \"$@\"; }}\n{text}", self.address);
        if std::env::var_os("GANTRY_SURFACE_VERBOSE").is_some() {
            eprintln!("{}: {text}", self.address);
        }
        // A shell of its own: functions are passed neither to `timeout` nor to a terminal.
        let mut output = testkit::run("timeout", &["--kill-after=1", "20", "bash", "-c", &script])
            .unwrap_or_else(|error| Output { code: 124, stdout: String::new(), stderr: format!("{error:#}") });
        if output.code == 124 {
            eprintln!("{} hangs at {}", line.text, self.address);
        }
        output.stdout = self.without_chance(&output.stdout);
        output.stderr = self.without_chance(&output.stderr);
        output
    }

    fn without_chance(&self, text: &str) -> String {
        let parent = self.directory.parent().unwrap().to_string_lossy().into_owned();
        let mut text = text.replace(&parent, "DIR").replace(&self.cgroup, "CGROUP");
        for (pattern, instead) in CHANCE {
            text = Regex::new(pattern).unwrap().replace_all(&text, *instead).into_owned();
        }
        // `ctr` prints maps in any order; the order of mount options means nothing either.
        let labels = Regex::new(r"[^\s,=]+=[^\s,]*(,[^\s,=]+=[^\s,]*)+").unwrap();
        let sorted = |found: &regex::Captures<'_>| {
            let mut parts: Vec<&str> = found[0].split(',').collect();
            parts.sort_unstable();
            parts.join(",")
        };
        labels.replace_all(&text, sorted).into_owned()
    }
}

/// What differs between two runs of one daemon, and what stands for it.
const CHANCE: &[(&str, &str)] = &[
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d|UTC))*", "TIME"),
    (r"(?m)^(\S+ +)\d+( +(RUNNING|STOPPED|CREATED|PAUSED))", "${1}PID$2"),
    (r"(?m)^\d+( +-)$", "PID$1"),
    (r"(elapsed|total): *[^ \t\n]+ *[^ \t\n]*", "$1"),
    (r"\d+(\.\d+)? ?(µs|ms|s|seconds?|minutes?|hours?)( ago)?\b", "SPAN"),
    (r"snapshots/\d+", "snapshots/N"),
    (r"\b\d{3,9}-[A-Za-z0-9_-]{4}", "RANDOM"),
    (r"(?m)[ \t]+$", ""),
    (r"[ \t]+", " "),
    (r"containerd-mount\d+", "containerd-mount"),
    // containerd 2.x says so with every answer on a host with cgroup version 1.
    (r"(?m)^.*DEPRECATION: The support for cgroup v1.*\n", ""),
    // Said twice by containerd, where an error passes two hands.
    (r": invalid argument: invalid argument", ": invalid argument"),
    (r"/dev/pts/\d+", "TTY"),
];

fn main() {
    if !on_path("ctr") || !on_path("containerd") {
        skip("surface", "ctr and containerd are not installed (package containerd)");
        println!("test result: ok. 0 passed; 0 failed");
        return;
    }
    let daemon = Daemon::start("surface");
    let directory = tempfile::tempdir().unwrap();
    let peer = Containerd::start(&directory.path().join("d"), None).unwrap();
    let ours = Place::new(daemon.address(), daemon.directory(), daemon.cgroup());
    let cgroup = format!("{}-peer", daemon.cgroup());
    let theirs = Place::new(peer.address(), &directory.path().join("d"), &cgroup);
    let (ours, theirs) = std::thread::scope(|scope| {
        let ours = scope.spawn(|| LINES.iter().map(|line| ours.say(line)).collect::<Vec<_>>());
        let theirs = LINES.iter().map(|line| theirs.say(line)).collect::<Vec<_>>();
        (ours.join().unwrap(), theirs)
    });
    let mut failed = 0;
    let mut table = String::from("| noun | line | result |\n|---|---|---|\n");
    for ((line, ours), theirs) in LINES.iter().zip(&ours).zip(&theirs) {
        let equal = (ours.code, &ours.stdout, &ours.stderr) == (theirs.code, &theirs.stdout, &theirs.stderr);
        let result = match (equal, line.differs) {
            (true, "") => format!("same, ends with {}", ours.code),
            (false, "") => {
                failed += 1;
                println!("DIFFERENT: {}\n--- containerd\n{}--- gantryd\n{}", line.text, told(theirs), told(ours));
                "DIFFERENT".to_owned()
            }
            (true, why) => {
                failed += 1;
                println!("SAME, and said to differ: {}: {why}", line.text);
                "same".to_owned()
            }
            (false, why) => why.to_owned(),
        };
        table.push_str(&format!("| {} | `{}` | {result} |\n", line.group, line.text.replace('|', "\\|")));
    }
    if let Some(path) = std::env::var_os("GANTRY_SURFACE_TABLE") {
        std::fs::write(path, table).unwrap();
    }
    drop(peer);
    drop(daemon);
    remove_cgroup(&cgroup);
    println!(
        "test result: {}. {} passed; {failed} failed",
        if failed == 0 { "ok" } else { "FAILED" },
        LINES.len() - failed
    );
    assert_eq!(failed, 0, "gantryd and containerd do not say the same");
}

/// Removes the cgroup in which containerd's containers had theirs, from every hierarchy.
fn remove_cgroup(path: &str) {
    let name = path.trim_start_matches('/');
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        match std::fs::remove_dir(hierarchy.join(name)) {
            Err(error) if hierarchy.join(name).exists() => panic!("{name} is left in {}: {error}", hierarchy.display()),
            _ => {}
        }
    }
}

fn told(output: &Output) -> String {
    format!("[{}]\n{}{}", output.code, output.stdout, output.stderr)
}

fn on_path(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null")])
        .status()
        .is_ok_and(|found| found.success())
}
