//! The door to all tasks.
//!
//! **Invariant:** a name (namespace, id) is reserved before anything is made for it and released after everything of it
//! is gone. No lock is held across an await.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_grpc::types::RuntimeInfo;
use events::{Entry, Envelope, Journal};
use model::record::Status;
use model::{Any, Namespace, check_identifier};
use sys::crash::{daemon as crash, point};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::actor::{Actor, Command, MAILBOX};
use crate::adopt::{self, Adopted};
use crate::bootstrap::Dialects;
use crate::bundle::Layout;
use crate::failures::Failures;
use crate::keep::Keeper;
use crate::late::Publisher;
use crate::pidfd::Pidfd;
use crate::report::{Heard, Report};
use crate::shim::ShimClient;
use crate::task::{CreateTask, ExecTask, Exit, Pid, Process, ProcessState, State, Task};
use crate::{Config, Error, info, launch, oom, records, remove, runtimes, shim_log};

/// Tasks whose creation may be waiting or under way at once.
const CREATING_MAX: usize = 1024;

/// Bundles and shims that are made at once. Each takes a blocking thread for some milliseconds.
const LAUNCHING_MAX: usize = 16;

/// What the manager and the actors share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) registry: Registry,
    pub(crate) failures: Failures,
    pub(crate) boot_id: &'static str,
    /// Where the containers' cgroups are, if this host has any.
    pub(crate) cgroups: Option<cgroups::Host>,
    /// True once the actors shall end and leave their shims alone.
    pub(crate) stopping: watch::Sender<bool>,
    creating: Semaphore,
    pub(crate) launching: Semaphore,
    pub(crate) dialects: Dialects,
}

impl Context {
    /// Publishes an event. A journal that fails does not stop containers: the event is late.
    pub(crate) fn publish(&self, namespace: &str, id: &str, report: Report) -> Arc<Entry> {
        self.publisher.publish(report.envelope(namespace, id))
    }
}

/// The tasks by name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Mutex<HashMap<String, BTreeMap<String, Slot>>>,
}

#[derive(Debug)]
enum Slot {
    /// Being created.
    Reserved,
    /// What an earlier daemon left is being removed.
    Removing,
    Task(Arc<Task>),
}

impl Registry {
    fn slots(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<String, Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name that nobody has.
    pub(crate) fn reserve(&self, namespace: &str, id: &str) -> Result<(), Error> {
        let mut slots = self.slots();
        let slots = slots.entry(namespace.to_owned()).or_default();
        match slots.get(id) {
            Some(Slot::Removing) => return Err(Error::Removing(id.to_owned())),
            Some(Slot::Reserved | Slot::Task(_)) => return Err(Error::TaskExists(id.to_owned())),
            None => slots.insert(id.to_owned(), Slot::Reserved),
        };
        Ok(())
    }

    /// Takes a name of which leftovers are being removed. False if somebody has it.
    pub(crate) fn reserve_removal(&self, namespace: &str, id: &str) -> bool {
        let mut slots = self.slots();
        let slots = slots.entry(namespace.to_owned()).or_default();
        let free = !slots.contains_key(id);
        if free {
            slots.insert(id.to_owned(), Slot::Removing);
        }
        free
    }

    /// Shows a task, and runs `publish` before anybody can see it.
    fn insert(&self, task: Arc<Task>, publish: impl FnOnce()) {
        let mut slots = self.slots();
        publish();
        slots.entry(task.namespace.clone()).or_default().insert(task.id.clone(), Slot::Task(task));
    }

    /// Releases a name.
    pub(crate) fn remove(&self, namespace: &str, id: &str) {
        self.remove_after(namespace, id, || ());
    }

    /// Runs `publish` and releases a name, before anybody can take it again.
    pub(crate) fn remove_after(&self, namespace: &str, id: &str, publish: impl FnOnce()) {
        let mut slots = self.slots();
        publish();
        if let Some(tasks) = slots.get_mut(namespace) {
            tasks.remove(id);
            if tasks.is_empty() {
                slots.remove(namespace);
            }
        }
    }

    pub(crate) fn find(&self, namespace: &str, id: &str) -> Result<Arc<Task>, Error> {
        match self.slots().get(namespace).and_then(|tasks| tasks.get(id)) {
            Some(Slot::Task(task)) => Ok(Arc::clone(task)),
            Some(Slot::Reserved | Slot::Removing) | None => Err(Error::TaskNotFound(id.to_owned())),
        }
    }

    /// Whether another task has the same shim.
    pub(crate) fn others_use(&self, client: &ShimClient) -> bool {
        let same = |task: &Arc<Task>| task.shim.endpoint() == client.endpoint() && !task.shim.is_of(client);
        self.tasks(None).iter().any(same)
    }

    fn tasks(&self, namespace: Option<&str>) -> Vec<Arc<Task>> {
        self.slots()
            .iter()
            .filter(|(name, _)| namespace.is_none_or(|wanted| wanted == name.as_str()))
            .flat_map(|(_, tasks)| tasks.values())
            .filter_map(|slot| match slot {
                Slot::Task(task) => Some(Arc::clone(task)),
                Slot::Reserved | Slot::Removing => None,
            })
            .collect()
    }
}

/// All tasks of this daemon; cloning it is cheap and yields the same one.
#[derive(Clone, Debug)]
pub struct Supervisor {
    context: Arc<Context>,
}

impl Supervisor {
    /// Prepares the directories. [`Supervisor::adopt`] comes next, before requests are served. Blocks.
    pub fn new(config: Config, journal: Journal) -> Result<Self, Error> {
        let layout = Layout::prepare(&config.state, &config.root)?;
        let boot_id = sys::boot_id().map_err(|errno| Error::Bundle {
            operation: "read",
            path: "/proc/sys/kernel/random/boot_id".into(),
            source: errno.into(),
        })?;
        let cgroups = cgroups::Host::detect().inspect_err(|error| {
            tracing::warn!(error = %model::render(error), "lack of memory is told only when a container ends");
        });
        let cgroups = cgroups.ok();
        let failures = Failures::read(&config.state);
        Ok(Self {
            context: Arc::new(Context {
                config,
                layout,
                publisher: Publisher::new(journal),
                failures,
                registry: Registry::default(),
                boot_id,
                cgroups,
                stopping: watch::Sender::new(false),
                creating: Semaphore::new(CREATING_MAX),
                launching: Semaphore::new(LAUNCHING_MAX),
                dialects: Dialects::default(),
            }),
        })
    }

