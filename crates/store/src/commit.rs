//! Group commit: callers run their transactions one after the other in memory, and one of them writes for all.
//!
//! ```text
//!  caller ── closure under the lock ──▶ pending group ──▶ in flight: the caller that finds nobody writing leads it
//!                                            ▲              apply to sled · one fdatasync · publish to readers
//!                       others join meanwhile┘              acknowledge everybody of the group ──▶ next leader
//! ```
//!
//! A lone caller does it all on its own thread. **Invariant:** groups are applied in order, a transaction sees all
//! groups before it, and no caller hears of success before its group is as durable as it asked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};

use crate::engine::{Engine, Found};
use crate::mvcc::{Changes, Versions};
use crate::view::{Transaction, View};
use crate::{Durability, Error, Inner, WriteError, record};

/// An opening of the database and the versions that readers of it see.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) engine: Arc<Engine>,
    pub(crate) versions: Arc<Versions>,
}

/// How a group ended, for all its callers.
type Outcome = Arc<OnceLock<Result<(), Error>>>;

/// Transactions that are written together.
#[derive(Debug, Default)]
struct Group {
    changes: Arc<Changes>,
    log_bytes: u64,
    on_disk: bool,
    outcome: Outcome,
}

/// What the lock of the committer guards.
#[derive(Debug)]
pub(crate) struct Commit {
    /// The database, or why it refuses to work.
    opening: Result<Opening, Error>,
    pending: Group,
    in_flight: Option<Arc<Group>>,
    groups: u64,
}

impl Commit {
    pub(crate) fn new(opening: Opening) -> Self {
        Self { opening: Ok(opening), pending: Group::default(), in_flight: None, groups: 0 }
    }

    /// Changes of groups that readers do not see yet, newest first.
    fn layers(&self) -> impl Iterator<Item = Arc<Changes>> {
        let in_flight = self.in_flight.as_ref().map(|group| &group.changes);
        [Some(&self.pending.changes), in_flight].into_iter().flatten().filter(|changes| !changes.is_empty()).cloned()
    }

    /// The newest group that somebody may have seen but that is not written yet.
    fn newest_outcome(&self) -> Option<Outcome> {
        if self.pending.changes.is_empty() {
            self.in_flight.as_ref().map(|group| group.outcome.clone())
        } else {
            Some(self.pending.outcome.clone())
        }
    }
}

impl Inner {
    fn commit(&self) -> MutexGuard<'_, Commit> {
        // A panic in a caller's closure leaves nothing half done here: its changes are merged only when it returns.
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn opening(&self) -> Result<Opening, Error> {
        self.opening.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_opening(&self, commit: &mut Commit, opening: Result<Opening, Error>) {
        commit.opening = opening.clone();
        *self.opening.write().unwrap_or_else(PoisonError::into_inner) = opening;
    }

    pub(crate) fn write<T, E>(
        &self,
        durability: Durability,
        f: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, WriteError<E>> {
        let mut commit = self.commit();
        let opening = commit.opening.clone()?;
        let engine = opening.engine.clone();
        let layers = std::iter::once(Arc::default()).chain(commit.layers()).collect();
        let mut transaction = Transaction::new(View::new(Ok(opening), layers), engine.limits);
        let answer = f(&mut transaction).map_err(WriteError::Refused)?;
        let changes = transaction.changes();
        if changes.is_empty() {
            // It changed nothing, but its answer may rest on transactions that are still to be written.
            drop(transaction);
            return match commit.newest_outcome() {
                Some(outcome) => Ok(self.wait(commit, &outcome).map(|()| answer)?),
                None => Ok(answer),
            };
        }
        let log_bytes = commit.pending.log_bytes + transaction.log_bytes() as u64;
        engine.space.admit(log_bytes, || transaction.deletes())?;
        drop(transaction);
        drop(engine);
        let group = &mut commit.pending;
        group.log_bytes = log_bytes;
        group.on_disk |= durability == Durability::OnDisk;
        let merged = Arc::make_mut(&mut group.changes);
        merged.extend(Arc::unwrap_or_clone(changes));
        let outcome = group.outcome.clone();
        Ok(self.wait(commit, &outcome).map(|()| answer)?)
    }

    /// Waits for a group, and leads whatever is pending when nobody else does.
    fn wait<'a>(&'a self, mut commit: MutexGuard<'a, Commit>, outcome: &Outcome) -> Result<(), Error> {
        loop {
            if let Some(result) = outcome.get() {
                return result.clone();
            }
            if commit.in_flight.is_some() {
                commit = self.finished.wait(commit).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let opening = commit.opening.clone()?;
            commit.groups += 1;
            let number = commit.groups;
            let group = Arc::new(std::mem::take(&mut commit.pending));
            commit.in_flight = Some(group.clone());
            drop(commit);
            let result = catch_unwind(AssertUnwindSafe(|| commit_group(&opening, number, &group)));
            let result = result.unwrap_or_else(|_| Err(opening.engine.damaged("the committer panicked")));
            drop(opening);
            commit = self.commit();
            commit.in_flight = None;
            match result {
                Ok(()) => drop(group.outcome.set(Ok(()))),
                Err(error) => self.fail(&mut commit, &group, error),
            }
            self.finished.notify_all();
        }
    }

    /// Fails a group and everything that was built on it, and refuses further work until the database is opened again.
    fn fail(&self, commit: &mut Commit, group: &Group, error: Error) {
        let full = error.is_no_space();
        let error = if full { Error::NoSpace { dir: self.dir.clone() } } else { error };
        let poisoned = Error::Poisoned { dir: self.dir.clone(), reason: crate::error::chain(&error) };
        drop(group.outcome.set(Err(error.clone())));
        let pending = std::mem::take(&mut commit.pending);
        drop(pending.outcome.set(Err(error)));
        self.set_opening(commit, Err(poisoned));
        if full {
            crate::space::release_reserve(&self.dir);
            // If this fails too, the callers see why, and `reopen` remains.
            let _ = self.reopen_locked(commit);
        }
    }

    pub(crate) fn reopen(&self) -> Result<(), Error> {
        let mut commit = self.commit();
        while commit.in_flight.is_some() {
            commit = self.finished.wait(commit).unwrap_or_else(PoisonError::into_inner);
        }
        match &commit.opening {
            Ok(_) => Ok(()),
            Err(_) => self.reopen_locked(&mut commit),
        }
    }

    fn reopen_locked(&self, commit: &mut Commit) -> Result<(), Error> {
        // Pages that a failed sync left in the page cache may not be on disk; what is read back must be.
        crate::engine::forget_cached(&self.dir);
        let engine = Arc::new(Engine::open(&self.dir, &self.options)?);
        self.set_opening(commit, Ok(Opening { engine, versions: Arc::default() }));
        commit.groups = 0;
        Ok(())
    }
}

/// Writes one group and shows it to readers.
fn commit_group(opening: &Opening, number: u64, group: &Group) -> Result<(), Error> {
    let Opening { engine, versions } = opening;
    let mut old = Changes::new();
    let mut batch = sled::Batch::default();
    for (key, new) in group.changes.iter() {
        let Found::Value(before) = engine.find(key)? else {
            return Err(engine.damaged("a part of a value is missing"));
        };
        if before != *new {
            record::replace(&mut batch, engine.limits, key, before.as_ref(), new.as_ref());
            old.insert(key.clone(), before);
        }
    }
    if !old.is_empty() {
        versions.replacing(number, Arc::new(old));
        engine.apply(batch)?;
    }
    if group.on_disk {
        engine.sync()?;
    }
    versions.publish(number);
    Ok(())
}
