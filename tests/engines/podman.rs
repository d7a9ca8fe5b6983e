//! podman and conmon. conmon calls `create` and `exec`, podman itself `start`, `kill`, `pause`, `resume` and `delete`;
//! a runtime whose name it knows gets `--log-format=json --log FILE`, others answer on standard error.

use std::path::Path;

use testkit::{Podman, Pty, eventually, program_named, run, skip};

use crate::{DEFAULT_STATE, OBEDIENT, READ_LIMITS, cgroup_v1, gantry_oci, missing};

fn no_podman(scenario: &str) -> bool {
    missing(scenario, &[("/usr/bin/podman", "podman"), ("/usr/bin/conmon", "conmon")])
}

fn start(name: &str) -> Podman {
    let program = gantry_oci();
    Podman::start(name, &program.to_string_lossy(), &program)
}

/// Exit codes and texts are podman's reading of what the runtime says.
fn codes_and_texts(podman: &Podman) {
    let hello = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((hello.code, hello.stdout.as_str(), hello.stderr.as_str()), (7, "out\n", "err\n"));
    for (command, code, text) in [
        ("true", 0, ""),
        ("/nope", 127, "stat /nope: no such file or directory"),
        ("no-such-program", 127, "executable file not found in $PATH"),
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, "is a directory"),
    ] {
        let run = podman.run(&["--rm"], &[command]);
        assert_eq!(run.code, code, "{command}: {}", run.text());
        assert!(run.stderr.contains(text), "{command}: {}", run.text());
    }
    assert_eq!(podman.podman(&["ps", "--all", "--quiet"]).ok().stdout, "", "what failed is removed");
}

#[test]
fn podman_runs_by_path() {
    if no_podman("podman_runs_by_path") {
        return;
    }
    codes_and_texts(&start("path"));
}

#[test]
fn podman_runs_by_name() {
    if no_podman("podman_runs_by_name") {
        return;
    }
    codes_and_texts(&Podman::start("name", "gantry-oci", &gantry_oci()));
}

#[test]
fn podman_runs_what_it_takes_for_runc() {
    if no_podman("podman_runs_what_it_takes_for_runc") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let link = program_named(directory.path(), "runc", &gantry_oci()).unwrap();
    let podman = Podman::start("runc", &link.to_string_lossy(), &link);
    codes_and_texts(&podman);
}

