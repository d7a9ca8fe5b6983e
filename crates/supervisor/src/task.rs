//! A task as its readers see it.
//!
//! **Invariant:** only the task's actor changes the state; anybody reads it, at any time, without waiting.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use events::Entry;
use model::record::{Status, StdioPaths};
use model::{Any, Mount, Timestamp};
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::actor::Command;
use crate::keep::Keeper;
use crate::pidfd::Pidfd;
use crate::shim::ShimClient;

/// What `Create` needs.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// Id of the container and of its task.
    pub id: String,
    /// Runtime name of the container record, or the path in the request that overrides it.
    pub runtime: String,
    /// The container's spec, written to `config.json` verbatim.
    pub spec: Vec<u8>,
    /// Mounts that make the root file system; empty when the spec's root path is ready already.
    pub rootfs: Vec<Mount>,
    /// The streams of init.
    pub stdio: StdioPaths,
    /// Directory of a checkpoint to restore from; empty for none.
    pub checkpoint: String,
    /// Options for the runtime, passed on as they are.
    pub options: Option<Any>,
}

/// What `Exec` needs.
#[derive(Clone, Debug, Default)]
pub struct ExecTask {
    /// Id of the new process.
    pub exec_id: String,
    /// Its streams.
    pub stdio: StdioPaths,
    /// JSON of an OCI process, as the client sent it.
    pub spec: Option<Any>,
}

/// How a process ended, as clients are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Pid that it had.
    pub pid: u32,
    /// Exit code, or 128 plus the signal; 255 where it cannot be known.
    pub exit_status: u32,
    /// When; zero when it never ran.
    pub exited_at: Timestamp,
}

/// What is known about a process of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Id of the container.
    pub id: String,
    /// Id of an additional process; empty for init.
    pub exec_id: String,
    /// Pid in the host's pid namespace; 0 before the start of an additional process.
    pub pid: u32,
    /// Where it stands.
    pub status: Status,
    /// Its streams.
    pub stdio: StdioPaths,
    /// Exit code once stopped.
    pub exit_status: u32,
    /// When it stopped; zero before.
    pub exited_at: Timestamp,
}

/// A process inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pid {
    /// Pid in the host's pid namespace.
    pub pid: u32,
    /// What the shim adds: the exec id of an additional process.
    pub info: Option<Any>,
}

/// One task of the daemon.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// The shim that was executed.
    pub(crate) program: PathBuf,
    pub(crate) shim: ShimClient,
    /// Writes the task's records, if its shim does not.
    pub(crate) keeper: Option<Keeper>,
    /// The container's first process, if it was there when the task was made or adopted.
    pub(crate) init: Option<Pidfd>,
    pub(crate) mailbox: mpsc::Sender<Command>,
    state: Mutex<State>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<String, Process>,
    /// The published end of init.
    pub(crate) exit_event: Option<Arc<Entry>>,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) status: Status,
    pub(crate) stdio: StdioPaths,
    /// Told once: how it ended. Of an additional process that could not be started, too.
    pub(crate) end: watch::Sender<Option<Exit>>,
}

impl Process {
    pub(crate) fn new(pid: u32, status: Status, stdio: StdioPaths) -> Self {
        Self { pid, status, stdio, end: watch::Sender::new(None) }
    }

    /// Marks the process as started. Where an earlier try had failed, its waiters were told so; those that come from now
    /// on wait for the end.
    pub(crate) fn run(&mut self, pid: u32) {
        self.pid = pid;
        self.status = Status::Running;
        self.end.send_if_modified(|end| end.take().is_some());
    }

    /// Marks the process as ended.
    pub(crate) fn stop(&mut self, exit: Exit) {
        self.status = Status::Stopped;
        self.end.send_replace(Some(exit));
    }

    /// Started, and not known to have ended.
    pub(crate) fn lives(&self) -> bool {
        self.pid != 0 && self.status != Status::Created && self.status != Status::Stopped
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.end.borrow()
    }

    fn report(&self, id: &str, exec_id: &str, status: Status) -> ProcessState {
        let exit = if status == Status::Stopped { self.exit().unwrap_or_default() } else { Exit::default() };
        ProcessState {
            id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid: self.pid,
            status,
            stdio: self.stdio.clone(),
            exit_status: exit.exit_status,
            exited_at: exit.exited_at,
        }
    }
}

impl State {
    /// A process; init under the empty name.
    pub(crate) fn process(&self, exec_id: &str) -> Option<&Process> {
        if exec_id.is_empty() { Some(&self.init) } else { self.execs.get(exec_id) }
    }

    /// As [`State::process`].
    pub(crate) fn process_mut(&mut self, exec_id: &str) -> Option<&mut Process> {
        if exec_id.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec_id) }
    }
}

impl Task {
    /// A task of `(namespace, id)`.
    pub(crate) fn new(
        (namespace, id): (String, String),
        bundle: PathBuf,
        program: PathBuf,
        (shim, keeper): (ShimClient, Option<Keeper>),
        init: Option<Pidfd>,
        mailbox: mpsc::Sender<Command>,
        state: State,
    ) -> Self {
        Self { namespace, id, bundle, program, shim, keeper, init, mailbox, state: Mutex::new(state) }
    }

    /// The state, for a moment: never held across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about a process.
    pub(crate) fn process(&self, exec_id: &str) -> Result<ProcessState, Error> {
        let state = self.state();
        let process = state.process(exec_id).ok_or_else(|| Error::ProcessNotFound(exec_id.to_owned()))?;
        // A frozen container freezes all of its processes.
        let status = match (process.status, state.init.status) {
            (Status::Running, frozen @ (Status::Paused | Status::Pausing)) => frozen,
            (status, _) => status,
        };
        Ok(process.report(&self.id, exec_id, status))
    }

    /// A receiver that is told how a process ends.
    pub(crate) fn end(&self, exec_id: &str) -> Result<watch::Receiver<Option<Exit>>, Error> {
        let state = self.state();
        let process = state.process(exec_id).ok_or_else(|| Error::ProcessNotFound(exec_id.to_owned()))?;
        Ok(process.end.subscribe())
    }
}
