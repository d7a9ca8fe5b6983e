//! The load: containers that live and end, and others that stay and get additional processes. Each request is repeated
//! until it is answered, as a client does whose daemon comes and goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api_grpc::services::containers::container::Runtime;
use api_grpc::services::containers::{Container, CreateContainerRequest, DeleteContainerRequest};
use api_grpc::services::snapshots::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};
use api_grpc::services::tasks::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    PauseTaskRequest, ResumeTaskRequest, StartRequest, WaitRequest,
};
use api_grpc::task_types::{Process, Status as TaskStatus};
use api_grpc::types::Mount;
use client::Client;
use serde_json::json;
use tonic::{Code, Response, Status};

use crate::ledger::Ledger;
use crate::random::Random;

pub(crate) const IMAGE: &str = "docker.io/library/busybox:latest";
const SNAPSHOTTER: &str = "overlayfs";

/// How long a request may be repeated.
const PATIENCE: Duration = Duration::from_secs(45);

/// What the workers share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) address: PathBuf,
    pub(crate) cgroup: String,
    /// Top snapshot of the image.
    pub(crate) parent: String,
    pub(crate) ledger: Arc<Ledger>,
    /// No new containers and processes.
    pub(crate) ending: AtomicBool,
    /// Something is missing at the moment, so that requests may fail in any way.
    pub(crate) troubled: AtomicBool,
    /// Starts and exits so far.
    pub(crate) operations: AtomicU64,
}

impl World {
    fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the daemon, not the request, is at fault.
fn passes(status: &Status) -> bool {
    let transport = ["transport", "h2 protocol", "connection", "broken pipe", "operation was canceled"];
    let text = status.message().to_lowercase();
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::ResourceExhausted | Code::DeadlineExceeded => true,
        Code::Unknown | Code::Internal => transport.iter().any(|word| text.contains(word)),
        _ => false,
    }
}

/// One worker with a connection.
pub(crate) struct Hand {
    world: Arc<World>,
    client: Client,
    random: Random,
}

type Answer<T> = Result<T, Status>;

/// Repeats a request until the daemon answers it: `ask!(hand, tasks().start(request))`.
macro_rules! ask {
    ($hand:expr, $service:ident().$method:ident($request:expr)) => {{
        let request = $request;
        let call = |client: Client| {
            let request = request.clone();
            async move { client.$service().$method(request).await }
        };
        $hand.ask(stringify!($method), call).await
    }};
}

impl Hand {
    pub(crate) async fn new(world: &Arc<World>, seed: u64) -> Self {
        Self { world: Arc::clone(world), client: connect(world).await, random: Random::new(seed) }
    }

