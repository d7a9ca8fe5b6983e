use super::*;
use crate::{Error, ExecTask};

fn exec(exec_id: &str) -> ExecTask {
    ExecTask { exec_id: exec_id.into(), ..ExecTask::default() }
}

#[tokio::test]
async fn an_exit_that_overtakes_the_start_is_told_after_it() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Created).await;
    let mut events = house.subscribe();
    let wait = fake.next("Wait").await;
    let started = house.start("c", "").await;
    let start = fake.next("Start").await;
    wait.exit(7);
    // Another answer on the same connection shows that the exit has arrived.
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let pids = tokio::spawn(async move { supervisor.pids(&namespace, "c").await });
    fake.next("Pids").await.ok(&wire::PidsResponse::default());
    assert_eq!(pids.await.unwrap().unwrap(), []);
    assert_eq!(house.supervisor.get(&house.namespace, "c", "").unwrap().status, Status::Created);
    start.ok(&wire::StartResponse { pid: 4242 });
    assert_eq!(event(&mut events).await, "start");
    assert_eq!(event(&mut events).await, "exit:7");
    assert_eq!(started.await.unwrap().unwrap(), 4242);
    let exit = house.supervisor.wait(&house.namespace, "c", "").await.unwrap();
    assert_eq!((exit.pid, exit.exit_status, exit.exited_at.seconds), (4242, 7, 5));
    let state = house.supervisor.get(&house.namespace, "c", "").unwrap();
    assert_eq!((state.status, state.exit_status, state.pid), (Status::Stopped, 7, 4242));
    assert!(matches!(house.supervisor.kill(&house.namespace, "c", "", 15, false).await, Err(Error::ProcessFinished)));
}

#[tokio::test]
async fn the_exit_of_init_is_the_last() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let wait_init = fake.next("Wait").await;
    let mut events = house.subscribe();
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let added = tokio::spawn(async move { supervisor.exec(&namespace, "c", exec("e")).await });
    fake.next("Exec").await.ok(&());
    added.await.unwrap().unwrap();
    assert!(matches!(house.supervisor.exec(&house.namespace, "c", exec("e")).await, Err(Error::ExecExists(_))));
    assert!(matches!(house.supervisor.kill(&house.namespace, "c", "e", 9, false).await, Err(Error::ProcessNotCreated)));
    let started = house.start("c", "e").await;
    fake.next("Start").await.ok(&wire::StartResponse { pid: 43 });
    assert_eq!(started.await.unwrap().unwrap(), 43);
    let wait_exec = fake.next("Wait").await;
    assert_eq!(wait_exec.decode::<wire::WaitRequest>().exec_id, "e");
    wait_init.exit(1);
    wait_exec.exit(2);
    for want in ["exec-added:e", "exec-started:e", "exit:e:2", "exit:1"] {
        assert_eq!(event(&mut events).await, want);
    }
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move { supervisor.delete_process(&namespace, "c", "e").await });
    fake.next("Delete").await.exit(2);
    assert_eq!(deleted.await.unwrap().unwrap().exit_status, 2);
    assert!(matches!(house.supervisor.get(&house.namespace, "c", "e"), Err(Error::ProcessNotFound(_))));
}

#[tokio::test]
async fn an_exec_that_fails_to_start_releases_its_waiters() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let _wait = fake.next("Wait").await;
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let added = tokio::spawn(async move { supervisor.exec(&namespace, "c", exec("e")).await });
    fake.next("Exec").await.ok(&());
    added.await.unwrap().unwrap();
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let waiter = tokio::spawn(async move { supervisor.wait(&namespace, "c", "e").await });
    let started = house.start("c", "e").await;
    fake.next("Start").await.refuse(2, "OCI runtime exec failed: exec failed: \"/nope\": no such file or directory");
    let error = started.await.unwrap().unwrap_err();
    assert_eq!(model::render(&error), "OCI runtime exec failed: exec failed: \"/nope\": no such file or directory");
    assert_eq!(waiter.await.unwrap().unwrap(), crate::Exit::default());
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move { supervisor.delete_process(&namespace, "c", "e").await });
    fake.next("Delete").await.refuse(5, "process e: not found");
    assert_eq!(deleted.await.unwrap().unwrap().exit_status, 0);
    assert_eq!(house.topics().last().map(String::as_str), Some("exec-added"));
}

