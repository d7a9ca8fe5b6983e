//! The wire to one shim: requests of `containerd.task.v3.Task` over ttrpc, or of v2, whose messages are the same, where a
//! shim does not know the newer name.
//!
//! **Invariant:** a request that only asks ends within its deadline. One that changes the task has none here: its caller
//! is released by the manager, but the shim carries it out sooner or later, and its answer, however late, says where the
//! task stands. No deadline is sent along: a shim that gave up in the middle of a request would leave it half done.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api_grpc::shim_task as wire;
use model::record::Status;
use model::{Any, Code, Mount};
use prost::Message;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::proto::{KeyValue, Request, Response};

use crate::bootstrap::Endpoint;
use crate::pidfd::Pidfd;
use crate::task::{CreateTask, ExecTask, Exit, Pid};
use crate::{Error, Timeouts, launch};

/// The task service by its versions.
const SERVICES: [(u8, &str); 2] = [(3, "containerd.task.v3.Task"), (2, "containerd.task.v2.Task")];

/// A connection to one shim, made anew when it breaks while the shim lives.
pub(crate) struct ShimClient {
    namespace: String,
    id: String,
    endpoint: Endpoint,
    /// The version of the task service to ask for.
    version: AtomicU8,
    /// The shim was started by its own `start` command, so that it may have come to serve other tasks too.
    by_start: bool,
    /// The container's annotations say so.
    grouped: bool,
    timeouts: Timeouts,
    connection: Mutex<Option<Client>>,
}

