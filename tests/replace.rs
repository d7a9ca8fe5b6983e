//! The daemon is replaced by the installed program, in the same process and under load; nobody notices but by one
//! UNAVAILABLE.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use api_grpc::services::tasks::{
    DeleteProcessRequest, ExecProcessRequest, ListTasksRequest, StartRequest, WaitRequest,
};
use client::Client;
use rustix::process::Signal;
use testkit::{Daemon, eventually};
use tonic::{Code, Status};

/// Replacements; `GANTRY_REPLACEMENTS` asks for more.
const REPLACEMENTS: usize = 4;
const IMAGE: &str = "docker.io/library/busybox:latest";

/// What the load has done.
#[derive(Default)]
struct Load {
    operations: AtomicUsize,
    unavailable: AtomicUsize,
    stop: AtomicBool,
}

/// Whether the daemon went away under a call. tonic tells a call that its closed connection never sent as CANCELLED,
/// where grpc-go says UNAVAILABLE.
fn unavailable(status: &Status) -> bool {
    let never_sent = status.code() == Code::Cancelled && status.message() == "operation was canceled";
    // A connection that ended before the answer's headers came.
    let cut = status.code() == Code::Unknown && status.message() == "transport error";
    status.code() == Code::Unavailable || never_sent || cut
}

/// Calls until it is answered by a daemon: UNAVAILABLE once is what a replacement may cost.
async fn call<T, F: Future<Output = Result<T, Status>>>(load: &Load, what: &str, operation: impl Fn() -> F) -> T {
    let mut times = 0;
    loop {
        match operation().await {
            Ok(answer) => {
                load.operations.fetch_add(1, Ordering::Relaxed);
                return answer;
            }
            Err(status) if unavailable(&status) && times == 0 => {
                times += 1;
                load.unavailable.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) => panic!("{what}: {status:?} after {times} times UNAVAILABLE"),
        }
    }
}

/// Execs in a container, again and again.
async fn execs(client: Client, load: Arc<Load>, caller: usize) {
    let mut number = 0;
    while !load.stop.load(Ordering::Relaxed) {
        let exec_id = format!("e{caller}-{number}");
        number += 1;
        let mut tasks = client.tasks();
        let process = r#"{"args":["sh","-c","exit 9"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;
        let spec = prost_types::Any { type_url: api_grpc::type_url::PROCESS.into(), value: process.into() };
        let request = ExecProcessRequest {
            container_id: "steady".into(),
            exec_id: exec_id.clone(),
            spec: Some(spec),
            ..ExecProcessRequest::default()
        };
        // These are not repeated blindly: the first may have been carried out before its answer was lost.
        let mut done = true;
        if let Err(status) = tasks.exec(request).await {
            done = accepted(&load, "exec", &status, Code::AlreadyExists);
        }
        if done {
            let request = StartRequest { container_id: "steady".into(), exec_id: exec_id.clone() };
            if let Err(status) = tasks.start(request.clone()).await {
                accepted(&load, "start", &status, Code::Ok);
                if let Err(status) = client.tasks().start(request).await {
                    assert!(status.message().contains("cannot start a"), "start again: {status:?}");
                }
            }
            let exit = call(&load, "wait", || {
                let mut tasks = client.tasks();
                let request = WaitRequest { container_id: "steady".into(), exec_id: exec_id.clone() };
                async move { tasks.wait(request).await }
            })
            .await;
            assert_eq!(exit.into_inner().exit_status, 9, "{exec_id}");
        }
        let request = DeleteProcessRequest { container_id: "steady".into(), exec_id };
        if let Err(status) = client.tasks().delete_process(request).await {
            assert!(unavailable(&status) || status.code() == Code::NotFound, "delete: {status:?}");
        }
    }
}

/// Whether a failure is what a replacement may cause; false if nothing was done.
fn accepted(load: &Load, what: &str, status: &Status, also: Code) -> bool {
    assert!(unavailable(status) || status.code() == also, "{what}: {status:?}");
    load.unavailable.fetch_add(1, Ordering::Relaxed);
    status.code() == also
}

async fn lists(client: Client, load: Arc<Load>) {
    while !load.stop.load(Ordering::Relaxed) {
        let listed = call(&load, "list", || {
            let mut tasks = client.tasks();
            async move { tasks.list(ListTasksRequest::default()).await }
        })
        .await;
        assert_eq!(listed.into_inner().tasks.len(), 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn replaced_under_load() {
    let daemon = Daemon::start("replaced");
    daemon.import_busybox();
    daemon.ctr_run("steady", &["-d"], IMAGE, &["sleep", "100000"]).ok();
    let row = |daemon: &Daemon| daemon.ctr(&["task", "ls"]).ok().stdout;
    let before = row(&daemon);
    let count = std::env::var("GANTRY_REPLACEMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(REPLACEMENTS);
    let load = Arc::new(Load::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = daemon.address();
    let workers: Vec<_> = runtime.block_on(async {
        let client = Client::connect(Path::new(&address), "default").await.unwrap();
        let mut workers = vec![tokio::spawn(lists(client.clone(), Arc::clone(&load)))];
        workers.extend((0..2).map(|caller| tokio::spawn(execs(client.clone(), Arc::clone(&load), caller))));
        workers
    });
    let serving = |daemon: &Daemon| daemon.log().matches("gantryd::serve: serving").count();
    for number in 0..count {
        let done = load.operations.load(Ordering::Relaxed);
        daemon.signal(Signal::USR2);
        eventually("the successor serves", || match serving(&daemon) {
            served if served == number + 2 => Ok(()),
            served => Err(format!("{served} have served\n{}", daemon.log())),
        });
        eventually("the load goes on", || match load.operations.load(Ordering::Relaxed) {
            now if now > done + 20 => Ok(()),
            now => Err(format!("{now} operations\n{}", daemon.log())),
        });
    }
    load.stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for worker in workers {
            worker.await.unwrap();
        }
    });
    assert_eq!(row(&daemon), before, "the container is the same process");
    println!(
        "replaced {count} times; {} operations, {} UNAVAILABLE",
        load.operations.load(Ordering::Relaxed),
        load.unavailable.load(Ordering::Relaxed)
    );
    daemon.ctr(&["task", "kill", "-s", "SIGKILL", "steady"]).ok();
    eventually("it ended", || if row(&daemon).contains("STOPPED") { Ok(()) } else { Err(row(&daemon)) });
    daemon.ctr(&["task", "rm", "steady"]).ok();
    daemon.ctr(&["container", "rm", "steady"]).ok();
}
