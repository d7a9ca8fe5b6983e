//! What clients ask of a container between its creation and its deletion.

use std::sync::Arc;

use api_shim::messages::events as payload;
use model::record::{Status, StdioPaths};
use runtime::ConsoleSize;
use sys::crash::{point, shim as crash};

use crate::engine::{Container, Engine, Exit};
use crate::error::Error;
use crate::events::Event;
use crate::foreign;
use crate::state::{self, Operation};
use crate::stats;

/// Highest signal number of Linux.
const SIGNAL_MAX: u32 = 64;

/// What State tells.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) bundle: String,
    pub(crate) pid: u32,
    pub(crate) status: Status,
    pub(crate) paths: StdioPaths,
    pub(crate) exit: Exit,
}

impl Engine {
    /// Where a process stands.
    pub(crate) fn state(&self, id: &str, exec_id: &str) -> Result<Described, Error> {
        let mut inner = self.lock();
        let container = inner.container(id)?;
        container.process(exec_id)?;
        let process = if exec_id.is_empty() { Some(&container.init) } else { container.execs.get(exec_id) };
        let process = process.ok_or_else(|| Error::NoProcess(exec_id.to_owned()))?;
        Ok(Described {
            bundle: container.bundle.display().to_string(),
            pid: process.pid(),
            status: container.status_of(process),
            paths: process.paths.clone(),
            exit: process.exit(),
        })
    }

