//! What readers see: the state after the last acknowledged group of transactions, for as long as they look.
//!
//! sled's tree has only the newest state. Before a group is applied to it, the values that the group replaces are kept
//! here; a reader that began before looks here first. **Invariant:** for every key that differs between a registered
//! version and the tree, the oldest entry here that is newer than the version has its value.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Key, Value};

/// Keys and what they are set to; `None` is "removed" or "was not there".
pub(crate) type Changes = BTreeMap<Key, Option<Value>>;

#[derive(Debug, Default)]
struct State {
    visible: u64,
    /// How many readers look at a version.
    readers: BTreeMap<u64, usize>,
    /// What each group replaced, oldest first.
    replaced: Vec<(u64, Arc<Changes>)>,
}

/// The versions of one opening of the database.
#[derive(Debug, Default)]
pub(crate) struct Versions(RwLock<State>);

impl Versions {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a reader of the newest visible version.
    pub(crate) fn enter(&self) -> u64 {
        let mut state = self.state_mut();
        let version = state.visible;
        *state.readers.entry(version).or_default() += 1;
        version
    }

    /// Ends what `enter` began.
    pub(crate) fn leave(&self, version: u64) {
        let mut state = self.state_mut();
        if let Some(readers) = state.readers.get_mut(&version) {
            *readers -= 1;
            if *readers == 0 {
                state.readers.remove(&version);
            }
        }
        state.prune();
    }

    /// Notes what `group` replaces; to be called before it is applied.
    pub(crate) fn replacing(&self, group: u64, old: Arc<Changes>) {
        self.state_mut().replaced.push((group, old));
    }

    /// Lets readers see `group`.
    pub(crate) fn publish(&self, group: u64) {
        let mut state = self.state_mut();
        state.visible = group;
        state.prune();
    }

    /// The value of `key` at `version`, if a newer group replaced it.
    pub(crate) fn replaced(&self, version: u64, key: &[u8]) -> Option<Option<Value>> {
        self.state().newer(version).find_map(|old| old.get(key).cloned())
    }

    /// The first key after `cursor` that a group newer than `version` replaced.
    pub(crate) fn next_replaced(&self, version: u64, cursor: Bound<&[u8]>) -> Option<Key> {
        self.state().newer(version).filter_map(|old| next_key(old, cursor)).min().cloned()
    }
}

impl State {
    fn newer(&self, version: u64) -> impl Iterator<Item = &Changes> {
        self.replaced.iter().filter(move |(group, _)| *group > version).map(|(_, old)| &**old)
    }

    fn prune(&mut self) {
        let oldest = self.readers.keys().next().copied().unwrap_or(self.visible).min(self.visible);
        self.replaced.retain(|(group, _)| *group > oldest);
    }
}

/// The first key of `changes` after `cursor`.
pub(crate) fn next_key<'a>(changes: &'a Changes, cursor: Bound<&[u8]>) -> Option<&'a Key> {
    changes.range::<[u8], _>((cursor, Bound::Unbounded)).next().map(|(key, _)| key)
}
