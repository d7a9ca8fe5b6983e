//! The task service: decode a request, call the engine, encode the answer.
//!
//! **Invariant:** a request that changes something runs as a task of its own, so a client that goes away, or whose
//! deadline passes, leaves nothing half done.

use std::path::PathBuf;
use std::sync::Arc;

use api_shim::messages::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, Options, PauseRequest, PidsRequest,
    PidsResponse, ProcessDetails, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status as WireStatus, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use api_shim::{Task, TtrpcContext, convert, status, unimplemented};
use async_trait::async_trait;
use model::record::{Status, StdioPaths};
use protobuf::Message as _;
use runtime::ConsoleSize;

use crate::bootstrap::decode_options;
use crate::engine::{Create, Engine, Exec};
use crate::error::Error;

/// The task service of one shim.
pub(crate) struct Service {
    engine: Arc<Engine>,
}

impl Service {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

type Reply<T> = ttrpc::Result<T>;

/// Answers the outcome of a call of the engine.
fn answer<T, M>(result: Result<T, Error>, encode: impl FnOnce(T) -> M) -> Reply<M> {
    result.map(encode).map_err(|error| status(&error))
}

fn empty(_: ()) -> Empty {
    Empty::new()
}

/// Runs work to its end, whatever becomes of the request.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        // A panic aborts the program, so this is the end of the runtime.
        Err(_) => Err(Error::InvalidRequest("the shim is shutting down".to_owned())),
    }
}

fn wire_status(status: Status) -> WireStatus {
    match status {
        Status::Created => WireStatus::CREATED,
        Status::Running => WireStatus::RUNNING,
        Status::Paused => WireStatus::PAUSED,
        Status::Pausing => WireStatus::PAUSING,
        Status::Stopped => WireStatus::STOPPED,
    }
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Reply<CreateTaskResponse> {
        let options = match request.options.as_ref() {
            Some(any) if !any.value.is_empty() => match decode_options(any) {
                Some(options) => options,
                None => {
                    let text = format!("runtime options of type {:?} are not understood", any.type_url);
                    return Err(status(&Error::InvalidRequest(text)));
                }
            },
            Some(_) | None => Options::new(),
        };
        let create = Create {
            id: request.id,
            bundle: PathBuf::from(request.bundle),
            mounts: request.rootfs.into_iter().map(convert::mount).collect(),
            paths: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options,
            checkpoint: request.checkpoint,
        };
        let engine = Arc::clone(&self.engine);
        let created = to_the_end(async move { engine.create(create).await }).await;
        answer(created, |pid| {
            let mut response = CreateTaskResponse::new();
            response.pid = pid;
            response
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Reply<StateResponse> {
        answer(self.engine.state(&request.id, &request.exec_id), |state| {
            let mut response = StateResponse::new();
            response.id = request.id;
            response.exec_id = request.exec_id;
            response.bundle = state.bundle;
            response.pid = state.pid;
            response.status = wire_status(state.status).into();
            response.stdin = state.paths.stdin;
            response.stdout = state.paths.stdout;
            response.stderr = state.paths.stderr;
            response.terminal = state.paths.terminal;
            response.exit_status = state.exit.status;
            response.exited_at = convert::timestamp(state.exit.at);
            response
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Reply<StartResponse> {
        let engine = Arc::clone(&self.engine);
        let started = to_the_end(async move {
            if request.exec_id.is_empty() {
                engine.start(&request.id).await
            } else {
                engine.start_exec(&request.id, &request.exec_id).await
            }
        })
        .await;
        answer(started, |pid| {
            let mut response = StartResponse::new();
            response.pid = pid;
            response
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Reply<DeleteResponse> {
        let engine = Arc::clone(&self.engine);
        let deleted = to_the_end(async move { engine.delete(&request.id, &request.exec_id).await }).await;
        answer(deleted, |(pid, exit)| {
            let mut response = DeleteResponse::new();
            response.pid = pid;
            response.exit_status = exit.status;
            response.exited_at = convert::timestamp(exit.at);
            response
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Reply<PidsResponse> {
        answer(self.engine.pids(&request.id).await, |pids| {
            let mut response = PidsResponse::new();
            response.processes = pids.into_iter().map(process_info).collect();
            response
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Reply<Empty> {
        let engine = Arc::clone(&self.engine);
        answer(to_the_end(async move { engine.pause(&request.id).await }).await, empty)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Reply<Empty> {
        let engine = Arc::clone(&self.engine);
        answer(to_the_end(async move { engine.resume(&request.id).await }).await, empty)
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Reply<Empty> {
        Err(unimplemented("checkpoint"))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Reply<Empty> {
        let engine = Arc::clone(&self.engine);
        let KillRequest { id, exec_id, signal, all, .. } = request;
        answer(to_the_end(async move { engine.kill(&id, &exec_id, signal, all).await }).await, empty)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Reply<Empty> {
        let exec = Exec {
            id: request.id,
            exec_id: request.exec_id,
            paths: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            spec: request.spec.into_option().map(|any| any.value).unwrap_or_default(),
        };
        answer(self.engine.exec(exec), empty)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Reply<Empty> {
        let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        let size = ConsoleSize { rows: side(request.height), columns: side(request.width) };
        answer(self.engine.resize(&request.id, &request.exec_id, size), empty)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Reply<Empty> {
        if !request.stdin {
            return answer(self.engine.state(&request.id, &request.exec_id), |_| Empty::new());
        }
        answer(self.engine.close_stdin(&request.id, &request.exec_id), empty)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Reply<Empty> {
        let resources = request.resources.into_option().map(|any| any.value).unwrap_or_default();
        let engine = Arc::clone(&self.engine);
        answer(to_the_end(async move { engine.update(&request.id, &resources).await }).await, empty)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Reply<WaitResponse> {
        answer(self.engine.wait(&request.id, &request.exec_id).await, |exit| {
            let mut response = WaitResponse::new();
            response.exit_status = exit.status;
            response.exited_at = convert::timestamp(exit.at);
            response
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Reply<StatsResponse> {
        answer(self.engine.stats(&request.id), |(url, bytes)| {
            let mut response = StatsResponse::new();
            response.stats = convert::any(url, bytes);
            response
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Reply<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        // 0 for a shim that has no such task (yet): the daemon tells it from a task by that.
        response.task_pid = self.engine.pid(&request.id).unwrap_or(0);
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Reply<Empty> {
        self.engine.shutdown();
        Ok(Empty::new())
    }
}

fn process_info((pid, exec_id): (u32, Option<String>)) -> ProcessInfo {
    let mut info = ProcessInfo::new();
    info.pid = pid;
    if let Some(exec_id) = exec_id {
        let mut details = ProcessDetails::new();
        details.exec_id = exec_id;
        if let Ok(bytes) = details.write_to_bytes() {
            info.info = convert::any("containerd.runc.v1.ProcessDetails", bytes);
        }
    }
    info
}
