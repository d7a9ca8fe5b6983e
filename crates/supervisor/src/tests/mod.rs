//! The supervisor against a shim that the test plays itself: each request arrives in a channel, and the test answers
//! it when it likes. The shim's process and init are `sleep`s.

mod adoption;
mod creation;
mod foreign;
mod ordering;

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use api_grpc::shim_task as wire;
use async_trait::async_trait;
use events::{Journal, Subscription};
use model::Namespace;
use model::filter::Filters;
use model::record::{ProcessIdentity, Status, StdioPaths, TaskRecord};
use prost::Message;
use protobuf::EnumOrUnknown;
use sys::spawn::{Child, Command};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{MethodHandler, Server, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::{Config, Supervisor, Timeouts};

const METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];

/// Long enough for a loaded machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that the test has to answer.
struct Call {
    method: &'static str,
    payload: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, (i32, String)>>,
}

impl Call {
    fn decode<M: Message + Default>(&self) -> M {
        M::decode(self.payload.as_slice()).unwrap()
    }

    fn ok(self, answer: &impl Message) {
        let _ = self.answer.send(Ok(answer.encode_to_vec()));
    }

    fn refuse(self, code: i32, message: &str) {
        let _ = self.answer.send(Err((code, message.to_owned())));
    }

    fn exit(self, exit_status: u32) {
        let exited_at = Some(prost_types::Timestamp { seconds: 5, nanos: 6 });
        match self.method {
            "Wait" => self.ok(&wire::WaitResponse { exit_status, exited_at }),
            "Delete" => self.ok(&wire::DeleteResponse { pid: 1, exit_status, exited_at }),
            method => panic!("{method} tells no exit"),
        }
    }
}

struct Method {
    method: &'static str,
    /// Whether the test answers where processes stand.
    knows: bool,
    calls: mpsc::UnboundedSender<Call>,
}

#[async_trait]
impl MethodHandler for Method {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::default();
        if self.method == "State" && !self.knows {
            // Where processes stand is told by the records alone: the shim of the tests does not know.
            let status = ttrpc::proto::Status { code: EnumOrUnknown::from_i32(5), ..Default::default() };
            response.status = Some(status).into();
            return Ok(response);
        }
        let (answer, answered) = oneshot::channel();
        let _ = self.calls.send(Call { method: self.method, payload: request.payload, answer });
        match answered.await {
            Ok(Ok(payload)) => response.payload = payload,
            Ok(Err((code, message))) => {
                let status =
                    ttrpc::proto::Status { code: EnumOrUnknown::from_i32(code), message, ..Default::default() };
                response.status = Some(status).into();
            }
            // The test has dropped the call: never answered.
            Err(_) => std::future::pending().await,
        }
        Ok(response)
    }
}

/// The test's end of a shim.
struct Fake {
    server: Server,
    /// Whether it answers `State`.
    knows: bool,
    calls: mpsc::UnboundedReceiver<Call>,
    sender: mpsc::UnboundedSender<Call>,
}

impl Fake {
    async fn listen(socket: PathBuf) -> Self {
        Self::listen_as(socket, false).await
    }

    /// As [`Fake::listen`]; one that `knows` leaves `State` to the test.
    async fn listen_as(socket: PathBuf, knows: bool) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let mut fake = Self { server: Server::new(), knows, calls, sender };
        fake.serve(socket).await;
        fake
    }

    /// Serves at `socket`, anew if it did before.
    async fn serve(&mut self, socket: PathBuf) {
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let accepted = futures::stream::unfold(listener, |listener| async move {
            let (connection, _) = listener.accept().await.unwrap();
            Some((Ok(connection), listener))
        });
        let methods = METHODS.into_iter().map(|method| {
            let handler: Box<dyn MethodHandler + Send + Sync> =
                Box::new(Method { method, knows: self.knows, calls: self.sender.clone() });
            (method.to_owned(), handler)
        });
        let service = Service { methods: methods.collect(), streams: HashMap::new() };
        self.server = Server::new()
            .add_listener(Listener::new(accepted))
            .register_service(HashMap::from([("containerd.task.v3.Task".to_owned(), service)]));
        self.server.start().await.unwrap();
    }

    /// The next request, which must be of this method.
    async fn next(&mut self, method: &str) -> Call {
        let call = self.any(method).await;
        assert_eq!(call.method, method);
        call
    }

    /// The next request.
    async fn any(&mut self, method: &str) -> Call {
        tokio::time::timeout(PATIENCE, self.calls.recv()).await.expect(method).unwrap()
    }
}

/// A `sleep` that ends with the test.
struct Process(Child);

impl Process {
    fn start() -> Self {
        Self(Command::new("/bin/sleep").arg("1000").spawn().unwrap())
    }

    /// A child that exits by itself and stays a zombie.
    fn zombie(code: u32) -> Self {
        let child = Command::new("/bin/sh").args(["-c", &format!("exit {code}")]).spawn().unwrap();
        sys::fs::poll_readable(child.pidfd.as_fd(), Some(PATIENCE)).unwrap();
        Self(child)
    }

    fn identity(&self) -> ProcessIdentity {
        let identity = sys::process::identity(self.0.pid).unwrap();
        ProcessIdentity { pid: identity.pid, start_time: identity.start_time }
    }

