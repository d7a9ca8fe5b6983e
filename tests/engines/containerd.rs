//! Debian's containerd with its own `containerd-shim-runc-v2` and `gantry-oci` in the place of runc.

use testkit::{Containerd, Leaks, eventually};

use crate::{gantry_oci, missing};

#[test]
fn containerds_own_shim_runs_gantry_oci() {
    let programs = [("/usr/bin/containerd", "containerd"), ("/usr/bin/containerd-shim-runc-v2", "containerd")];
    if missing("containerds_own_shim_runs_gantry_oci", &programs) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let text = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (fifo, root, binary) = (text("fifo"), text("runtime"), gantry_oci().to_string_lossy().into_owned());
    let cgroup = format!("/gantry-stock-{}", std::process::id());
    let daemon = Containerd::start(&directory.path().join("d"), None).unwrap();
    let tar = directory.path().join("busybox.tar");
    testkit::busybox_image(&tar, "docker.io/library/busybox:latest").unwrap();
    daemon.ctr(&["image", "import", &tar.to_string_lossy()]).ok();
    let run = |id: &str, flags: &[&str], command: &[&str]| {
        let cgroup = format!("{cgroup}/{id}");
        let mut words =
            vec!["run", "--runtime", "io.containerd.runc.v2", "--runc-binary", &binary, "--runc-root", &root];
        words.extend(["--cgroup", &cgroup, "--fifo-dir", &fifo]);
        words.extend(flags);
        words.extend(["docker.io/library/busybox:latest", id]);
        words.extend(command);
        daemon.ctr(&words)
    };

    assert_eq!(run("hello", &["--rm"], &["echo", "hello"]).ok().stdout, "hello\n");
    assert_eq!(run("code", &["--rm"], &["sh", "-c", "exit 42"]).code, 42);
    for (command, text) in [
        ("/no/such/program", "stat /no/such/program: no such file or directory"),
        ("no-such-program", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
    ] {
        let failed = run("failed", &["--rm"], &[command]);
        assert!(failed.code != 0 && failed.text().contains(text), "{}", failed.text());
    }

    run("web", &["-d"], &["sleep", "1000"]).ok();
    assert!(directory.path().join("runtime/default/web").is_dir(), "the state is below the root that was given");
    let exec = daemon.ctr(&["task", "exec", "--exec-id", "e", "web", "sh", "-c", "echo in; exit 3"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (3, "in\n"), "{}", exec.text());
    let missing = daemon.ctr(&["task", "exec", "--exec-id", "m", "web", "/nope"]);
    assert!(missing.text().contains("no such file or directory"), "{}", missing.text());
    daemon.ctr(&["task", "pause", "web"]).ok();
    assert!(daemon.ctr(&["task", "ls"]).ok().stdout.contains("PAUSED"));
    daemon.ctr(&["task", "resume", "web"]).ok();
    assert!(daemon.ctr(&["task", "metrics", "web"]).ok().stdout.contains("memory"));
    assert_eq!(daemon.ctr(&["task", "ps", "web"]).ok().stdout.lines().count(), 2, "a header and one process");
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
