//! What the collector has been asked to do.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::Digest;

/// Deletions come in groups; a run waits this long for the rest of one.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Entries of published events stay in the outbox this long for a transaction to take them along.
const OUTBOX_IDLE: Duration = Duration::from_secs(1);
/// Runs take at most one part in so many of the time.
const SHARE: u32 = 20;
/// Snapshots whose directories are still to be removed; beyond it, orphans are looked for instead.
const REMOVALS_MAX: usize = 4096;

/// What is to be done next, and by when.
#[derive(Debug)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    dirty_since: Option<Instant>,
    outbox_since: Option<Instant>,
    outbox_urgent: bool,
    not_before: Option<Instant>,
    work: Work,
    stop: bool,
}

/// Bytes and directories whose records are gone.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Snapshotter and id.
    pub(crate) snapshots: Vec<(String, u64)>,
    pub(crate) blobs: HashSet<Digest>,
    /// By their keys in the blob store.
    pub(crate) ingests: HashSet<String>,
    /// Look at everything that is there: what is to be removed is not known one by one.
    pub(crate) orphans: bool,
}

impl Work {
    /// Adds what another has left to do.
    pub(crate) fn merge(&mut self, other: Self) {
        self.snapshots.extend(other.snapshots);
        self.blobs.extend(other.blobs);
        self.ingests.extend(other.ingests);
        self.orphans |= other.orphans;
    }
}

/// What the worker is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Collect garbage.
    Collect,
    /// Remove directories of removed snapshots.
    RemoveSnapshots,
    /// Publish late events, remove entries of published ones.
    SettleOutbox,
    /// End.
    Stop,
}

impl Control {
    /// A run is due, because nobody knows what an earlier process left behind.
    pub(crate) fn new() -> Self {
        let state = State {
            dirty_since: Some(Instant::now()),
            work: Work { orphans: true, ..Work::default() },
            ..State::default()
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Something was deleted, or is no longer held: there may be garbage.
    pub(crate) fn mark_dirty(&self) {
        self.change(|_| {});
    }

    /// A blob was deleted in one namespace, or something that referred to it, or its record could not be written.
    pub(crate) fn remove_blob(&self, digest: Digest) {
        self.change(|state| {
            state.work.blobs.insert(digest);
        });
    }

    /// The record of an ingest could not be written.
    pub(crate) fn remove_ingest(&self, key: String) {
        self.change(|state| {
            state.work.ingests.insert(key);
        });
    }

    /// Records were deleted in bulk.
    pub(crate) fn find_orphans(&self) {
        self.change(|state| state.work.orphans = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.dirty_since.get_or_insert_with(Instant::now);
        drop(state);
        self.changed.notify_all();
    }

    /// The record of a snapshot was removed: its directories go at once, without a collection.
    pub(crate) fn remove_snapshot(&self, snapshotter: &str, id: u64) {
        let mut state = self.state();
        if state.work.snapshots.len() < REMOVALS_MAX {
            state.work.snapshots.push((snapshotter.to_owned(), id));
        } else {
            state.work.orphans = true;
            state.dirty_since.get_or_insert_with(Instant::now);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A transaction has published events. `urgent`: one could not be published, or many entries are to be removed.
    pub(crate) fn outbox_changed(&self, urgent: bool) {
        let mut state = self.state();
        // Each transaction takes earlier entries along, so the idle time begins anew.
        state.outbox_since = Some(Instant::now());
        let wake = urgent && !state.outbox_urgent;
        state.outbox_urgent |= urgent;
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Takes what a collection is to remove, and begins a collection: what is deleted from now on makes another one
    /// due.
    pub(crate) fn begin(&self) -> Work {
        let mut state = self.state();
        state.dirty_since = None;
        std::mem::take(&mut state.work)
    }

    /// A collection that began at `started` has ended and left `work` undone. A failed one is repeated.
    pub(crate) fn end(&self, started: Instant, left: Work, failed: bool) {
        let took = started.elapsed();
        let mut state = self.state();
        state.work.merge(left);
        if failed {
            state.dirty_since.get_or_insert_with(Instant::now);
        }
        let pause = if failed { OUTBOX_IDLE.max(took * SHARE) } else { took * SHARE };
        state.not_before = Some(Instant::now() + pause);
    }

    /// Takes the snapshots whose directories are to be removed.
    pub(crate) fn take_snapshots(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.state().work.snapshots)
    }

    /// The outbox was looked at.
    pub(crate) fn outbox_settled(&self, leftovers: bool) {
        let mut state = self.state();
        state.outbox_urgent = false;
        state.outbox_since = leftovers.then(Instant::now);
    }

    /// Ends the worker.
    pub(crate) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do.
    pub(crate) fn wait(&self) -> Task {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let (task, due) = match state.next(now) {
                Ok(task) => return task,
                Err(due) => (state, due),
            };
            state = match due {
                None => self.changed.wait(task).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let wait = due.saturating_duration_since(now);
                    self.changed.wait_timeout(task, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    #[cfg(test)]
    pub(crate) fn is_dirty(&self) -> bool {
        self.state().dirty_since.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is due now, or when something will be.
    fn next(&self, now: Instant) -> Result<Task, Option<Instant>> {
        if self.stop {
            return Ok(Task::Stop);
        }
        if !self.work.snapshots.is_empty() {
            return Ok(Task::RemoveSnapshots);
        }
        let collect = self.dirty_since.map(|since| (since + DEBOUNCE).max(self.not_before.unwrap_or(since)));
        let outbox = self.outbox_since.map(|since| if self.outbox_urgent { now } else { since + OUTBOX_IDLE });
        match (collect, outbox) {
            (Some(collect), _) if collect <= now => Ok(Task::Collect),
            (_, Some(outbox)) if outbox <= now => Ok(Task::SettleOutbox),
            (Some(collect), Some(outbox)) => Err(Some(collect.min(outbox))),
            (due, None) | (None, due) => Err(due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> State {
        State::default()
    }

    #[test]
    fn what_is_due_when() {
        let now = Instant::now();
        let later = |ms: u64| now + Duration::from_millis(ms);
        assert_eq!(idle().next(now), Err(None));
        assert_eq!(State { stop: true, dirty_since: Some(now), ..idle() }.next(now), Ok(Task::Stop));

        let dirty = State { dirty_since: Some(now), ..idle() };
        assert_eq!(dirty.next(now), Err(Some(later(100))));
        assert_eq!(dirty.next(later(100)), Ok(Task::Collect));
        let busy = State { dirty_since: Some(now), not_before: Some(later(400)), ..idle() };
        assert_eq!(busy.next(later(100)), Err(Some(later(400))));

        let outbox = State { outbox_since: Some(now), ..idle() };
        assert_eq!(outbox.next(now), Err(Some(later(1000))));
        assert_eq!(outbox.next(later(1000)), Ok(Task::SettleOutbox));
        assert_eq!(State { outbox_since: Some(now), outbox_urgent: true, ..idle() }.next(now), Ok(Task::SettleOutbox));

        let snapshots = Work { snapshots: vec![("overlayfs".into(), 1)], ..Work::default() };
        assert_eq!(State { work: snapshots, ..idle() }.next(now), Ok(Task::RemoveSnapshots));
    }
}