impl std::fmt::Debug for ShimClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimClient").field("id", &self.id).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl ShimClient {
    /// A client that is not connected yet.
    pub(crate) fn new(namespace: String, id: String, endpoint: Endpoint, timeouts: Timeouts) -> Self {
        Self {
            namespace,
            id,
            endpoint,
            version: AtomicU8::new(3),
            by_start: false,
            grouped: false,
            timeouts,
            connection: Mutex::new(None),
        }
    }

    /// The client of a shim that was started by its `start` command.
    pub(crate) fn of_start(self, version: i64, grouped: bool) -> Self {
        let version = AtomicU8::new(if version >= 3 { 3 } else { 2 });
        Self { version, by_start: true, grouped, ..self }
    }

    /// Where the shim listens.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether both are of one task.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.id == other.id
    }

    /// Whether the socket is one that the shim made itself.
    pub(crate) fn by_start(&self) -> bool {
        self.by_start
    }

    /// Whether the shim belongs to a group of containers.
    pub(crate) fn grouped(&self) -> bool {
        self.grouped
    }

    /// Uses a connected, non-blocking stream. Needs a tokio runtime.
    pub(crate) fn attach(&self, stream: std::os::unix::net::UnixStream) -> Result<(), Error> {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|source| self.unreachable(source))?;
        self.replace(Some(Client::new(Socket::from(stream))));
        Ok(())
    }

    /// Connects to the shim's socket. A frozen shim accepts through the backlog of its socket.
    pub(crate) async fn connect(&self) -> Result<(), Error> {
        let endpoint = self.endpoint.clone();
        let connecting = tokio::task::spawn_blocking(move || launch::connect(&endpoint));
        let connected = tokio::time::timeout(self.timeouts.request, connecting).await;
        match connected {
            Ok(Ok(stream)) => self.attach(stream.map_err(|source| self.unreachable(source))?),
            Ok(Err(_)) => Err(Error::Stopping(self.id.clone())),
            Err(_) => Err(Error::Deadline { operation: "connect", id: self.id.clone(), limit: self.timeouts.request }),
        }
    }

    /// Gives the connection up: the shim has ended.
    pub(crate) fn close(&self) {
        self.replace(None);
    }

    fn replace(&self, client: Option<Client>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn unreachable(&self, source: std::io::Error) -> Error {
        Error::Launch { operation: "connect to", path: self.endpoint.name(), source }
    }

    fn client(&self) -> Option<Client> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn call<A: Message + Default>(
        &self,
        operation: &'static str,
        limit: Option<Duration>,
        request: &impl Message,
    ) -> Result<A, Error> {
        let payload = request.encode_to_vec();
        let version = self.version.load(Ordering::Relaxed);
        let mut answer = Err(Error::Closed { operation, id: self.id.clone() });
        for (version, service) in SERVICES.into_iter().filter(|(other, _)| *other <= version) {
            answer = self.send(service, operation, limit, payload.clone()).await;
            if !matches!(answer, Err(Error::Shim { code: Code::Unimplemented, .. })) {
                self.version.store(version, Ordering::Relaxed);
                break;
            }
        }
        let answer = answer?;
        A::decode(answer.payload.as_slice()).map_err(|source| Error::Answer { operation, id: self.id.clone(), source })
    }

    async fn send(
        &self,
        service: &str,
        operation: &'static str,
        limit: Option<Duration>,
        payload: Vec<u8>,
    ) -> Result<Response, Error> {
        let closed = || Error::Closed { operation, id: self.id.clone() };
        let client = match self.client() {
            Some(client) => client,
            // A daemon that has just adopted the task has not connected yet: the first request does.
            None => {
                self.connect().await.map_err(|_| closed())?;
                self.client().ok_or_else(closed)?
            }
        };
        let request = Request {
            service: service.to_owned(),
            method: operation.to_owned(),
            payload,
            metadata: vec![KeyValue {
                key: "containerd-namespace-ttrpc".to_owned(),
                value: self.namespace.clone(),
                ..KeyValue::default()
            }],
            ..Request::default()
        };
        let answer =
            match limit {
                None => client.request(request).await,
                Some(limit) => tokio::time::timeout(limit, client.request(request))
                    .await
                    .map_err(|_| Error::Deadline { operation, id: self.id.clone(), limit })?,
            };
        match answer {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => {
                let message = status.message;
                let code = Code::from_grpc(status.code.value(), &message);
                Err(Error::Shim { context: "", code, message })
            }
            Err(error) => {
                tracing::debug!(id = self.id, operation, %error, "connection to the shim is lost");
                Err(closed())
            }
        }
    }

    fn limit(&self) -> Option<Duration> {
        Some(self.timeouts.request)
    }

    /// Makes the container; returns init's pid.
    pub(crate) async fn create(&self, bundle: String, task: &CreateTask) -> Result<u32, Error> {
        let request = wire::CreateTaskRequest {
            id: self.id.clone(),
            bundle,
            rootfs: task.rootfs.iter().cloned().map(mount).collect(),
            terminal: task.stdio.terminal,
            stdin: task.stdio.stdin.clone(),
            stdout: task.stdio.stdout.clone(),
            stderr: task.stdio.stderr.clone(),
            checkpoint: task.checkpoint.clone(),
            parent_checkpoint: String::new(),
            options: task.options.clone().map(any),
        };
        let answer: Result<wire::CreateTaskResponse, Error> =
            self.call("Create", Some(self.timeouts.create), &request).await;
        match answer {
            Ok(answer) => Ok(answer.pid),
            Err(Error::Shim { code, message, .. }) => {
                Err(Error::Shim { context: "failed to create shim task: ", code, message })
            }
            Err(error) => Err(error),
        }
    }

    /// Where a process stands, by the shim's own account: its status and pid.
    pub(crate) async fn state(&self, exec_id: String) -> Result<(Status, u32), Error> {
        let request = wire::StateRequest { id: self.id.clone(), exec_id };
        let answer: wire::StateResponse = self.call("State", self.limit(), &request).await?;
        let status = match answer.status() {
            api_grpc::task_types::Status::Running => Status::Running,
            api_grpc::task_types::Status::Stopped => Status::Stopped,
            api_grpc::task_types::Status::Paused => Status::Paused,
            api_grpc::task_types::Status::Pausing => Status::Pausing,
            api_grpc::task_types::Status::Created | api_grpc::task_types::Status::Unknown => Status::Created,
        };
        Ok((status, answer.pid))
    }

    /// Starts init or an additional process; returns its pid.
    pub(crate) async fn start(&self, exec_id: String) -> Result<u32, Error> {
        let request = wire::StartRequest { id: self.id.clone(), exec_id };
        let answer: wire::StartResponse = self.call("Start", None, &request).await?;
        Ok(answer.pid)
    }

    /// Registers an additional process.
    pub(crate) async fn exec(&self, exec: ExecTask) -> Result<(), Error> {
        let request = wire::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.exec_id,
            terminal: exec.stdio.terminal,
            stdin: exec.stdio.stdin,
            stdout: exec.stdio.stdout,
            stderr: exec.stdio.stderr,
            spec: exec.spec.map(any),
        };
        self.call::<()>("Exec", None, &request).await
    }

    /// Removes a process that has ended or never ran.
    pub(crate) async fn delete(&self, exec_id: String) -> Result<Exit, Error> {
        let request = wire::DeleteRequest { id: self.id.clone(), exec_id };
        let answer: wire::DeleteResponse = self.call("Delete", None, &request).await?;
        let exited_at = api_grpc::decode::timestamp(answer.exited_at);
        Ok(Exit { pid: answer.pid, exit_status: answer.exit_status, exited_at })
    }

    /// Waits for the end of a process, without limit. The pid in the answer is 0.
    pub(crate) async fn wait(&self, exec_id: String) -> Result<Exit, Error> {
        let request = wire::WaitRequest { id: self.id.clone(), exec_id };
        let answer: wire::WaitResponse = self.call("Wait", None, &request).await?;
        let exited_at = api_grpc::decode::timestamp(answer.exited_at);
        Ok(Exit { pid: 0, exit_status: answer.exit_status, exited_at })
    }

    /// Sends a signal.
    pub(crate) async fn kill(&self, exec_id: String, signal: u32, all: bool, limit: Duration) -> Result<(), Error> {
        let request = wire::KillRequest { id: self.id.clone(), exec_id, signal, all };
        self.call::<()>("Kill", Some(limit), &request).await
    }

    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.call::<()>("Pause", None, &wire::PauseRequest { id: self.id.clone() }).await
    }

    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.call::<()>("Resume", None, &wire::ResumeRequest { id: self.id.clone() }).await
    }

    /// The processes in the container.
    pub(crate) async fn pids(&self) -> Result<Vec<Pid>, Error> {
        let request = wire::PidsRequest { id: self.id.clone() };
        let answer: wire::PidsResponse = self.call("Pids", self.limit(), &request).await?;
        let pid = |process: api_grpc::task_types::ProcessInfo| Pid {
            pid: process.pid,
            info: process.info.map(api_grpc::decode::any),
        };
        Ok(answer.processes.into_iter().map(pid).collect())
    }

    /// Changes limits.
    pub(crate) async fn update(
        &self,
        resources: Option<Any>,
        annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let request = wire::UpdateTaskRequest { id: self.id.clone(), resources: resources.map(any), annotations };
        self.call::<()>("Update", self.limit(), &request).await
    }

    /// The container's metrics.
    pub(crate) async fn stats(&self) -> Result<Option<Any>, Error> {
        let answer: wire::StatsResponse =
            self.call("Stats", self.limit(), &wire::StatsRequest { id: self.id.clone() }).await?;
        Ok(answer.stats.map(api_grpc::decode::any))
    }

    pub(crate) async fn resize_pty(&self, exec_id: String, width: u32, height: u32) -> Result<(), Error> {
        let request = wire::ResizePtyRequest { id: self.id.clone(), exec_id, width, height };
        self.call::<()>("ResizePty", self.limit(), &request).await
    }

    pub(crate) async fn close_io(&self, exec_id: String, stdin: bool) -> Result<(), Error> {
        let request = wire::CloseIoRequest { id: self.id.clone(), exec_id, stdin };
        self.call::<()>("CloseIO", self.limit(), &request).await
    }

    /// The shim's own pid, and that of the container's first process; 0 for what is not known.
    pub(crate) async fn pids_of_both(&self) -> Result<(u32, u32), Error> {
        let request = wire::ConnectRequest { id: self.id.clone() };
        let answer: wire::ConnectResponse = self.call("Connect", self.limit(), &request).await?;
        Ok((answer.shim_pid, answer.task_pid))
    }

    /// The shim's process; `None` if it does not say, or is gone.
    pub(crate) async fn shim_process(&self) -> Result<Option<Pidfd>, Error> {
        let (pid, _) = self.pids_of_both().await?;
        if pid == 0 {
            return Ok(None);
        }
        sys::process::pidfd_open(pid).ok().map(|pidfd| Pidfd::new(pid, pidfd)).transpose()
    }

    /// Asks the shim to end.
    pub(crate) async fn shutdown(&self, now: bool) -> Result<(), Error> {
        let request = wire::ShutdownRequest { id: self.id.clone(), now };
        self.call::<()>("Shutdown", Some(self.timeouts.shutdown), &request).await
    }
}

fn any(any: Any) -> prost_types::Any {
    api_grpc::encode::any(any)
}

fn mount(mount: Mount) -> api_grpc::types::Mount {
    api_grpc::encode::mount(mount)
}