    /// Repeats a request until the daemon answers it.
    async fn ask<T, F>(&mut self, what: &str, call: impl Fn(Client) -> F) -> Answer<T>
    where
        F: Future<Output = Answer<Response<T>>>,
    {
        let began = Instant::now();
        loop {
            let troubled = self.world.troubled.load(Ordering::Relaxed);
            let status = match tokio::time::timeout(PATIENCE, call(self.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("the worker's patience"),
            };
            let excusable = troubled && matches!(status.code(), Code::Unknown | Code::Internal);
            if !passes(&status) && !excusable {
                return Err(status);
            }
            if began.elapsed() > PATIENCE {
                self.world.ledger.complain(format!("{what}: no answer within {PATIENCE:?}: {status}"));
                return Err(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            if status.code() != Code::ResourceExhausted {
                self.client = connect(&self.world).await;
            }
        }
    }

    async fn rootfs(&mut self, id: &str) -> Answer<Vec<Mount>> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
            parent: self.world.parent.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "chaos".to_owned())].into_iter().collect(),
        };
        match ask!(self, snapshots().prepare(request)) {
            Err(status) if status.code() == Code::AlreadyExists => {
                let request = MountsRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() };
                Ok(ask!(self, snapshots().mounts(request))?.mounts)
            }
            answer => Ok(answer?.mounts),
        }
    }

    /// Snapshot, container and task, started. False if its shim was killed before it could be.
    async fn begin(&mut self, id: &str, code: u32, command: &[&str]) -> Answer<bool> {
        self.world.ledger.note(id, |record| record.init.code = code);
        let rootfs = self.rootfs(id).await?;
        let document = testkit::specification(command, &format!("{}/{id}", self.world.cgroup));
        let spec = prost_types::Any {
            type_url: api_grpc::type_url::SPEC.into(),
            value: serde_json::to_vec(&document).unwrap_or_default(),
        };
        let container = Container {
            id: id.into(),
            image: IMAGE.into(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(spec),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.into(),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        done(ask!(self, containers().create(request)))?;
        // A creation whose shim is killed fails, and leaves nothing that a second one could stumble over.
        for attempt in 1.. {
            let request =
                CreateTaskRequest { container_id: id.into(), rootfs: rootfs.clone(), ..CreateTaskRequest::default() };
            match done(ask!(self, tasks().create(request))) {
                Ok(()) => break,
                Err(status) if !self.may_fail(id).await || attempt > 100 => return Err(status),
                Err(_) => {}
            }
        }
        self.world.ledger.note(id, |record| record.init.created = true);
        self.start(id, "").await
    }

    /// Whether a failure is owed to a fault; then a little time passes.
    async fn may_fail(&self, id: &str) -> bool {
        // The one who kills a shim says so only after he has.
        for _ in 0..20 {
            if self.world.ledger.is_excused(id) || self.world.troubled.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    async fn state(&mut self, id: &str, exec_id: &str) -> Answer<Process> {
        let request = GetRequest { container_id: id.into(), exec_id: exec_id.into() };
        Ok(ask!(self, tasks().get(request))?.process.unwrap_or_default())
    }

    /// Starts a process. False if that cannot be any more.
    async fn start(&mut self, id: &str, exec_id: &str) -> Answer<bool> {
        let began = Instant::now();
        loop {
            let request = StartRequest { container_id: id.into(), exec_id: exec_id.into() };
            let refused = match ask!(self, tasks().start(request)) {
                Ok(_) => {
                    if exec_id.is_empty() {
                        self.world.ledger.note(id, |record| record.init.started = true);
                    } else {
                        self.world.ledger.note_exec(id, exec_id, |asked| asked.started = true);
                    }
                    self.world.count();
                    return Ok(true);
                }
                Err(refused) => refused,
            };
            // An earlier request of ours may have been carried out, its answer lost.
            match self.state(id, exec_id).await {
                Ok(process) if process.status() == TaskStatus::Created => {}
                Ok(process)
                    if process.status() == TaskStatus::Stopped && process.exit_status == 0 && process.pid == 0 =>
                {
                    return Ok(false);
                }
                Ok(_) => {
                    self.world.count();
                    return Ok(true);
                }
                Err(_) if self.may_fail(id).await => return Ok(false),
                Err(status) => return Err(status),
            }
            if self.world.ledger.is_excused(id) && began.elapsed() > Duration::from_secs(3) {
                return Ok(false);
            }
            if began.elapsed() > PATIENCE {
                return Err(refused);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for an end and holds it against what was asked for.
    async fn wait(&mut self, id: &str, exec_id: &str, code: u32) -> Answer<()> {
        let request = WaitRequest { container_id: id.into(), exec_id: exec_id.into() };
        let answer = ask!(self, tasks().wait(request));
        self.world.count();
        match answer {
            Ok(answer) => self.compare(id, exec_id, "Wait", answer.exit_status, code).await,
            Err(status) if status.code() == Code::NotFound && self.may_fail(id).await => {}
            Err(status) => return Err(status),
        }
        Ok(())
    }

    async fn compare(&self, id: &str, exec_id: &str, what: &str, have: u32, want: u32) {
        if have != want && !self.may_fail(id).await {
            self.world.ledger.complain(format!("{id} {exec_id}: {what} tells {have}, want {want}"));
        }
    }

    /// One additional process, from its creation to its deletion.
    async fn exec(&mut self, id: &str, exec_id: &str, pause: bool) -> Answer<()> {
        let code = u32::try_from(self.random.between(0, 120)).unwrap_or(0);
        self.world.ledger.note_exec(id, exec_id, |asked| asked.code = code);
        let script = format!("sleep 0.{:02}; exit {code}", self.random.between(0, 8));
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"
        });
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            spec: Some(prost_types::Any {
                type_url: api_grpc::type_url::PROCESS.into(),
                value: serde_json::to_vec(&process).unwrap_or_default(),
            }),
            ..ExecProcessRequest::default()
        };
        done(ask!(self, tasks().exec(request)))?;
        self.world.ledger.note_exec(id, exec_id, |asked| asked.created = true);
        if self.start(id, exec_id).await? {
            if pause {
                self.pause(id).await?;
            }
            self.wait(id, exec_id, code).await?;
        }
        for _ in 0..200 {
            let request = DeleteProcessRequest { container_id: id.into(), exec_id: exec_id.into() };
            match ask!(self, tasks().delete_process(request)) {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(Status::deadline_exceeded(format!("{exec_id} cannot be deleted")))
    }

    /// Freezes and thaws the container.
    async fn pause(&mut self, id: &str) -> Answer<()> {
        for (freeze, want) in [(true, TaskStatus::Paused), (false, TaskStatus::Running)] {
            let began = Instant::now();
            loop {
                let answer = if freeze {
                    let request = PauseTaskRequest { container_id: id.into() };
                    done(ask!(self, tasks().pause(request)))
                } else {
                    let request = ResumeTaskRequest { container_id: id.into() };
                    done(ask!(self, tasks().resume(request)))
                };
                if answer.is_ok() {
                    self.world.ledger.note(id, |record| {
                        *if freeze { &mut record.paused } else { &mut record.resumed } += 1;
                    });
                    break;
                }
                match self.state(id, "").await {
                    Ok(process) if process.status() == want => break,
                    Ok(process) if process.status() == TaskStatus::Stopped => return Ok(()),
                    Err(_) if self.may_fail(id).await => return Ok(()),
                    Err(status) => return Err(status),
                    Ok(_) if began.elapsed() > PATIENCE => return answer,
                    Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        }
        Ok(())
    }

    /// Removes a container that has ended.
    async fn remove(&mut self, id: &str, code: u32) -> Answer<()> {
        let began = Instant::now();
        loop {
            let request = DeleteTaskRequest { container_id: id.into() };
            match ask!(self, tasks().delete(request)) {
                Ok(answer) => {
                    self.compare(id, "", "Delete", answer.exit_status, code).await;
                    break;
                }
                Err(status) if status.code() == Code::NotFound => break,
                Err(status) if began.elapsed() > PATIENCE => return Err(status),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let request = DeleteContainerRequest { id: id.into() };
        gone(ask!(self, containers().delete(request)))?;
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() };
        gone(ask!(self, snapshots().remove(request)))
    }

    /// One container that ends by itself.
    async fn life(&mut self, id: &str) -> Answer<()> {
        let code = u32::try_from(self.random.between(0, 120)).unwrap_or(0);
        let script = format!("sleep 0.{:02}; exit {code}", self.random.between(0, 25));
        if self.begin(id, code, &["sh", "-c", &script]).await? {
            self.wait(id, "", code).await?;
        } else {
            self.kill(id).await?;
        }
        self.remove(id, code).await
    }

    /// Kills a container and waits for its end.
    async fn kill(&mut self, id: &str) -> Answer<()> {
        let request = KillRequest { container_id: id.into(), signal: 9, all: true, ..KillRequest::default() };
        // Its end is what counts.
        let _ = ask!(self, tasks().kill(request));
        let request = WaitRequest { container_id: id.into(), exec_id: String::new() };
        gone(ask!(self, tasks().wait(request)))
    }

    /// Containers that end by themselves, one after the other.
    pub(crate) async fn live(mut self, name: String) {
        for number in 0.. {
            if self.world.ending() {
                return;
            }
            let id = format!("{name}-{number}");
            if let Err(status) = self.life(&id).await {
                self.world.ledger.complain(format!("{id}: {status}"));
                return;
            }
        }
    }

    /// A container that stays, and additional processes in it. If its shim is killed another takes its place.
    pub(crate) async fn stay(mut self, name: String) {
        for number in 0.. {
            let id = format!("{name}-{number}");
            if let Err(status) = self.stay_once(&id).await {
                self.world.ledger.complain(format!("{id}: {status}"));
                return;
            }
            if self.world.ending() {
                return;
            }
        }
    }

    async fn stay_once(&mut self, id: &str) -> Answer<()> {
        if self.begin(id, 137, &["sleep", "100000"]).await? {
            let pid = self.state(id, "").await?.pid;
            for number in 0.. {
                if self.world.ending() {
                    break;
                }
                let pause = self.random.percent(25);
                let exec = self.exec(id, &format!("e{number}"), pause).await;
                let state = self.state(id, "").await?;
                if state.status() == TaskStatus::Stopped {
                    if !self.may_fail(id).await {
                        self.world.ledger.complain(format!("{id} is lost: it ended with {}", state.exit_status));
                    }
                    break;
                }
                exec?;
                if state.pid != pid {
                    self.world.ledger.complain(format!("{id} had the pid {pid} and has {}", state.pid));
                }
            }
        }
        self.kill(id).await?;
        self.remove(id, 137).await
    }
}

/// Success also where an earlier request of ours was carried out and its answer lost.
fn done<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(status) if status.code() != Code::AlreadyExists => Err(status),
        _ => Ok(()),
    }
}

/// As [`done`], for removals.
fn gone<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// Connects as soon as somebody serves.
pub(crate) async fn connect(world: &World) -> Client {
    loop {
        match Client::connect(&world.address, "chaos").await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
