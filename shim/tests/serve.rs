//! The shim as gantryd starts it: one exec with the listening socket as descriptor 3, then ttrpc.

#![expect(clippy::expect_used, reason = "a test fails by panicking, with what it expected")]

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_shim::messages;
use model::record::{ExitRecord, Status, TaskRecord};
use protobuf::Message;
use serde::de::DeserializeOwned;
use serde_json::json;
use ttrpc::r#async::Client;

type Failure = (ttrpc::Code, String);

struct Shim {
    dir: tempfile::TempDir,
    child: sys::spawn::Child,
    client: Client,
}

impl Shim {
    /// Starts a shim with a bundle that runs `script`.
    async fn start(id: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_bundle(dir.path(), id, script);
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let log = std::fs::File::create(dir.path().join("shim.log")).expect("a log");
        let child = sys::spawn::Command::new(binary())
            .args(["-namespace", "test", "-id", id, "-address", "/none", "serve"])
            .cwd(dir.path())
            .fd(2, log.into())
            .fd(3, listener.into())
            .spawn()
            .expect("the shim");
        let client = Client::connect(&format!("unix://{}", socket.display())).await.expect("a connection");
        Self { dir, child, client }
    }

    async fn call<Q: Message, P: Message>(&self, method: &str, request: &Q) -> Result<P, Failure> {
        let mut raw = ttrpc::proto::Request::new();
        raw.service = "containerd.task.v3.Task".to_owned();
        raw.method = method.to_owned();
        raw.payload = request.write_to_bytes().expect("a message");
        raw.timeout_nano = 30_000_000_000;
        match self.client.request(raw).await {
            Ok(response) => Ok(P::parse_from_bytes(&response.payload).expect("a message")),
            Err(ttrpc::Error::RpcStatus(status)) => Err((status.code(), status.message)),
            Err(error) => Err((ttrpc::Code::UNKNOWN, error.to_string())),
        }
    }

    async fn create(&self, id: &str) -> Result<messages::CreateTaskResponse, Failure> {
        let mut request = messages::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = self.dir.path().display().to_string();
        request.stdout = format!("file://{}", self.path("out").display());
        self.call("Create", &request).await
    }

    async fn run(&self, id: &str, exec_id: &str) -> Result<messages::StartResponse, Failure> {
        let mut request = messages::StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call("Start", &request).await
    }

    async fn exec(&self, id: &str, exec_id: &str, script: &str) -> Result<messages::Empty, Failure> {
        let mut request = messages::ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let mut spec = messages::Any::new();
        spec.value = process(script).to_string().into_bytes();
        request.spec = protobuf::MessageField::some(spec);
        self.call("Exec", &request).await
    }

    async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let mut request = messages::WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call::<_, messages::WaitResponse>("Wait", &request).await.expect("an end").exit_status
    }

    async fn kill(&self, id: &str, exec_id: &str, signal: u32) -> Result<messages::Empty, Failure> {
        let mut request = messages::KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.call("Kill", &request).await
    }

    async fn delete(&self, id: &str, exec_id: &str) -> Result<messages::DeleteResponse, Failure> {
        let mut request = messages::DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.call("Delete", &request).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn record<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&std::fs::read(self.path(name)).expect("a record")).expect("a whole record")
    }

    /// Asks it to end, and sees that it does.
    async fn shutdown(self) {
        let request = messages::ShutdownRequest::new();
        self.call::<_, messages::Empty>("Shutdown", &request).await.expect("an answer");
        let pidfd = std::os::fd::AsFd::as_fd(&self.child.pidfd);
        assert!(sys::fs::poll_readable(pidfd, Some(Duration::from_secs(30))).expect("a poll"), "the shim lives on");
        let end = sys::process::reap(pidfd).expect("a child").expect("an end");
        assert_eq!(end.exit, sys::process::Exit::Code(0));
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A failed test leaves neither the shim nor, through its subreaper's end, anything that it kept.
        let _ = sys::process::pidfd_send_signal(&self.child.pidfd, 9);
    }
}

fn process(script: &str) -> serde_json::Value {
    json!({"cwd": "/", "args": ["/bin/busybox", "sh", "-c", script], "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]})
}

fn write_bundle(dir: &Path, id: &str, script: &str) {
    let bin = dir.join("rootfs/bin");
    std::fs::create_dir_all(&bin).expect("a root");
    std::fs::create_dir_all(dir.join("rootfs/proc")).expect("a root");
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("a static busybox on this machine");
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": process(script),
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": format!("/gantry-test-{}-shim-{id}", std::process::id()),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
        },
    });
    std::fs::write(dir.join("config.json"), spec.to_string()).expect("a spec");
}

fn class<T: std::fmt::Debug>(result: Result<T, Failure>) -> (ttrpc::Code, String) {
    result.expect_err("a refusal")
}