    /// Starts the container's program and answers its pid.
    pub(crate) async fn start(&self, id: &str) -> Result<u32, Error> {
        let failed = |source| Error::Runtime { operation: "start", source };
        let (starting, calls) = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            if container.init_gone.is_some() {
                return Err(state::check_init(Operation::Start, Status::Stopped).err().unwrap_or(Error::Finished));
            }
            state::check_init(Operation::Start, container.init.status)?;
            if container.init.busy {
                return Err(Error::Busy(id.to_owned()));
            }
            let calls = container.runtime.calls();
            let starting = match &calls {
                Some(_) => None,
                None => Some(container.runtime.embedded()?.start().map_err(failed)?),
            };
            container.init.busy = true;
            (starting, calls)
        };
        let started = match (starting, calls) {
            (Some(starting), _) => self.drive(starting).await.map_err(failed),
            (None, Some(calls)) => {
                let _counted = self.counted();
                calls.start().await
            }
            (None, None) => Ok(()),
        };
        let result = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            container.init.busy = false;
            match started {
                Ok(()) => {
                    point(crash::STARTED);
                    container.init.status = Status::Running;
                    container.started = true;
                    self.write_task(container);
                    if let Some(listing) = &mut container.listing
                        && let Err(error) = listing.started()
                    {
                        self.log.error("list a container in its runtime root", &error);
                    }
                    point(crash::START_RECORDED);
                    let pid = container.init.pid();
                    let mut event = payload::TaskStart::new();
                    event.container_id = id.to_owned();
                    event.pid = pid;
                    inner.publish(&Event::Start(event));
                    Ok(pid)
                }
                Err(error) => Err(error),
            }
        };
        self.worked.notify_one();
        self.sweep();
        result
    }

    /// Sends a signal: to a process, or with `all` to everything in the container.
    pub(crate) async fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), Error> {
        match self.begin_kill(id, exec_id, signal, all)? {
            Some((calls, signal)) => {
                let _counted = self.counted();
                calls.kill(signal, all).await
            }
            None => Ok(()),
        }
    }

    /// Sends the signal, or says whom to ask to.
    fn begin_kill(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<Option<(foreign::Calls, i32)>, Error> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|_| signal <= SIGNAL_MAX)
            .ok_or_else(|| Error::InvalidRequest(format!("signal {signal} does not exist")))?;
        let mut inner = self.lock();
        let container = inner.container(id)?;
        if !exec_id.is_empty() {
            let process = container.process(exec_id)?;
            return match (process.status, &process.pidfd) {
                (Status::Stopped, _) => Err(Error::Finished),
                (_, None) => Err(Error::NotStarted),
                (_, Some(pidfd)) => match sys::process::pidfd_send_signal(pidfd, signal) {
                    Ok(()) => Ok(None),
                    Err(rustix::io::Errno::SRCH) => Err(Error::Finished),
                    Err(errno) => Err(Error::system("send a signal", errno)),
                },
            };
        }
        if container.init.status == Status::Stopped || container.init_gone.is_some() {
            return Err(Error::Finished);
        }
        if let Some(calls) = container.runtime.calls() {
            return Ok(Some((calls, signal)));
        }
        let runtime = container.runtime.embedded()?;
        match if all { runtime.kill_all(signal) } else { runtime.kill(signal) } {
            Ok(()) => Ok(None),
            Err(runtime::Error::Finished) => Err(Error::Finished),
            Err(source) => Err(Error::Runtime { operation: "kill", source }),
        }
    }

    /// Waits for the end of a process. Cancel-safe.
    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, Error> {
        let end = Arc::clone(&self.lock().container(id)?.process(exec_id)?.end);
        Ok(end.wait().await)
    }

    /// Pids of all processes in the container, with the exec id of those that have one.
    pub(crate) async fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>, Error> {
        let calls = self.lock().container(id)?.runtime.calls();
        let told = match calls {
            Some(calls) => {
                let _counted = self.counted();
                Some(calls.pids().await?)
            }
            None => None,
        };
        let mut inner = self.lock();
        let container = inner.container(id)?;
        let pids = match told {
            Some(told) => told,
            None => match container.runtime.embedded()?.pids() {
                Ok(pids) => pids,
                Err(runtime::Error::Cgroup { source: cgroups::Error::Gone { .. }, .. }) => Vec::new(),
                Err(source) => return Err(Error::Runtime { operation: "ps", source }),
            },
        };
        let exec_of = |pid: u32| {
            let process = container.execs.values().find(|process| process.pid() == pid && process.is_ours_to_reap());
            process.map(|process| process.exec_id.clone())
        };
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid))).collect())
    }

    /// Freezes the container.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), Error> {
        let foreign = self.ask_foreign(id, Operation::Pause, async |calls| calls.pause().await).await?;
        let mut inner = self.lock();
        let container = inner.container(id)?;
        if !foreign {
            let paused = container.runtime.embedded()?.pause();
            paused.map_err(|source| Error::Runtime { operation: "pause", source })?;
        }
        container.init.status = Status::Paused;
        self.write_task(container);
        let mut event = payload::TaskPaused::new();
        event.container_id = id.to_owned();
        inner.publish(&Event::Paused(event));
        Ok(())
    }

    /// Thaws the container.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), Error> {
        let foreign = self.ask_foreign(id, Operation::Resume, async |calls| calls.resume().await).await?;
        let mut inner = self.lock();
        let container = inner.container(id)?;
        if !foreign {
            let resumed = container.runtime.embedded()?.resume();
            resumed.map_err(|source| Error::Runtime { operation: "resume", source })?;
        }
        container.init.status = Status::Running;
        self.write_task(container);
        let mut event = payload::TaskResumed::new();
        event.container_id = id.to_owned();
        inner.publish(&Event::Resumed(event));
        Ok(())
    }

    /// Changes the limits of the container: `resources` is the specification's JSON.
    pub(crate) async fn update(&self, id: &str, json: &[u8]) -> Result<(), Error> {
        let resources = oci::parse_resources(json)?;
        if self.ask_foreign(id, Operation::Update, async |calls| calls.update(json).await).await? {
            return Ok(());
        }
        let mut inner = self.lock();
        let container = inner.container(id)?;
        container
            .runtime
            .embedded()?
            .update(&resources)
            .map_err(|source| Error::Runtime { operation: "update", source })
    }

    /// What the container has used: type URL and message.
    pub(crate) fn stats(&self, id: &str) -> Result<(&'static str, Vec<u8>), Error> {
        let mut inner = self.lock();
        let container = inner.container(id)?;
        match container.runtime.cgroup().ok_or(Error::NoCgroup)?.stats() {
            Ok(stats) => stats::encode(&stats),
            Err(cgroups::Error::Gone { .. }) => Err(Error::NoCgroup),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the size of a process's terminal.
    pub(crate) fn resize(&self, id: &str, exec_id: &str, size: ConsoleSize) -> Result<(), Error> {
        let mut inner = self.lock();
        let process = inner.container(id)?.process(exec_id)?;
        if exec_id.is_empty() {
            state::check_init(Operation::Resize, process.status)?;
        } else {
            state::check_exec(Operation::Resize, process.status)?;
        }
        process.stdio.resize(size)
    }

    /// Ends standard input, as soon as the client has closed it too.
    pub(crate) fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        let process = inner.container(id)?.process(exec_id)?;
        process.stdin_closed = true;
        process.stdio.close_stdin();
        Ok(())
    }

    /// Pid of a container's first process.
    pub(crate) fn pid(&self, id: &str) -> Result<u32, Error> {
        Ok(self.lock().container(id)?.init.pid())
    }

    fn write_task(&self, container: &Container) {
        if let Err(error) = container.write_task() {
            self.log.error("write the task record", &error);
        }
    }
}
