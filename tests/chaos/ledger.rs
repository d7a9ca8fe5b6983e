//! What was asked for and answered: the checker holds the events against it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One process that was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// How it ends if it is let.
    pub(crate) code: u32,
    /// Its creation was answered.
    pub(crate) created: bool,
    /// Its start was answered.
    pub(crate) started: bool,
}

/// One container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) init: Asked,
    pub(crate) execs: BTreeMap<String, Asked>,
    /// Pauses and resumptions that were answered.
    pub(crate) paused: u64,
    pub(crate) resumed: u64,
}

/// Everything that was asked for, by container.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    records: Mutex<BTreeMap<String, Record>>,
    /// Containers whose shim was killed: they may end by a signal instead of what they were told to.
    shims_killed: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Changes the record of a container.
    pub(crate) fn note(&self, id: &str, change: impl FnOnce(&mut Record)) {
        change(lock(&self.records).entry(id.to_owned()).or_default());
    }

    /// Changes the record of an additional process.
    pub(crate) fn note_exec(&self, id: &str, exec_id: &str, change: impl FnOnce(&mut Asked)) {
        self.note(id, |record| change(record.execs.entry(exec_id.to_owned()).or_default()));
    }

    /// Something that must not happen.
    pub(crate) fn complain(&self, text: String) {
        println!("    WRONG {text}");
        lock(&self.wrong).push(text);
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        lock(&self.wrong).clone()
    }

    pub(crate) fn shim_killed(&self, id: &str) {
        lock(&self.shims_killed).insert(id.to_owned());
    }

    pub(crate) fn is_excused(&self, id: &str) -> bool {
        lock(&self.shims_killed).contains(id)
    }

    pub(crate) fn records(&self) -> BTreeMap<String, Record> {
        lock(&self.records).clone()
    }
}
