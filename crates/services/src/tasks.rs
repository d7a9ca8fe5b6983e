use api_grpc::services::tasks as api;
use api_grpc::services::tasks::tasks_server::Tasks;
use api_grpc::{decode, encode, task_types, types};
use futures::future::join_all;
use model::filter::Filters;
use model::record::{Status as ProcessStatus, StdioPaths};
use model::{Any, Code, Coded as _, Namespace, Timestamp};
use supervisor::{CreateTask, ExecTask, ProcessState};
use tonic::{Request, Response, Status};

use crate::mounts;
use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `Tasks`: what runs in containers.
pub(crate) struct TasksService {
    pub(crate) engines: Engines,
}

impl TasksService {
    /// Maps an error of the supervisor. A missing task of a missing container is told as the missing container, as
    /// containerd does, which looks for that first.
    async fn refuse(&self, namespace: &Namespace, id: &str, error: supervisor::Error) -> Status {
        if error.code() == Code::NotFound {
            let (namespace, id) = (namespace.clone(), id.to_owned());
            let container = self.engines.metadata(move |metadata| metadata.containers().get(&namespace, &id)).await;
            if let Err(status) = container {
                return status;
            }
        }
        api_grpc::status(&error)
    }

    async fn answer<T>(
        &self,
        namespace: &Namespace,
        id: &str,
        result: Result<T, supervisor::Error>,
    ) -> Result<T, Status> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.refuse(namespace, id, error).await),
        }
    }

    async fn done(
        &self,
        namespace: &Namespace,
        id: &str,
        result: Result<(), supervisor::Error>,
    ) -> Result<Response<()>, Status> {
        self.answer(namespace, id, result).await.map(Response::new)
    }

    /// The metrics of one task; `None` where it has none, for instance because it has just ended.
    async fn metric(&self, namespace: &Namespace, id: String) -> Option<types::Metric> {
        let timestamp = encode::timestamp(Timestamp::now());
        match self.engines.supervisor.stats(namespace, &id).await {
            Ok(stats) => Some(types::Metric { timestamp, id, data: stats.map(encode::any) }),
            Err(error) => {
                tracing::debug!(id, error = %model::render(&error), "a task has no metrics");
                None
            }
        }
    }
}

