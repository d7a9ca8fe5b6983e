//! What subscribers have still to read.
//!
//! **Invariant:** `entries` holds the events `first ..= last` without a hole, each once, whatever the number of
//! readers. A registered reader's position lies in `first ..= last + 1`; a reader that would hold more than the bounds
//! allow is removed and learns of it at its next read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::envelope::RECONNECT;
use crate::{Entry, Lag};

/// Events are trimmed once in so many publications, so that the cost per event does not grow with the readers.
const TRIM_EVERY: u64 = 64;

#[derive(Debug)]
pub(crate) struct Tail {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    last: u64,
    lag: Lag,
    /// Next sequence number that each reader wants.
    readers: BTreeMap<u64, u64>,
    next_reader: u64,
    /// Streams without a cursor are told of exits up to here.
    horizon: u64,
    /// Until then a new stream may be the successor of one that was lost.
    reconnect_until: Instant,
}

impl Tail {
    pub(crate) fn new(last: u64, lag: Lag) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            last,
            lag,
            readers: BTreeMap::new(),
            next_reader: 1,
            horizon: last,
            // A start of the daemon broke whatever streams there were.
            reconnect_until: Instant::now() + RECONNECT,
        }
    }

    fn first(&self) -> u64 {
        self.last + 1 - self.entries.len() as u64
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Takes the next event.
    pub(crate) fn push(&mut self, entry: Arc<Entry>) {
        self.last = entry.sequence;
        if self.readers.is_empty() {
            self.clear();
            return;
        }
        self.bytes += entry.envelope.bytes();
        self.entries.push_back(entry);
        if self.last.is_multiple_of(TRIM_EVERY) {
            self.trim();
        }
        if self.entries.len() > self.lag.events || self.bytes > self.lag.bytes {
            self.trim();
            self.remove_slow();
        }
    }

    /// Drops what every reader has read.
    fn trim(&mut self) {
        let Some(wanted) = self.readers.values().min().copied() else {
            return self.clear();
        };
        while self.first() < wanted {
            self.pop();
        }
    }

    /// Removes the slowest readers until the rest fits the bounds.
    fn remove_slow(&mut self) {
        while self.entries.len() > self.lag.events || self.bytes > self.lag.bytes {
            let first = self.first();
            let before = self.readers.len();
            self.readers.retain(|_, next| *next > first);
            if self.readers.len() < before {
                self.lost();
            }
            self.pop();
            self.trim();
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.envelope.bytes();
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// A stream has ended: its reader may have missed exits up to now.
    fn lost(&mut self) {
        self.horizon = self.last;
        self.reconnect_until = Instant::now() + RECONNECT;
    }

    /// Registers a reader for what is published from now on; returns its id, its first sequence number and the
    /// horizon.
    pub(crate) fn register(&mut self) -> (u64, u64, u64) {
        if Instant::now() < self.reconnect_until {
            self.horizon = self.last;
        }
        let id = self.next_reader;
        self.next_reader += 1;
        if self.readers.is_empty() {
            self.clear();
        }
        self.readers.insert(id, self.last + 1);
        (id, self.last + 1, self.horizon)
    }

    pub(crate) fn unregister(&mut self, id: u64) {
        if self.readers.remove(&id).is_some() {
            self.lost();
            if self.readers.is_empty() {
                self.clear();
            }
        }
    }

    /// Up to `count` events that the reader has not read; `None` when it was removed for being slow.
    pub(crate) fn take(&mut self, id: u64, count: usize) -> Option<Vec<Arc<Entry>>> {
        let first = self.first();
        let next = self.readers.get_mut(&id)?;
        let skip = usize::try_from(next.saturating_sub(first)).ok()?;
        let taken: Vec<_> = self.entries.iter().skip(skip).take(count).cloned().collect();
        *next += taken.len() as u64;
        Some(taken)
    }

    /// Events held for readers, for tests.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.entries.len()
    }
}