#[tokio::test]
async fn one_life_leaves_its_records() {
    let shim = Shim::start("life", "echo said; exit 42").await;
    let pid = shim.create("life").await.expect("created").pid;
    assert_eq!(class(shim.create("life").await).0, ttrpc::Code::ALREADY_EXISTS);
    let task: TaskRecord = shim.record("task.json");
    assert_eq!((task.init.pid, task.status, task.shim.pid), (pid, Status::Created, shim.child.pid));
    assert_eq!(class(shim.exec("life", "x", "true").await).1, "cannot exec in a created state");

    assert_eq!(shim.run("life", "").await.expect("started").pid, pid);
    assert_eq!(shim.wait("life", "").await, 42);
    let exit: ExitRecord = shim.record("exits/init.json");
    assert_eq!((exit.pid, exit.exit_status, exit.signal), (pid, 42, 0));
    let task: TaskRecord = shim.record("task.json");
    assert_eq!(task.status, Status::Stopped);
    assert_eq!(
        class(shim.kill("life", "", 9).await),
        (ttrpc::Code::NOT_FOUND, "process already finished: not found".to_owned())
    );

    let deleted = shim.delete("life", "").await.expect("deleted");
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 42));
    assert_eq!(deleted.exited_at.seconds, exit.exited_at.seconds);
    assert_eq!(
        class(shim.delete("life", "").await),
        (ttrpc::Code::NOT_FOUND, "container not created: not found".to_owned())
    );
    assert_eq!(std::fs::read_to_string(shim.path("out")).expect("output"), "said\n");
    shim.shutdown().await;
}

#[tokio::test]
async fn additional_processes_end_before_init_is_told() {
    let shim = Shim::start("execs", "trap 'exit 3' TERM; while :; do sleep 0.1; done").await;
    shim.create("execs").await.expect("created");
    shim.run("execs", "").await.expect("started");
    shim.exec("execs", "five", "exit 5").await.expect("prepared");
    shim.run("execs", "five").await.expect("started");
    assert_eq!(shim.wait("execs", "five").await, 5);
    assert_eq!(shim.delete("execs", "five").await.expect("deleted").exit_status, 5);

    shim.exec("execs", "long", "exec sleep 1000").await.expect("prepared");
    assert_eq!(class(shim.kill("execs", "long", 9).await).0, ttrpc::Code::FAILED_PRECONDITION);
    shim.run("execs", "long").await.expect("started");
    shim.exec("execs", "late", "true").await.expect("prepared");
    shim.kill("execs", "", 15).await.expect("delivered");
    // The kernel kills the additional process with the pid namespace; its end is on record before init's is told.
    assert_eq!(shim.wait("execs", "").await, 3);
    let long: ExitRecord = shim.record("exits/exec-long.json");
    assert_eq!((long.exit_status, long.signal), (137, 9));
    let (code, text) = class(shim.run("execs", "late").await);
    assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
    assert!(text.starts_with("container execs init process is not running"), "{text}");
    shim.delete("execs", "").await.expect("deleted");
    shim.shutdown().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_to_be_created_and_leaves_nothing() {
    let shim = Shim::start("missing", "true").await;
    let spec = std::fs::read_to_string(shim.path("config.json")).expect("a spec").replace("/bin/busybox", "/bin/nope");
    std::fs::write(shim.path("config.json"), spec).expect("a spec");
    let (_, text) = class(shim.create("missing").await);
    assert!(text.contains("no such file or directory"), "{text}");
    assert!(!shim.path("task.json").exists());
    // The id is free again, and the shim, without a container, ends.
    shim.shutdown().await;
}

#[tokio::test]
async fn an_absurd_request_is_refused() {
    let shim = Shim::start("absurd", "true").await;
    let long = "x".repeat(5000);
    for id in ["", long.as_str(), "../x"] {
        assert_eq!(class(shim.create(id).await).0, ttrpc::Code::INVALID_ARGUMENT);
        assert_eq!(class(shim.run(id, id).await).0, ttrpc::Code::NOT_FOUND);
        assert_eq!(class(shim.kill(id, id, u32::MAX).await).0, ttrpc::Code::INVALID_ARGUMENT);
        assert_eq!(class(shim.delete(id, id).await).0, ttrpc::Code::NOT_FOUND);
        assert_eq!(class(shim.exec(id, id, "").await).0, ttrpc::Code::NOT_FOUND);
    }
    let request = messages::CheckpointTaskRequest::new();
    let answer = shim.call::<_, messages::Empty>("Checkpoint", &request).await;
    assert_eq!(class(answer).0, ttrpc::Code::UNIMPLEMENTED);
    shim.shutdown().await;
}

/// The release binary where `cargo xtask test` names a directory of them, else the one that cargo built beside the test.
fn binary() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_containerd-shim-gantry-v2");
    std::env::var_os("GANTRY_BIN_DIR")
        .map_or_else(|| built.into(), |directory| Path::new(&directory).join("containerd-shim-gantry-v2"))
}