    /// Takes over the tasks that an earlier daemon left, from their records and pidfds, and removes what belongs to
    /// nobody. No shim is waited for: those that live are connected to in the background.
    pub async fn adopt(&self) -> Result<Adopted, Error> {
        shim_log::follow_all(shim_log::open(&self.context.layout.log)?);
        adopt::adopt(&self.context).await
    }

    /// Ends all actors. Containers and shims live on, for the next daemon to adopt; pending [`Supervisor::wait`]s end
    /// with an error of class `Unavailable`.
    pub fn stop(&self) {
        self.context.stopping.send_replace(true);
    }

    /// Makes a task; returns the pid of its init, which waits to be started. On an error nothing is left.
    ///
    /// Not bound to the caller: once begun, it ends even if the future is dropped.
    pub async fn create(&self, namespace: &Namespace, request: CreateTask) -> Result<u32, Error> {
        check_identifier(&request.id).map_err(|source| Error::Identifier { what: "container id", source })?;
        let id = request.id.clone();
        let context = Arc::clone(&self.context);
        if context.creating.available_permits() == 0 {
            return Err(Error::Busy(id));
        }
        if context.publisher.is_late() {
            return Err(Error::JournalFull(id));
        }
        context.registry.reserve(namespace.as_str(), &id)?;
        let namespace = namespace.as_str().to_owned();
        let creation = tokio::spawn(async move {
            let id = request.id.clone();
            let result = create(&context, &namespace, request).await;
            match &result {
                Ok(_) => context.failures.forget(&namespace, &id),
                Err(error) => {
                    context.failures.note(&namespace, &id, "creation", model::render(error));
                    context.registry.remove(&namespace, &id);
                }
            }
            result
        });
        creation.await.map_err(|_| Error::Stopping(id))?
    }

    /// Starts init (empty `exec_id`) or an additional process; returns its pid.
    pub async fn start(&self, namespace: &Namespace, id: &str, exec_id: &str) -> Result<u32, Error> {
        let started =
            self.order(namespace, id, "Start", |answer| Command::Start { exec_id: exec_id.to_owned(), answer }).await;
        if let Err(error @ Error::Shim { .. }) = &started
            && exec_id.is_empty()
        {
            self.context.failures.note(namespace.as_str(), id, "start", model::render(error));
        }
        started
    }

