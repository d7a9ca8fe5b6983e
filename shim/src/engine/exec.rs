//! Additional processes of a container.

use std::sync::Arc;

use api_shim::messages::events as payload;
use model::record::{Status, StdioPaths};
use runtime::ExecOptions;
use sys::crash::{point, shim as crash};

use crate::engine::Engine;
use crate::engine::process::{End, Process};
use crate::error::Error;
use crate::events::Event;
use crate::foreign;
use crate::state::{self, Operation};
use crate::stdio::{Logger, Stdio};

/// A request to prepare an additional process.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) id: String,
    pub(crate) exec_id: String,
    pub(crate) paths: StdioPaths,
    /// The process document, JSON.
    pub(crate) spec: Vec<u8>,
}

/// A start that was begun under the lock.
enum Begun {
    Embedded(Box<Result<runtime::Execing, runtime::Error>>),
    Foreign(foreign::Calls, runtime::ProcessIo),
}

impl Engine {
    /// Prepares an additional process; it exists only after its start.
    pub(crate) fn exec(&self, request: Exec) -> Result<(), Error> {
        let Exec { id, exec_id, paths, spec } = request;
        let mut inner = self.lock();
        let container = inner.container(&id)?;
        model::check_identifier(&exec_id).map_err(|source| Error::Identifier { what: "exec id", source })?;
        if container.execs.contains_key(&exec_id) {
            return Err(Error::ExecExists(exec_id));
        }
        state::check_init(Operation::Exec, container.init.status)?;
        // Refused now rather than at its start.
        oci::parse_process(&spec)?;
        container.records.exec(&exec_id, None, Status::Created, &paths)?;
        let process = Process {
            exec_id: exec_id.clone(),
            status: Status::Created,
            identity: None,
            pidfd: None,
            paths,
            stdio: Stdio::default(),
            end: Arc::new(End::default()),
            busy: false,
            spec,
            stdin_closed: false,
        };
        container.execs.insert(exec_id.clone(), process);
        let mut event = payload::TaskExecAdded::new();
        event.container_id = id;
        event.exec_id = exec_id;
        inner.publish(&Event::ExecAdded(event));
        Ok(())
    }

    /// Starts an additional process and answers its pid.
    pub(crate) async fn start_exec(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let result = self.start_exec_counted(id, exec_id).await;
        if result.is_err() {
            self.tell_failed_start(id, exec_id);
        }
        self.worked.notify_one();
        self.sweep();
        result
    }

    async fn start_exec_counted(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        let failed = |source| Error::Runtime { operation: "exec", source };
        let logger = self.logger_of_exec(id, exec_id).await?;
        let (mut stdio, begun) = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            let gone = container.init_gone.is_some() || container.init.status == Status::Stopped;
            let process = container.process(exec_id)?;
            if gone {
                return Err(Error::InitNotRunning(id.to_owned()));
            }
            state::check_exec(Operation::Start, process.status)?;
            if process.busy {
                return Err(Error::Busy(exec_id.to_owned()));
            }
            let document = oci::parse_process(&process.spec)?;
            let owner = container.users.owner(document.user().uid(), document.user().gid());
            let process = container.process(exec_id)?;
            let (stdio, io) = Stdio::open(&process.paths, (owner.uid != 0).then_some(owner), logger)?;
            process.busy = true;
            if process.end.get().is_some() {
                // Those who waited for an earlier try were told that it failed; this one has an end of its own.
                process.end = Arc::default();
            }
            // Counted before it exists: init's end waits for it from now on.
            container.running_execs += 1;
            let begun = match container.runtime.calls() {
                Some(calls) => Begun::Foreign(calls, io),
                None => {
                    let begun = container.runtime.embedded()?.exec(&document, io, &ExecOptions::default());
                    Begun::Embedded(Box::new(begun))
                }
            };
            (stdio, begun)
        };
        let started = match begun {
            Begun::Embedded(begun) => match *begun {
                Ok(execing) => self.drive(execing).await.map_err(failed),
                Err(error) => Err(failed(error)),
            },
            Begun::Foreign(calls, io) => self.exec_foreign(id, exec_id, &calls, io).await,
        };
        let mut inner = self.lock();
        let container = inner.container(id)?;
        let attached = started.and_then(|mut started| {
            let Some(master) = started.console.take() else { return Ok(started) };
            match stdio.attach(master) {
                Ok(()) => Ok(started),
                Err(error) => {
                    // It runs and nobody could talk to it. It is reaped as an orphan.
                    let _ = sys::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL.as_raw());
                    Err(error)
                }
            }
        });
        let started = match attached {
            Ok(started) => started,
            Err(error) => {
                self.exec_failed(container, exec_id);
                if container.running_execs == 0 && container.init_gone.is_some() {
                    drop(inner);
                    self.finish_waiting_init(id);
                }
                return Err(error);
            }
        };
        for warning in &started.warnings {
            self.log.line(&format!("exec {exec_id} in container {id}: {warning}"));
        }
        let process = container.process(exec_id)?;
        if process.stdin_closed {
            stdio.close_stdin();
        }
        process.stdio = stdio;
        process.identity = Some(started.identity);
        process.pidfd = Some(started.pidfd);
        process.status = Status::Running;
        process.spec = Vec::new();
        process.busy = false;
        let (pid, paths) = (process.pid(), process.paths.clone());
        point(crash::EXEC_STARTED);
        let written = container.records.exec(exec_id, Some(started.identity), Status::Running, &paths);
        if let Err(error) = written {
            self.log.error("write the record of a process", &error);
        }
        point(crash::EXEC_RECORDED);
        let mut event = payload::TaskExecStarted::new();
        event.container_id = id.to_owned();
        event.exec_id = exec_id.to_owned();
        event.pid = pid;
        inner.publish(&Event::ExecStarted(event));
        Ok(pid)
    }

    /// The program that a process which waits for its start logs to, if there is one.
    async fn logger_of_exec(&self, id: &str, exec_id: &str) -> Result<Option<Logger>, Error> {
        let (paths, owner) = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            let process = container.process(exec_id)?;
            // What is wrong with the state is told by the start itself.
            if process.spec.is_empty() || !process.paths.stdout.starts_with("binary") {
                return Ok(None);
            }
            let paths = process.paths.clone();
            let document = oci::parse_process(&process.spec)?;
            (paths, container.users.owner(document.user().uid(), document.user().gid()))
        };
        Logger::start(&paths, (owner.uid != 0).then_some(owner), exec_id, &self.namespace).await
    }

    fn exec_failed(&self, container: &mut super::Container, exec_id: &str) {
        container.running_execs = container.running_execs.saturating_sub(1);
        if let Ok(process) = container.process(exec_id) {
            process.busy = false;
        }
    }

    /// A start failed, and no other is under way: those who wait for the process's end must not wait forever.
    fn tell_failed_start(&self, id: &str, exec_id: &str) {
        let mut inner = self.lock();
        if let Ok(container) = inner.container(id)
            && let Ok(process) = container.process(exec_id)
            && process.status == Status::Created
            && !process.busy
        {
            process.end.set(super::Exit::NONE);
        }
    }

    /// Init ended while the last additional process was being started in vain.
    fn finish_waiting_init(&self, id: &str) {
        let mut inner = self.lock();
        let super::Inner { containers, publisher, .. } = &mut *inner;
        if let Some(container) = containers.get_mut(id) {
            self.finish_init(container, publisher.as_ref());
        }
    }
}
