//! Debian's unmodified `ctr` as a client: every command that the README says works.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::{Daemon, Pty, eventually, skip};

/// `ctr` must be there; without it the scenario says so and passes.
fn ctr_is_missing(scenario: &str) -> bool {
    let missing = !std::path::Path::new("/usr/bin/ctr").exists();
    if missing {
        skip(scenario, "ctr is not installed (package containerd)");
    }
    missing
}

fn task_status(daemon: &Daemon, id: &str) -> Option<String> {
    let listed = daemon.ctr(&["task", "ls"]).ok().stdout;
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id))?.to_owned();
    line.split_whitespace().nth(2).map(str::to_owned)
}

fn wait_for_status(daemon: &Daemon, id: &str, want: &str) {
    eventually(&format!("task {id} is {want}"), || match task_status(daemon, id) {
        Some(status) if status == want => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn images_and_content() {
    if ctr_is_missing("images_and_content") {
        return;
    }
    let daemon = Daemon::start("images");
    let image = daemon.import_busybox();
    let listed = daemon.ctr(&["image", "ls"]).ok().stdout;
    assert!(listed.contains(image) && listed.contains("linux/amd64"), "{listed}");
    assert_eq!(daemon.ctr(&["image", "ls", "-q"]).ok().stdout.trim(), image);

    // `ctr` also stores the layout's own index, which nothing keeps once its lease is gone.
    let digests = eventually("manifest, configuration and layer remain", || {
        let listed = daemon.ctr(&["content", "ls", "-q"]).ok().stdout;
        if listed.lines().count() == 3 { Ok(listed) } else { Err(listed) }
    });
    let mut documents = 0;
    for digest in digests.lines() {
        let output = daemon.ctr(&["content", "get", digest]).ok().stdout;
        documents += usize::from(output.contains("\"diff_ids\"") || output.contains("\"layers\""));
    }
    assert_eq!(documents, 2, "a manifest and a configuration can be read back");

    let snapshots = daemon.ctr(&["snapshot", "ls"]).ok().stdout;
    assert!(snapshots.contains("Committed"), "{snapshots}");
    let tree = daemon.ctr(&["snapshot", "tree"]).ok().stdout;
    assert!(tree.contains("sha256:"), "{tree}");

    daemon.ctr(&["image", "rm", "--sync", image]).ok();
    assert_eq!(daemon.ctr(&["content", "ls", "-q"]).ok().stdout, "", "content of a removed image is collected");
    let snapshots = daemon.ctr(&["snapshot", "ls"]).ok().stdout;
    assert!(!snapshots.contains("sha256:"), "snapshots of a removed image are collected: {snapshots}");
}

#[test]
fn images_import_twice_and_with_both_snapshotters() {
    if ctr_is_missing("images_import_twice_and_with_both_snapshotters") {
        return;
    }
    let daemon = Daemon::start("import");
    let image = daemon.import_busybox();
    let tar = daemon.directory().join("busybox.tar");
    daemon.ctr(&["image", "import", &tar.to_string_lossy()]).ok();
    daemon.ctr(&["image", "import", "--snapshotter", "native", &tar.to_string_lossy()]).ok();
    let run = daemon.ctr_run("native", &["--rm", "--snapshotter", "native"], image, &["echo", "from a copy"]);
    assert_eq!(run.ok().stdout, "from a copy\n");
}

#[test]
fn run_gives_output_and_exit_codes() {
    if ctr_is_missing("run_gives_output_and_exit_codes") {
        return;
    }
    let daemon = Daemon::start("run");
    let image = daemon.import_busybox();
    let run = |id: &str, command: &[&str]| daemon.ctr_run(id, &["--rm"], image, command);

    let zero = run("zero", &["sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((zero.stdout.as_str(), zero.stderr.contains("err")), ("out\n", true));
    assert_eq!(run("fortytwo", &["sh", "-c", "exit 42"]).code, 42);
    assert_eq!(run("killed", &["sh", "-c", "kill -9 $$"]).code, 0, "pid 1 ignores its own signals");

    let missing = run("missing", &["/no/such/program"]);
    assert_ne!(missing.code, 0);
    assert!(missing.text().contains("no such file or directory"), "{}", missing.text());
    let unknown = run("unknown", &["no-such-program"]);
    assert!(unknown.text().contains("executable file not found in $PATH"), "{}", unknown.text());

    // Nothing of the failed ones is left, so their names are free.
    assert_eq!(run("missing", &["true"]).code, 0);
    let megabytes = run("large", &["sh", "-c", "yes 0123456789abcde | head -n 200000"]).ok();
    assert_eq!(megabytes.stdout.len(), 200_000 * 16, "no byte of the output is lost");
}

#[test]
fn run_on_a_terminal() {
    if ctr_is_missing("run_on_a_terminal") {
        return;
    }
    let daemon = Daemon::start("terminal");
    let image = daemon.import_busybox();
    let address = daemon.address();
    let mut words = vec!["--address".to_owned(), address];
    words.extend(daemon.run_words("tty", &["--rm", "-t"], image, &["sh"]));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut pty = Pty::spawn("ctr", &words).unwrap();
    pty.expect("# ");
    pty.send("test -t 0 && echo it is a $(echo terminal)\n").unwrap();
    pty.expect("it is a terminal");
    pty.resize(100, 30).unwrap();
    eventually("the terminal inside has the new size", || {
        pty.send("stty size\n").map_err(|error| error.to_string())?;
        if pty.sees("30 100", std::time::Duration::from_millis(200)) { Ok(()) } else { Err("the old size".into()) }
    });
    pty.send("exit 5\n").unwrap();
    let (code, output) = pty.finish().unwrap();
    assert_eq!(code, 5, "{output}");
}

#[test]
fn a_task_from_birth_to_removal() {
    if ctr_is_missing("a_task_from_birth_to_removal") {
        return;
    }
    let daemon = Daemon::start("task");
    let image = daemon.import_busybox();
    daemon.ctr_run("web", &["-d"], image, &["sleep", "1000"]).ok();
    wait_for_status(&daemon, "web", "RUNNING");

    let exec = daemon.ctr(&["task", "exec", "--exec-id", "e1", "web", "sh", "-c", "echo inside; exit 9"]);
    assert_eq!((exec.code, exec.stdout.as_str()), (9, "inside\n"), "{}", exec.text());
    let missing = daemon.ctr(&["task", "exec", "--exec-id", "e2", "web", "/nope"]);
    assert!(missing.code != 0 && missing.text().contains("no such file or directory"), "{}", missing.text());
    let processes = daemon.ctr(&["task", "ps", "web"]).ok().stdout;
    assert_eq!(processes.lines().count(), 2, "a header and one process: {processes}");
    let metrics = daemon.ctr(&["task", "metrics", "web"]).ok().stdout;
    assert!(metrics.contains("memory.usage") && metrics.contains("pids.current"), "{metrics}");

    daemon.ctr(&["task", "pause", "web"]).ok();
    assert_eq!(task_status(&daemon, "web").as_deref(), Some("PAUSED"));
    let refused = daemon.ctr(&["task", "exec", "--exec-id", "e3", "web", "true"]);
    assert_ne!(refused.code, 0, "no exec in a paused container");
    daemon.ctr(&["task", "resume", "web"]).ok();
    assert_eq!(task_status(&daemon, "web").as_deref(), Some("RUNNING"));

    let refused = daemon.ctr(&["task", "rm", "web"]);
    assert_ne!(refused.code, 0, "a running task is not removed");
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "web"]).ok();
    wait_for_status(&daemon, "web", "STOPPED");
    let removed = daemon.ctr(&["task", "rm", "web"]);
    assert!(removed.code == 137 || removed.code == 0, "{}", removed.text());
    assert_eq!(task_status(&daemon, "web"), None);

    assert_eq!(daemon.ctr(&["container", "ls", "-q"]).ok().stdout.trim(), "web");
    let info = daemon.ctr(&["container", "info", "web"]).ok().stdout;
    assert!(info.contains("\"sleep\"") && info.contains("io.containerd.runc.v2"), "{info}");
    // The same container can be started again.
    daemon.ctr(&["task", "start", "-d", "web"]).ok();
    wait_for_status(&daemon, "web", "RUNNING");
    daemon.ctr(&["task", "rm", "-f", "web"]);
    daemon.ctr(&["container", "rm", "web"]).ok();
    assert_eq!(daemon.ctr(&["container", "ls", "-q"]).ok().stdout, "");
}

/// With a root for the runtime, as Docker Engine gives one, operators look at containers with runc's command line; and what
/// is written to a shim's log is in the daemon's.
#[test]
fn containers_are_listed_in_the_root_that_the_client_names() {
    if ctr_is_missing("containers_are_listed_in_the_root_that_the_client_names") {
        return;
    }
    let daemon = Daemon::start("listed");
    let image = daemon.import_busybox();
    let root = daemon.directory().join("runtime");
    let listed = root.join("default");
    let flags = ["-d", "--runc-root", &root.to_string_lossy()].map(str::to_owned);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let oci = |program: &str, words: &[&str]| {
        let listed = listed.to_string_lossy();
        let words: Vec<&str> = ["--root", &listed].into_iter().chain(words.iter().copied()).collect();
        testkit::run(program, &words).unwrap().ok().stdout
    };
    let gantry_oci = testkit::binary("gantry-oci").to_string_lossy().into_owned();
    daemon.ctr_run("web", &flags, image, &["sleep", "1000"]).ok();
    for program in [gantry_oci.as_str(), "/usr/sbin/runc"].into_iter().filter(|path| Path::new(path).exists()) {
        let state: serde_json::Value = serde_json::from_str(&oci(program, &["state", "web"])).unwrap();
        assert_eq!((&state["id"], &state["status"]), (&"web".into(), &"running".into()), "{program}");
        assert!(oci(program, &["list", "-q"]).contains("web"), "{program}");
    }
    let log = daemon.directory().join("state/io.containerd.runtime.v2.task/default/web/log");
    std::fs::OpenOptions::new().write(true).open(log).unwrap().write_all(b"somebody writes to the log\n").unwrap();
    eventually("the line is in the log", || match daemon.log() {
        log if log.contains("somebody writes to the log") => Ok(()),
        log => Err(log),
    });

    // Behind the daemon's back.
    oci(&gantry_oci, &["delete", "--force", "web"]);
    assert!(!listed.join("web").exists());
    let refused = daemon.ctr(&["task", "kill", "--signal", "SIGKILL", "web"]);
    assert!(refused.code != 0 && refused.text().contains("not found"), "{}", refused.text());
    wait_for_status(&daemon, "web", "STOPPED");
    daemon.ctr(&["task", "rm", "web"]);
    assert_eq!(task_status(&daemon, "web"), None);
    daemon.ctr(&["container", "rm", "web"]).ok();

    for (id, lose) in [("deleted", false), ("lost", true)] {
        daemon.ctr_run(id, &flags, image, &["sleep", "1000"]).ok();
        assert!(listed.join(id).join("state.json").exists());
        if lose {
            let tasks = daemon.ctr(&["task", "ls"]).ok().stdout;
            let line = tasks.lines().find(|line| line.starts_with(id)).unwrap();
            let init = line.split_whitespace().nth(1).unwrap();
            let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
            let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
            testkit::run("kill", &["-9", shim]).unwrap().ok();
            wait_for_status(&daemon, id, "STOPPED");
        }
        daemon.ctr(&["task", "rm", "-f", id]);
        assert!(!listed.join(id).exists(), "{id} is listed no more");
        daemon.ctr(&["container", "rm", id]).ok();
    }
}

#[test]
fn limits_reach_the_kernel() {
    if ctr_is_missing("limits_reach_the_kernel") {
        return;
    }
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        skip("limits_reach_the_kernel", "the host has no memory controller of cgroup v1");
        return;
    }
    let daemon = Daemon::start("limits");
    let image = daemon.import_busybox();
    daemon.ctr_run("small", &["-d", "--memory-limit", "33554432", "--cpus", "0.5"], image, &["sleep", "1000"]).ok();
    let read = |controller: &str, file: &str| {
        fs::read_to_string(format!("/sys/fs/cgroup/{controller}{}/small/{file}", daemon.cgroup()))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), "33554432");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    let tasks = daemon.ctr(&["task", "ps", "small"]).ok().stdout;
    let pid = tasks.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap().to_owned();
    let expected: Vec<String> = vec![pid];
    let members: Vec<String> = read("memory", "cgroup.procs").lines().map(str::to_owned).collect();
    assert_eq!(members, expected, "the process and nothing else is in its cgroup");
    daemon.ctr(&["task", "rm", "-f", "small"]);
    daemon.ctr(&["container", "rm", "small"]).ok();
}

/// `ctr events`, written to a file; ended when dropped.
struct Subscriber {
    child: std::process::Child,
    log: std::path::PathBuf,
}

impl Subscriber {
    fn start(daemon: &Daemon) -> Self {
        let log = daemon.directory().join("events.log");
        let file = fs::File::create(&log).unwrap();
        let child = Command::new("ctr")
            .args(["--address", &daemon.address(), "events"])
            .stdout(Stdio::from(file))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // `ctr` cannot tell when it is subscribed; an event of our own that it prints does.
        let subscriber = Self { child, log };
        eventually("the subscriber listens", || {
            daemon.ctr(&["namespace", "label", "probe", "round=1"]).ok();
            let seen = subscriber.seen();
            if seen.contains("/namespaces/update") { Ok(()) } else { Err(seen) }
        });
        daemon.ctr(&["namespace", "rm", "probe"]).ok();
        subscriber
    }

    fn seen(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Everything seen, once the topic is there.
    fn wait_for(&self, topic: &str) -> String {
        eventually(&format!("{topic} arrives"), || {
            let seen = self.seen();
            if seen.contains(topic) { Ok(seen) } else { Err(seen) }
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_in_order() {
    if ctr_is_missing("events_in_order") {
        return;
    }
    let daemon = Daemon::start("events");
    let image = daemon.import_busybox();
    let subscriber = Subscriber::start(&daemon);
    daemon.ctr_run("one", &["--rm"], image, &["true"]).ok();
    let topics = [
        "/snapshot/prepare",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ];
    let seen = subscriber.wait_for("/containers/delete");
    drop(subscriber);
    let mut last = 0;
    for topic in topics {
        let at = seen.find(&format!(" {topic} ")).unwrap_or_else(|| panic!("no {topic} in {seen}"));
        assert!(at >= last, "{topic} is out of order in {seen}");
        assert_eq!(seen.matches(&format!(" {topic} ")).count(), 1, "{topic} in {seen}");
        last = at;
    }
}

#[test]
fn a_death_by_memory_is_told_before_the_exit() {
    if ctr_is_missing("a_death_by_memory_is_told_before_the_exit") {
        return;
    }
    let daemon = Daemon::start("memory");
    let image = daemon.import_busybox();
    let subscriber = Subscriber::start(&daemon);
    let script = "x=a; while :; do x=$x$x; done";
    let run = daemon.ctr_run("greedy", &["--rm", "--memory-limit", "16777216"], image, &["sh", "-c", script]);
    assert_eq!(run.code, 137, "{}", run.text());
    let seen = subscriber.wait_for("/containers/delete");
    let at = |topic: &str| seen.find(&format!(" {topic} ")).unwrap_or_else(|| panic!("no {topic} in {seen}"));
    assert!(at("/tasks/start") < at("/tasks/oom") && at("/tasks/oom") < at("/tasks/exit"), "{seen}");
    drop(subscriber);
}

#[test]
fn namespaces_and_leases() {
    if ctr_is_missing("namespaces_and_leases") {
        return;
    }
    let daemon = Daemon::start("names");
    daemon.ctr(&["namespace", "create", "blue", "color=blue"]).ok();
    daemon.ctr(&["namespace", "label", "blue", "shape=round"]).ok();
    let listed = daemon.ctr(&["namespace", "ls"]).ok().stdout;
    assert!(listed.contains("blue") && listed.contains("shape=round") && listed.contains("color=blue"), "{listed}");
    assert_ne!(daemon.ctr(&["namespace", "create", "blue"]).code, 0, "a namespace is made once");

    let lease = daemon.ctr(&["--namespace", "blue", "leases", "create", "--id", "keep"]).ok();
    assert!(lease.stdout.contains("keep"), "{}", lease.text());
    let listed = daemon.ctr(&["--namespace", "blue", "leases", "ls"]).ok().stdout;
    assert!(listed.contains("keep"), "{listed}");
    assert!(!daemon.ctr(&["leases", "ls"]).ok().stdout.contains("keep"), "leases belong to their namespace");
    daemon.ctr(&["--namespace", "blue", "leases", "rm", "keep"]).ok();

    let tar = daemon.directory().join("busybox.tar");
    testkit::busybox_image(&tar, "docker.io/library/busybox:latest").unwrap();
    daemon.ctr(&["--namespace", "blue", "image", "import", &tar.to_string_lossy()]).ok();
    let refused = daemon.ctr(&["namespace", "rm", "blue"]);
    assert!(refused.text().contains("must be empty"), "{}", refused.text());
    daemon.ctr(&["--namespace", "blue", "image", "rm", "--sync", "docker.io/library/busybox:latest"]).ok();
    daemon.ctr(&["namespace", "rm", "blue"]).ok();
    assert!(!daemon.ctr(&["namespace", "ls"]).ok().stdout.contains("blue"));
}

#[test]
fn many_at_once() {
    if ctr_is_missing("many_at_once") {
        return;
    }
    let daemon = Daemon::start("many");
    let image = daemon.import_busybox();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let daemon = &daemon;
            scope.spawn(move || {
                let id = format!("c{number}");
                let code = number % 5;
                let run = daemon.ctr_run(&id, &["--rm"], image, &["sh", "-c", &format!("echo {id}; exit {code}")]);
                assert_eq!((run.code, run.stdout.trim()), (code, id.as_str()), "{}", run.text());
            });
        }
    });
}