    /// What is known about init (empty `exec_id`) or an additional process. Never waits.
    pub fn get(&self, namespace: &Namespace, id: &str, exec_id: &str) -> Result<ProcessState, Error> {
        self.find(namespace, id)?.process(exec_id)
    }

    /// The inits of all tasks of a namespace, by id. Never waits.
    pub fn list(&self, namespace: &Namespace) -> Vec<ProcessState> {
        self.context.registry.tasks(Some(namespace.as_str())).iter().filter_map(|task| task.process("").ok()).collect()
    }

    /// Sends a signal to init (empty `exec_id`), an additional process, or with `all` to every process of the
    /// container. A SIGKILL that the shim does not deliver in time is delivered without it.
    pub async fn kill(
        &self,
        namespace: &Namespace,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        const SIGKILL: u32 = 9;
        let task = self.find(namespace, id)?;
        let process = task.process(exec_id)?;
        if process.status == Status::Stopped {
            return Err(Error::ProcessFinished);
        }
        if process.pid == 0 {
            return Err(Error::ProcessNotCreated);
        }
        let timeouts = self.context.config.timeouts;
        let limit = if signal == SIGKILL { timeouts.sigkill } else { timeouts.request };
        let sent = match task.shim.kill(exec_id.to_owned(), signal, all, limit).await {
            Err(Error::Deadline { .. } | Error::Closed { .. }) if signal == SIGKILL => {
                self.kill_directly(&task, exec_id)
            }
            result => result,
        };
        if sent.is_ok() && exec_id.is_empty() {
            records::note_kill(&task.bundle, signal);
        }
        sent
    }

    fn kill_directly(&self, task: &Task, exec_id: &str) -> Result<(), Error> {
        tracing::warn!(id = task.id, exec_id, "a shim is silent: its process is killed without it");
        if exec_id.is_empty() {
            return task.init.as_ref().map_or(Err(Error::ProcessFinished), |init| init.signal(9));
        }
        let record = records::exec(&task.bundle, exec_id, self.context.boot_id);
        let identity = record.and_then(|record| record.process).ok_or(Error::ProcessFinished)?;
        let pidfd = adopt::pidfd_of(identity).ok_or(Error::ProcessFinished)?;
        Pidfd::new(identity.pid, pidfd)?.signal(9)
    }

    /// Registers an additional process, to be started later.
    pub async fn exec(&self, namespace: &Namespace, id: &str, request: ExecTask) -> Result<(), Error> {
        if request.exec_id.is_empty() {
            return Err(Error::EmptyExecId);
        }
        check_identifier(&request.exec_id).map_err(|source| Error::Identifier { what: "exec id", source })?;
        self.order(namespace, id, "Exec", |answer| Command::Exec { exec: request, answer }).await
    }

    /// Deletes a task that is stopped or was never started, with everything of it.
    pub async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit, Error> {
        self.order(namespace, id, "Delete", |answer| Command::Delete { answer }).await
    }

    /// Deletes an additional process that has ended or was never started.
    pub async fn delete_process(&self, namespace: &Namespace, id: &str, exec_id: &str) -> Result<Exit, Error> {
        if exec_id.is_empty() {
            return Err(Error::EmptyExecId);
        }
        self.order(namespace, id, "Delete", |answer| Command::DeleteProcess { exec_id: exec_id.to_owned(), answer })
            .await
    }

    /// Waits until init (empty `exec_id`) or an additional process has ended. Cancel safe.
    pub async fn wait(&self, namespace: &Namespace, id: &str, exec_id: &str) -> Result<Exit, Error> {
        let mut end = self.find(namespace, id)?.end(exec_id)?;
        let mut stopping = self.context.stopping.subscribe();
        tokio::select! {
            biased;
            exit = end.wait_for(Option::is_some) => match exit.map(|exit| *exit) {
                Ok(Some(exit)) => Ok(exit),
                Ok(None) | Err(_) => Err(Error::TaskNotFound(id.to_owned())),
            },
            _ = stopping.wait_for(|stop| *stop) => Err(Error::Stopping(id.to_owned())),
        }
    }

    /// The processes in the container.
    pub async fn pids(&self, namespace: &Namespace, id: &str) -> Result<Vec<Pid>, Error> {
        self.find(namespace, id)?.shim.pids().await
    }

    /// Takes an event that a shim published. Those that tell what the supervisor learns by itself are not for the
    /// journal: false for all others.
    pub(crate) fn hear(&self, envelope: &Envelope) -> bool {
        let Some((id, heard)) = Heard::of(envelope) else { return false };
        if let (Ok(task), Some(heard)) = (self.context.registry.find(&envelope.namespace, &id), heard) {
            // A task with a full mailbox learns of it by other ways, or is past caring.
            let _ = task.mailbox.try_send(Command::Heard(heard));
        }
        true
    }

