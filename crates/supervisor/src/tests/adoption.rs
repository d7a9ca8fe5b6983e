use model::Timestamp;
use model::record::{ExitRecord, ProcessRecord};

use super::*;
use crate::Adopted;
use crate::report::Report;

fn exit_record(pid: u32, exit_status: u32) -> ExitRecord {
    ExitRecord {
        boot_id: sys::boot_id().unwrap().to_owned(),
        pid,
        exit_status,
        signal: 0,
        exited_at: Timestamp::now(),
        user_us: 0,
        system_us: 0,
        max_rss_kib: 0,
        oom_kills: 0,
        oom_cgroup: None,
    }
}

fn created(pid: u32) -> Report {
    Report::Create {
        bundle: String::new(),
        rootfs: Vec::new(),
        stdio: StdioPaths::default(),
        checkpoint: String::new(),
        pid,
    }
}

fn write(path: PathBuf, record: &impl serde::Serialize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(record).unwrap()).unwrap();
}

#[tokio::test]
async fn what_ended_meanwhile_is_told_once() {
    let mut house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let bundle = house.write_bundle("c", &record(&shim, &init, Status::Running));
    let exec = ProcessRecord {
        boot_id: sys::boot_id().unwrap().to_owned(),
        exec_id: "e".into(),
        process: Some(ProcessIdentity { pid: 77, start_time: 1 }),
        status: Status::Running,
        stdio: StdioPaths::default(),
    };
    write(bundle.join("execs/e.json"), &exec);
    write(bundle.join("exits/exec-e.json"), &exit_record(77, 5));
    write(bundle.join("exits/init.json"), &exit_record(init.0.pid, 7));
    let mut events = house.subscribe();
    let adopted = house.supervisor.adopt().await.unwrap();
    assert_eq!(adopted, Adopted { live: 0, stopped: 1, removed: 0 });
    for want in ["create", "start", "exec-added:e", "exec-started:e", "exit:e:5", "exit:7"] {
        assert_eq!(event(&mut events).await, want);
    }
    let state = house.supervisor.get(&house.namespace, "c", "").unwrap();
    assert_eq!((state.status, state.exit_status), (Status::Stopped, 7));
    assert_eq!(house.supervisor.get(&house.namespace, "c", "e").unwrap().exit_status, 5);
    assert_eq!(house.supervisor.wait(&house.namespace, "c", "").await.unwrap().exit_status, 7);
    let healed = house.supervisor.heal();
    assert_eq!(healed.len(), 1);

    house.restart();
    house.supervisor.adopt().await.unwrap();
    assert_eq!(house.topics(), ["create", "start", "exec-added", "exec-started", "exit", "exit"]);
    assert_eq!(house.supervisor.heal(), healed);
    assert_eq!(house.supervisor.list(&house.namespace).len(), 1);
}

/// The cause comes before the exit, and once, also when the last daemon died between the two events.
#[tokio::test]
async fn a_death_by_memory_meanwhile_is_told_once() {
    for oom_was_told in [false, true] {
        let house = House::new("exit 0");
        let (shim, init) = (Process::start(), Process::start());
        let bundle = house.write_bundle("c", &record(&shim, &init, Status::Running));
        if oom_was_told {
            let create = created(init.0.pid);
            for report in [create, Report::Start { pid: init.0.pid }, Report::Oom] {
                house.journal.publish(report.envelope(house.namespace.as_str(), "c")).unwrap();
            }
        }
        // Newer than what the journal remembers, as it is in life.
        let record = ExitRecord { oom_kills: 1, ..exit_record(init.0.pid, 137) };
        write(bundle.join("exits/init.json"), &record);
        house.supervisor.adopt().await.unwrap();
        assert_eq!(house.topics(), ["create", "start", "oom", "exit"], "told before: {oom_was_told}");
    }
}

