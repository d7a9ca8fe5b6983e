//! The daemon dies without warning; containers do not notice, and nothing that happened meanwhile is lost.

use testkit::{Daemon, eventually};

const CONTAINERS: usize = 10;

fn ctl_run(daemon: &Daemon, id: &str, command: &[&str]) {
    let directory = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
    let (cgroup, fifo, log) = (format!("{}/{id}", daemon.cgroup()), directory("fifo"), directory("log"));
    let mut words = vec!["run", "-d", "--cgroup", &cgroup, "--fifo-dir", &fifo, "--log-dir", &log];
    words.extend(["docker.io/library/busybox:latest", id]);
    words.extend(command);
    daemon.ctl(&words).ok();
}

fn import(daemon: &Daemon) {
    let tar = daemon.directory().join("busybox.tar");
    testkit::busybox_image(&tar, "docker.io/library/busybox:latest").unwrap();
    daemon.ctl(&["image", "import", &tar.to_string_lossy()]).ok();
}

fn status(daemon: &Daemon, id: &str) -> String {
    let listed = daemon.ctl(&["ps"]).ok().stdout;
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or("-").to_owned()
}

fn pid(daemon: &Daemon, id: &str) -> String {
    let listed = daemon.ctl(&["ps"]).ok().stdout;
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap_or_default();
    line.split_whitespace().nth(2).unwrap_or("-").to_owned()
}

fn alive(pid: &str) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn ten_containers_outlive_a_killed_daemon() {
    let mut daemon = Daemon::start("killed");
    import(&daemon);
    let ids: Vec<String> = (0..CONTAINERS).map(|number| format!("c{number}")).collect();
    for id in &ids {
        ctl_run(&daemon, id, &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1000 & wait; done"]);
    }
    // This one ends while nobody supervises it.
    ctl_run(&daemon, "seven", &["sh", "-c", "while ! test -e /tmp/go; do sleep 0.05; done; exit 7"]);
    let pids: Vec<String> = ids.iter().map(|id| pid(&daemon, id)).collect();
    let seven = pid(&daemon, "seven");

    daemon.kill();
    std::fs::write(format!("/proc/{seven}/root/tmp/go"), "").unwrap();
    eventually("the container ended by itself", || {
        // Its shim reaps it without asking anybody.
        if alive(&seven) { Err(format!("{seven} is still there")) } else { Ok(()) }
    });
    daemon.launch().unwrap();

    for (id, pid_before) in ids.iter().zip(&pids) {
        assert_eq!(status(&daemon, id), "RUNNING", "{id}");
        assert_eq!(&pid(&daemon, id), pid_before, "{id} is the same process");
        let fifo = daemon.directory().join("fifo");
        let exec = daemon.ctl(&["exec", "--fifo-dir", &fifo.to_string_lossy(), id, "sh", "-c", "echo alive; exit 4"]);
        assert_eq!((exec.code, exec.stdout.as_str()), (4, "alive\n"), "{}", exec.text());
    }
    assert_eq!(status(&daemon, "seven"), "STOPPED(7)");

    exit_reaches_every_new_stream_once(&daemon);

    for id in &ids {
        daemon.ctl(&["kill", id]).ok();
        eventually("it ended by the signal's handler", || match status(&daemon, id).as_str() {
            "STOPPED(3)" => Ok(()),
            other => Err(other.to_owned()),
        });
        daemon.ctl(&["rm", id]).ok();
    }
    daemon.ctl(&["rm", "seven"]).ok();
    daemon.ctl(&["image", "rm", "docker.io/library/busybox:latest"]).ok();
}

/// Two streams, one after the other: each receives the exit that happened in the daemon's absence, exactly once.
fn exit_reaches_every_new_stream_once(daemon: &Daemon) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for _ in 0..2 {
            let client = client::Client::connect(std::path::Path::new(&daemon.address()), "default").await.unwrap();
            let request = api_grpc::services::events::SubscribeRequest {
                filters: vec!["namespace==default,topic~=|^/tasks/|".into()],
            };
            let mut stream = client.events().subscribe(request).await.unwrap().into_inner();
            // An event of our own behind which the replay must be over: the exit of an additional process.
            let probe = async {
                let fifo = daemon.directory().join("fifo");
                tokio::task::spawn_blocking({
                    let (address, fifo) = (daemon.address(), fifo.to_string_lossy().into_owned());
                    move || {
                        testkit::run(
                            testkit::binary("gantryctl"),
                            &["--address", &address, "exec", "--fifo-dir", &fifo, "c0", "true"],
                        )
                        .unwrap()
                        .ok()
                    }
                })
                .await
                .unwrap();
            };
            let read = async {
                let mut exits = Vec::new();
                loop {
                    let envelope = stream.message().await.unwrap().expect("the stream goes on");
                    let event = envelope.event.unwrap_or_default();
                    if let Ok(exit) =
                        api_grpc::decode::unpack::<api_grpc::events::TaskExit>(&api_grpc::decode::any(event))
                    {
                        if exit.container_id == "c0" {
                            return exits;
                        }
                        exits.push((exit.container_id, exit.exit_status));
                    }
                }
            };
            let ((), exits) =
                tokio::join!(probe, async { tokio::time::timeout(testkit::DEADLINE, read).await.unwrap() });
            assert_eq!(exits, vec![("seven".to_owned(), 7)]);
        }
    });
}

#[test]
fn a_stop_leaves_containers_running_and_records_survive() {
    let mut daemon = Daemon::start("stopped");
    import(&daemon);
    ctl_run(&daemon, "stays", &["sleep", "1000"]);
    let before = pid(&daemon, "stays");
    daemon.stop();
    assert!(alive(&before), "SIGTERM to the daemon ends no container");
    daemon.launch().unwrap();
    assert_eq!((status(&daemon, "stays").as_str(), pid(&daemon, "stays")), ("RUNNING", before));
    assert!(daemon.ctl(&["image", "ls", "-q"]).ok().stdout.contains("busybox"));
    daemon.ctl(&["rm", "--force", "stays"]).ok();
}

#[test]
fn a_killed_shim_is_told_once_and_leaves_nothing() {
    let daemon = Daemon::start("shim");
    import(&daemon);
    ctl_run(&daemon, "orphan", &["sleep", "1000"]);
    let init = pid(&daemon, "orphan");
    let status_file = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let shim = status_file.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let shim = rustix::process::Pid::from_raw(shim.parse().unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    eventually("the container is reported as killed", || match status(&daemon, "orphan").as_str() {
        "STOPPED(137)" | "-" => Ok(()),
        other => Err(other.to_owned()),
    });
    eventually("its process is gone", || if alive(&init) { Err(init.clone()) } else { Ok(()) });
    daemon.ctl(&["rm", "orphan"]).ok();
}
