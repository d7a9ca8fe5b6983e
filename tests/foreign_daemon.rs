//! Our shim under Debian's unmodified containerd: the shim v2 protocol from the other side.

use testkit::{Containerd, Leaks, binary, eventually, skip};

#[test]
fn our_shim_serves_debians_containerd() {
    if !std::path::Path::new("/usr/bin/containerd").exists() {
        skip("our_shim_serves_debians_containerd", "containerd is not installed (package containerd)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shim = binary("containerd-shim-gantry-v2");
    let cgroup = format!("/gantry-foreign-{}", std::process::id());
    let daemon = Containerd::start(&directory.path().join("d"), shim.parent()).unwrap();
    let tar = directory.path().join("busybox.tar");
    testkit::busybox_image(&tar, "docker.io/library/busybox:latest").unwrap();
    daemon.ctr(&["image", "import", &tar.to_string_lossy()]).ok();
    let fifo = directory.path().join("fifo").to_string_lossy().into_owned();
    let run = |id: &str, flags: &[&str], command: &[&str]| {
        let cgroup = format!("{cgroup}/{id}");
        let mut words = vec!["run", "--runtime", "io.containerd.gantry.v2", "--cgroup", &cgroup, "--fifo-dir", &fifo];
        words.extend(flags);
        words.extend(["docker.io/library/busybox:latest", id]);
        words.extend(command);
        daemon.ctr(&words)
    };

    assert_eq!(run("hello", &["--rm"], &["echo", "hello"]).ok().stdout, "hello\n");
    assert_eq!(run("code", &["--rm"], &["sh", "-c", "exit 42"]).code, 42);
    let missing = run("missing", &["--rm"], &["/no/such/program"]);
    assert!(missing.text().contains("no such file or directory"), "{}", missing.text());

    run("web", &["-d"], &["sleep", "1000"]).ok();
    let exec = daemon.ctr(&["task", "exec", "--exec-id", "e", "web", "sh", "-c", "echo in; exit 3"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (3, "in\n"), "{}", exec.text());
    daemon.ctr(&["task", "pause", "web"]).ok();
    assert!(daemon.ctr(&["task", "ls"]).ok().stdout.contains("PAUSED"));
    daemon.ctr(&["task", "resume", "web"]).ok();
    assert!(daemon.ctr(&["task", "metrics", "web"]).ok().stdout.contains("memory"));
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "web"]).ok();
    eventually("the task is stopped", || {
        let listed = daemon.ctr(&["task", "ls"]).ok().stdout;
        if listed.contains("STOPPED") { Ok(()) } else { Err(listed) }
    });
    let removed = daemon.ctr(&["task", "rm", "web"]);
    assert!(removed.code == 0 || removed.code == 137, "{}", removed.text());
    daemon.ctr(&["container", "rm", "web"]).ok();
    drop(daemon);
    let leaks = Leaks::new(directory.path(), &cgroup);
    eventually("nothing is left behind", || {
        let found = leaks.find();
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    });
    leaks.remove_own_cgroup();
}
