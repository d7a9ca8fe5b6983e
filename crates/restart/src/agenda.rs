//! Which containers are to be looked at, and when.
//!
//! **Invariant:** a container is looked at once at a time; a reason that comes meanwhile is kept for afterwards. What
//! nobody waits for is forgotten.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

/// Namespace and id.
pub(crate) type Key = (String, String);

/// First pause before an ended container is started again; it doubles with each end that comes soon after.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A container that ran for so long begins with the first pause again.
const SETTLED: Duration = Duration::from_secs(10);

/// What came of looking at a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Started,
    Nothing,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Option<Instant>,
    pause: Duration,
    started: Option<Instant>,
    working: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    entries: HashMap<Key, Entry>,
    queue: BTreeSet<(Instant, Key)>,
}

impl Agenda {
    /// Something happened to a container: it is looked at `at` this time, or earlier if that was planned.
    pub(crate) fn plan(&mut self, key: Key, at: Instant) {
        let entry = self.entry(&key);
        if entry.due.is_none_or(|due| at < due) {
            self.set(key, Some(at));
        }
    }

    /// A task ended: its container is looked at after a pause.
    pub(crate) fn ended(&mut self, key: Key, now: Instant) {
        let entry = self.entry(&key);
        let settled = entry.started.is_none_or(|started| now.duration_since(started) >= SETTLED);
        entry.pause = if settled { PAUSE_FIRST } else { (entry.pause * 2).min(PAUSE_MAX) };
        let at = now + entry.pause;
        self.set(key, Some(at));
    }

    /// A container is gone.
    pub(crate) fn forget(&mut self, key: Key) {
        self.set(key.clone(), None);
        if self.entries.get(&key).is_some_and(|entry| !entry.working) {
            self.entries.remove(&key);
        }
    }

    /// When the next one is to be looked at.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes one that is to be looked at by now.
    pub(crate) fn begin(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        let entry = self.entry(&key);
        (entry.due, entry.working) = (None, true);
        Some(key)
    }

    /// Takes note of what came of looking at one.
    pub(crate) fn finish(&mut self, key: Key, outcome: Outcome, now: Instant) {
        let entry = self.entry(&key);
        entry.working = false;
        let mut due = entry.due;
        match outcome {
            Outcome::Started => entry.started = Some(now),
            Outcome::Failed => {
                entry.pause = (entry.pause * 2).min(PAUSE_MAX);
                due.get_or_insert(now + entry.pause);
            }
            Outcome::Nothing if due.is_none() => {
                self.entries.remove(&key);
                return;
            }
            Outcome::Nothing => {}
        }
        self.set(key, due);
    }

    fn entry(&mut self, key: &Key) -> &mut Entry {
        self.entries.entry(key.clone()).or_insert(Entry {
            due: None,
            pause: PAUSE_FIRST,
            started: None,
            working: false,
        })
    }

    /// Changes when a container is due. One that is being looked at comes into the queue when that has ended.
    fn set(&mut self, key: Key, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let (before, working) = (entry.due, entry.working);
        entry.due = due;
        if let Some(before) = before {
            self.queue.remove(&(before, key.clone()));
        }
        if let Some(at) = due
            && !working
        {
            self.queue.insert((at, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("ns".to_owned(), "c".to_owned())
    }

    #[test]
    fn pauses_grow_until_a_container_settles() {
        let (mut agenda, mut now) = (Agenda::default(), Instant::now());
        for pause_ms in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            agenda.ended(key(), now);
            assert_eq!(agenda.next(), Some(now + Duration::from_millis(pause_ms)));
            now += Duration::from_millis(pause_ms);
            assert_eq!((agenda.begin(now), agenda.begin(now)), (Some(key()), None));
            agenda.finish(key(), Outcome::Started, now);
            assert_eq!(agenda.next(), None);
        }
        now += SETTLED;
        agenda.ended(key(), now);
        assert_eq!(agenda.next(), Some(now + PAUSE_FIRST));
    }

    #[test]
    fn one_look_at_a_time_and_nothing_is_kept_in_vain() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.plan(key(), now + SETTLED);
        agenda.plan(key(), now);
        agenda.plan(key(), now + SETTLED);
        assert_eq!(agenda.begin(now), Some(key()));
        agenda.plan(key(), now);
        assert_eq!((agenda.next(), agenda.begin(now)), (None, None), "it is being looked at");
        agenda.finish(key(), Outcome::Nothing, now);
        assert_eq!(agenda.begin(now), Some(key()));
        agenda.finish(key(), Outcome::Failed, now);
        assert_eq!(agenda.next(), Some(now + PAUSE_FIRST * 2));
        agenda.forget(key());
        assert!(agenda.entries.is_empty() && agenda.queue.is_empty());
        agenda.plan(key(), now);
        assert_eq!(agenda.begin(now), Some(key()));
        agenda.forget(key());
        agenda.finish(key(), Outcome::Nothing, now);
        assert!(agenda.entries.is_empty() && agenda.queue.is_empty());
    }
}
