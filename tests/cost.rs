//! What one life of a container costs, counted by strace: synchronous writes and programs started.

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