#[tokio::test]
async fn leftovers_are_removed() {
    let house = House::new("exit 0");
    let layout = house.supervisor.layout();
    let shim = Process::start();
    let mut stale = record(&shim, &shim, Status::Running);
    stale.boot_id = "another".into();
    house.write_bundle("stale", &stale);
    let bundle = house.write_bundle("broken", &stale);
    std::fs::write(bundle.join("task.json"), "{").unwrap();
    layout.make("ns", "unfinished", b"{}", std::path::Path::new("/shim")).unwrap();
    let tasks = house.directory.path().join("state/io.containerd.runtime.v2.task/ns");
    std::fs::create_dir_all(tasks.join(".hidden/rootfs")).unwrap();
    std::fs::create_dir_all(house.directory.path().join("root/io.containerd.runtime.v2.task/ns/orphan")).unwrap();
    std::fs::write(house.directory.path().join("state/s/0123"), "").unwrap();
    let adopted = house.supervisor.adopt().await.unwrap();
    assert_eq!(adopted, Adopted { live: 0, stopped: 0, removed: 4 });
    for directory in ["state/io.containerd.runtime.v2.task/ns", "root/io.containerd.runtime.v2.task/ns", "state/s"] {
        let left: Vec<_> = std::fs::read_dir(house.directory.path().join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    assert_eq!(house.topics(), [""; 0]);
}

#[tokio::test]
async fn a_shim_without_a_task_is_ended() {
    let house = House::new("exit 0");
    house.supervisor.layout().make("ns", "c", b"{}", std::path::Path::new("/shim")).unwrap();
    let mut fake = Fake::listen(house.socket("c")).await;
    let shim = Process::start();
    let supervisor = house.supervisor.clone();
    let adopted = tokio::spawn(async move { supervisor.adopt().await });
    fake.next("Connect").await.ok(&wire::ConnectResponse { shim_pid: shim.0.pid, ..wire::ConnectResponse::default() });
    fake.next("Delete").await.refuse(5, "container not created: not found");
    let shutdown = fake.next("Shutdown").await;
    assert!(shutdown.decode::<wire::ShutdownRequest>().now);
    shutdown.ok(&());
    shim.kill();
    assert_eq!(adopted.await.unwrap().unwrap(), Adopted { live: 0, stopped: 0, removed: 1 });
    assert!(!house.bundle("c").exists());
}

#[tokio::test]
async fn a_deletion_cut_off_before_its_event_is_told() {
    let mut house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let bundle = house.write_bundle("c", &record(&shim, &init, Status::Running));
    write(bundle.join("exits/init.json"), &exit_record(init.0.pid, 7));
    house.supervisor.adopt().await.unwrap();
    house.supervisor.layout().remove("ns", "c").unwrap();
    house.restart();
    house.supervisor.adopt().await.unwrap();
    assert_eq!(house.topics(), ["create", "start", "exit", "delete"]);
    assert!(house.supervisor.list(&house.namespace).is_empty());
}

#[tokio::test]
async fn waiters_are_released_when_the_daemon_stops() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let _wait = fake.next("Wait").await;
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let waiter = tokio::spawn(async move { supervisor.wait(&namespace, "c", "").await });
    let old = house.supervisor.clone();
    house.restart();
    assert!(matches!(waiter.await.unwrap(), Err(crate::Error::Stopping(_))));
    eventually("the actor ends", || old.mailbox_closed("ns", "c")).await;
}

fn exec_record(pid: Option<u32>, status: Status) -> ProcessRecord {
    ProcessRecord {
        boot_id: sys::boot_id().unwrap().to_owned(),
        exec_id: "e".into(),
        process: pid.map(|pid| ProcessIdentity { pid, start_time: 1 }),
        status,
        stdio: StdioPaths::default(),
    }
}

/// Wherever the last daemon died, what it had not told is told, in order, and nothing twice.
#[tokio::test]
async fn every_event_is_told_once_whatever_was_told_before() {
    let whole = ["create", "start", "exec-added", "exec-started", "exit", "exit"];
    for before in 0..=whole.len() {
        let house = House::new("exit 0");
        let (shim, init) = (Process::start(), Process::start());
        let pid = init.0.pid;
        let bundle = house.write_bundle("c", &record(&shim, &init, Status::Stopped));
        write(bundle.join("execs/e.json"), &exec_record(Some(77), Status::Running));
        write(bundle.join("exits/exec-e.json"), &exit_record(77, 5));
        write(bundle.join("exits/init.json"), &exit_record(pid, 7));
        let exit = |pid, exit_status| crate::Exit { pid, exit_status, exited_at: Timestamp::now() };
        let reports = [
            created(pid),
            Report::Start { pid },
            Report::ExecAdded { exec_id: "e".into() },
            Report::ExecStarted { exec_id: "e".into(), pid: 77 },
            Report::Exit { exec_id: "e".into(), exit: exit(77, 5) },
            Report::Exit { exec_id: String::new(), exit: exit(pid, 7) },
        ];
        for report in reports.into_iter().take(before) {
            house.journal.publish(report.envelope(house.namespace.as_str(), "c")).unwrap();
        }
        house.supervisor.adopt().await.unwrap();
        assert_eq!(house.topics(), whole, "{before} were told before");
    }
}

/// An additional process takes the name of one that was told of from its beginning to its end.
#[tokio::test]
async fn a_name_that_was_taken_again_is_told_again() {
    let house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let pid = init.0.pid;
    let bundle = house.write_bundle("c", &record(&shim, &init, Status::Running));
    write(bundle.join("execs/e.json"), &exec_record(None, Status::Created));
    let exit = crate::Exit { pid: 77, exit_status: 5, exited_at: Timestamp { seconds: 5, nanos: 0 } };
    for report in [
        created(pid),
        Report::Start { pid },
        Report::ExecAdded { exec_id: "e".into() },
        Report::ExecStarted { exec_id: "e".into(), pid: 77 },
        Report::Exit { exec_id: "e".into(), exit },
    ] {
        house.journal.publish(report.envelope(house.namespace.as_str(), "c")).unwrap();
    }
    house.supervisor.adopt().await.unwrap();
    assert_eq!(house.topics().last().map(String::as_str), Some("exec-added"));
    assert_eq!(house.supervisor.get(&house.namespace, "c", "e").unwrap().status, Status::Created);
}

/// The shim carries out what a dead daemon asked for, after the new one has looked.
#[tokio::test]
async fn requests_of_a_dead_daemon_are_noticed() {
    let mut house = House::new("exit 0");
    let (mut fake, shim, init) = house.task("c", Status::Created).await;
    let mut events = house.subscribe();
    let wait = fake.next("Wait").await;
    let bundle = house.bundle("c");
    write(bundle.join("task.json"), &record(&shim, &init, Status::Running));
    assert_eq!(event(&mut events).await, "start");
    write(bundle.join("execs/e.json"), &exec_record(None, Status::Created));
    assert_eq!(event(&mut events).await, "exec-added:e");
    // A client that repeats its request is told that it has succeeded.
    write(bundle.join("execs/e.json"), &exec_record(Some(78), Status::Running));
    let started = house.start("c", "e").await;
    let call = fake.any("Start").await;
    let wait_exec = if call.method == "Start" {
        call.refuse(2, "cannot start a running process");
        assert_eq!(started.await.unwrap().unwrap(), 78);
        fake.next("Wait").await
    } else {
        // The records were looked at before the request came.
        fake.next("Start").await.refuse(2, "cannot start a running process");
        call
    };
    assert_eq!(event(&mut events).await, "exec-started:e");
    wait_exec.exit(3);
    assert_eq!(event(&mut events).await, "exit:e:3");
    wait.exit(0);
    assert_eq!(event(&mut events).await, "exit:0");
}

/// Init's end is told behind that of a process that outlived it, and in any case.
#[tokio::test]
async fn init_that_ended_before_an_additional_process_is_told_last() {
    let house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let bundle = house.write_bundle("c", &record(&shim, &init, Status::Running));
    write(bundle.join("execs/e.json"), &exec_record(Some(77), Status::Running));
    write(bundle.join("exits/init.json"), &exit_record(init.0.pid, 7));
    let mut events = house.subscribe();
    let mut fake = Fake::listen(house.socket("c")).await;
    house.supervisor.adopt().await.unwrap();
    for want in ["create", "start", "exec-added:e", "exec-started:e"] {
        assert_eq!(event(&mut events).await, want);
    }
    loop {
        let wait = fake.next("Wait").await;
        if wait.decode::<wire::WaitRequest>().exec_id == "e" {
            wait.exit(4);
            break;
        }
    }
    assert_eq!(event(&mut events).await, "exit:e:4");
    assert_eq!(event(&mut events).await, "exit:7");
}

/// The shim had no room for its record, and the last daemon was told all the same.
#[tokio::test]
async fn an_end_without_a_record_is_told_once() {
    let house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let pid = init.0.pid;
    house.write_bundle("c", &record(&shim, &init, Status::Running));
    let exit = crate::Exit { pid, exit_status: 7, exited_at: Timestamp::now() };
    for report in [created(pid), Report::Start { pid }, Report::Exit { exec_id: String::new(), exit }] {
        house.journal.publish(report.envelope(house.namespace.as_str(), "c")).unwrap();
    }
    let mut fake = Fake::listen(house.socket("c")).await;
    house.supervisor.adopt().await.unwrap();
    let state = house.supervisor.get(&house.namespace, "c", "").unwrap();
    assert_eq!((state.status, state.exit_status), (Status::Stopped, 7));
    // The shim has deleted its container for the last daemon.
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move {
        loop {
            match supervisor.delete(&namespace, "c").await {
                // Not connected yet.
                Err(crate::Error::Closed { .. }) => tokio::task::yield_now().await,
                deleted => return deleted,
            }
        }
    });
    fake.next("Delete").await.refuse(5, "container not created: not found");
    fake.next("Shutdown").await.ok(&());
    shim.kill();
    assert_eq!(deleted.await.unwrap().unwrap().exit_status, 7);
    assert_eq!(house.topics(), ["create", "start", "exit", "delete"]);
}

