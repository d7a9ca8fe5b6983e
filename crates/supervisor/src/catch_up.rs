//! From what was told to what is: a daemon died between a change and its event, or while a shim carried out a request.
//!
//! The state of an adopted task begins as what the journal has told of it; then what the records say beyond that is
//! told, in the order of a task's life, and the state follows. The same is done again while requests of the dead daemon
//! may still be under way at the shim.
//!
//! **Invariant:** an event that the journal holds is not told again; one that it may have forgotten, because it is older
//! than the oldest event, counts as told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use events::Entry;
use model::Timestamp;
use model::record::{ProcessRecord, Status};

use crate::published::{Published, Told, ToldExec};
use crate::records::{self, Records};
use crate::report::Report;
use crate::task::{Exit, Process, State};

/// The state of a task as far as it was told.
pub(crate) fn told_state(bundle: &Path, records: &Records, told: &Told, published: &Published) -> State {
    let task = &records.task;
    let remembered = published.covers(records::modified(&bundle.join("config.json")));
    let status = match (remembered, task.status) {
        // Its beginning is forgotten, so it was told.
        (false, status @ (Status::Created | Status::Running | Status::Paused)) => status,
        (false, Status::Pausing) => Status::Running,
        (false, Status::Stopped) if task.started => Status::Running,
        (false, Status::Stopped) => Status::Created,
        (true, _) if told.paused => Status::Paused,
        (true, _) if told.started => Status::Running,
        (true, _) => Status::Created,
    };
    let mut execs = BTreeMap::new();
    for record in &records.execs {
        let told = told.execs.get(&record.exec_id).filter(|told| is_same(told, record, bundle)).cloned();
        let recent = published.covers(records::exec_modified(bundle, &record.exec_id));
        let Some(told) = told.or_else(|| (!recent).then(|| ToldExec { started: pid(record), exit: None })) else {
            continue;
        };
        let status = if told.started.is_some() { Status::Running } else { Status::Created };
        let mut process = Process::new(told.started.unwrap_or(0), status, record.stdio.clone());
        if let Some(exit) = told.exit {
            process.stop(exit);
        }
        execs.insert(record.exec_id.clone(), process);
    }
    State { init: Process::new(task.init.pid, status, task.stdio.clone()), execs, exit_event: None }
}

fn pid(record: &ProcessRecord) -> Option<u32> {
    record.process.map(|process| process.pid)
}

/// Whether what was told is about the process of the record, not about an earlier one of the same name.
fn is_same(told: &ToldExec, record: &ProcessRecord, bundle: &Path) -> bool {
    match (told.started, pid(record)) {
        (Some(told), Some(recorded)) => told == recorded,
        // A shim without room cannot write that it has started a process; then the record is older than its end.
        (Some(_), None) => told.exit.is_none_or(|exit| !is_younger(bundle, &record.exec_id, exit)),
        (None, _) => told.exit.is_none(),
    }
}

/// Whether a record was written after a process of its name had ended.
fn is_younger(bundle: &Path, exec_id: &str, exit: Exit) -> bool {
    records::exec_modified(bundle, exec_id) > exit.exited_at
}

/// Tells what the records say beyond `state`, but for init's end, and lets the state follow. `leave` names processes
/// that a request is under way for, `forgotten` tells whether the journal may have forgotten events of a time. Returns the additional processes that are known to run only now.
pub(crate) fn catch_up(
    state: &mut State,
    (bundle, boot_id): (&Path, &str),
    records: &Records,
    leave: impl Fn(&str) -> bool,
    forgotten: impl Fn(Timestamp) -> bool,
    mut publish: impl FnMut(Report) -> Arc<Entry>,
) -> Vec<String> {
    let task = &records.task;
    if !leave("") && state.init.status != Status::Stopped {
        let started = task.started || matches!(task.status, Status::Running | Status::Paused | Status::Pausing);
        if started && state.init.status == Status::Created {
            publish(Report::Start { pid: task.init.pid });
            state.init.status = Status::Running;
        }
        match (state.init.status, task.status) {
            (Status::Running, Status::Paused) => {
                publish(Report::Paused);
                state.init.status = Status::Paused;
            }
            (Status::Paused, Status::Running) => {
                publish(Report::Resumed);
                state.init.status = Status::Running;
            }
            _ => {}
        }
    }
    let mut started = Vec::new();
    for record in records.execs.iter().filter(|record| !leave(&record.exec_id)) {
        let exec_id = &record.exec_id;
        let known = state.execs.get(exec_id);
        // A stopped process with another pid, or without one, was deleted and its name taken again.
        let stale = known.is_some_and(|known| match (known.exit(), pid(record)) {
            (Some(exit), None) => known.status == Status::Stopped && is_younger(bundle, exec_id, exit),
            (_, recorded) => known.status == Status::Stopped && recorded != Some(known.pid),
        });
        if known.is_none() || stale {
            publish(Report::ExecAdded { exec_id: exec_id.clone() });
            let process = Process::new(0, Status::Created, record.stdio.clone());
            state.execs.insert(exec_id.clone(), process);
        }
        let Some(process) = state.execs.get_mut(exec_id) else { continue };
        if let (Status::Created, Some(pid)) = (process.status, pid(record)) {
            publish(Report::ExecStarted { exec_id: exec_id.clone(), pid });
            process.run(pid);
            started.push(exec_id.clone());
        }
        if let Some(exit) = records::exit(bundle, exec_id, boot_id)
            && process.lives()
        {
            if !forgotten(exit.exited_at) {
                publish(Report::Exit { exec_id: exec_id.clone(), exit });
            }
            process.stop(exit);
        }
    }
    started.retain(|exec_id| state.execs.get(exec_id).is_some_and(Process::lives));
    started
}
