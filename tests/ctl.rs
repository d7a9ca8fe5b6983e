//! `gantryctl` as a user types it.

use testkit::{Daemon, binary, run};

const IMAGE: &str = "docker.io/library/busybox:latest";

fn words<'a>(
    daemon: &'a Daemon,
    storage: &'a mut Vec<String>,
    id: &str,
    flags: &[&'a str],
    command: &[&'a str],
) -> Vec<&'a str> {
    let directory = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
    *storage = vec![format!("{}/{id}", daemon.cgroup()), directory("fifo"), directory("log"), id.to_owned()];
    let mut words = vec!["run", "--cgroup", &storage[0], "--fifo-dir", &storage[1], "--log-dir", &storage[2]];
    words.extend(flags);
    words.extend([IMAGE, &storage[3]]);
    words.extend(command);
    words
}

#[test]
fn the_examples_of_the_help_work() {
    let daemon = Daemon::start("ctl");
    let tar = daemon.directory().join("busybox.tar");
    testkit::busybox_image(&tar, IMAGE).unwrap();
    assert_eq!(daemon.ctl(&["image", "import", &tar.to_string_lossy()]).ok().stdout.trim(), IMAGE);
    let mut storage = Vec::new();
    let hello = daemon.ctl(&words(&daemon, &mut storage, "hello", &["--rm"], &["echo", "hello"])).ok();
    assert_eq!(hello.stdout, "hello\n");

    daemon
        .ctl(&words(&daemon, &mut storage, "web", &["-d"], &["sh", "-c", "echo one; echo two >&2; exec sleep 1000"]))
        .ok();
    testkit::eventually("both lines are in the log", || {
        let log = daemon.ctl(&["logs", "web"]).ok().stdout;
        if log.contains("one\n") && log.contains("two\n") { Ok(()) } else { Err(log) }
    });
    let fifo = daemon.directory().join("fifo");
    let exec = testkit::run_with_input(
        binary("gantryctl"),
        &["--address", &daemon.address(), "exec", "--fifo-dir", &fifo.to_string_lossy(), "web", "cat"],
        "typed in\n",
    )
    .unwrap();
    assert_eq!((exec.code, exec.stdout.as_str()), (0, "typed in\n"), "{}", exec.text());
    assert!(daemon.ctl(&["ps"]).ok().stdout.contains("RUNNING"));
    assert_ne!(daemon.ctl(&["rm", "web"]).code, 0, "a running container is not removed by accident");
    daemon.ctl(&["kill", "--signal", "KILL", "web"]).ok();
    testkit::eventually("it is stopped", || {
        let listed = daemon.ctl(&["ps"]).ok().stdout;
        if listed.contains("STOPPED(137)") { Ok(()) } else { Err(listed) }
    });
    daemon.ctl(&["rm", "web"]).ok();
    daemon.ctl(&["image", "rm", IMAGE]).ok();
    assert_eq!(daemon.ctl(&["image", "ls", "-q"]).ok().stdout, "");
}

#[test]
fn mistakes_get_a_clear_error() {
    let daemon = Daemon::start("mistakes");
    for (arguments, part) in [
        (&["run", "--rm", "no/such:image", "x", "true"][..], "not found"),
        (&["exec", "nobody", "true"], "not found"),
        (&["kill", "nobody"], "not found"),
        (&["rm", "nobody"], "not found"),
        (&["logs", "nobody"], "not found"),
        (&["image", "import", "/no/such/file"], "/no/such/file"),
        (&["image", "rm", "nobody"], "not found"),
        (&["kill", "--signal", "SIGNONE", "x"], "no signal"),
    ] {
        let output = daemon.ctl(arguments);
        assert_ne!(output.code, 0, "{arguments:?}");
        assert!(output.stderr.contains(part), "{arguments:?}: {}", output.stderr);
    }
    let nobody = run(binary("gantryctl"), &["--address", "/no/such/socket", "version"]).unwrap();
    assert!(nobody.code != 0 && nobody.stderr.contains("is the daemon running"), "{}", nobody.stderr);
}

#[test]
fn limits_user_and_volumes() {
    let daemon = Daemon::start("wishes");
    let tar = daemon.directory().join("busybox.tar");
    testkit::busybox_image(&tar, IMAGE).unwrap();
    daemon.ctl(&["image", "import", &tar.to_string_lossy()]).ok();
    let shared = daemon.directory().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from the host").unwrap();
    let volume = format!("{}:/mnt:ro", shared.display());
    let mut storage = Vec::new();
    let flags = ["--rm", "--user", "33:33", "--volume", &volume, "--cwd", "/tmp", "--env", "COLOR=blue", "--read-only"];
    let script = "id -u; cat /mnt/file; echo; pwd; echo $COLOR; touch /mnt/x || touch /x || echo read-only";
    let output = daemon.ctl(&words(&daemon, &mut storage, "wishes", &flags, &["sh", "-c", script])).ok();
    assert_eq!(output.stdout, "33\nfrom the host\n/tmp\nblue\nread-only\n");
    daemon.ctl(&["image", "rm", IMAGE]).ok();
}
