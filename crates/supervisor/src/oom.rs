//! Lack of memory in a container while it lives: the daemon looks at the container's cgroup by itself, so that no shim
//! has to be asked and none has to tell.
//!
//! **Invariant:** a kill is told once, whoever dies in between: what is about to be told is written down first, with the
//! number of events that there will have been then, and the journal says whether it came to that.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use cgroups::{CgroupPath, Host, OomWatch};
use model::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Name of the record in the bundle.
const FILE: &str = "oom.json";

/// On cgroup version 1 the notice comes before the kernel has killed and counted: looked at again after these pauses.
const PAUSES_MS: [u64; 4] = [5, 20, 100, 500];

/// What was told, or is about to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Kills that the kernel had counted.
    pub(crate) kills: u64,
    /// Events of this task that there were, with this one.
    pub(crate) events: u64,
    /// When it was written down.
    at: Timestamp,
}

impl Told {
    /// What a daemon before us has told of, by its record and the number of events in the journal, which remembers what
    /// `covers` says. Where the record could not be written, what the journal has is taken for everything.
    pub(crate) fn read(bundle: &Path, journalled: u64, covers: impl FnOnce(Timestamp) -> bool) -> Self {
        let recorded: Option<Self> =
            fs::read(bundle.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match recorded {
            // The last daemon died between the two: it is told now.
            Some(told) if journalled < told.events && covers(told.at) => Self { events: journalled, ..Self::default() },
            Some(told) => told,
            None => Self { kills: if journalled > 0 { u64::MAX } else { 0 }, events: journalled, ..Self::default() },
        }
    }

    /// Takes note of `kills`. True if there are more than were told of; then the caller publishes the event.
    pub(crate) fn note(&mut self, bundle: &Path, kills: u64) -> bool {
        if kills <= self.kills {
            return false;
        }
        *self = Self { kills, events: self.events + 1, at: Timestamp::now() };
        if let Err(error) = self.write(bundle) {
            tracing::warn!(bundle = %bundle.display(), %error, "lack of memory is told, but not recorded as told");
        }
        true
    }

    fn write(self, bundle: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self)?;
        let directory = fs::File::open(bundle)?;
        sys::fs::write_atomic(directory.as_fd(), FILE, &bytes, 0o600).map_err(Into::into)
    }
}

/// The memory of one container's cgroup.
#[derive(Debug)]
pub(crate) struct Memory {
    watch: AsyncFd<Watched>,
    /// When the counter is looked at again, and how often it has been since the last notice.
    again: Option<(Instant, usize)>,
}

#[derive(Debug)]
struct Watched(OomWatch);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Memory {
    /// Watches the cgroup that our shim has written down in the bundle; nothing where there is none, as with shims that
    /// are not ours. Needs a tokio runtime.
    #[expect(deprecated, reason = "unsound only for types that do not own their descriptor; the replacement is unsafe")]
    /// With `look` the counter is looked at once without a notice.
    pub(crate) fn watch(host: Option<&Host>, bundle: &Path, look: bool) -> Option<Self> {
        let path = fs::read_to_string(bundle.join("cgroup")).ok()?;
        let open = || -> Result<Option<Self>, String> {
            let path = CgroupPath::new(&path).map_err(|error| model::render(&error))?;
            let Some(host) = host else { return Ok(None) };
            let Some(watch) = OomWatch::open(host, &path).map_err(|error| model::render(&error))? else {
                return Ok(None);
            };
            let watch =
                AsyncFd::with_interest(Watched(watch), Interest::READABLE).map_err(|error| error.to_string())?;
            Ok(Some(Self { watch, again: look.then(|| (Instant::now(), PAUSES_MS.len())) }))
        };
        open().unwrap_or_else(|error| {
            tracing::warn!(bundle = %bundle.display(), error, "lack of memory is told only when the container ends");
            None
        })
    }

    /// Returns when the counter is to be looked at. Cancel safe.
    pub(crate) async fn noticed(memory: Option<&Self>) {
        let Some(memory) = memory else { return std::future::pending().await };
        let again = async {
            match memory.again {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = memory.watch.readable() => if ready.is_err() { std::future::pending().await },
            () = again => {}
        }
    }

    /// The counter, after a notice; `None` once the cgroup is gone, and the watch is of no use any more.
    pub(crate) fn kills(&mut self, told: Told) -> Option<u64> {
        let mut noticed = false;
        if let Some(Ok(mut ready)) = futures::FutureExt::now_or_never(self.watch.readable()) {
            ready.clear_ready();
            noticed = true;
        }
        let watch = &self.watch.get_ref().0;
        watch.drain().ok()?;
        let kills = watch.kills().ok()?;
        let round = if noticed { 0 } else { self.again.map_or(0, |(_, round)| round) };
        self.again = match PAUSES_MS.get(round) {
            Some(pause) if kills <= told.kills => Some((Instant::now() + Duration::from_millis(*pause), round + 1)),
            Some(_) | None => None,
        };
        Some(kills)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_told_once() {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path();
        let read = |journalled, covered| {
            let told = Told::read(bundle, journalled, |_| covered);
            (told.kills, told.events)
        };
        assert_eq!((read(0, true), read(1, true)), ((0, 0), (u64::MAX, 1)));
        let mut told = Told::default();
        assert!(!told.note(bundle, 0) && told.note(bundle, 2) && !told.note(bundle, 2));
        // The next daemon finds the event in the journal, or that it never came there, or that it is too old.
        assert_eq!((read(1, true), read(0, true), read(0, false)), ((2, 1), (0, 0), (2, 1)));
        assert!(told.note(bundle, 3));
        assert_eq!((read(1, true), read(2, true)), ((0, 1), (3, 2)));
    }
}
