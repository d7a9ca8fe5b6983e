//! Class D: the runtime's own program, reached from inside by `/proc/<pid>/exe`, memory or descriptors of the process
//! that is about to become the container's.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::{Bundle, Lab, Verdict};
use crate::{Attack, attack};

pub(crate) const ATTACKS: &[Attack] = &[
    attack('D', "exec of /proc/self/exe", "CVE-2019-5736", Some("program"), own_program),
    attack('D', "exec of a script for #!/proc/self/exe", "CVE-2019-5736", Some("program"), script),
    attack('D', "looking into a process that joins", "CVE-2016-9962", Some("hide"), joining),
];

/// Starts a container whose init watches for strangers, and gives its bundle.
fn watched(lab: &Lab) -> Result<Bundle, Verdict> {
    let mut bundle = Bundle::new(lab, "");
    bundle.add_payload();
    let inode = |path: &str| fs::metadata(bundle.rootfs().join(path)).expect("look at a file of the image").ino();
    let known = format!("{},{}", inode("bin/busybox"), inode("attack"));
    let (device, number) = bundle.program_inode();
    let time = lab.race_time.as_millis() + 20_000;
    bundle.spec["process"]["args"] =
        json!(["/attack", "payload", "watch", time.to_string(), known, format!("{device}:{number}"), "/found"]);
    fs::write(bundle.rootfs().join("script"), "#!/proc/self/exe\n").expect("write a script");
    fs::set_permissions(bundle.rootfs().join("script"), fs::Permissions::from_mode(0o755)).expect("make it executable");
    bundle.start().map_err(|output| Verdict::Skipped(format!("no container: {}", output.said())))?;
    Ok(bundle)
}

/// Runs execs until the watcher has found what `wanted` names or the bounds are reached.
fn provoke(lab: &Lab, words: &[&str], wanted: &[&str]) -> Verdict {
    let bundle = match watched(lab) {
        Ok(bundle) => bundle,
        Err(verdict) => return verdict,
    };
    let before = fs::read(bundle_program(lab)).expect("read the runtime");
    let began = Instant::now();
    let found = || fs::read_to_string(bundle.rootfs().join("found")).unwrap_or_default();
    let hit = || found().lines().find(|line| wanted.iter().any(|word| line.starts_with(word))).map(str::to_owned);
    let (mut rounds, mut said) = (0, String::new());
    while rounds < lab.rounds * 3 && began.elapsed() < lab.race_time && hit().is_none() {
        said = bundle.exec(words).said();
        rounds += 1;
    }
    if wanted.contains(&"overwritten") {
        // Once nobody executes the program any more, who has a handle can write.
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline && hit().is_none() {
            std::thread::yield_now();
        }
    }
    let after = fs::read(bundle_program(lab)).expect("read the runtime");
    if before != after {
        fs::write(bundle_program(lab).with_extension("new"), &before).expect("write the runtime");
        fs::rename(bundle_program(lab).with_extension("new"), bundle_program(lab)).expect("restore the runtime");
        let _ = fs::set_permissions(bundle_program(lab), fs::Permissions::from_mode(0o755));
        return Verdict::Bites(format!("the runtime's binary was overwritten from inside, round {rounds}"));
    }
    Verdict::of(hit().map(|line| format!("{line}; round {rounds}")), format!("{rounds} execs; {said}"))
}

fn bundle_program(lab: &Lab) -> std::path::PathBuf {
    lab.subject.program.clone()
}

fn own_program(lab: &Lab) -> Verdict {
    provoke(lab, &["/proc/self/exe"], &["overwritten"])
}

fn script(lab: &Lab) -> Verdict {
    provoke(lab, &["/script"], &["overwritten"])
}

fn joining(lab: &Lab) -> Verdict {
    provoke(lab, &["/bin/true"], &["memory", "descriptors"])
}

/// The watcher: init of the container. Looks for processes whose program is none of the container's own, opens what it
/// can of them, and tries to write to the program. What it finds goes to a file, one line each.
pub(crate) fn watch(arguments: &[String]) {
    let [time, known, program, file] = arguments else { return };
    let deadline = Instant::now() + Duration::from_millis(time.parse().unwrap_or(1000));
    let known: BTreeSet<u64> = known.split(',').filter_map(|number| number.parse().ok()).collect();
    let mut log = File::create(file).expect("make the log");
    let mut told = BTreeSet::new();
    let mut tell = |kind: &str, text: String| {
        if told.insert(kind.to_owned()) {
            let _ = writeln!(log, "{kind} {text}");
        }
    };
    let mut handle: Option<File> = None;
    let own = std::process::id();
    while Instant::now() < deadline {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.parse::<u32>().ok().filter(|pid| *pid != own) else { continue };
            let path = format!("/proc/{pid}/exe");
            let Ok(found) = fs::metadata(&path) else { continue };
            if known.contains(&found.ino()) {
                continue;
            }
            if fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|list| list.flatten().count() > 0) {
                tell("descriptors", format!("of process {pid} can be opened"));
            }
            if OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).is_ok() {
                tell("memory", format!("of process {pid} can be written"));
            }
            if format!("{}:{}", found.dev(), found.ino()) == *program
                && handle.is_none()
                && let Ok(opened) = File::open(&path)
                && opened.metadata().is_ok_and(|again| again.ino() == found.ino())
            {
                tell("handle", format!("on the runtime's binary through process {pid}"));
                handle = Some(opened);
            }
        }
        if let Some(opened) = &handle {
            let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
            if let Ok(mut writable) = OpenOptions::new().append(true).open(path) {
                let _ = writable.write_all(b"overwritten");
                tell("overwritten", "the runtime's binary".to_owned());
                handle = None;
            }
        }
    }
}