#[tonic::async_trait]
impl Tasks for TasksService {
    async fn create(
        &self,
        request: Request<api::CreateTaskRequest>,
    ) -> Result<Response<api::CreateTaskResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let namespace = scope.namespace.clone();
        if request.checkpoint.is_some_and(|checkpoint| !checkpoint.digest.is_empty()) {
            return Err(Error::Unimplemented("tasks cannot be restored from a checkpoint").into());
        }
        let (of, id) = (namespace.clone(), request.container_id.clone());
        let container = self.engines.metadata(move |metadata| metadata.containers().get(&of, &id)).await?;
        let options = request.options.map(decode::any).filter(|options| !options.value.is_empty());
        let mut task = CreateTask {
            id: container.id,
            runtime: if request.runtime_path.is_empty() { container.runtime } else { request.runtime_path },
            spec: container
                .spec
                .map(|spec| spec.value)
                .filter(|spec| !spec.is_empty())
                .ok_or(Error::Required("the container's spec"))?,
            rootfs: decode::mounts(request.rootfs),
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: String::new(),
            options: options.or(container.runtime_options),
        };
        let runtime = (task.runtime.as_str(), task.options.clone());
        let rootfs = mounts::prepare(&self.engines, &scope, &task.id, task.rootfs, runtime).await?;
        task.rootfs = rootfs.mounts;
        let created = self.engines.supervisor.create(&namespace, task).await;
        if created.is_err() && rootfs.activated {
            mounts::release(&self.engines, &namespace, &request.container_id).await;
        }
        let pid = created.map_err(|error| api_grpc::status(&error))?;
        Ok(Response::new(api::CreateTaskResponse { container_id: request.container_id, pid }))
    }

    async fn start(&self, request: Request<api::StartRequest>) -> Result<Response<api::StartResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let started = self.engines.supervisor.start(&namespace, &id, &request.exec_id).await;
        let pid = self.answer(&namespace, &id, started).await?;
        Ok(Response::new(api::StartResponse { pid }))
    }

    async fn delete(&self, request: Request<api::DeleteTaskRequest>) -> Result<Response<api::DeleteResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let deleted = self.engines.supervisor.delete(&namespace, &id).await;
        let exit = self.answer(&namespace, &id, deleted).await?;
        mounts::release(&self.engines, &namespace, &id).await;
        Ok(Response::new(api::DeleteResponse {
            // containerd leaves it empty for the first process.
            id: String::new(),
            pid: exit.pid,
            exit_status: exit.exit_status,
            exited_at: encode::timestamp(exit.exited_at),
        }))
    }

    async fn delete_process(
        &self,
        request: Request<api::DeleteProcessRequest>,
    ) -> Result<Response<api::DeleteResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let deleted = self.engines.supervisor.delete_process(&namespace, &id, &request.exec_id).await;
        let exit = self.answer(&namespace, &id, deleted).await?;
        Ok(Response::new(api::DeleteResponse {
            id: request.exec_id,
            pid: exit.pid,
            exit_status: exit.exit_status,
            exited_at: encode::timestamp(exit.exited_at),
        }))
    }

    async fn get(&self, request: Request<api::GetRequest>) -> Result<Response<api::GetResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let found = self.engines.supervisor.get(&namespace, &id, &request.exec_id);
        let process = self.answer(&namespace, &id, found).await?;
        Ok(Response::new(api::GetResponse { process: Some(encode_process(process)) }))
    }

    async fn list(&self, request: Request<api::ListTasksRequest>) -> Result<Response<api::ListTasksResponse>, Status> {
        // The filter is ignored, as by containerd.
        let (namespace, _) = namespaced(request)?;
        let tasks = self.engines.supervisor.list(&namespace).into_iter().map(encode_process).collect();
        Ok(Response::new(api::ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let killed = self.engines.supervisor.kill(&namespace, &id, &request.exec_id, request.signal, request.all).await;
        self.done(&namespace, &id, killed).await
    }

    async fn exec(&self, request: Request<api::ExecProcessRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let exec = ExecTask {
            exec_id: request.exec_id,
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            spec: request.spec.map(decode::any),
        };
        let added = self.engines.supervisor.exec(&namespace, &id, exec).await;
        self.done(&namespace, &id, added).await
    }

    async fn resize_pty(&self, request: Request<api::ResizePtyRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let api::ResizePtyRequest { container_id: id, exec_id, width, height } = request;
        let resized = self.engines.supervisor.resize_pty(&namespace, &id, &exec_id, width, height).await;
        self.done(&namespace, &id, resized).await
    }

    async fn close_io(&self, request: Request<api::CloseIoRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let closed = self.engines.supervisor.close_io(&namespace, &id, &request.exec_id, request.stdin).await;
        self.done(&namespace, &id, closed).await
    }

    async fn pause(&self, request: Request<api::PauseTaskRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let paused = self.engines.supervisor.pause(&namespace, &request.container_id).await;
        self.done(&namespace, &request.container_id, paused).await
    }

    async fn resume(&self, request: Request<api::ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let resumed = self.engines.supervisor.resume(&namespace, &request.container_id).await;
        self.done(&namespace, &request.container_id, resumed).await
    }

    async fn list_pids(
        &self,
        request: Request<api::ListPidsRequest>,
    ) -> Result<Response<api::ListPidsResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let pids = self.engines.supervisor.pids(&namespace, &request.container_id).await;
        let pids = self.answer(&namespace, &request.container_id, pids).await?;
        let processes = pids
            .into_iter()
            .map(|pid| task_types::ProcessInfo { pid: pid.pid, info: pid.info.map(encode::any) })
            .collect();
        Ok(Response::new(api::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<api::CheckpointTaskRequest>,
    ) -> Result<Response<api::CheckpointTaskResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found = self.engines.supervisor.get(&namespace, &request.container_id, "");
        self.answer(&namespace, &request.container_id, found).await?;
        Err(Error::Unimplemented("tasks cannot be checkpointed").into())
    }

    async fn update(&self, request: Request<api::UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        // The task first: an unknown one is told before what else is wrong with the request.
        let found = self.engines.supervisor.get(&namespace, &id, "");
        self.answer(&namespace, &id, found).await?;
        let resources: Any = request.resources.map(decode::any).ok_or(Error::Required("resources"))?;
        let updated = self.engines.supervisor.update(&namespace, &id, Some(resources), request.annotations).await;
        self.done(&namespace, &id, updated).await
    }

    async fn metrics(&self, request: Request<api::MetricsRequest>) -> Result<Response<api::MetricsResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let wanted = |task: &ProcessState| {
            filters.matches(|path| match path {
                ["id"] => Some(task.id.as_str()),
                ["namespace"] => Some(namespace.as_str()),
                _ => None,
            })
        };
        let tasks = self.engines.supervisor.list(&namespace).into_iter().filter(wanted);
        let metrics = join_all(tasks.map(|task| self.metric(&namespace, task.id))).await;
        Ok(Response::new(api::MetricsResponse { metrics: metrics.into_iter().flatten().collect() }))
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let id = request.container_id;
        let ended =
            self.engines.until_stopping(self.engines.supervisor.wait(&namespace, &id, &request.exec_id)).await?;
        let exit = self.answer(&namespace, &id, ended).await?;
        Ok(Response::new(api::WaitResponse {
            exit_status: exit.exit_status,
            exited_at: encode::timestamp(exit.exited_at),
        }))
    }
}

fn encode_process(process: ProcessState) -> task_types::Process {
    let status = match process.status {
        ProcessStatus::Created => task_types::Status::Created,
        ProcessStatus::Running => task_types::Status::Running,
        ProcessStatus::Paused => task_types::Status::Paused,
        ProcessStatus::Pausing => task_types::Status::Pausing,
        ProcessStatus::Stopped => task_types::Status::Stopped,
    };
    task_types::Process {
        container_id: String::new(),
        id: if process.exec_id.is_empty() { process.id } else { process.exec_id },
        pid: process.pid,
        status: status.into(),
        stdin: process.stdio.stdin,
        stdout: process.stdio.stdout,
        stderr: process.stdio.stderr,
        terminal: process.stdio.terminal,
        exit_status: process.exit_status,
        exited_at: encode::timestamp(process.exited_at),
    }
}
