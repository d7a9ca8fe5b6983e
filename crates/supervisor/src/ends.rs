//! How processes end: four sources, one event each.
//!
//! | who tells | when |
//! |---|---|
//! | the shim's answer to `Wait` | nearly always |
//! | the exit record in the bundle | the shim died, or a new daemon adopts |
//! | the zombie in `/proc` | the shim is frozen |
//! | we: 137, after killing what is left | the shim died without a record |

use std::sync::Arc;
use std::time::Duration;

use model::record::Status;
use model::{Code, Timestamp};
use sys::crash::{daemon as crash, point};
use tokio::time::Instant;

use crate::actor::Actor;
use crate::recheck::Answered;
use crate::report::Report;
use crate::task::Exit;
use crate::{Error, launch, records};

/// The status of a process whose end nobody saw.
pub(crate) const UNKNOWN: u32 = 255;

/// The status of a process that was killed with SIGKILL.
const KILLED: u32 = 137;

/// How long the cause is waited for when a process of a foreign shim was killed.
const CAUSE: Duration = Duration::from_millis(100);

impl Actor {
    /// The answer to a `Wait`.
    pub(crate) fn waited(&mut self, exec_id: String, result: Result<Exit, Error>) {
        match result {
            Ok(exit) => {
                self.reached();
                if exec_id.is_empty() && self.is_created("") {
                    // It may have been started by a request of the last daemon.
                    self.catch_up(Answered::None);
                }
                self.process_ended(&exec_id, exit);
            }
            // The shim does not know the process, so it will never say more about it.
            Err(Error::Shim { code: Code::NotFound, .. }) => {
                let exit = self.recorded(&exec_id).unwrap_or_else(|| unseen(UNKNOWN));
                self.process_ended(&exec_id, exit);
            }
            Err(error) => {
                tracing::debug!(id = self.task.id, exec_id, error = %model::render(&error), "a shim was asked in vain how a process ends");
                self.reconnect_later();
            }
        }
    }

    fn process_ended(&mut self, exec_id: &str, exit: Exit) {
        // The record is the shim's last word; its answer must say the same.
        if let Some(recorded) = self.recorded(exec_id)
            && recorded.exit_status != exit.exit_status
        {
            tracing::warn!(
                id = self.task.id,
                exec_id,
                record = recorded.exit_status,
                answer = exit.exit_status,
                "a shim contradicts its exit record"
            );
        }
        if exec_id.is_empty() {
            self.init_known(exit);
        } else {
            self.exec_ended(exec_id, exit);
            self.publish_init_exit(false);
        }
    }

    /// Init's end is known. It is published once nothing has to come before it.
    pub(crate) fn init_known(&mut self, exit: Exit) {
        self.init_overdue = None;
        if self.init_exit.is_none() && self.task.state().init.status != Status::Stopped {
            self.init_exit = Some(exit);
            self.init_exit_due = Some(Instant::now() + self.context.config.timeouts.exit);
            if exit.exit_status == KILLED && self.task.keeper.is_some() && !self.exit_heard && self.shim.is_some() {
                // A foreign shim that learned why tells it before it tells the exit.
                self.init_exit_due = Some(Instant::now() + CAUSE);
                return;
            }
            self.publish_init_exit(false);
        }
    }

    /// Publishes init's end if it is known and, unless `now`, nothing has to come before it.
    pub(crate) fn publish_init_exit(&mut self, now: bool) {
        let Some(exit) = self.init_exit else { return };
        if self.starting.contains("") {
            return;
        }
        if !now && (!self.starting.is_empty() || self.task.state().execs.values().any(|exec| exec.lives())) {
            return;
        }
        self.init_exit = None;
        self.init_exit_due = None;
        let exit = Exit { pid: self.task.state().init.pid, ..exit };
        self.keep_exit("", exit);
        point(crash::EXIT_KNOWN);
        // Clients take an OOM event for the cause of the exit that follows it.
        self.tell_of_memory(records::oom_kills(&self.task.bundle, self.context.boot_id));
        self.memory = None;
        let event = self.publish(Report::Exit { exec_id: String::new(), exit });
        point(crash::EXIT_TOLD);
        self.change(|state| {
            state.exit_event = Some(event);
            state.init.stop(exit);
        });
    }

    /// There may be less memory than the container wanted. What happens before its start, or to one that has ended, is
    /// told with its end.
    pub(crate) fn look_at_memory(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        match memory.kills(self.told_of_memory) {
            Some(kills) if self.task.state().init.lives() => self.tell_of_memory(kills),
            Some(_) => {}
            None => self.memory = None,
        }
    }

    fn tell_of_memory(&mut self, kills: u64) {
        if self.told_of_memory.note(&self.task.bundle, kills) {
            self.publish(Report::Oom);
        }
    }

