use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::filter::Filters;
use model::{Any, Timestamp};
use tokio::sync::watch;

use crate::segment::{self, Log};
use crate::subscription::{Backlog, Subscription};
use crate::tail::Tail;
use crate::{Cursor, Entry, Envelope, Error, Since};

/// Name of the journal's directory below the state directory.
const DIRECTORY: &str = "io.gantry.events";

/// Reads the field of an encoded event that a filter `event.<path>` names, or `None` where it has no such field or the
/// field is empty. The journal knows no encoding, so its owner brings this.
pub type FieldAccessor = fn(&Any, &[&str]) -> Option<String>;

/// How much of the past the journal's files keep. The oldest eighth goes at once.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes of all segments.
    pub bytes: u64,
    /// Events in all segments.
    pub events: u64,
    /// How long an event is kept at least, if there is room. Older ones go when the next is published.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { bytes: 16 << 20, events: 65_536, age: Duration::from_secs(24 * 60 * 60) }
    }
}

/// How far a subscriber may stay behind before its stream ends with [`Error::Lagged`].
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// Events it has not read.
    pub events: usize,
    /// Bytes of those events.
    pub bytes: usize,
}

impl Default for Lag {
    fn default() -> Self {
        Self { events: 16_384, bytes: 16 << 20 }
    }
}

/// What a journal is opened with.
#[derive(Clone, Copy)]
pub struct Config {
    /// What the files keep.
    pub retention: Retention,
    /// What subscribers may leave unread.
    pub lag: Lag,
    /// Reads fields of events for filters.
    pub fields: FieldAccessor,
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: Retention::default(), lag: Lag::default(), fields: |_, _| None }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("retention", &self.retention).field("lag", &self.lag).finish_non_exhaustive()
    }
}

