//! The exchange and the journal of events: publish, filter, bounded subscribers, and a record that outlives us.
//!
//! Every event is appended to a segment file in the state directory by one write, without `fsync`, and only then shown
//! to subscribers. So an event that anybody saw survives the death of any process of ours; it does not survive the
//! kernel, and neither do the tasks that it tells of (the state directory is a tmpfs on most hosts; each segment
//! carries the boot id, and another boot's are swept).
//!
//! ```text
//! publish ─▶ segment file ─▶ tail (one shared Arc per event) ─▶ subscription ─ filters ─▶ stream
//!            (one write)       bounded by the slowest reader      position in the tail
//! ```
//!
//! A subscriber that keeps the cursor of the last event it saw resumes behind it: it reads the segment files up to its
//! registration, and the tail from there on.
//!
//! **Invariant:** sequence numbers are dense and grow in publication order, which is the same for every subscriber. A
//! subscriber sees every event that matches its filters from its registration on, or it ends with
//! [`Error::Lagged`]: none is skipped silently, and none is held for longer than the bounds in [`Lag`] allow.

mod cursor;
mod envelope;
mod error;
mod frame;
mod journal;
mod segment;
mod subscription;
mod tail;
#[cfg(test)]
mod tests;

pub use cursor::{Cursor, Since};
pub use envelope::{Entry, Envelope, check_topic};
pub use error::Error;
pub use journal::{Config, FieldAccessor, Journal, Lag, Retention};
pub use subscription::Subscription;