/// The shim had no room for its records, and the last daemon died before it told.
#[tokio::test]
async fn a_freeze_without_a_record_is_told_with_the_next_one() {
    let house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::start());
    let pid = init.0.pid;
    house.write_bundle("c", &record(&shim, &init, Status::Running));
    for report in [created(pid), Report::Start { pid }] {
        house.journal.publish(report.envelope(house.namespace.as_str(), "c")).unwrap();
    }
    let mut fake = Fake::listen_as(house.socket("c"), true).await;
    house.supervisor.adopt().await.unwrap();
    let state = |status: api_grpc::task_types::Status| wire::StateResponse {
        pid,
        status: status.into(),
        ..wire::StateResponse::default()
    };
    // Asked at once, in any order.
    let mut waiting = Vec::new();
    for _ in 0..2 {
        match fake.any("State or Wait").await {
            call if call.method == "State" => call.ok(&state(api_grpc::task_types::Status::Paused)),
            call => waiting.push(call),
        }
    }
    for (method, refusal, there, told) in [
        ("Pause", "cannot pause a paused container", api_grpc::task_types::Status::Paused, Status::Paused),
        ("Resume", "cannot resume a running container", api_grpc::task_types::Status::Running, Status::Running),
    ] {
        let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
        let asked = tokio::spawn(async move {
            if method == "Pause" {
                supervisor.pause(&namespace, "c").await
            } else {
                supervisor.resume(&namespace, "c").await
            }
        });
        fake.next(method).await.refuse(2, refusal);
        fake.next("State").await.ok(&state(there));
        asked.await.unwrap().unwrap();
        assert_eq!(house.supervisor.get(&house.namespace, "c", "").unwrap().status, told);
    }
    assert_eq!(house.topics(), ["create", "start", "paused", "resumed"]);
    // A shim that is where it is told to be is right to refuse.
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let asked = tokio::spawn(async move { supervisor.resume(&namespace, "c").await });
    fake.next("Resume").await.refuse(2, "cannot resume a running container");
    assert!(asked.await.unwrap().is_err());
}