#[tokio::test]
async fn pause_and_resume() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let _wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    for (method, answer, want, topic) in [
        ("Resume", Err("cannot resume a running process"), Status::Running, None),
        ("Pause", Ok(()), Status::Paused, Some("paused")),
        ("Resume", Ok(()), Status::Running, Some("resumed")),
        ("Pause", Err("cannot pause"), Status::Running, None),
    ] {
        let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
        let asked = tokio::spawn(async move {
            if method == "Pause" {
                supervisor.pause(&namespace, "c").await
            } else {
                supervisor.resume(&namespace, "c").await
            }
        });
        let call = fake.next(method).await;
        match answer {
            Ok(()) => call.ok(&()),
            Err(text) => call.refuse(2, text),
        }
        assert_eq!(asked.await.unwrap().is_ok(), answer.is_ok());
        assert_eq!(house.supervisor.get(&house.namespace, "c", "").unwrap().status, want);
        if let Some(topic) = topic {
            assert_eq!(event(&mut events).await, topic);
        }
    }
}

#[tokio::test]
async fn a_kill_overtakes_and_a_silent_shim_is_bypassed() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, init) = house.task("c", Status::Created).await;
    let _wait = fake.next("Wait").await;
    let _started = house.start("c", "").await;
    let _start = fake.next("Start").await;
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let killed = tokio::spawn(async move { supervisor.kill(&namespace, "c", "", 15, true).await });
    let kill = fake.next("Kill").await;
    let request: wire::KillRequest = kill.decode();
    assert_eq!((request.signal, request.all), (15, true));
    kill.ok(&());
    killed.await.unwrap().unwrap();
    house.supervisor.kill(&house.namespace, "c", "", 9, false).await.unwrap();
    assert!(init.ended());
}

#[tokio::test]
async fn a_deleted_task_leaves_nothing() {
    let mut house = House::new("exit 0");
    let (mut fake, shim, _init) = house.task("c", Status::Running).await;
    let wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    wait.exit(0);
    assert_eq!(event(&mut events).await, "exit:0");
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move { supervisor.delete(&namespace, "c").await });
    fake.next("Delete").await.refuse(2, "streams are still open");
    assert_eq!(model::render(&deleted.await.unwrap().unwrap_err()), "streams are still open");
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move { supervisor.delete(&namespace, "c").await });
    fake.next("Delete").await.exit(0);
    fake.next("Shutdown").await.ok(&());
    shim.kill();
    assert_eq!(deleted.await.unwrap().unwrap().exit_status, 0);
    assert_eq!(event(&mut events).await, "delete");
    assert!(matches!(house.supervisor.get(&house.namespace, "c", ""), Err(Error::TaskNotFound(_))));
    assert!(matches!(house.supervisor.delete(&house.namespace, "c").await, Err(Error::TaskNotFound(_))));
    for leftover in ["state/io.containerd.runtime.v2.task/ns", "root/io.containerd.runtime.v2.task/ns", "state/s"] {
        let listing = std::fs::read_dir(house.directory.path().join(leftover)).unwrap();
        assert_eq!(listing.count(), 0, "{leftover}");
    }
    assert!(house.supervisor.heal().is_empty());
}

#[tokio::test]
async fn a_task_that_never_ran_is_told_as_ended_before_it_is_deleted() {
    let mut house = House::new("exit 0");
    let (mut fake, shim, _init) = house.task("c", Status::Created).await;
    let _wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let deleted = tokio::spawn(async move { supervisor.delete(&namespace, "c").await });
    fake.next("Delete").await.exit(137);
    fake.next("Shutdown").await.ok(&());
    shim.kill();
    assert_eq!(deleted.await.unwrap().unwrap().exit_status, 137);
    assert_eq!(event(&mut events).await, "exit:137");
    assert_eq!(event(&mut events).await, "delete");
}

