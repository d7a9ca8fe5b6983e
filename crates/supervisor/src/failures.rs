//! What failed last, for those who ask why: a task that could not be created leaves nothing else.
//!
//! **Invariant:** at most [`KEPT`] failures are kept, the oldest goes first. They are a file each, so that the next daemon
//! knows them, and in memory, because a full disk is one of the causes.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::Timestamp;
use serde::{Deserialize, Serialize};

const KEPT: usize = 256;

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    namespace: String,
    id: String,
    pub(crate) operation: String,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
}

/// The last failures.
#[derive(Debug)]
pub(crate) struct Failures {
    directory: PathBuf,
    kept: Mutex<VecDeque<Failure>>,
}

impl Failures {
    /// Reads what an earlier daemon has left. Blocks.
    pub(crate) fn read(state: &Path) -> Self {
        let directory = state.join("io.gantry.failures");
        let mut kept: Vec<Failure> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
            .collect();
        kept.sort_by_key(|failure| failure.at);
        Self { directory, kept: Mutex::new(kept.into()) }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Failure>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No valid id has a comma.
    fn path(&self, namespace: &str, id: &str) -> PathBuf {
        self.directory.join(format!("{namespace},{id}"))
    }

    /// Keeps a failure. Writes a small file; one that cannot be written is known until the daemon ends.
    pub(crate) fn note(&self, namespace: &str, id: &str, operation: &str, message: String) {
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        let failure = Failure { namespace, id, operation: operation.to_owned(), message, at: Timestamp::now() };
        self.forget(&failure.namespace, &failure.id);
        if let Ok(bytes) = serde_json::to_vec(&failure) {
            let _ = fs::create_dir_all(&self.directory);
            let _ = fs::write(self.path(&failure.namespace, &failure.id), bytes);
        }
        let mut kept = self.kept();
        kept.push_back(failure);
        if kept.len() > KEPT
            && let Some(oldest) = kept.pop_front()
        {
            let _ = fs::remove_file(self.path(&oldest.namespace, &oldest.id));
        }
    }

    /// Drops the failure of a task that has succeeded since.
    pub(crate) fn forget(&self, namespace: &str, id: &str) {
        let mut kept = self.kept();
        let before = kept.len();
        kept.retain(|failure| failure.namespace != namespace || failure.id != id);
        if kept.len() < before {
            let _ = fs::remove_file(self.path(namespace, id));
        }
    }

    pub(crate) fn last(&self, namespace: &str, id: &str) -> Option<Failure> {
        self.kept().iter().find(|failure| failure.namespace == namespace && failure.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_of_each_is_known_to_the_next_daemon() {
        let state = tempfile::tempdir().unwrap();
        let failures = Failures::read(state.path());
        failures.note("ns", "a", "creation", "first".into());
        failures.note("ns", "a", "creation", "second".into());
        failures.note("ns", "b", "start", "third".into());
        let failures = Failures::read(state.path());
        assert_eq!(failures.last("ns", "a").unwrap().message, "second");
        failures.forget("ns", "b");
        let failures = Failures::read(state.path());
        assert_eq!((failures.last("ns", "b"), failures.last("other", "a")), (None, None));
        for number in 0..=KEPT {
            failures.note("ns", &format!("n{number}"), "creation", String::new());
        }
        assert_eq!(failures.last("ns", "a"), None);
        assert_eq!(fs::read_dir(state.path().join("io.gantry.failures")).unwrap().count(), KEPT);
    }
}
