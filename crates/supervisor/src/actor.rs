//! The one owner of a task: takes requests that change it, learns of exits, and tells both in order.
//!
//! ```text
//!              Start            Pause ⇄ Resume          exit of init             Delete
//!   created ───────────▶ running ◀──────────▶ paused ───────────────▶ stopped ───────────▶ (gone)
//!      └───────────────────── exit of init, Delete ──────────────────────▲
//! ```
//!
//! Requests are sorted into lanes, one per process: those for one process run one after the other, those for different
//! processes at the same time. A `Kill` and everything that only asks does not come here at all.
//!
//! **Invariant:** an exit is published after the start of its process was answered, that of init after those of the
//! additional processes, and each once, whichever of `Wait`, exit record, zombie and dead shim tells it first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use events::Entry;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use model::Code;
use model::record::{Status, StdioPaths};
use sys::crash::{daemon as crash, point};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Error;
use crate::manager::Context;
use crate::oom::{self, Memory};
use crate::pidfd::Pidfd;
use crate::recheck::{Answered, Recheck, recheck_due};
use crate::report::{Heard, Report};
use crate::task::{ExecTask, Exit, Process, State, Task};
use crate::{records, remove};

/// Requests that one task may have waiting; one more is refused.
pub(crate) const MAILBOX: usize = 64;

/// First and longest pause between two attempts to reach a shim that lives.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// A request that changes the task. An empty exec id means init.
#[derive(Debug)]
pub(crate) enum Command {
    Start {
        exec_id: String,
        answer: Answer<u32>,
    },
    Exec {
        exec: ExecTask,
        answer: Answer<()>,
    },
    Pause {
        answer: Answer<()>,
    },
    Resume {
        answer: Answer<()>,
    },
    Delete {
        answer: Answer<Exit>,
    },
    DeleteProcess {
        exec_id: String,
        answer: Answer<Exit>,
    },
    /// Not a request: what a foreign shim's own events tell.
    Heard(Heard),
}

impl Command {
    fn lane(&self) -> &str {
        match self {
            Self::Start { exec_id, .. } | Self::DeleteProcess { exec_id, .. } => exec_id,
            Self::Exec { exec, .. } => &exec.exec_id,
            Self::Pause { .. } | Self::Resume { .. } | Self::Delete { .. } | Self::Heard(_) => "",
        }
    }

    /// Answers with an error. Always false.
    fn refuse(self, error: impl FnOnce() -> Error) -> bool {
        match self {
            Self::Start { answer, .. } => reply(answer, Err(error())),
            Self::Exec { answer, .. } | Self::Pause { answer } | Self::Resume { answer } => reply(answer, Err(error())),
            Self::Delete { answer } | Self::DeleteProcess { answer, .. } => reply(answer, Err(error())),
            Self::Heard(_) => false,
        }
    }

    /// Nobody waits for the answer any more.
    fn abandoned(&self) -> bool {
        match self {
            Self::Start { answer, .. } => answer.is_closed(),
            Self::Exec { answer, .. } | Self::Pause { answer } | Self::Resume { answer } => answer.is_closed(),
            Self::Delete { answer } | Self::DeleteProcess { answer, .. } => answer.is_closed(),
            Self::Heard(_) => false,
        }
    }
}

/// A request that the shim has answered.
pub(crate) enum Done {
    Started {
        exec_id: String,
        result: Result<u32, Error>,
        answer: Answer<u32>,
    },
    Added {
        exec_id: String,
        stdio: StdioPaths,
        result: Result<(), Error>,
        answer: Answer<()>,
    },
    Paused {
        result: Result<(), Error>,
        answer: Answer<()>,
    },
    Resumed {
        result: Result<(), Error>,
        answer: Answer<()>,
    },
    /// The shim has no container any more.
    Emptied {
        result: Result<Exit, Error>,
        answer: Answer<Exit>,
    },
    /// The shim has ended, and the files are gone unless there is an error.
    Cleared {
        exit: Exit,
        result: Result<(), Error>,
        answer: Answer<Exit>,
    },
    /// Where an adopted task's processes stand by the shim's own account.
    Described(Vec<(String, Status, u32)>),
    /// Where a process stands, by a shim that keeps no records.
    Surveyed {
        exec_id: String,
        result: Result<(Status, u32), Error>,
    },
    ProcessDeleted {
        exec_id: String,
        result: Result<Exit, Error>,
        answer: Answer<Exit>,
    },
}

