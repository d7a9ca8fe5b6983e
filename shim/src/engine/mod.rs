//! What the shim does, without the wire: containers, their processes, and the ends of those.
//!
//! Everything runs on one thread. State is behind one lock that is never held across an await; what has to wait for
//! another process is one of the runtime's state machines, driven by [`Engine::drive`].
//!
//! Reaping: the kernel tells us of any child that has ended. Three kinds of them exist, and each is reaped by its
//! owner only:
//!
//! | child | reaped by |
//! |---|---|
//! | init of a container, an additional process | [`Engine::sweep`], after its exit record is written |
//! | a hook or an intermediate process of an operation | the runtime, inside the operation |
//! | an orphan that the kernel gave us, because we are a subreaper | [`Engine::sweep`], while no operation runs |
//!
//! **Invariants**
//! - An exit record is on the file system before the process is reaped.
//! - Per container: create < start < exit < delete, exec-added < exec-started < exit of that process, and init's exit
//!   is the last exit.

mod backend;
mod container;
mod create;
mod delete;
mod exec;
mod foreign;
mod oom;
mod process;
mod rootfs;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api_shim::convert;
use api_shim::messages::events as payload;
use model::Timestamp;
use model::record::Status;
use runtime::{HostFeatures, Operation};
use sys::process::Exited;
use tokio::sync::Notify;

use crate::error::Error;
use crate::events::{Event, Publisher};
use crate::log::Log;
use crate::watch::watch_readable;
pub(crate) use container::Container;
pub(crate) use create::Create;
pub(crate) use exec::Exec;
use oom::tell_oom;
pub(crate) use process::Exit;

/// The shim's state.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Of the daemon: a foreign runtime keeps its state below it.
    namespace: String,
    host: HostFeatures,
    pub(crate) log: Log,
    /// Our socket, if it is ours to remove: a daemon that made it removes it.
    socket: Option<PathBuf>,
    inner: Mutex<Inner>,
    /// Notified when the shim is to end.
    pub(crate) stopping: Notify,
    /// Notified after each piece of work that used much memory.
    pub(crate) worked: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    containers: BTreeMap<String, Container>,
    /// Ids that are being created.
    creating: BTreeSet<String>,
    /// Operations of the runtime under way: while there are any, an unknown child may be theirs.
    operations: usize,
    publisher: Option<Publisher>,
}

impl Inner {
    fn container(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers.get_mut(id).ok_or(Error::NotCreated)
    }

    fn publish(&self, event: &Event) {
        publish(self.publisher.as_ref(), event);
    }

    /// Whose process this is: container id and exec id, and whether it may be reaped now.
    fn owner_of(&self, pid: u32) -> Option<(String, String, bool)> {
        self.containers.values().find_map(|container| {
            let process = container.reapable().find(|process| process.pid() == pid)?;
            Some((container.id.clone(), process.exec_id.clone(), !process.busy))
        })
    }
}