#[test]
fn podman_streams_terminals_and_descriptors() {
    if no_podman("podman_streams_terminals_and_descriptors") {
        return;
    }
    let podman = start("streams");
    let echoed = podman.podman_with_input(&podman.run_words(&["--rm", "-i"], &["cat"]), "typed\n").ok();
    assert_eq!(echoed.stdout, "typed\n");
    let large = podman.run(&["--rm"], &["sh", "-c", "yes 0123456789abcde | head -n 50000"]).ok();
    assert_eq!(large.stdout.len(), 50_000 * 16, "no byte of the output is lost");

    let words = podman.words(&podman.run_words(&["--rm", "-it"], &["sh"]));
    let mut terminal = Pty::spawn(&words[0], &words[1..].iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    terminal.expect("# ");
    terminal.send("test -t 0 && echo it is a $(echo terminal)\n").unwrap();
    terminal.expect("it is a terminal");
    terminal.send("exit 5\n").unwrap();
    let (code, output) = terminal.finish().unwrap();
    assert_eq!(code, 5, "{output}");

    podman.run(&["--detach", "--name", "host"], &["sleep", "1000"]).ok();
    let words = podman.words(&["exec", "-it", "host", "sh", "-c", "tty; exit 4"]);
    let terminal = Pty::spawn(&words[0], &words[1..].iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let (code, output) = terminal.finish().unwrap();
    assert!(code == 4 && output.contains("/dev/pts/"), "{code} {output}");

    // A shell opens descriptor 3, which podman hands to conmon and conmon to the runtime.
    let words = podman.words(&podman.run_words(&["--rm", "--preserve-fds", "1"], &["sh", "-c", "cat <&3"]));
    let file = podman.directory().join("extra");
    std::fs::write(&file, "through descriptor 3\n").unwrap();
    let mut shell = vec!["-c", "exec 3< \"$0\"; exec \"$@\"", file.to_str().unwrap()];
    shell.extend(words.iter().map(String::as_str));
    assert_eq!(run("sh", &shell).unwrap().ok().stdout, "through descriptor 3\n");
}

#[test]
fn podman_life_of_a_container() {
    if no_podman("podman_life_of_a_container") {
        return;
    }
    let podman = start("life");
    podman.run(&["--detach", "--name", "web"], &["sh", "-c", OBEDIENT]).ok();
    let id = podman.inspect("web", "{{.Id}}");
    let state = Path::new(DEFAULT_STATE).join(&id);
    assert!(state.is_dir(), "the state is where the runtime keeps it by default");
    assert_eq!(podman.inspect("web", "{{.State.Status}}"), "running");
    let pid = podman.inspect("web", "{{.State.Pid}}");
    let told = run(gantry_oci(), &["state", &id]).unwrap().ok().stdout;
    assert!(told.contains(&format!("\"pid\": {pid}")) && told.contains("\"running\""), "{told}");

    for (command, code, text) in [
        (vec!["sh", "-c", "echo in; exit 3"], 3, "in"),
        (vec!["/nope"], 127, "no such file or directory"),
        (vec!["/etc/passwd"], 126, "permission denied"),
    ] {
        let words: Vec<&str> = ["exec", "web"].into_iter().chain(command.iter().copied()).collect();
        let exec = podman.podman(&words);
        assert_eq!(exec.code, code, "{command:?}: {}", exec.text());
        assert!(exec.text().contains(text), "{command:?}: {}", exec.text());
    }
    let user = podman.podman(&[
        "exec",
        "--user",
        "33",
        "--workdir",
        "/tmp",
        "--env",
        "A=b",
        "web",
        "sh",
        "-c",
        "id -u; pwd; echo $A",
    ]);
    assert_eq!(user.ok().stdout, "33\n/tmp\nb\n");
    let detached = podman.podman(&["exec", "--detach", "web", "touch", "/made"]).ok();
    assert!(!detached.stdout.is_empty(), "podman prints the session's name");
    eventually("the detached exec has run", || {
        let there = podman.podman(&["exec", "web", "ls", "/made"]);
        if there.code == 0 { Ok(()) } else { Err(there.text()) }
    });

    podman.podman(&["pause", "web"]).ok();
    assert_eq!(podman.inspect("web", "{{.State.Status}}"), "paused");
    assert_ne!(podman.podman(&["exec", "web", "true"]).code, 0, "no exec in a paused container");
    podman.podman(&["unpause", "web"]).ok();
    assert!(podman.podman(&["top", "web"]).ok().stdout.contains("trap"), "the processes are listed");
    assert_ne!(podman.podman(&["rm", "web"]).code, 0, "a running container is not removed");

    podman.podman(&["stop", "--time", "20", "web"]).ok();
    assert_eq!(podman.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    podman.podman(&["start", "web"]).ok();
    podman.podman(&["kill", "--signal", "KILL", "web"]).ok();
    assert_eq!(podman.podman(&["wait", "web"]).ok().stdout.trim(), "137");
    podman.podman(&["restart", "web"]).ok();
    assert_eq!(podman.inspect("web", "{{.State.Status}}"), "running");
    podman.podman(&["rm", "--force", "--time", "0", "web"]).ok();
    assert!(!state.exists(), "the runtime forgot the container");
    // podman calls this after every failed create.
    run(gantry_oci(), &["delete", "--force", &id]).unwrap().ok();
}

#[test]
fn podman_limits_and_rights() {
    if no_podman("podman_limits_and_rights") {
        return;
    }
    let podman = start("limits");
    if cgroup_v1() {
        let flags = ["--rm", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "33"];
        let seen = podman.run(&flags, &["sh", "-c", READ_LIMITS]).ok();
        assert_eq!(seen.stdout, "67108864\n50000\n33\n");
    } else {
        skip("podman_limits_and_rights: limits", "the host has no memory controller of cgroup v1");
    }
    let read_only = podman.run(&["--rm", "--read-only", "--read-only-tmpfs=false"], &["touch", "/file"]);
    assert!(read_only.code == 1 && read_only.stderr.contains("Read-only"), "{}", read_only.text());
    assert_eq!(podman.run(&["--rm", "--user", "33:33"], &["id", "-un"]).ok().stdout, "www-data\n");
    let bare = podman.run(&["--rm", "--cap-drop", "all"], &["grep", "CapBnd", "/proc/self/status"]).ok();
    assert_eq!(bare.stdout, "CapBnd:\t0000000000000000\n");
    let maps = ["--rm", "--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"];
    let mapped = podman.run(&maps, &["sh", "-c", "id -u; cat /proc/self/uid_map"]).ok();
    let words: Vec<&str> = mapped.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "1000"], "root of the container is another user of the host");
    let script = "hostname; ulimit -n; cat /proc/sys/kernel/msgmax; ls /extra";
    let flags = [
        "--rm",
        "--hostname",
        "other",
        "--ulimit",
        "nofile=100:100",
        "--sysctl",
        "kernel.msgmax=9000",
        "--tmpfs",
        "/extra:size=1m,notmpcopyup",
    ];
    assert_eq!(podman.run(&flags, &["sh", "-c", script]).ok().stdout, "other\n100\n9000\n");
}

#[test]
fn podman_checks_health() {
    if no_podman("podman_checks_health") {
        return;
    }
    let podman = start("health");
    // The timer belongs to systemd; the check itself is an exec by the runtime.
    let flags = ["--detach", "--name", "web", "--health-cmd", "test -e /healthy", "--health-interval", "disable"];
    podman.run(&flags, &["sleep", "1000"]).ok();
    assert_eq!(podman.podman(&["healthcheck", "run", "web"]).code, 1);
    podman.podman(&["exec", "web", "touch", "/healthy"]).ok();
    podman.podman(&["healthcheck", "run", "web"]).ok();
}

#[test]
fn podman_pods_share_namespaces() {
    if no_podman("podman_pods_share_namespaces") {
        return;
    }
    let podman = start("shared");
    podman.run(&["--detach", "--name", "first"], &["sleep", "1000"]).ok();
    let flags = ["--rm", "--pid", "container:first", "--ipc", "container:first", "--uts", "container:first"];
    let seen = podman.run(&flags, &["ps"]).ok().stdout;
    assert!(seen.contains("sleep 1000"), "the process of the other container is seen: {seen}");
}