/// What an actor wakes up for.
enum Wake {
    Command(Command),
    Done(Done),
    Waited(String, Result<Exit, Error>),
    ShimEnded,
    InitEnded,
    Memory,
    Timer,
    Stop,
}

/// See the module's documentation.
pub(crate) struct Actor {
    pub(crate) context: Arc<Context>,
    pub(crate) task: Arc<Task>,
    /// The shim, while it lives.
    pub(crate) shim: Option<Arc<Pidfd>>,
    mailbox: mpsc::Receiver<Command>,
    /// A lane is here while a request of it is with the shim; those behind it wait.
    pub(crate) lanes: HashMap<String, VecDeque<Command>>,
    waiting: usize,
    pub(crate) running: FuturesUnordered<BoxFuture<'static, Done>>,
    waits: FuturesUnordered<BoxFuture<'static, (String, Result<Exit, Error>)>>,
    /// Processes whose start is with the shim.
    pub(crate) starting: HashSet<String>,
    /// Whether the task's deletion is with the shim, whose end is then no surprise.
    deleting: bool,
    /// Init's end, known and not yet published.
    pub(crate) init_exit: Option<Exit>,
    /// Whether a foreign shim has published init's end itself, after everything that it had to tell before.
    pub(crate) exit_heard: bool,
    /// When init's end is published, whatever the additional processes do.
    pub(crate) init_exit_due: Option<Instant>,
    /// Whether init's pidfd has told its end.
    pub(crate) init_ended: bool,
    /// When the kernel is asked how init ended, because its shim has not said so.
    pub(crate) init_overdue: Option<Instant>,
    /// The memory of the container, while it lives.
    pub(crate) memory: Option<Memory>,
    /// What was told of its lack.
    pub(crate) told_of_memory: oom::Told,
    reconnect: Option<Instant>,
    pause: Duration,
    /// When the records are read again.
    pub(crate) recheck: Option<Recheck>,
}

impl Actor {
    /// An actor for `task`. One that was adopted, with what was `told_of_memory` before, connects to its shim by itself.
    pub(crate) fn new(
        context: Arc<Context>,
        task: Arc<Task>,
        shim: Option<Arc<Pidfd>>,
        mailbox: mpsc::Receiver<Command>,
        told_of_memory: Option<oom::Told>,
    ) -> Self {
        let adopted = told_of_memory.is_some();
        let stopped = task.state().init.status == Status::Stopped;
        let memory = (!stopped).then(|| Memory::watch(context.cgroups.as_ref(), &task.bundle, adopted)).flatten();
        Self {
            context,
            task,
            shim,
            mailbox,
            lanes: HashMap::new(),
            waiting: 0,
            running: FuturesUnordered::new(),
            waits: FuturesUnordered::new(),
            starting: HashSet::new(),
            deleting: false,
            init_exit: None,
            exit_heard: false,
            init_exit_due: None,
            init_ended: false,
            init_overdue: None,
            memory,
            told_of_memory: told_of_memory.unwrap_or_default(),
            reconnect: adopted.then(Instant::now),
            pause: RECONNECT.0,
            recheck: adopted.then(Recheck::begin),
        }
    }