impl Engine {
    pub(crate) fn new(
        namespace: &str,
        host: HostFeatures,
        log: Log,
        publisher: Option<Publisher>,
        socket: Option<PathBuf>,
    ) -> Arc<Self> {
        let inner = Mutex::new(Inner { publisher, ..Inner::default() });
        Arc::new(Self {
            namespace: namespace.to_owned(),
            host,
            log,
            socket,
            inner,
            stopping: Notify::new(),
            worked: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock, and a panic aborts the process.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives an operation of the runtime to its end.
    ///
    /// The caller began it in the same poll, and registers what comes out before it awaits anything else, so that
    /// [`Engine::sweep`] never sees a process that nobody has claimed. Dropped before the end, the operation is undone.
    async fn drive<O: Operation + Send>(&self, mut operation: O) -> Result<O::Output, runtime::Error> {
        let _counted = self.counted();
        if let Some(output) = operation.advance()? {
            return Ok(output);
        }
        let waiting = |source: std::io::Error| runtime::Error::Wait { source };
        let fd = watch_readable(operation.poll_fd()).map_err(waiting)?;
        loop {
            let mut ready = fd.readable().await.map_err(waiting)?;
            // Cleared first: what happens while the operation advances wakes us again.
            ready.clear_ready();
            if let Some(output) = operation.advance()? {
                return Ok(output);
            }
        }
    }

    /// Counts an operation of a runtime from now on, for as long as the result lives.
    fn counted(&self) -> Counted<'_> {
        self.lock().operations += 1;
        Counted(self)
    }

    /// Takes note of every child that has ended. Called when SIGCHLD was delivered, and after each operation, during
    /// which some ends had to wait.
    pub(crate) fn sweep(&self) {
        let mut inner = self.lock();
        loop {
            let exited = match sys::process::peek_any() {
                Ok(Some(exited)) => exited,
                Ok(None) => return,
                Err(errno) => return self.log.line(&format!("look for children that ended: {errno}")),
            };
            match inner.owner_of(exited.pid) {
                Some((container, exec, true)) => self.ended(&mut inner, &container, &exec, &exited),
                None if inner.operations == 0 => drop(sys::process::reap_pid(exited.pid)),
                // This one must wait, and the kernel would show it again and again: look at ours one by one.
                Some((_, _, false)) | None => return self.sweep_own(&mut inner),
            }
        }
    }

    fn sweep_own(&self, inner: &mut Inner) {
        let ended: Vec<_> = inner
            .containers
            .values()
            .flat_map(|container| {
                let reapable = container.reapable().filter(|process| !process.busy);
                reapable.filter_map(|process| {
                    let pidfd = process.pidfd.as_ref().map_or_else(|| container.runtime.pidfd(), |fd| fd.as_fd());
                    let exited = sys::process::waitid_pidfd_peek(pidfd).ok().flatten()?;
                    Some((container.id.clone(), process.exec_id.clone(), exited))
                })
            })
            .collect();
        for (container, exec, exited) in ended {
            self.ended(inner, &container, &exec, &exited);
        }
    }

    /// A process has ended and is not reaped yet.
    fn ended(&self, inner: &mut Inner, container_id: &str, exec_id: &str, exited: &Exited) {
        let Inner { containers, publisher, .. } = inner;
        let Some(container) = containers.get_mut(container_id) else { return };
        let exit = Exit { status: exited.exit.status(), at: Timestamp::now() };
        let publisher = publisher.as_ref();
        if let Err(error) = container.record_and_reap(exec_id, exited, exit, &self.host.cgroups) {
            self.log.error("write an exit record", &error);
        }
        if exec_id.is_empty() {
            self.init_ended(container, exit);
        } else {
            container.running_execs = container.running_execs.saturating_sub(1);
            finish(container, exec_id, exit, publisher);
        }
        if container.running_execs == 0 {
            self.finish_init(container, publisher);
        }
    }

    /// Init has ended: nobody may outlive it.
    fn init_ended(&self, container: &mut Container, exit: Exit) {
        container.init_gone = Some(exit);
        let frozen = container.init.status == Status::Paused;
        if let Err(error) = container.runtime.end_rest(frozen, container.shares_pids) {
            self.log.error("kill what init left behind", &error);
        }
    }

    /// Tells init's end, if it has come and nothing else runs.
    fn finish_init(&self, container: &mut Container, publisher: Option<&Publisher>) {
        let Some(exit) = container.init_gone else { return };
        if container.init.status == Status::Stopped {
            return;
        }
        tell_oom(container, publisher);
        finish(container, "", exit, publisher);
        if let Err(error) = container.write_task() {
            self.log.error("write the task record", &error);
        }
    }

    /// Ends the shim, unless containers are left: then it serves on, as the shim of a group does.
    pub(crate) fn shutdown(&self) {
        let inner = self.lock();
        if !inner.containers.is_empty() || !inner.creating.is_empty() {
            return;
        }
        if let Some(socket) = &self.socket {
            // Before the answer: a client may look whether the file is gone.
            let _ = std::fs::remove_file(socket);
        }
        self.stopping.notify_one();
    }

    /// No more events: those in the queue are still sent.
    pub(crate) fn close_publisher(&self) {
        self.lock().publisher = None;
    }
}

fn publish(publisher: Option<&Publisher>, event: &Event) {
    if let Some(publisher) = publisher {
        publisher.publish(event);
    }
}

/// Marks a process as ended and tells everybody.
fn finish(container: &mut Container, exec_id: &str, exit: Exit, publisher: Option<&Publisher>) {
    let container_id = container.id.clone();
    let Ok(process) = container.process(exec_id) else { return };
    process.status = Status::Stopped;
    process.pidfd = None;
    process.stdio.ended();
    let mut event = payload::TaskExit::new();
    event.container_id = container_id;
    event.id = if exec_id.is_empty() { event.container_id.clone() } else { exec_id.to_owned() };
    event.pid = process.pid();
    event.exit_status = exit.status;
    event.exited_at = convert::timestamp(exit.at);
    publish(publisher, &Event::Exit(event));
    process.end.set(exit);
}

/// Counts an operation for as long as it lives.
struct Counted<'engine>(&'engine Engine);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.lock().operations -= 1;
    }
}
