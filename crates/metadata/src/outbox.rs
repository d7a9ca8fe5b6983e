//! Events between the commit that implies them and their publication.
//!
//! ```text
//! transaction: records + outbox entry ──commit──▶ journal ──▶ entry deleted with the next transaction
//!                                      crash here: re-driven at open, told apart by its number
//! ```
//!
//! **Invariant:** an event is published if and only if its transaction was committed, once per boot, in commit order:
//! numbers are given inside of transactions, which the store runs one at a time, and the journal keeps the number of
//! what it has published.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use events::{Envelope, Journal};
use model::{Code, Coded as _};
use store::{Transaction, View};

use crate::encoding::{EventRecord, decode};
use crate::{Error, keys};
use prost::Message as _;

/// Entries of published events are removed on their own, without a further transaction to ride on, when there are this
/// many.
const PUBLISHED_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Outbox {
    journal: Journal,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next event.
    next: u64,
    /// The newest event whose transaction is known to be committed, and with it all before: the store commits in order.
    committed: u64,
    /// Committed, or about to be, and not yet published.
    waiting: BTreeMap<u64, Envelope>,
    /// Published; their entries are still in the store.
    published: Vec<u64>,
}

impl Outbox {
    /// Reads what an earlier process left behind, so that [`Outbox::publish`] re-drives it.
    pub(crate) fn open(journal: Journal, view: &View) -> Result<Self, Error> {
        let mut state = State::default();
        for entry in view.scan(keys::OUTBOX, None) {
            let (key, value) = entry?;
            let Ok(number) = key[keys::OUTBOX.len()..].try_into() else { continue };
            let origin = u64::from_be_bytes(number);
            let record: EventRecord = decode("event", &origin.to_string(), &value)?;
            state.waiting.insert(origin, record.envelope());
        }
        let newest = state.waiting.last_key_value().map_or(0, |(origin, _)| *origin);
        state.next = newest.max(journal.last_origin()) + 1;
        state.committed = newest;
        Ok(Self { journal, state: Mutex::new(state) })
    }

    /// Puts events into a transaction that is about to be committed, and removes entries that were published since.
    /// Returns what [`Outbox::cancel`] needs if the commit fails.
    pub(crate) fn put(&self, tx: &mut Transaction, envelopes: Vec<Envelope>) -> Result<Put, Error> {
        let mut state = self.state();
        let mut numbered = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            let origin = state.next;
            state.next += 1;
            tx.put(&keys::outbox(origin), &EventRecord::new(&envelope).encode_to_vec())?;
            numbered.push((origin, envelope));
        }
        let removed = std::mem::take(&mut state.published);
        for origin in &removed {
            tx.delete(&keys::outbox(*origin));
        }
        let origins = numbered.iter().map(|(origin, _)| *origin).collect();
        state.waiting.extend(numbered);
        Ok(Put { origins, removed, newest: state.next - 1 })
    }

    /// The transaction is committed, and all that were begun before it.
    pub(crate) fn commit(&self, put: &Put) {
        let mut state = self.state();
        state.committed = state.committed.max(put.newest);
    }

    /// The transaction was not committed after all.
    pub(crate) fn cancel(&self, put: Put) {
        let mut state = self.state();
        for origin in put.origins {
            state.waiting.remove(&origin);
        }
        state.published.extend(put.removed);
    }

    /// Publishes what is committed, in order. A failure is not the caller's: its transaction stands, the event stays in
    /// the outbox, and the next publication begins with it.
    ///
    /// Those of a transaction that another thread is committing at this moment are left to that thread: it may fail, or
    /// the process may die before it is done.
    pub(crate) fn publish(&self) -> Result<(), events::Error> {
        let mut state = self.state();
        while let Some((origin, envelope)) = state.pop_committed() {
            match self.journal.publish_from(origin, envelope.clone()) {
                Ok(_) => state.published.push(origin),
                // Refused for what it is: it would be refused for ever, and block those behind it.
                Err(error) if error.code() == Code::InvalidArgument => state.published.push(origin),
                Err(error) => {
                    state.waiting.insert(origin, envelope);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether there is something that only the worker would do.
    pub(crate) fn has_leftovers(&self) -> bool {
        let state = self.state();
        !state.waiting.is_empty() || !state.published.is_empty()
    }

    /// Whether so many entries are to be removed that somebody should.
    pub(crate) fn is_crowded(&self) -> bool {
        self.state().published.len() >= PUBLISHED_MAX
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop_committed(&mut self) -> Option<(u64, Envelope)> {
        let first = self.waiting.first_entry().filter(|first| *first.key() <= self.committed)?;
        Some(first.remove_entry())
    }
}

/// What a transaction did to the outbox.
#[derive(Debug, Default)]
pub(crate) struct Put {
    origins: Vec<u64>,
    removed: Vec<u64>,
    /// The newest number that was given before the transaction ended.
    newest: u64,
}