    /// Freezes the container.
    pub async fn pause(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        self.order(namespace, id, "Pause", |answer| Command::Pause { answer }).await
    }

    /// Thaws the container.
    pub async fn resume(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        self.order(namespace, id, "Resume", |answer| Command::Resume { answer }).await
    }

    /// Changes limits of the container; `resources` is JSON of the runtime specification.
    pub async fn update(
        &self,
        namespace: &Namespace,
        id: &str,
        resources: Option<Any>,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), Error> {
        self.find(namespace, id)?.shim.update(resources, annotations).await
    }

    /// The container's metrics, encoded by the shim; `None` where it has none to tell.
    pub async fn stats(&self, namespace: &Namespace, id: &str) -> Result<Option<Any>, Error> {
        let task = self.find(namespace, id)?;
        if task.process("")?.status == Status::Stopped {
            return Err(Error::ProcessFinished);
        }
        task.shim.stats().await
    }

    /// Sets the size of a process's terminal.
    pub async fn resize_pty(
        &self,
        namespace: &Namespace,
        id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), Error> {
        let task = self.find(namespace, id)?;
        task.process(exec_id)?;
        task.shim.resize_pty(exec_id.to_owned(), width, height).await
    }

    /// Closes the shim's own end of a process's standard input, so that it sees the end once its writers are gone.
    /// That of a process which has ended is closed already.
    pub async fn close_io(&self, namespace: &Namespace, id: &str, exec_id: &str, stdin: bool) -> Result<(), Error> {
        let task = self.find(namespace, id)?;
        if task.process(exec_id)?.status == Status::Stopped {
            return Ok(());
        }
        task.shim.close_io(exec_id.to_owned(), stdin).await
    }

    /// Changes the names of runtimes besides our own; tasks that exist keep their shims.
    pub fn set_runtimes(&self, paths: BTreeMap<String, PathBuf>) {
        self.context.config.runtimes.replace(paths);
    }

    /// Asks the shim that `runtime` means what it is and can do, with the runtime options, by running it with `-info`.
    pub async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo, Error> {
        info::ask(&self.context.config, runtime, options).await
    }

    /// The published end of each task that is stopped and not deleted, for [`Journal::subscribe`] to replay to those
    /// who may have missed it.
    pub fn heal(&self) -> Vec<Arc<Entry>> {
        self.context.registry.tasks(None).iter().filter_map(|task| task.state().exit_event.clone()).collect()
    }

    #[cfg(test)]
    pub(crate) fn layout(&self) -> &Layout {
        &self.context.layout
    }