    fn kill(&self) {
        let _ = sys::process::pidfd_send_signal(&self.0.pidfd, 9);
    }

    fn ended(&self) -> bool {
        sys::fs::poll_readable(self.0.pidfd.as_fd(), Some(PATIENCE)).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = sys::process::wait(self.0.pidfd.as_fd());
    }
}

/// A supervisor with directories of its own.
struct House {
    directory: TempDir,
    journal: Journal,
    supervisor: Supervisor,
    namespace: Namespace,
}

impl House {
    /// `shim` is a shell script that stands in for the shim's binary.
    fn new(shim: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim");
        std::fs::write(&path, format!("#!/bin/sh\n{shim}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let state = directory.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let journal = Journal::open(&state, sys::boot_id().unwrap(), events::Config::default()).unwrap();
        let supervisor = Self::supervisor(&directory, &journal, Timeouts::default().create);
        Self { directory, journal, supervisor, namespace: "ns".parse().unwrap() }
    }

    fn supervisor(directory: &TempDir, journal: &Journal, patience: Duration) -> Supervisor {
        let path = |name: &str| directory.path().join(name);
        let mut config =
            Config::new(path("state"), path("root"), path("shim"), path("gantry.sock").display().to_string());
        config.timeouts = Timeouts {
            create: patience,
            request: patience,
            sigkill: Duration::from_millis(50),
            exit: Duration::from_millis(50),
            ..Timeouts::default()
        };
        Supervisor::new(config, journal.clone()).unwrap()
    }

    /// Ends the supervisor as a daemon ends, and starts the next one.
    fn restart(&mut self) {
        self.restart_with(Timeouts::default().create);
    }

    /// As [`House::restart`], with another patience for shims.
    fn restart_with(&mut self, patience: Duration) {
        self.supervisor.stop();
        self.supervisor = Self::supervisor(&self.directory, &self.journal, patience);
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.directory.path().join("state/io.containerd.runtime.v2.task/ns").join(id)
    }

    fn socket(&self, id: &str) -> PathBuf {
        self.supervisor.layout().socket("ns", id)
    }

    /// Writes a bundle as it is found after a restart.
    fn write_bundle(&self, id: &str, record: &TaskRecord) -> PathBuf {
        let bundle = self.supervisor.layout().make("ns", id, b"{}", &self.directory.path().join("shim")).unwrap();
        std::fs::write(bundle.join("task.json"), serde_json::to_vec(record).unwrap()).unwrap();
        bundle
    }

    /// A task in some state, as if it had been created, and its shim.
    async fn task(&mut self, id: &str, status: Status) -> (Fake, Process, Process) {
        let (shim, init) = (Process::start(), Process::start());
        self.write_bundle(id, &record(&shim, &init, status));
        let mut fake = Fake::listen(self.socket(id)).await;
        self.supervisor.adopt().await.unwrap();
        if status != Status::Stopped {
            // Kept pending until the test answers it.
            let wait = fake.next("Wait").await;
            fake.sender.send(wait).unwrap_or_else(|_| panic!("the channel is open"));
        }
        (fake, shim, init)
    }

    fn subscribe(&self) -> Subscription {
        self.journal.subscribe(Filters::parse::<&str>(&[]).unwrap(), |_| Vec::new())
    }

    async fn start(&self, id: &str, exec_id: &str) -> tokio::task::JoinHandle<Result<u32, crate::Error>> {
        let (supervisor, namespace) = (self.supervisor.clone(), self.namespace.clone());
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        tokio::spawn(async move { supervisor.start(&namespace, &id, &exec_id).await })
    }

    /// Every event so far, as topic and the last part of what it is about.
    fn topics(&self) -> Vec<String> {
        let entries = self.journal.recent(|_| true).unwrap();
        entries.iter().map(|entry| entry.envelope.topic.trim_start_matches("/tasks/").to_owned()).collect()
    }
}

/// Events as they come, in short: `exit:7`, `exec-started:e`.
async fn event(subscription: &mut Subscription) -> String {
    use api_grpc::decode::unpack;
    use api_grpc::events::{TaskExecAdded, TaskExecStarted, TaskExit};
    let entry = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("an event").unwrap();
    let event = &entry.envelope.event;
    let detail = match entry.envelope.topic.as_str() {
        "/tasks/exit" => {
            let exit: TaskExit = unpack(event).unwrap();
            if exit.id == exit.container_id {
                format!(":{}", exit.exit_status)
            } else {
                format!(":{}:{}", exit.id, exit.exit_status)
            }
        }
        "/tasks/exec-added" => format!(":{}", unpack::<TaskExecAdded>(event).unwrap().exec_id),
        "/tasks/exec-started" => format!(":{}", unpack::<TaskExecStarted>(event).unwrap().exec_id),
        _ => String::new(),
    };
    format!("{}{detail}", entry.envelope.topic.trim_start_matches("/tasks/"))
}

fn record(shim: &Process, init: &Process, status: Status) -> TaskRecord {
    TaskRecord {
        boot_id: sys::boot_id().unwrap().to_owned(),
        shim: shim.identity(),
        init: init.identity(),
        status,
        started: status != Status::Created,
        stdio: StdioPaths::default(),
    }
}

/// Waits until a condition holds, by yielding to what makes it true.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let held = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    held.await.unwrap_or_else(|_| panic!("{what}"));
}
