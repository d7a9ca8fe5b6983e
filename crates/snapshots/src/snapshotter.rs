use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Labels;
use store::View;

use crate::{Driver, Error, Kind, records};

/// A driver and its ids.
///
/// **Invariant:** an id is given out once in the life of this process, and never while a record or a directory holds
/// it. The directories of a [`Pending`] snapshot are not garbage.
pub struct Snapshotter {
    driver: Arc<dyn Driver>,
    next: AtomicU64,
    pending: Mutex<HashSet<u64>>,
}

impl fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshotter").field("driver", &self.driver.name()).finish_non_exhaustive()
    }
}

impl Snapshotter {
    /// Joins a driver to the records of it that a view of the store has.
    pub fn open(driver: Arc<dyn Driver>, view: &View) -> Result<Self, Error> {
        let recorded = records::live_ids(view, driver.name())?.into_iter().max().unwrap_or(0);
        let present = driver.ids()?.into_iter().max().unwrap_or(0);
        Ok(Self { driver, next: AtomicU64::new(recorded.max(present) + 1), pending: Mutex::default() })
    }

    /// The name in the API.
    pub fn name(&self) -> &str {
        self.driver.name()
    }

    /// The driver, for the calls that need no new id.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Makes the directories of a snapshot that has no record yet. `labels` may be all of the client's; the inherited
    /// ones are picked here. Blocks; a driver that copies blocks long: hold no lock.
    pub fn prepare(&self, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Pending<'_>, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id);
        // From here on the id is given back whatever happens, by the drop of `pending`.
        let pending = Pending { snapshotter: self, id, kept: false };
        self.driver.prepare(id, kind, parents, labels)?;
        Ok(pending)
    }

    /// Removes the directories that neither a record nor a pending snapshot holds, and returns how many there were. Also
    /// finishes removals that a crash cut short. May block long.
    ///
    /// `live` is called after the directories were listed and must read the records then ([`records::live_ids`]): a
    /// snapshot that was pending at the listing is seen by one of the two.
    pub fn collect(&self, live: impl FnOnce() -> Result<HashSet<u64>, Error>) -> Result<usize, Error> {
        self.driver.sweep()?;
        let mut ids = self.driver.ids()?;
        if ids.is_empty() {
            return Ok(0);
        }
        {
            let pending = self.lock();
            ids.retain(|id| !pending.contains(id));
        }
        let live = live()?;
        ids.retain(|id| !live.contains(id));
        for id in &ids {
            self.driver.remove(*id)?;
        }
        Ok(ids.len())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot whose directories exist and whose record does not, yet. Dropped without [`Pending::keep`], the
/// directories are removed again.
#[derive(Debug)]
#[must_use = "dropping it removes the directories"]
pub struct Pending<'a> {
    snapshotter: &'a Snapshotter,
    id: u64,
    kept: bool,
}

impl Pending<'_> {
    /// The id to record.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The record has been written: the directories are its own now.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is garbage for `Snapshotter::collect`; there is nobody to tell here.
            let _ = self.snapshotter.driver.remove(self.id);
        }
        self.snapshotter.lock().remove(&self.id);
    }
}
