//! Docker Engine with `--add-runtime`: its containerd runs `containerd-shim-runc-v2`, which runs `gantry-oci`.

use testkit::{Dockerd, Pty, eventually, skip};

use crate::{OBEDIENT, READ_LIMITS, cgroup_v1, gantry_oci, missing};

fn no_docker(scenario: &str) -> bool {
    missing(scenario, &[("/usr/sbin/dockerd", "docker.io"), ("/usr/bin/containerd-shim-runc-v2", "containerd")])
}

fn start(name: &str) -> Dockerd {
    Dockerd::start(name, &gantry_oci())
}

#[test]
fn docker_runs() {
    if no_docker("docker_runs") {
        return;
    }
    let docker = start("run");
    let info = docker.docker(&["info", "--format", "{{.DefaultRuntime}}"]).ok();
    assert_eq!(info.stdout.trim(), "gantry");
    let hello = docker.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((hello.code, hello.stdout.as_str(), hello.stderr.as_str()), (7, "out\n", "err\n"));
    for (command, code, text) in [
        ("true", 0, ""),
        ("/nope", 127, "stat /nope: no such file or directory"),
        ("no-such-program", 127, "executable file not found in $PATH"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, "is a directory"),
    ] {
        let run = docker.run(&["--rm"], &[command]);
        assert_eq!(run.code, code, "{command}: {}", run.text());
        assert!(run.stderr.contains(text), "{command}: {}", run.text());
    }
    assert_eq!(docker.run(&["--rm", "--no-such-option"], &["true"]).code, 125);
    assert_eq!(docker.run(&["--rm", "--runtime", "other"], &["true"]).code, 125);
    let words = ["run", "--rm", "-i", "--network", "none", testkit::ENGINE_IMAGE, "cat"];
    assert_eq!(docker.docker_with_input(&words, "typed\n").ok().stdout, "typed\n");

    let words = docker.words(&["run", "--rm", "-it", "--network", "none", testkit::ENGINE_IMAGE, "sh"]);
    let mut terminal = Pty::spawn("docker", &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    terminal.expect("# ");
    terminal.resize(100, 30).unwrap();
    eventually("the terminal inside has the new size", || {
        terminal.send("stty size\n").map_err(|error| error.to_string())?;
        if terminal.sees("30 100", std::time::Duration::from_millis(200)) { Ok(()) } else { Err("the old size".into()) }
    });
    terminal.send("exit 5\n").unwrap();
    let (code, output) = terminal.finish().unwrap();
    assert_eq!(code, 5, "{output}");
}

#[test]
fn docker_life_of_a_container() {
    if no_docker("docker_life_of_a_container") {
        return;
    }
    let docker = start("life");
    docker.run(&["--detach", "--name", "web"], &["sh", "-c", OBEDIENT]).ok();
    let exec = docker.docker(&["exec", "web", "sh", "-c", "echo in; exit 3"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (3, "in\n"), "{}", exec.text());
    for (command, text) in [("/nope", "no such file or directory"), ("/etc/passwd", "permission denied")] {
        let exec = docker.docker(&["exec", "web", command]);
        // Engines before 23 give 126 to both, with runc too.
        assert!(matches!(exec.code, 126 | 127), "{command}: {}", exec.text());
        assert!(exec.text().contains(text), "{command}: {}", exec.text());
    }
    let words = docker.words(&["exec", "-it", "web", "sh", "-c", "tty; exit 4"]);
    let terminal = Pty::spawn("docker", &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let (code, output) = terminal.finish().unwrap();
    assert!(code == 4 && output.contains("/dev/pts/"), "{code} {output}");

    docker.docker(&["pause", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}}"), "paused");
    docker.docker(&["unpause", "web"]).ok();
    assert!(docker.docker(&["top", "web"]).ok().stdout.contains("trap"));
    let stats = docker.docker(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", "web"]).ok().stdout;
    let count: u32 = stats.split_whitespace().next().unwrap().parse().unwrap();
    assert!(count >= 1, "{stats}");

    docker.docker(&["restart", "--time", "20", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}}"), "running");
    eventually("the shell has set its trap again", || {
        let logs = docker.docker(&["logs", "web"]).stdout;
        if logs.matches("ready").count() == 2 { Ok(()) } else { Err(logs) }
    });
    docker.docker(&["stop", "--time", "20", "web"]).ok();
    assert_eq!(docker.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    docker.docker(&["start", "web"]).ok();
    docker.docker(&["kill", "web"]).ok();
    eventually("the container is reported as killed", || {
        let state = docker.inspect("web", "{{.State.Status}} {{.State.ExitCode}}");
        if state == "exited 137" { Ok(()) } else { Err(state) }
    });
    docker.docker(&["rm", "web"]).ok();
}

#[test]
fn docker_limits_and_updates() {
    if no_docker("docker_limits_and_updates") {
        return;
    }
    if !cgroup_v1() {
        skip("docker_limits_and_updates", "the host has no memory controller of cgroup v1");
        return;
    }
    let docker = start("limits");
    let flags = ["--detach", "--name", "small", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "33"];
    docker.run(&flags, &["sleep", "1000"]).ok();
    let limits = || docker.docker(&["exec", "small", "sh", "-c", READ_LIMITS]).ok().stdout;
    assert_eq!(limits(), "67108864\n50000\n33\n");
    let smaller = ["--memory", "32m", "--memory-swap", "64m", "--pids-limit", "44", "--cpus", "0.25", "small"];
    let words: Vec<&str> = ["update"].into_iter().chain(smaller).collect();
    docker.docker(&words).ok();
    assert_eq!(limits(), "33554432\n25000\n44\n");

    let greedy = docker.run(&["--name", "greedy", "--memory", "16m"], &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    assert_eq!(greedy.code, 137, "{}", greedy.text());
    assert_eq!(docker.inspect("greedy", "{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 true");
}

#[test]
fn docker_rights_and_namespaces() {
    if no_docker("docker_rights_and_namespaces") {
        return;
    }
    let docker = start("rights");
    let read_only = docker.run(&["--rm", "--read-only"], &["touch", "/file"]);
    assert!(read_only.code == 1 && read_only.stderr.contains("Read-only"), "{}", read_only.text());
    assert_eq!(docker.run(&["--rm", "--user", "33"], &["id", "-un"]).ok().stdout, "www-data\n");
    let bare = docker.run(&["--rm", "--cap-drop", "all"], &["grep", "CapBnd", "/proc/self/status"]).ok();
    assert_eq!(bare.stdout, "CapBnd:\t0000000000000000\n");
    let flags = ["--rm", "--ulimit", "nofile=100", "--sysctl", "kernel.msgmax=9000", "--tmpfs", "/extra:size=1m"];
    let script = "ulimit -n; cat /proc/sys/kernel/msgmax; ls /extra";
    assert_eq!(docker.run(&flags, &["sh", "-c", script]).ok().stdout, "100\n9000\n");
    let flags = ["--rm", "--privileged", "--security-opt", "seccomp=unconfined"];
    docker.run(&flags, &["sh", "-c", "mount -t tmpfs none /tmp && umount /tmp"]).ok();
    if cgroup_v1() {
        let seen = docker.run(&["--rm", "--cgroupns", "private"], &["grep", ":pids:", "/proc/self/cgroup"]).ok();
        assert!(seen.stdout.trim_end().ends_with(":pids:/"), "{}", seen.stdout);
    }
    docker.run(&["--detach", "--name", "first", "--ipc", "shareable"], &["sleep", "1000"]).ok();
    let flags = ["--rm", "--pid", "container:first", "--ipc", "container:first"];
    let seen = docker.run(&flags, &["ps"]).ok().stdout;
    assert!(seen.contains("sleep 1000"), "the process of the other container is seen: {seen}");

    let flags = ["--detach", "--name", "checked", "--health-interval", "100ms", "--health-cmd", "test -e /healthy"];
    docker.run(&flags, &["sleep", "1000"]).ok();
    docker.docker(&["exec", "checked", "touch", "/healthy"]).ok();
    eventually("the health check has run", || {
        let health = docker.inspect("checked", "{{.State.Health.Status}}");
        if health == "healthy" { Ok(()) } else { Err(health) }
    });
}
