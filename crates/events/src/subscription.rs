use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use model::filter::Filters;
use tokio::sync::watch;

use crate::journal::Shared;
use crate::{Entry, Error, segment};

/// Events taken at once; filters run outside of the journal's lock.
const BATCH: usize = 64;

/// The part of a resumed stream that was published before its registration: read segment by segment, so that no more
/// than one of them is in memory.
#[derive(Debug)]
pub(crate) struct Backlog {
    segments: VecDeque<PathBuf>,
    /// Number of the next event.
    next: u64,
    /// Number of the last event; what comes behind is in the tail.
    last: u64,
}

impl Backlog {
    /// The events `next ..= last`, which are in `segments`.
    pub(crate) fn new(segments: Vec<PathBuf>, next: u64, last: u64) -> Self {
        Self { segments: segments.into(), next, last }
    }

    /// The events of the next segment that has any; `None` behind the last one. Reads a file.
    fn read(&mut self) -> Result<Option<Vec<Arc<Entry>>>, Error> {
        while self.next <= self.last {
            // Retention has dropped a segment that this reader had not come to.
            let lagged = Error::Lagged { behind: self.last + 1 - self.next };
            let Some(path) = self.segments.pop_front() else { return Err(lagged) };
            let mut entries = Vec::new();
            segment::scan(&[path], |frame| {
                if (self.next..=self.last).contains(&frame.entry.sequence) {
                    entries.push(Arc::new(frame.entry));
                }
            })?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { continue };
            if first.sequence != self.next {
                return Err(lagged);
            }
            self.next = last.sequence + 1;
            return Ok(Some(entries));
        }
        Ok(None)
    }
}

/// A reader of the journal. Dropping it ends the stream.
pub struct Subscription {
    shared: Arc<Shared>,
    id: u64,
    filters: Filters,
    latest: watch::Receiver<u64>,
    /// Taken and not yet delivered.
    pending: VecDeque<Arc<Entry>>,
    /// What comes before the tail.
    backlog: Option<Backlog>,
    /// Number of the last event that was looked at, for the error of a slow reader.
    seen: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>, id: u64, filters: Filters, latest: watch::Receiver<u64>) -> Self {
        let seen = *latest.borrow();
        Self { shared, id, filters, latest, pending: VecDeque::new(), backlog: None, seen }
    }

    /// The same subscription, with what comes before its tail.
    pub(crate) fn behind(mut self, backlog: Option<Backlog>) -> Self {
        self.backlog = backlog;
        self
    }

    /// Puts entries in front of everything that was published since the registration.
    pub(crate) fn replay(&mut self, entries: Vec<Arc<Entry>>) {
        self.pending.extend(entries);
    }

    /// The next event that matches; waits for one. Ends with [`Error::Lagged`] for good when the reader was too slow.
    ///
    /// Cancel-safe: an event is lost only if it was returned.
    pub async fn next(&mut self) -> Result<Arc<Entry>, Error> {
        loop {
            // Marks what is published so far as seen before looking for it, so no wake-up is missed.
            self.latest.mark_unchanged();
            if let Some(entry) = self.try_next()? {
                return Ok(entry);
            }
            if self.latest.changed().await.is_err() {
                // Cannot happen: we hold the journal that owns the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next event that matches and is there already.
    pub fn try_next(&mut self) -> Result<Option<Arc<Entry>>, Error> {
        loop {
            while let Some(entry) = self.pending.pop_front() {
                self.seen = self.seen.max(entry.sequence);
                if self.matches(&entry) {
                    return Ok(Some(entry));
                }
            }
            if let Some(backlog) = &mut self.backlog {
                match backlog.read()? {
                    Some(entries) => self.pending.extend(entries),
                    None => self.backlog = None,
                }
                continue;
            }
            let (taken, last) = {
                let mut tail = self.shared.tail();
                (tail.take(self.id, BATCH), tail.last())
            };
            match taken {
                None => return Err(Error::Lagged { behind: last.saturating_sub(self.seen) }),
                Some(entries) if entries.is_empty() => return Ok(None),
                Some(entries) => self.pending.extend(entries),
            }
        }
    }
}

impl Subscription {
    fn matches(&self, entry: &Entry) -> bool {
        let envelope = &entry.envelope;
        let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        self.filters.is_empty()
            || self.filters.matches(|path| match path {
                ["namespace"] => present(&envelope.namespace),
                ["topic"] => present(&envelope.topic),
                ["event", field @ ..] if !field.is_empty() => (self.shared.fields)(&envelope.event, field),
                _ => None,
            })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.tail().unregister(self.id);
    }
}
