//! What the daemon does for containers by itself: it tells of lack of memory while they live, and starts those again
//! whose labels ask for it.

use testkit::{Daemon, Layer, busybox_files, eventually, labelled_image_tar};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// One row of `ctr task ls`: pid and status.
fn task(daemon: &Daemon, id: &str) -> Option<(u32, String)> {
    let listed = daemon.ctr(&["task", "ls"]).ok().stdout;
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id))?.to_owned();
    let mut words = line.split_whitespace().skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
}

fn labels(daemon: &Daemon, id: &str) -> serde_json::Value {
    let info = daemon.ctr(&["container", "info", id]).ok().stdout;
    serde_json::from_str::<serde_json::Value>(&info).unwrap()["Labels"].clone()
}

/// The journal's own files, read while nobody writes: how often memory was told to have run out.
fn ooms(daemon: &Daemon) -> usize {
    let state = tempfile::tempdir().unwrap();
    let (from, to) = (daemon.directory().join("state/io.gantry.events"), state.path().join("io.gantry.events"));
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let journal = events::Journal::open(state.path(), boot.trim(), events::Config::default()).unwrap();
    journal.recent(|envelope| envelope.topic == "/tasks/oom").unwrap().len()
}

/// A shell whose child eats memory whenever somebody asks for it; the shell itself is never killed.
#[test]
fn lack_of_memory_is_told_while_a_container_lives_and_once() {
    let mut daemon = Daemon::start("memory");
    daemon.import_busybox();
    let script = "echo -500 > /proc/self/oom_score_adj; while :; do \
        if test -e /tmp/eat; then rm /tmp/eat; \
            sh -c 'echo 900 > /proc/self/oom_score_adj; a=0123456789; while :; do a=$a$a; done'; echo > /tmp/done; fi; \
        sleep 0.05; done";
    daemon.ctr_run("hungry", &["-d", "--memory-limit", "16777216"], IMAGE, &["sh", "-c", script]).ok();
    let (pid, _) = task(&daemon, "hungry").unwrap();
    let eat = || {
        let root = format!("/proc/{pid}/root/tmp");
        let _ = std::fs::remove_file(format!("{root}/done"));
        std::fs::write(format!("{root}/eat"), "").unwrap();
        eventually("the kernel killed the child", || match std::fs::metadata(format!("{root}/done")) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
    };
    let told = |daemon: &Daemon, want: usize| {
        eventually("lack of memory is told", || match ooms(daemon) {
            count if count == want => Ok(()),
            count => Err(format!("told {count} times, {want} wanted")),
        });
        assert_eq!(task(daemon, "hungry"), Some((pid, "RUNNING".to_owned())));
    };
    eat();
    told(&daemon, 1);
    daemon.kill();
    daemon.launch().unwrap();
    told(&daemon, 1);
    // Nobody looks while this happens; the next daemon sees the count.
    daemon.kill();
    eat();
    daemon.launch().unwrap();
    told(&daemon, 2);
    eat();
    told(&daemon, 3);
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "hungry"]).ok();
    eventually("it ended", || match task(&daemon, "hungry") {
        Some((_, status)) if status == "STOPPED" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(ooms(&daemon), 3, "its end is no further lack of memory");
    daemon.ctr(&["task", "rm", "hungry"]).ok();
    daemon.ctr(&["container", "rm", "hungry"]).ok();
}

#[test]
fn labels_keep_a_container_running_and_stop_it() {
    let mut daemon = Daemon::start("policy");
    daemon.import_busybox();
    let flags = ["-d", "--label", "containerd.io/restart.status=running"];
    daemon.ctr_run("web", &flags, IMAGE, &["sleep", "1000"]).ok();
    let (first, _) = task(&daemon, "web").unwrap();
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "web"]).ok();
    let started_again = |daemon: &Daemon, before: u32, count: &str| {
        eventually("it was started again", || match task(daemon, "web") {
            Some((pid, status)) if pid != before && status == "RUNNING" => Ok(()),
            other => Err(format!("{other:?}\n{}", daemon.log())),
        });
        assert_eq!(labels(daemon, "web")["containerd.io/restart.count"], count);
        task(daemon, "web").unwrap().0
    };
    let second = started_again(&daemon, first, "1");
    // It ends while there is no daemon: the next one starts it.
    daemon.kill();
    let pid = rustix::process::Pid::from_raw(i32::try_from(second).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    daemon.launch().unwrap();
    started_again(&daemon, second, "2");
    daemon.ctr(&["container", "label", "web", "containerd.io/restart.status=stopped"]).ok();
    eventually("it was stopped", || task(&daemon, "web").map_or(Ok(()), |task| Err(format!("{task:?}"))));
    daemon.ctr(&["container", "rm", "web"]).ok();
}