/// The exchange and journal of events; cloning it is cheap and yields the same journal.
///
/// Its calls block for a write to a file of the state directory at most; that is a memory file system on most hosts,
/// and they are made from asynchronous code as well.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// Locked before `tail`, so that the order of the file is the order of the readers.
    log: Mutex<Log>,
    tail: Mutex<Tail>,
    latest: watch::Sender<u64>,
    pub(crate) fields: FieldAccessor,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("latest", &*self.latest.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    /// Opens the journal in `<state>/io.gantry.events`, continuing what this boot wrote there and sweeping what others
    /// did. `boot_id` is `/proc/sys/kernel/random/boot_id`.
    pub fn open(state: &Path, boot_id: &str, config: Config) -> Result<Self, Error> {
        let log = Log::open(&state.join(DIRECTORY), boot_id, config.retention)?;
        let last = log.last_sequence();
        Ok(Self {
            shared: Arc::new(Shared {
                log: Mutex::new(log),
                tail: Mutex::new(Tail::new(last, config.lag)),
                latest: watch::Sender::new(last),
                fields: config.fields,
            }),
        })
    }

    /// Checks an event, appends it, and shows it to subscribers. Returns it with its sequence number, by which a later
    /// [`Journal::subscribe`] recognises it.
    pub fn publish(&self, envelope: Envelope) -> Result<Arc<Entry>, Error> {
        envelope.check()?;
        self.commit(self.shared.log(), 0, envelope)
    }

    /// Publishes an event that stands in a durable outbox under number `origin` (growing, not 0). The number is kept in
    /// the journal, so that an event whose removal from the outbox was lost is recognised: where `origin` is not
    /// beyond [`Journal::last_origin`] nothing happens and `None` is returned.
    pub fn publish_from(&self, origin: u64, envelope: Envelope) -> Result<Option<Arc<Entry>>, Error> {
        envelope.check()?;
        let log = self.shared.log();
        if origin <= log.last_origin() {
            return Ok(None);
        }
        self.commit(log, origin, envelope).map(Some)
    }

    fn commit(&self, mut log: MutexGuard<'_, Log>, origin: u64, envelope: Envelope) -> Result<Arc<Entry>, Error> {
        let sequence = log.append(origin, &envelope)?;
        sys::crash::point(sys::crash::daemon::JOURNAL_APPENDED);
        let entry = Arc::new(Entry { sequence, envelope });
        self.shared.tail().push(Arc::clone(&entry));
        drop(log);
        self.shared.latest.send_replace(sequence);
        Ok(entry)
    }

    /// The largest number that [`Journal::publish_from`] has published in this boot; 0 for none.
    pub fn last_origin(&self) -> u64 {
        self.shared.log().last_origin()
    }

    /// The identity of this journal: another boot, or a lost state directory, has another one. Sequence numbers mean
    /// nothing without it.
    pub fn uuid(&self) -> String {
        self.shared.log().uuid().to_owned()
    }

    /// Sequence number of the newest event; 0 when there is none.
    pub fn last_sequence(&self) -> u64 {
        self.shared.tail().last()
    }

    /// Since when nothing is missing; `None` where nothing was ever dropped.
    pub fn complete_since(&self) -> Option<Timestamp> {
        self.shared.log().complete_since()
    }

    /// The retained events that `wanted` selects, oldest first: how a new daemon learns what its predecessor has
    /// already told. Reads the files.
    pub fn recent(&self, mut wanted: impl FnMut(&Envelope) -> bool) -> Result<Vec<Arc<Entry>>, Error> {
        let paths = self.shared.log().paths();
        let mut found = Vec::new();
        segment::scan(&paths, |frame| {
            if wanted(&frame.entry.envelope) {
                found.push(Arc::new(frame.entry));
            }
        })?;
        Ok(found)
    }

    /// Registers a subscriber without a cursor: it gets what is published from now on, behind what `heal` supplies.
    ///
    /// A client that was not connected when a task ended would believe for ever that it runs. So such a stream first
    /// receives, once, the exits that `heal` returns: the last `TaskExit` of each stopped and undeleted task, as
    /// [`Journal::publish`] or [`Journal::recent`] returned it. `heal` is called after registration, without any lock
    /// held; what it returns is reduced to entries at or before the horizon, which it is told, so nothing is delivered
    /// twice and nothing between the two is missing. The horizon is the newest event that a lost stream may have
    /// missed: everything before this daemon's start and before the last end of a stream, and, for the two minutes in
    /// which a client reconnects after either, everything before the registration.
    pub fn subscribe(&self, filters: Filters, heal: impl FnOnce(u64) -> Vec<Arc<Entry>>) -> Subscription {
        // Watched before the registration: a publication between the two only wakes the reader in vain.
        let latest = self.shared.latest.subscribe();
        let (id, first, horizon) = self.shared.tail().register();
        let mut subscription = Subscription::new(Arc::clone(&self.shared), id, filters, latest);
        let mut replay = heal(horizon);
        replay.retain(|entry| entry.sequence <= horizon && entry.sequence < first);
        replay.sort_by_key(|entry| entry.sequence);
        subscription.replay(replay);
        subscription
    }

    /// Registers a subscriber that keeps account of what it has seen: it gets every event behind `since`, each once. Tells
    /// as well where it begins. The retained ones are read from the files as the subscriber proceeds; where retention overtakes it, its stream ends
    /// with [`Error::Lagged`].
    ///
    /// [`Error::Forgotten`] where the cursor is another journal's, or events behind it are not kept any more.
    pub fn resume(&self, filters: Filters, since: &Since) -> Result<(Subscription, Cursor), Error> {
        let latest = self.shared.latest.subscribe();
        // No event comes in between: the tail continues exactly where the files end.
        let log = self.shared.log();
        let newest = Cursor { uuid: log.uuid().to_owned(), sequence: log.last_sequence() };
        let (backlog, begin) = match since {
            Since::Now => (None, newest),
            Since::After(cursor) => {
                let oldest = log.oldest_sequence().saturating_sub(1);
                if cursor.uuid != newest.uuid || cursor.sequence < oldest || cursor.sequence > newest.sequence {
                    let oldest = Cursor { sequence: oldest, ..newest };
                    return Err(Error::Forgotten { since: cursor.to_string(), oldest: oldest.to_string() });
                }
                let backlog = Backlog::new(log.paths_after(cursor.sequence), cursor.sequence + 1, newest.sequence);
                (Some(backlog), cursor.clone())
            }
        };
        let (id, ..) = self.shared.tail().register();
        drop(log);
        let subscription = Subscription::new(Arc::clone(&self.shared), id, filters, latest);
        Ok((subscription.behind(backlog), begin))
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.shared.tail().held()
    }
}
