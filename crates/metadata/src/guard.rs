//! What requests in flight refer to.
//!
//! A request may refer to something that no record mentions yet: the blob whose bytes it has just written, the active
//! snapshot that it is committing. It holds a [`Guard`] meanwhile.
//!
//! ```text
//! request:    hold ──▶ look at bytes and records ──▶ write record ──▶ release
//! collector:  held? skip it and come again : mark busy ──▶ unreferenced? ──▶ remove bytes ──▶ clear
//! ```
//!
//! **Invariant:** nothing is removed while it is held, and nobody begins to hold it while it is being removed. Waiting
//! lasts for one removal of the same thing; the lock itself is held for neither input nor output.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::gc::Control;

/// Something that can be held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// The bytes and all records of a blob.
    Blob(String),
    /// An ingest, by its key in the blob store.
    Ingest(String),
    /// A snapshot's record: namespace, snapshotter, key.
    Snapshot(String, String, String),
}

#[derive(Debug)]
pub(crate) struct Guards {
    state: Mutex<State>,
    idle: Condvar,
    gc: Arc<Control>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Held, Holders>,
    busy: HashSet<Held>,
}

#[derive(Debug, Default)]
struct Holders {
    count: usize,
    /// The collector has been here.
    wanted: bool,
}

impl Guards {
    pub(crate) fn new(gc: Arc<Control>) -> Self {
        Self { state: Mutex::default(), idle: Condvar::new(), gc }
    }

    /// Holds something until the guard is dropped. Waits while it is being removed.
    pub(crate) fn hold(self: &Arc<Self>, what: Held) -> Guard {
        let mut state = self.state();
        while state.busy.contains(&what) {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held.entry(what.clone()).or_default().count += 1;
        Guard { guards: Arc::clone(self), what }
    }

    /// Removes something by `remove`, unless it is held; nobody can hold it meanwhile.
    pub(crate) fn remove<T>(&self, what: &Held, remove: impl FnOnce() -> T) -> Option<T> {
        {
            let mut state = self.state();
            if let Some(holders) = state.held.get_mut(what) {
                holders.wanted = true;
                return None;
            }
            state.busy.insert(what.clone());
        }
        let removed = remove();
        self.state().busy.remove(what);
        self.idle.notify_all();
        Some(removed)
    }

    /// Everything that is held: roots of a collection.
    pub(crate) fn held(&self) -> HashSet<Held> {
        let mut state = self.state();
        state
            .held
            .iter_mut()
            .map(|(what, holders)| {
                holders.wanted = true;
                what.clone()
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps something from being collected. The collector is told when it would have liked to have it.
#[derive(Debug)]
#[must_use = "dropping it lets go"]
pub(crate) struct Guard {
    guards: Arc<Guards>,
    what: Held,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.guards.state();
        let Some(holders) = state.held.get_mut(&self.what) else { return };
        holders.count -= 1;
        if holders.count == 0 {
            let wanted = holders.wanted;
            state.held.remove(&self.what);
            drop(state);
            if wanted {
                self.guards.gc.mark_dirty();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guards() -> (Arc<Guards>, Arc<Control>) {
        let gc = Arc::new(Control::new());
        // The run that is due at the start.
        gc.begin();
        (Arc::new(Guards::new(Arc::clone(&gc))), gc)
    }

    #[test]
    fn held_things_are_not_removed_and_the_collector_comes_again() {
        let (guards, gc) = guards();
        let what = Held::Blob("sha256:x".into());
        let first = guards.hold(what.clone());
        let second = guards.hold(what.clone());
        assert_eq!(guards.remove(&what, || 1), None);
        drop(first);
        assert_eq!(guards.remove(&what, || 1), None);
        assert!(!gc.is_dirty());
        drop(second);
        assert!(gc.is_dirty());
        assert_eq!(guards.remove(&what, || 1), Some(1));
        assert!(guards.held().is_empty());
    }

    #[test]
    fn holding_waits_for_a_removal() {
        let (guards, _gc) = guards();
        let what = Held::Ingest("a/1/b".into());
        let (entered, wait_entered) = std::sync::mpsc::channel();
        let (go, wait_go) = std::sync::mpsc::channel::<()>();
        let remover = {
            let (guards, what) = (Arc::clone(&guards), what.clone());
            std::thread::spawn(move || {
                guards.remove(&what, || {
                    entered.send(()).unwrap();
                    wait_go.recv().unwrap();
                })
            })
        };
        wait_entered.recv().unwrap();
        let holder = {
            let (guards, what) = (Arc::clone(&guards), what.clone());
            std::thread::spawn(move || drop(guards.hold(what)))
        };
        // Another thing is free meanwhile.
        drop(guards.hold(Held::Ingest("other".into())));
        go.send(()).unwrap();
        assert_eq!(remover.join().unwrap(), Some(()));
        holder.join().unwrap();
    }
}