    /// Publishes the end of an additional process, unless it was or the process never ran.
    pub(crate) fn exec_ended(&mut self, exec_id: &str, exit: Exit) {
        let Some(pid) = self.task.state().execs.get(exec_id).filter(|exec| exec.lives()).map(|exec| exec.pid) else {
            return;
        };
        let exit = Exit { pid, ..exit };
        self.keep_exit(exec_id, exit);
        point(crash::EXEC_EXIT_KNOWN);
        self.publish(Report::Exit { exec_id: exec_id.to_owned(), exit });
        point(crash::EXEC_EXIT_TOLD);
        self.change(|state| {
            if let Some(exec) = state.execs.get_mut(exec_id) {
                exec.stop(exit);
            }
        });
    }

    fn recorded(&self, exec_id: &str) -> Option<Exit> {
        records::exit(&self.task.bundle, exec_id, self.context.boot_id)
    }

    /// Init has ended and its shim has not said how: the shim is frozen or slow. The exit record or the zombie tells.
    pub(crate) fn ask_the_kernel(&mut self) {
        let known = self.init_exit.is_some() || self.task.state().init.status == Status::Stopped;
        if known {
            return;
        }
        let pid = self.task.state().init.pid;
        let zombie = sys::process::zombie_exit(pid).ok().flatten().map(|exit| unseen(exit.status()));
        let known = self.recorded("").or(zombie);
        if known.is_none() && self.task.keeper.is_some() && self.shim.is_some() {
            // A foreign shim has reaped it and keeps no record: it alone knows, and may wait for other processes.
            return;
        }
        let exit = known.unwrap_or_else(|| unseen(UNKNOWN));
        tracing::warn!(
            id = self.task.id,
            pid,
            status = exit.exit_status,
            "a container has ended and its shim is silent"
        );
        self.init_known(exit);
    }

    /// After the shim's death: ends what is left of the container, tells the ends, and removes the leftovers. The task
    /// stays, stopped, until a client deletes it.
    pub(crate) async fn bury(&mut self) {
        self.task.shim.close();
        self.disarm();
        self.catch_up(Answered::All);
        let init_recorded = self.recorded("");
        if init_recorded.is_none()
            && let Some(init) = &self.task.init
            && let Err(error) = init.signal(9)
        {
            tracing::warn!(id = self.task.id, error = %model::render(&error), "cannot kill a container");
        }
        point(crash::BURIAL_BEGUN);
        let (task, context) = (Arc::clone(&self.task), Arc::clone(&self.context));
        let told = launch::delete(&context.config, &task.namespace, &task.id, &task.program, &task.bundle).await;
        let told = told.unwrap_or_else(|error| {
            self.left_over(&error);
            None
        });
        let cleaned = tokio::task::spawn_blocking(move || {
            if task.shim.by_start() {
                launch::remove_stale(task.shim.endpoint());
            }
            context.layout.remove_socket(&task.namespace, &task.id)
        });
        if let Ok(Err(error)) = cleaned.await {
            self.left_over(&error);
        }
        point(crash::BURIAL_CLEANED);
        let living: Vec<String> =
            self.task.state().execs.iter().filter(|(_, exec)| exec.lives()).map(|(id, _)| id.clone()).collect();
        for exec_id in living {
            let exit = self.recorded(&exec_id).unwrap_or_else(|| self.killed(&exec_id));
            self.exec_ended(&exec_id, exit);
        }
        if self.init_exit.is_none() && self.task.state().init.status != Status::Stopped {
            let told = told.filter(|exit| exit.exit_status != KILLED);
            let exit = init_recorded.or(told).unwrap_or_else(|| self.killed(""));
            self.init_known(exit);
        }
    }

    fn left_over(&self, error: &Error) {
        tracing::warn!(id = self.task.id, error = %model::render(error), "the leftovers of a dead shim could not be removed");
    }

    /// A killed process, recorded for the next daemon.
    fn killed(&self, exec_id: &str) -> Exit {
        let pid = self.task.state().process(exec_id).map_or(0, |process| process.pid);
        let exit = Exit { pid, ..unseen(KILLED) };
        if exec_id.is_empty() {
            records::note_shim_lost(&self.task.bundle);
        }
        if let Err(error) = records::write_exit(&self.task.bundle, exec_id, self.context.boot_id, exit) {
            tracing::warn!(id = self.task.id, exec_id, error = %model::render(&error), "an exit cannot be recorded");
        }
        exit
    }

    /// Before the task goes: every end that is not told yet. Returns init's.
    pub(crate) fn last_exits(&mut self, exit: Exit) -> Exit {
        let living: Vec<String> =
            self.task.state().execs.iter().filter(|(_, exec)| exec.lives()).map(|(id, _)| id.clone()).collect();
        for exec_id in living {
            let end = self.recorded(&exec_id).unwrap_or_else(|| unseen(KILLED));
            self.exec_ended(&exec_id, end);
        }
        if self.task.state().init.status != Status::Stopped {
            self.init_exit.get_or_insert(exit);
            self.publish_init_exit(true);
        }
        self.task.state().init.exit().unwrap_or(exit)
    }
}

/// An end that we learned of just now.
fn unseen(exit_status: u32) -> Exit {
    Exit { pid: 0, exit_status, exited_at: Timestamp::now() }
}
