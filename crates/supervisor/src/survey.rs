//! Catching up with a foreign shim: what happened to its task while no daemon looked.
//!
//! Ends are told by the pending `Wait`s, as always. Everything else is read from the answers to `State`, one per
//! process that was known, and told as if it had happened just now.

use std::sync::Arc;

use model::Code;
use model::record::{Status, StdioPaths};

use crate::actor::{Actor, Done};
use crate::report::{Heard, Report};
use crate::task::{Exit, Process};
use crate::{Error, records};

impl Actor {
    /// Asks a foreign shim where processes stand. The answers come as [`Done::Surveyed`].
    pub(crate) fn survey(&mut self, exec_ids: Vec<String>) {
        for exec_id in exec_ids {
            let task = Arc::clone(&self.task);
            self.running.push(Box::pin(async move {
                let result = task.shim.state(exec_id.clone()).await;
                Done::Surveyed { exec_id, result }
            }));
        }
    }

    /// The answer for one process. Its end is asked for only now, so that it is told after what came before it.
    pub(crate) fn surveyed(&mut self, exec_id: &str, result: Result<(Status, u32), Error>) {
        let Some((known, pid)) = self.task.state().process(exec_id).map(|process| (process.status, process.pid)) else {
            return;
        };
        if known == Status::Stopped {
            return;
        }
        match result {
            Ok((found, found_pid)) if !self.lanes.contains_key(exec_id) => {
                let pid = if found_pid == 0 { pid } else { found_pid };
                self.stands(exec_id, pid, known, found);
            }
            // The last daemon died between its note of the process and the request that would have added it.
            Err(Error::Shim { code: Code::NotFound, .. }) if !exec_id.is_empty() && known == Status::Created => {
                self.forget(exec_id);
            }
            Err(Error::Closed { .. }) => return self.reconnect_later(),
            Ok(_) | Err(_) => {}
        }
        let waited_for = |process: &Process| exec_id.is_empty() || process.lives();
        if self.task.state().process(exec_id).is_some_and(waited_for) {
            self.arm(exec_id.to_owned());
        }
    }

    fn stands(&mut self, exec_id: &str, pid: u32, known: Status, found: Status) {
        let init = exec_id.is_empty();
        match (known, found) {
            (Status::Created, Status::Running | Status::Paused | Status::Pausing) if pid != 0 => {
                self.has_started(exec_id, pid);
            }
            // Init may have been killed before its start; an additional process has a pid only after it.
            (Status::Created, Status::Stopped) if !init && pid != 0 => self.has_started(exec_id, pid),
            (Status::Running | Status::Pausing, Status::Paused) if init => {
                self.now_stands(Status::Paused, Report::Paused);
            }
            (Status::Paused | Status::Pausing, Status::Running) if init => {
                self.now_stands(Status::Running, Report::Resumed);
            }
            _ => {}
        }
    }

    /// Notes where a process stands, if its shim does not. A note that cannot be written is missed by the next daemon
    /// only, which asks the shim then.
    pub(crate) fn keep(&self, exec_id: &str, pid: u32, status: Status) {
        let stdio = self.task.state().process(exec_id).map(|process| process.stdio.clone()).unwrap_or_default();
        self.keep_exec(exec_id, pid, status, &stdio);
    }

    /// As [`Actor::keep`], for a process that nobody knows yet.
    pub(crate) fn keep_exec(&self, exec_id: &str, pid: u32, status: Status, stdio: &StdioPaths) {
        let Some(keeper) = &self.task.keeper else { return };
        if let Err(error) = keeper.process(&self.task.bundle, exec_id, pid, (status, status != Status::Created), stdio)
        {
            self.not_kept(exec_id, &error);
        }
    }

    /// Notes how a process ended.
    pub(crate) fn keep_exit(&self, exec_id: &str, exit: Exit) {
        let Some(keeper) = &self.task.keeper else { return };
        if let Err(error) = keeper.exit(&self.task.bundle, exec_id, exit) {
            self.not_kept(exec_id, &error);
        }
    }

    fn not_kept(&self, exec_id: &str, error: &Error) {
        tracing::warn!(id = self.task.id, exec_id, error = %model::render(error), "a record cannot be written");
    }

    /// Drops an additional process that was deleted, or never was.
    pub(crate) fn forget(&self, exec_id: &str) {
        if self.task.keeper.is_some() {
            records::forget_exec(&self.task.bundle, exec_id);
        }
        self.change(|state| state.execs.remove(exec_id));
    }

    /// What the shim's own events tell.
    pub(crate) fn heard(&mut self, heard: Heard) {
        match heard {
            // Clients take it for the cause of the exit that follows, so none comes behind that. That of a container of
            // our own shim is seen in its cgroup.
            Heard::Oom if self.task.keeper.is_some() && self.task.state().init.status != Status::Stopped => {
                self.publish(Report::Oom);
            }
            Heard::Oom => {}
            Heard::Exit => {
                self.exit_heard = true;
                self.publish_init_exit(false);
            }
        }
    }

    /// Init was frozen or thawed.
    fn now_stands(&mut self, status: Status, report: Report) {
        let pid = self.task.state().init.pid;
        self.keep("", pid, status);
        self.publish(report);
        self.change(|state| state.init.status = status);
    }
}
