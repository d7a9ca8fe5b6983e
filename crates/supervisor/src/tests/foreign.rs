//! Shims that keep no records: what the daemon writes down for them, and what it asks after a restart.

use model::record::{ExitRecord, ProcessRecord};

use super::*;
use crate::bootstrap::Bootstrap;
use crate::bundle::Layout;
use crate::{CreateTask, Error};

/// A bundle of a foreign shim as the last daemon left it, and the shim.
async fn left(house: &House, status: Status) -> (Fake, Process, Process, PathBuf) {
    let (shim, init) = (Process::start(), Process::start());
    let program = house.directory.path().join("foreign");
    let bundle = house.supervisor.layout().make_for_foreign("ns", "c", b"{}", &program).unwrap();
    let socket = house.directory.path().join("foreign.sock");
    let bootstrap = Bootstrap {
        version: 3,
        address: format!("unix://{}", socket.display()),
        protocol: "ttrpc".into(),
        kept_by_daemon: true,
    };
    Layout::listens(&bundle, &bootstrap).unwrap();
    std::fs::write(bundle.join("task.json"), serde_json::to_vec(&record(&shim, &init, status)).unwrap()).unwrap();
    (Fake::listen_as(socket, true).await, shim, init, bundle)
}

fn state(status: api_grpc::task_types::Status, pid: u32) -> wire::StateResponse {
    wire::StateResponse { status: status.into(), pid, ..wire::StateResponse::default() }
}

#[tokio::test]
async fn what_a_foreign_shim_did_meanwhile_is_asked_and_told() {
    let house = House::new("exit 0");
    let (mut fake, _shim, init, bundle) = left(&house, Status::Created).await;
    let mut events = house.subscribe();
    house.supervisor.adopt().await.unwrap();
    assert_eq!(event(&mut events).await, "create");
    fake.next("State").await.ok(&state(api_grpc::task_types::Status::Running, init.0.pid));
    assert_eq!(event(&mut events).await, "start");
    let read = || serde_json::from_slice::<TaskRecord>(&std::fs::read(bundle.join("task.json")).unwrap()).unwrap();
    assert_eq!((read().status, read().started), (Status::Running, true));
    // Its end is asked for only now, so that it comes behind the start.
    fake.next("Wait").await.exit(7);
    assert_eq!(event(&mut events).await, "exit:7");
    let exit: ExitRecord = serde_json::from_slice(&std::fs::read(bundle.join("exits/init.json")).unwrap()).unwrap();
    assert_eq!((exit.exit_status, exit.pid), (7, init.0.pid));
    assert_eq!(house.supervisor.get(&house.namespace, "c", "").unwrap().exit_status, 7);
}

#[tokio::test]
async fn a_process_that_was_noted_and_never_asked_for_is_forgotten() {
    let house = House::new("exit 0");
    let (mut fake, _shim, init, bundle) = left(&house, Status::Running).await;
    let exec = ProcessRecord {
        boot_id: sys::boot_id().unwrap().to_owned(),
        exec_id: "e".into(),
        process: None,
        status: Status::Created,
        stdio: StdioPaths::default(),
    };
    std::fs::create_dir_all(bundle.join("execs")).unwrap();
    std::fs::write(bundle.join("execs/e.json"), serde_json::to_vec(&exec).unwrap()).unwrap();
    house.supervisor.adopt().await.unwrap();
    for _ in 0..2 {
        let call = fake.next("State").await;
        match call.decode::<wire::StateRequest>().exec_id.as_str() {
            "" => call.ok(&state(api_grpc::task_types::Status::Paused, init.0.pid)),
            _ => call.refuse(5, "process does not exist e: not found"),
        }
    }
    let gone = || house.supervisor.get(&house.namespace, "c", "e").is_err() && !bundle.join("execs/e.json").exists();
    eventually("the process is forgotten", gone).await;
    let paused = || house.supervisor.get(&house.namespace, "c", "").is_ok_and(|task| task.status == Status::Paused);
    eventually("the pause is seen", paused).await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let house = House::new("exit 0");
    let program = house.directory.path().join("containerd-shim-broken-v1");
    for (script, text) in [
        ("cat > /dev/null; echo no room here; exit 3", "start failed: no room here: exit status 3"),
        ("echo vsock://3:1", "only unix sockets are supported"),
        ("echo unix:///nonexistent/socket", "connect to /nonexistent/socket"),
    ] {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let request = CreateTask {
            id: "c".into(),
            runtime: program.display().to_string(),
            spec: b"{}".to_vec(),
            ..CreateTask::default()
        };
        let error: Error = house.supervisor.create(&house.namespace, request).await.unwrap_err();
        assert!(model::render(&error).contains(text), "{}", model::render(&error));
        assert!(!house.bundle("c").exists());
        assert_eq!(house.topics(), [""; 0]);
    }
}