    /// Runs until the task is deleted or the supervisor stops.
    pub(crate) async fn run(mut self) {
        self.outlived_init();
        if self.shim.is_none() {
            self.reconnect = None;
            self.bury().await;
        } else if self.reconnect.is_none() {
            self.arm(String::new());
        }
        loop {
            match self.wake().await {
                Wake::Command(command) => self.accept(command),
                Wake::Done(done) => {
                    if self.finish(done) {
                        return;
                    }
                }
                Wake::Waited(exec_id, result) => self.waited(exec_id, result),
                Wake::ShimEnded => {
                    if let Some(shim) = self.shim.take() {
                        shim.reap();
                        tracing::warn!(
                            namespace = self.task.namespace,
                            id = self.task.id,
                            pid = shim.pid(),
                            "a shim has ended before its task"
                        );
                        self.bury().await;
                    }
                }
                Wake::InitEnded => {
                    self.init_ended = true;
                    self.init_overdue = Some(Instant::now() + self.context.config.timeouts.exit);
                }
                Wake::Memory => self.look_at_memory(),
                Wake::Timer => self.timer().await,
                Wake::Stop => return,
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let recheck = self.recheck.as_ref().map(|recheck| recheck.at);
        let timer = [self.init_exit_due, self.init_overdue, self.reconnect, recheck].into_iter().flatten().min();
        let mut stopping = self.context.stopping.subscribe();
        tokio::select! {
            command = self.mailbox.recv(), if self.waiting < MAILBOX => command.map_or(Wake::Stop, Wake::Command),
            Some(done) = self.running.next() => Wake::Done(done),
            Some((exec_id, result)) = self.waits.next() => Wake::Waited(exec_id, result),
            () = ended(self.shim.as_deref()), if !self.deleting => Wake::ShimEnded,
            () = ended(self.task.init.as_ref()), if !self.init_ended => Wake::InitEnded,
            () = Memory::noticed(self.memory.as_ref()) => Wake::Memory,
            () = until(timer) => Wake::Timer,
            _ = stopping.wait_for(|stop| *stop) => Wake::Stop,
        }
    }

    async fn timer(&mut self) {
        let now = Instant::now();
        if self.reconnect.is_some_and(|at| at <= now) {
            self.reconnect().await;
        }
        if recheck_due(self.recheck.as_ref(), now) {
            self.recheck();
        }
        if self.init_overdue.is_some_and(|at| at <= now) {
            self.init_overdue = None;
            self.ask_the_kernel();
        }
        if self.init_exit_due.is_some_and(|at| at <= now) {
            self.init_exit_due = None;
            self.publish_init_exit(true);
        }
    }

    /// Connects to the shim again and asks it for every end that is not known.
    async fn reconnect(&mut self) {
        self.reconnect = None;
        if let Err(error) = self.task.shim.connect().await {
            tracing::debug!(id = self.task.id, error = %model::render(&error), "a shim cannot be reached yet");
            self.reconnect_later();
            return;
        }
        self.waits.clear();
        let state = self.task.state();
        let unknown: Vec<String> = std::iter::once((String::new(), &state.init))
            .chain(state.execs.iter().map(|(exec_id, process)| (exec_id.clone(), process)))
            .filter(|(_, process)| process.lives() || process.status == Status::Created)
            .map(|(exec_id, _)| exec_id)
            .collect();
        drop(state);
        if self.task.keeper.is_some() {
            return self.survey(unknown);
        }
        self.ask_where(unknown.clone());
        for exec_id in unknown {
            // That of a process which was not started yet is waited for once it is.
            if exec_id.is_empty() || !self.is_created(&exec_id) {
                self.arm(exec_id);
            }
        }
    }

    /// Tries again after a pause that grows until a shim answers.
    pub(crate) fn reconnect_later(&mut self) {
        if self.shim.is_some() && self.reconnect.is_none() {
            self.reconnect = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(RECONNECT.1);
        }
    }

    /// The shim has answered: the next failure is a new one.
    pub(crate) fn reached(&mut self) {
        self.pause = RECONNECT.0;
    }

    /// Keeps a `Wait` for a process pending at the shim.
    pub(crate) fn arm(&mut self, exec_id: String) {
        let task = Arc::clone(&self.task);
        self.waits.push(Box::pin(async move {
            let result = task.shim.wait(exec_id.clone()).await;
            (exec_id, result)
        }));
    }

    /// Asks the shim something that no client waits for.
    pub(crate) fn run_beside(&mut self, asking: impl Future<Output = Vec<(String, Status, u32)>> + Send + 'static) {
        self.running.push(Box::pin(async move { Done::Described(asking.await) }));
    }

    /// Forgets the pending `Wait`s.
    pub(crate) fn disarm(&mut self) {
        self.waits.clear();
        self.reconnect = None;
    }

    pub(crate) fn publish(&self, report: Report) -> Arc<Entry> {
        self.context.publish(&self.task.namespace, &self.task.id, report)
    }

    /// Changes what readers see.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.task.state())
    }

    fn accept(&mut self, command: Command) {
        if let Command::Heard(heard) = command {
            return self.heard(heard);
        }
        match self.lanes.get_mut(command.lane()) {
            Some(lane) => {
                lane.push_back(command);
                self.waiting += 1;
            }
            None => {
                let lane = command.lane().to_owned();
                if self.begin(command) {
                    self.lanes.insert(lane, VecDeque::new());
                }
            }
        }
    }

    /// Lets the next request of a lane begin.
    fn advance(&mut self, lane: &str) {
        while let Some(command) = self.lanes.get_mut(lane).and_then(VecDeque::pop_front) {
            self.waiting -= 1;
            if !command.abandoned() && self.begin(command) {
                return;
            }
        }
        self.lanes.remove(lane);
    }

    /// Hands a request to the shim. False if it was answered at once.
    fn begin(&mut self, command: Command) -> bool {
        let task = Arc::clone(&self.task);
        let dead = self.shim.is_none();
        if self.context.publisher.is_late() {
            return command.refuse(|| Error::JournalFull(task.id.clone()));
        }
        match command {
            Command::Start { answer, .. } if dead => return reply(answer, Err(Error::Ended { operation: "start" })),
            Command::Exec { answer, .. } if dead => return reply(answer, Err(Error::Ended { operation: "exec in" })),
            Command::Pause { answer } if dead => return reply(answer, Err(Error::Ended { operation: "pause" })),
            Command::Resume { answer } if dead => return reply(answer, Err(Error::Ended { operation: "resume" })),
            Command::Start { exec_id, answer } => {
                if task.state().process(&exec_id).is_none() {
                    return reply(answer, Err(Error::ProcessNotFound(exec_id)));
                }
                self.starting.insert(exec_id.clone());
                let created = self.is_created(&exec_id);
                self.running.push(Box::pin(async move {
                    let result = match task.shim.start(exec_id.clone()).await {
                        Err(error @ Error::Shim { .. }) if created => started_before(&task, &exec_id, error).await,
                        result => result,
                    };
                    Done::Started { exec_id, result, answer }
                }));
            }
            Command::Exec { exec, answer } => {
                if task.state().process(&exec.exec_id).is_some() {
                    return reply(answer, Err(Error::ExecExists(exec.exec_id)));
                }
                // Before the shim knows of it: what is noted and unknown to the shim can be found out, not the reverse.
                self.keep_exec(&exec.exec_id, 0, Status::Created, &exec.stdio);
                self.running.push(Box::pin(async move {
                    let (exec_id, stdio) = (exec.exec_id.clone(), exec.stdio.clone());
                    let result = task.shim.exec(exec).await;
                    Done::Added { exec_id, stdio, result, answer }
                }));
            }
            Command::Pause { answer } => {
                let runs = self.task.state().init.status == Status::Running;
                if runs {
                    self.change(|state| state.init.status = Status::Pausing);
                }
                self.running.push(Box::pin(async move {
                    let result = match task.shim.pause().await {
                        Err(error @ Error::Shim { .. }) if runs => frozen_before(&task, Status::Paused, error).await,
                        result => result,
                    };
                    Done::Paused { result, answer }
                }));
            }
            Command::Resume { answer } => {
                let paused = self.task.state().init.status == Status::Paused;
                self.running.push(Box::pin(async move {
                    let result = match task.shim.resume().await {
                        Err(error @ Error::Shim { .. }) if paused => frozen_before(&task, Status::Running, error).await,
                        result => result,
                    };
                    Done::Resumed { result, answer }
                }));
            }
            Command::Delete { answer } => self.begin_delete(answer),
            Command::Heard(heard) => {
                self.heard(heard);
                return false;
            }
            Command::DeleteProcess { exec_id, answer } => {
                if !self.told_before_delete(&exec_id) {
                    return reply(answer, Err(Error::ProcessRunning));
                }
                if self.context.publisher.is_late() {
                    return reply(answer, Err(Error::JournalFull(task.id.clone())));
                }
                let Some((status, known)) =
                    task.state().execs.get(&exec_id).map(|process| (process.status, process.exit()))
                else {
                    return reply(answer, Err(Error::ProcessNotFound(exec_id)));
                };
                let known = known.or_else(|| (status == Status::Created).then(Exit::default));
                let alive = self.shim.is_some();
                self.running.push(Box::pin(async move {
                    let result = delete_process(&task, alive, &exec_id, known).await;
                    Done::ProcessDeleted { exec_id, result, answer }
                }));
            }
        }
        true
    }

    fn begin_delete(&mut self, answer: Answer<Exit>) {
        self.deleting = true;
        let (task, alive) = (Arc::clone(&self.task), self.shim.is_some());
        let known = self.init_exit.or_else(|| task.state().init.exit());
        self.running.push(Box::pin(async move {
            let result = remove::empty(&task, alive, known).await;
            Done::Emptied { result, answer }
        }));
    }

    /// Every end is told while the records that tell it to the next daemon are still there.
    /// False if that was refused.
    fn begin_clear(&mut self, exit: Exit, answer: Answer<Exit>) -> bool {
        point(crash::DELETE_ANSWERED);
        let exit = self.last_exits(exit);
        if self.context.publisher.is_late() {
            self.deleting = false;
            return reply(answer, Err(Error::JournalFull(self.task.id.clone())));
        }
        let (task, context, shim) = (Arc::clone(&self.task), Arc::clone(&self.context), self.shim.clone());
        self.running.push(Box::pin(async move {
            let result = remove::clear(&context, &task, shim.as_deref()).await;
            Done::Cleared { exit, result, answer }
        }));
        true
    }

    /// Tells the outcome of a request: first the event, then the state, then the caller. True once the task is gone.
    fn finish(&mut self, done: Done) -> bool {
        match done {
            Done::Started { exec_id, result, answer } => {
                self.starting.remove(&exec_id);
                self.started(&exec_id, result, answer);
                self.advance(&exec_id);
                self.publish_init_exit(false);
            }
            Done::Added { exec_id, stdio, result, answer } => {
                // What a shim has prepared dies with it.
                let result = if self.shim.is_none() { Err(Error::Ended { operation: "exec in" }) } else { result };
                if matches!(result, Err(Error::Shim { .. })) && self.task.keeper.is_some() {
                    self.forget(&exec_id);
                } else if matches!(result, Err(Error::Shim { .. })) {
                    // The last daemon's request may have been the one that succeeded.
                    self.catch_up(Answered::One(&exec_id));
                }
                if result.is_ok() && self.task.state().process(&exec_id).is_none() {
                    point(crash::EXEC_ANSWERED);
                    self.publish(Report::ExecAdded { exec_id: exec_id.clone() });
                    point(crash::EXEC_TOLD);
                    self.change(|state| state.execs.insert(exec_id.clone(), Process::new(0, Status::Created, stdio)));
                }
                reply(answer, result);
                self.advance(&exec_id);
            }
            Done::Paused { result, answer } => {
                let status = if result.is_ok() { Status::Paused } else { Status::Running };
                self.frozen(Status::Pausing, status, Report::Paused, result, answer);
            }
            Done::Resumed { result, answer } => {
                let status = if result.is_ok() { Status::Running } else { Status::Paused };
                self.frozen(Status::Paused, status, Report::Resumed, result, answer);
            }
            Done::Emptied { result: Ok(exit), answer } => {
                if !self.begin_clear(exit, answer) {
                    self.advance("");
                }
            }
            Done::Emptied { result: Err(error), answer } => {
                self.deleting = false;
                reply(answer, Err(error));
                self.advance("");
            }
            Done::Cleared { exit, result, answer } => {
                if self.cleared(exit, result, answer) {
                    return true;
                }
                self.advance("");
            }
            Done::Described(processes) => self.described(processes),
            Done::Surveyed { exec_id, result } => self.surveyed(&exec_id, result),
            Done::ProcessDeleted { exec_id, result, answer } => {
                point(crash::EXEC_DELETED);
                if let Ok(exit) = &result {
                    self.exec_ended(&exec_id, *exit);
                    self.forget(&exec_id);
                }
                reply(answer, result);
                self.advance(&exec_id);
            }
        }
        false
    }

    fn started(&mut self, exec_id: &str, result: Result<u32, Error>, answer: Answer<u32>) {
        let result = self.perhaps_started(exec_id, result);
        match &result {
            Ok(pid) if self.is_created(exec_id) => {
                let pid = *pid;
                point(if exec_id.is_empty() { crash::START_ANSWERED } else { crash::EXEC_START_ANSWERED });
                self.has_started(exec_id, pid);
            }
            Ok(_) => {}
            // Whoever waits for a process that could not be started is told so; it has no status and no event.
            // A shim that is busy with the start which the last daemon asked for has not failed.
            Err(Error::Shim { code, .. })
                if *code != Code::Unavailable && !exec_id.is_empty() && self.is_created(exec_id) =>
            {
                self.change(|state| {
                    if let Some(process) = state.execs.get(exec_id) {
                        process.end.send_replace(Some(Exit::default()));
                    }
                })
            }
            Err(_) => {}
        }
        reply(answer, result);
    }

    /// A process runs now.
    pub(crate) fn has_started(&mut self, exec_id: &str, pid: u32) {
        self.keep(exec_id, pid, Status::Running);
        self.publish(if exec_id.is_empty() {
            Report::Start { pid }
        } else {
            Report::ExecStarted { exec_id: exec_id.to_owned(), pid }
        });
        point(if exec_id.is_empty() { crash::START_TOLD } else { crash::EXEC_START_TOLD });
        self.change(|state| {
            if let Some(process) = state.process_mut(exec_id) {
                process.run(pid);
            }
        });
        if !exec_id.is_empty() {
            self.arm(exec_id.to_owned());
        }
    }

    /// The outcome of Pause or Resume. A container that has ended meanwhile stays ended.
    fn frozen(&mut self, from: Status, to: Status, report: Report, result: Result<(), Error>, answer: Answer<()>) {
        if result.is_ok() && self.task.state().init.status != Status::Stopped {
            point(if to == Status::Paused { crash::PAUSE_ANSWERED } else { crash::RESUME_ANSWERED });
            let pid = self.task.state().init.pid;
            self.keep("", pid, to);
            self.publish(report);
        }
        self.change(|state| {
            if state.init.status == from {
                state.init.status = to;
            }
        });
        reply(answer, result);
        self.advance("");
    }

    fn cleared(&mut self, exit: Exit, result: Result<(), Error>, answer: Answer<Exit>) -> bool {
        self.shim = None;
        self.disarm();
        if let Err(error) = result {
            self.deleting = false;
            return reply(answer, Err(error));
        }
        self.context.registry.remove_after(&self.task.namespace, &self.task.id, || {
            point(crash::FILES_REMOVED);
            self.publish(Report::Delete { exit });
            point(crash::DELETE_TOLD);
        });
        reply(answer, Ok(exit));
        true
    }
}

/// Why a start is refused: the last daemon's request was carried out, if the shim says so; then the start has succeeded.
async fn started_before(task: &Task, exec_id: &str, error: Error) -> Result<u32, Error> {
    match task.shim.state(exec_id.to_owned()).await {
        // Init has a pid before its start, so of that only a running one counts.
        Ok((Status::Running | Status::Paused | Status::Pausing, pid)) => Ok(pid),
        Ok((Status::Stopped, pid)) if pid != 0 && !exec_id.is_empty() => Ok(pid),
        _ => Err(error),
    }
}

/// Why a container is not frozen, or not thawed, as it is told to be: the last daemon's request was carried out, if the shim
/// says so, and on a full disk its record does not. Then this one has succeeded, and is told.
async fn frozen_before(task: &Task, wanted: Status, error: Error) -> Result<(), Error> {
    match task.shim.state(String::new()).await {
        Ok((status, _)) if status == wanted => Ok(()),
        _ => Err(error),
    }
}

/// Removes an additional process. A shim that does not know it any more, or is dead, does not keep it alive.
async fn delete_process(task: &Task, alive: bool, exec_id: &str, known: Option<Exit>) -> Result<Exit, Error> {
    if !alive && let Some(exit) = known {
        records::forget_exec(&task.bundle, exec_id);
        return Ok(exit);
    }
    match (task.shim.delete(exec_id.to_owned()).await, known) {
        (Err(Error::Shim { code: Code::NotFound, .. }), Some(exit)) => Ok(exit),
        (result, _) => result,
    }
}

/// Answers; a caller that went away is no matter. Always false, for callers that return it.
fn reply<T>(answer: Answer<T>, result: Result<T, Error>) -> bool {
    let _ = answer.send(result);
    false
}

async fn ended(process: Option<&Pidfd>) {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
