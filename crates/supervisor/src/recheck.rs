//! Requests of a dead daemon that its shims carry out all the same: their outcome stands in the records only.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use model::record::Status;
use tokio::time::Instant;

use crate::Error;
use crate::actor::Actor;
use crate::catch_up::catch_up;
use crate::records::{self, Found};

/// First and longest pause between two looks at the records.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long a shim may need to read what a dead daemon has sent.
const LINGER: Duration = Duration::from_secs(2);

/// When the records of an adopted task are read again.
#[derive(Debug)]
pub(crate) struct Recheck {
    pub(crate) at: Instant,
    pause: Duration,
    since: Instant,
}

/// Which requests of ours cannot change what the records say any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answered<'a> {
    /// Those that are not under way.
    None,
    /// One for this process, too: it has just been answered.
    One(&'a str),
    /// All: the shim is dead.
    All,
}

impl Recheck {
    pub(crate) fn begin() -> Self {
        let since = Instant::now();
        Self { at: since + PAUSE.0, pause: PAUSE.0, since }
    }
}

pub(crate) fn recheck_due(recheck: Option<&Recheck>, now: Instant) -> bool {
    recheck.is_some_and(|recheck| recheck.at <= now)
}

impl Actor {
    /// Looks at the records of an adopted task, and decides when to look again: while a process may be being started.
    pub(crate) fn recheck(&mut self) {
        let Some(Recheck { pause, since, .. }) = self.recheck.take() else { return };
        self.catch_up(Answered::None);
        let state = self.task.state();
        let waiting = std::iter::once(&state.init).chain(state.execs.values());
        let starting = waiting.filter(|process| process.status == Status::Created).count() > 0;
        let limit = if starting { self.context.config.timeouts.create } else { LINGER };
        if self.shim.is_some() && since.elapsed() < limit {
            let pause = (pause * 2).min(PAUSE.1);
            self.recheck = Some(Recheck { at: Instant::now() + pause, pause, since });
        }
    }

    /// Tells what the records say beyond what is told, but for processes that a request of ours is under way for.
    pub(crate) fn catch_up(&mut self, answered: Answered<'_>) {
        let Found::Task(records) = records::read(&self.task.bundle, self.context.boot_id) else { return };
        let busy: HashSet<&str> = match answered {
            Answered::None => self.lanes.keys().map(String::as_str).collect(),
            Answered::One(mine) => self.lanes.keys().map(String::as_str).filter(|lane| *lane != mine).collect(),
            Answered::All => HashSet::new(),
        };
        let (task, context) = (&self.task, &self.context);
        let started = catch_up(
            &mut task.state(),
            (&task.bundle, context.boot_id),
            &records,
            |exec_id| busy.contains(exec_id),
            |_| false,
            |report| context.publish(&task.namespace, &task.id, report),
        );
        for exec_id in started {
            self.arm(exec_id);
        }
    }

    /// Asks the shim where processes stand: a record that could not be written is known to it alone.
    pub(crate) fn ask_where(&mut self, exec_ids: Vec<String>) {
        let task = Arc::clone(&self.task);
        self.run_beside(async move {
            let mut processes = Vec::new();
            for exec_id in exec_ids {
                if let Ok((status, pid)) = task.shim.state(exec_id.clone()).await {
                    processes.push((exec_id, status, pid));
                }
            }
            processes
        });
    }

    /// Tells what the shim knows beyond what is told.
    pub(crate) fn described(&mut self, processes: Vec<(String, Status, u32)>) {
        self.catch_up(Answered::None);
        for (exec_id, status, pid) in processes.into_iter().filter(|(.., pid)| *pid != 0) {
            let started = matches!(status, Status::Running | Status::Paused | Status::Pausing)
                || (status == Status::Stopped && !exec_id.is_empty());
            if !started || self.lanes.contains_key(&exec_id) || !self.is_created(&exec_id) {
                continue;
            }
            self.has_started(&exec_id, pid);
        }
    }

    pub(crate) fn is_created(&self, exec_id: &str) -> bool {
        self.task.state().process(exec_id).is_some_and(|process| process.status == Status::Created)
    }

    /// The outcome of a start. A shim that refuses because the process runs has obeyed the last daemon: the start has
    /// succeeded.
    pub(crate) fn perhaps_started(&mut self, exec_id: &str, result: Result<u32, Error>) -> Result<u32, Error> {
        if !matches!(result, Err(Error::Shim { .. })) || !self.is_created(exec_id) {
            return result;
        }
        self.catch_up(Answered::One(exec_id));
        let state = self.task.state();
        match state.process(exec_id) {
            Some(process) if process.status != Status::Created => Ok(process.pid),
            _ => result,
        }
    }

    /// Before an additional process is deleted with its records, its end is told. False if it has not ended.
    pub(crate) fn told_before_delete(&mut self, exec_id: &str) -> bool {
        let lives = self.task.state().execs.get(exec_id).is_some_and(|exec| exec.lives());
        if !lives {
            return true;
        }
        let exit = records::exit(&self.task.bundle, exec_id, self.context.boot_id);
        if let Some(exit) = exit {
            self.exec_ended(exec_id, exit);
            self.publish_init_exit(false);
        }
        exit.is_some()
    }

    /// Init of an adopted task has ended and its end is not told, because another process lives.
    pub(crate) fn outlived_init(&mut self) {
        if self.task.state().init.status != Status::Stopped
            && let Some(exit) = records::exit(&self.task.bundle, "", self.context.boot_id)
        {
            self.init_known(exit);
        }
    }
}