#[tokio::test]
async fn a_dead_shim_is_told_once_and_leaves_a_deletable_task() {
    let mut house = House::new("echo \"$*\" >> \"$(dirname \"$0\")/ran\"");
    let (mut fake, shim, init) = house.task("c", Status::Running).await;
    let _wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    shim.kill();
    assert_eq!(event(&mut events).await, "exit:137");
    assert!(init.ended());
    let ran = std::fs::read_to_string(house.directory.path().join("ran")).unwrap();
    assert!(ran.contains("-namespace ns ") && ran.contains(" -id c ") && ran.trim_end().ends_with("delete"), "{ran}");
    assert!(!house.socket("c").exists());
    assert_eq!(house.supervisor.wait(&house.namespace, "c", "").await.unwrap().exit_status, 137);
    // The next daemon knows it too, and does not tell it again.
    house.restart();
    house.supervisor.adopt().await.unwrap();
    assert_eq!(house.supervisor.get(&house.namespace, "c", "").unwrap().exit_status, 137);
    assert_eq!(house.supervisor.heal().len(), 1);
    assert_eq!(house.supervisor.delete(&house.namespace, "c").await.unwrap().exit_status, 137);
    assert_eq!(event(&mut events).await, "delete");
    assert!(!house.bundle("c").exists());
}

#[tokio::test]
async fn a_lost_connection_is_no_death() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    drop(wait);
    fake.server.shutdown().await.unwrap();
    let error = house.supervisor.pids(&house.namespace, "c").await.unwrap_err();
    assert!(model::render(&error).ends_with("ttrpc: closed: unavailable"), "{}", model::render(&error));
    fake.serve(house.socket("c")).await;
    fake.next("Wait").await.exit(3);
    assert_eq!(event(&mut events).await, "exit:3");
}

#[tokio::test]
async fn a_zombie_behind_a_silent_shim_is_told_by_the_kernel() {
    let mut house = House::new("exit 0");
    let (shim, init) = (Process::start(), Process::zombie(7));
    house.write_bundle("c", &record(&shim, &init, Status::Running));
    let mut fake = Fake::listen(house.socket("c")).await;
    let mut events = house.subscribe();
    house.supervisor.adopt().await.unwrap();
    let wait = fake.next("Wait").await;
    assert_eq!(event(&mut events).await, "create");
    assert_eq!(event(&mut events).await, "start");
    assert_eq!(event(&mut events).await, "exit:7");
    // The late word of the shim changes nothing.
    wait.exit(7);
    house.restart();
    house.supervisor.adopt().await.unwrap();
    assert_eq!(house.topics(), ["create", "start", "exit"]);
}

#[tokio::test]
async fn a_full_mailbox_is_a_status() {
    let mut house = House::new("exit 0");
    let (mut fake, _shim, _init) = house.task("c", Status::Running).await;
    let _wait = fake.next("Wait").await;
    let mut asked = Vec::new();
    let mut refused = 0;
    for _ in 0..4 * crate::actor::MAILBOX {
        let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
        asked.push(tokio::spawn(async move { supervisor.pause(&namespace, "c").await }));
    }
    let _pause = fake.next("Pause").await;
    for request in asked {
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(1), request).await {
            assert!(matches!(result.unwrap(), Err(Error::Busy(_))));
            refused += 1;
        }
    }
    assert!(refused >= crate::actor::MAILBOX, "{refused}");
    // Reading does not wait behind them.
    assert_eq!(house.supervisor.list(&house.namespace).len(), 1);
}

#[tokio::test]
async fn a_late_answer_still_tells_where_the_task_stands() {
    let mut house = House::new("exit 0");
    house.restart_with(Duration::from_millis(50));
    let (mut fake, _shim, _init) = house.task("c", Status::Created).await;
    let _wait = fake.next("Wait").await;
    let mut events = house.subscribe();
    let started = house.start("c", "").await;
    let start = fake.next("Start").await;
    let error = started.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Deadline { operation: "Start", .. }), "{error}");
    // What nobody waits for any more is not begun.
    let paused = house.supervisor.pause(&house.namespace, "c").await.unwrap_err();
    assert!(matches!(paused, Error::Deadline { operation: "Pause", .. }), "{paused}");
    start.ok(&wire::StartResponse { pid: 4242 });
    assert_eq!(event(&mut events).await, "start");
    eventually("the task runs", || house.supervisor.get(&house.namespace, "c", "").unwrap().status == Status::Running)
        .await;
    let (supervisor, namespace) = (house.supervisor.clone(), house.namespace.clone());
    let asked = tokio::spawn(async move { supervisor.pids(&namespace, "c").await });
    fake.next("Pids").await.ok(&wire::PidsResponse::default());
    asked.await.unwrap().unwrap();
}