    #[cfg(test)]
    pub(crate) fn mailbox_closed(&self, namespace: &str, id: &str) -> bool {
        self.context.registry.find(namespace, id).is_ok_and(|task| task.mailbox.is_closed())
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    fn find(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>, Error> {
        self.context.registry.find(namespace.as_str(), id)
    }

    /// Puts a request into the task's mailbox and waits for its answer, for a limited time. The actor carries out what it
    /// has begun even if the caller goes away.
    async fn order<T>(
        &self,
        namespace: &Namespace,
        id: &str,
        operation: &'static str,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let task = self.find(namespace, id)?;
        let (answer, answered) = oneshot::channel();
        task.mailbox.try_send(command(answer)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Busy(id.to_owned()),
            mpsc::error::TrySendError::Closed(_) => self.gone(id),
        })?;
        let timeouts = self.context.config.timeouts;
        let limit = match operation {
            "Start" => timeouts.create,
            "Delete" => timeouts.request + timeouts.streams,
            _ => timeouts.request,
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(answered) => answered.map_err(|_| self.gone(id))?,
            Err(_) => Err(Error::Deadline { operation, id: id.to_owned(), limit }),
        }
    }

    /// Why an actor does not answer: it has deleted its task, or the daemon ends.
    fn gone(&self, id: &str) -> Error {
        if *self.context.stopping.borrow() {
            Error::Stopping(id.to_owned())
        } else {
            Error::TaskNotFound(id.to_owned())
        }
    }
}

/// Makes a task whose name is reserved.
async fn create(context: &Arc<Context>, namespace: &str, request: CreateTask) -> Result<u32, Error> {
    let _creating = context.creating.acquire().await.map_err(|_| Error::Stopping(request.id.clone()))?;
    let program = runtimes::resolve(&context.config, std::env::var_os("PATH").as_deref(), &request.runtime)?;
    let launched = launch::launch(context, namespace, &request, &program).await?;
    let bundle_text = launched.bundle.display().to_string();
    let created = ask(&launched.client, launched.shim.as_deref(), &bundle_text, &request).await;
    let launch::Launched { bundle, client, shim, .. } = &launched;
    let pid = match created {
        Ok(pid) => pid,
        Err(error) => {
            let shim = shim.as_deref();
            return Err(remove::undo(context, namespace, &request.id, &program.path, bundle, client, shim, error).await);
        }
    };
    let (shim, pid) = match identify(&launched, pid).await {
        Ok(identified) => identified,
        Err(error) => {
            return Err(remove::undo(context, namespace, &request.id, &program.path, bundle, client, None, error).await);
        }
    };
    let keeper = launched.foreign.then(|| Keeper::new(context.boot_id, shim.pid()));
    if let Some(keeper) = &keeper
        && let Err(error) = keeper.process(bundle, "", pid, (Status::Created, false), &request.stdio)
    {
        let shim = Some(shim.as_ref());
        return Err(remove::undo(context, namespace, &request.id, &program.path, bundle, client, shim, error).await);
    }
    let launch::Launched { bundle, client, log, .. } = launched;
    if let Some(log) = log {
        shim_log::follow(log, namespace, &request.id, Arc::clone(&shim));
    }
    point(crash::CREATE_ANSWERED);
    // The shim reaps init only after it has recorded and told its end, so the pid is still init's, or nobody's.
    let init = sys::process::pidfd_open(pid).ok().and_then(|pidfd| Pidfd::new(pid, pidfd).ok());
    let state = State {
        init: Process::new(pid, Status::Created, request.stdio.clone()),
        execs: BTreeMap::new(),
        exit_event: None,
    };
    let (mailbox, commands) = mpsc::channel(MAILBOX);
    let id = request.id;
    let names = (namespace.to_owned(), id.clone());
    let task = Arc::new(Task::new(names, bundle, program.path, (client, keeper), init, mailbox, state));
    let CreateTask { rootfs, stdio, checkpoint, .. } = request;
    context.registry.insert(Arc::clone(&task), || {
        context.publish(namespace, &id, Report::Create { bundle: bundle_text, rootfs, stdio, checkpoint, pid });
    });
    tokio::spawn(Actor::new(Arc::clone(context), task, Some(shim), commands, None).run());
    point(crash::CREATE_TOLD);
    Ok(pid)
}

/// Asks the shim for the container. A shim that ends meanwhile is told by its pidfd or by its socket, whichever the
/// kernel closes first.
async fn ask(client: &ShimClient, shim: Option<&Pidfd>, bundle: &str, request: &CreateTask) -> Result<u32, Error> {
    let ended = async {
        match shim {
            Some(shim) => shim.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        created = client.create(bundle.to_owned(), request) => created,
        () = ended => Err(Error::Closed { operation: "Create", id: request.id.clone() }),
    }
}

/// Who the shim is and which process is init: a foreign shim may say the first only once it has a container, and the
/// second only when it is asked again.
async fn identify(launched: &launch::Launched, pid: u32) -> Result<(Arc<Pidfd>, u32), Error> {
    if let (Some(shim), true) = (&launched.shim, pid != 0) {
        return Ok((Arc::clone(shim), pid));
    }
    let (shim_pid, task_pid) = launched.client.pids_of_both().await?;
    let shim = match &launched.shim {
        Some(shim) => Arc::clone(shim),
        None => {
            let pidfd = sys::process::pidfd_open(shim_pid).map_err(|errno| Error::Process {
                operation: "watch the shim,",
                pid: shim_pid,
                source: errno.into(),
            })?;
            Arc::new(Pidfd::new(shim_pid, pidfd)?)
        }
    };
    Ok((shim, if pid == 0 { task_pid } else { pid }))
}

/// Puts an adopted task in its place and sets its actor going.
pub(crate) fn install(
    context: &Arc<Context>,
    task: Task,
    shim: Option<Arc<Pidfd>>,
    commands: mpsc::Receiver<Command>,
    told_of_memory: oom::Told,
) {
    let task = Arc::new(task);
    context.registry.insert(Arc::clone(&task), || ());
    tokio::spawn(Actor::new(Arc::clone(context), task, shim, commands, Some(told_of_memory)).run());
}