#[test]
fn on_failure_gives_up_after_its_number() {
    let daemon = Daemon::start("failure");
    daemon.import_busybox();
    let label = |text: &'static str| ["--label", text];
    let status = label("containerd.io/restart.status=running");
    let policy = label("containerd.io/restart.policy=on-failure:2");
    let flags = [&["-d"][..], &status, &policy].concat();
    daemon.ctr_run("weak", &flags, IMAGE, &["false"]).ok();
    eventually("it was tried twice more", || match labels(&daemon, "weak")["containerd.io/restart.count"].as_str() {
        Some("2") => Ok(()),
        other => Err(format!("{other:?}\n{}", daemon.log())),
    });
    eventually("its last end stays", || match task(&daemon, "weak") {
        Some((_, status)) if status == "STOPPED" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("its last end was looked at", || {
        let log = daemon.log();
        let last = log.rfind("started again").unwrap_or(0);
        if log[last..].contains("left as it is") { Ok(()) } else { Err(log) }
    });
    assert_eq!(labels(&daemon, "weak")["containerd.io/restart.count"], "2");
    daemon.ctr(&["task", "rm", "weak"]).ok();
    daemon.ctr(&["container", "rm", "weak"]).ok();
}

/// A daemon that died after it had removed the ended task leaves a label, and no task; the next one starts it.
#[test]
fn a_start_that_was_cut_off_is_made_up_for() {
    let mut daemon = Daemon::start("pending");
    daemon.import_busybox();
    daemon.ctr_run("cut", &["-d"], IMAGE, &["sleep", "1000"]).ok();
    daemon.ctr(&["task", "rm", "--force", "cut"]).ok();
    let mut words = vec!["container", "label", "cut"];
    words.extend([
        "containerd.io/restart.status=running",
        "containerd.io/restart.policy=on-failure:1",
        "containerd.io/restart.count=1",
        "containerd.io/restart.pending=true",
    ]);
    daemon.ctr(&words).ok();
    daemon.kill();
    daemon.launch().unwrap();
    eventually("it was started, and that is over", || match (task(&daemon, "cut"), labels(&daemon, "cut")) {
        (Some((_, status)), labels)
            if status == "RUNNING"
                && labels["containerd.io/restart.count"] == "1"
                && labels.get("containerd.io/restart.pending").is_none() =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}\n{}", daemon.log())),
    });
    daemon.ctr(&["container", "label", "cut", "containerd.io/restart.status=stopped"]).ok();
    eventually("it was stopped", || task(&daemon, "cut").map_or(Ok(()), |task| Err(format!("{task:?}"))));
    daemon.ctr(&["container", "rm", "cut"]).ok();
}

/// CVE-2026-53488: an image's label, copied to the container, must not make the daemon write or run what it names.
#[test]
fn an_image_cannot_choose_where_logs_go() {
    let daemon = Daemon::start("wish");
    let owned = daemon.directory().join("owned");
    let uri = format!("file://{}", owned.display());
    let wish = [("containerd.io/restart.loguri", uri.as_str())];
    let tar = daemon.directory().join("image.tar");
    std::fs::write(&tar, labelled_image_tar(IMAGE, &[(Layer::Gzip, busybox_files().unwrap())], &wish).unwrap())
        .unwrap();
    daemon.ctr(&["image", "import", tar.to_string_lossy().as_ref()]).ok();
    let copied = format!("containerd.io/restart.loguri={uri}");
    let flags = ["-d", "--label", "containerd.io/restart.status=running", "--label", &copied];
    daemon.ctr_run("victim", &flags, IMAGE, &["sh", "-c", "echo pwned; sleep 1000"]).ok();
    let (first, _) = task(&daemon, "victim").unwrap();
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "victim"]).ok();
    eventually("it was started again", || match task(&daemon, "victim") {
        Some((pid, status)) if pid != first && status == "RUNNING" => Ok(()),
        other => Err(format!("{other:?}\n{}", daemon.log())),
    });
    assert!(!owned.exists(), "the image's wish was followed");
    // The user's own wish is.
    let chosen = daemon.directory().join("chosen");
    let label = format!("containerd.io/restart.loguri=file://{}", chosen.display());
    daemon.ctr(&["container", "label", "victim", &label]).ok();
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "victim"]).ok();
    eventually("its output is where the user wants it", || match std::fs::read_to_string(&chosen) {
        Ok(text) if text == "pwned\n" => Ok(()),
        other => Err(format!("{other:?}\n{}", daemon.log())),
    });
    daemon.ctr(&["container", "label", "victim", "containerd.io/restart.status=stopped"]).ok();
    eventually("it was stopped", || task(&daemon, "victim").map_or(Ok(()), |task| Err(format!("{task:?}"))));
    daemon.ctr(&["container", "rm", "victim"]).ok();
}
