//! What one life of a container costs, counted by strace: synchronous writes, programs started, and the system calls of
//! `gantry-oci run`.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use testkit::{Daemon, Settings, skip};

/// Prepare … remove of one container, on a daemon whose every thread and child is traced.
#[test]
fn one_life_costs_three_synchronous_writes_and_two_programs() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        skip("one_life_costs_three_synchronous_writes_and_two_programs", "strace is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let calls = "trace=fsync,fdatasync,sync_file_range,sync,syncfs,msync,execve";
    let wrapper = ["strace", "--follow-forks", "--output", &trace.to_string_lossy(), "-e", calls]
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    let daemon = Daemon::start_with("cost", Settings { wrapper, ..Settings::default() });
    let image = daemon.import_busybox();
    let run = |id: &str| {
        let directory = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
        let (cgroup, fifo) = (format!("{}/{id}", daemon.cgroup()), directory("fifo"));
        daemon.ctl(&["run", "--rm", "--cgroup", &cgroup, "--fifo-dir", &fifo, image, id, "true"]).ok();
    };
    // The first life also makes directories and files that stay.
    run("first");
    let before = std::fs::read_to_string(&trace).unwrap().lines().count();
    run("second");
    let text = std::fs::read_to_string(&trace).unwrap();
    let lines: Vec<&str> = text.lines().skip(before).collect();
    let done = |name: &str| {
        lines
            .iter()
            .filter(|line| line.contains(&format!(" {name}(")) && !line.contains("ENOENT"))
            .copied()
            .collect::<Vec<_>>()
    };
    let written: Vec<&str> = ["fsync", "fdatasync", "sync_file_range", "sync", "syncfs", "msync"]
        .iter()
        .flat_map(|name| done(name))
        .collect();
    assert!(written.len() <= 3, "{} synchronous writes:\n{}", written.len(), written.join("\n"));
    let programs = done("execve");
    assert_eq!(programs.len(), 2, "the shim and the payload:\n{}", programs.join("\n"));
    println!("one life: {} synchronous writes, {} programs", written.len(), programs.len());
}

/// A bundle as `gantry-oci spec` makes it, for a program that does nothing.
fn bundle(place: &Path, cgroup: &str) {
    let root = place.join("rootfs");
    for directory in ["bin", "dev", "etc", "proc", "sys"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/true")).unwrap();
    let spec = Command::new(testkit::binary("gantry-oci")).arg("spec").arg("--bundle").arg(place).status().unwrap();
    assert!(spec.success());
    let path = place.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["rlimits"] = serde_json::json!([]);
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["linux"]["cgroupsPath"] = cgroup.into();
    std::fs::write(path, spec.to_string()).unwrap();
}

/// The system calls of a run and of its container, in the caller's view of the cgroups or in one with version 2 only.
fn calls(place: &Path, id: &str, version_2: bool) -> u64 {
    let counts = place.join(format!("counts-{id}"));
    let mut command = Command::new("unshare");
    let view = if version_2 { "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && " } else { "" };
    command.args(["--mount", "--cgroup", "sh", "-c", &format!("{view}exec \"$0\" \"$@\"")]);
    command.args(["strace", "--follow-forks", "--summary-only", "--output"]).arg(&counts);
    command.arg(testkit::binary("gantry-oci")).arg("--root").arg(place.join("state"));
    let output = command.args(["run", "--bundle"]).arg(place).arg(id).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&counts).unwrap();
    let total = text.lines().rev().find(|line| line.trim_end().ends_with("total")).unwrap();
    total.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn a_run_of_gantry_oci_costs_few_system_calls() {
    const NAME: &str = "a_run_of_gantry_oci_costs_few_system_calls";
    // A fixed part, and what each hierarchy of version 1 needs: making, limiting, entering, showing and removing it.
    const FIXED: u64 = 260;
    const EACH: u64 = 9;
    let missing = ["/usr/bin/strace", "/bin/busybox"].into_iter().find(|path| !Path::new(path).exists());
    if let Some(missing) = missing {
        skip(NAME, &format!("{missing} is missing"));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    bundle(place, &format!("/gantry-test-cost-{}", std::process::id()));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies = table.lines().filter(|line| line.contains(" - cgroup")).count() as u64;
    // The first run also makes directories that stay.
    calls(place, "first", false);
    let mut views = vec![("this host", false, if hierarchies > 1 { hierarchies } else { 0 })];
    if hierarchies > 1 {
        views.push(("version 2", true, 0));
    }
    for (name, version_2, hierarchies) in views {
        let (count, bound) = (calls(place, "again", version_2), FIXED + EACH * hierarchies);
        println!("gantry-oci run, {name}: {count} system calls, at most {bound}");
        assert!(count <= bound, "{name}: {count} system calls, more than {bound}");
    }
}
