//! Frees a committer that sled forgot.
//!
//! When a thread of sled fails to write a batch's first buffer, sled notes the error but wakes nobody
//! (`Log::exit_reservation`), and a flush that waits for that buffer would wait for ever. Any later flush sees the error
//! and wakes everybody, so this thread makes one whenever a flush takes longer than a second.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    flushing_since: Option<Instant>,
    /// The thread waits without a time limit and must be woken when a flush begins.
    idle: bool,
    stop: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, patience: Duration, rescue: &dyn Fn()) {
        let mut state = self.lock();
        while !state.stop {
            let Some(since) = state.flushing_since else {
                state.idle = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle = false;
                continue;
            };
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                state.flushing_since = None;
                drop(state);
                let _ = catch_unwind(AssertUnwindSafe(rescue));
                state = self.lock();
            } else {
                (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The thread; dropping it ends and joins it.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(db: sled::Db) -> std::io::Result<Self> {
        Self::start_with(PATIENCE, move || drop(db.flush()))
    }

    fn start_with(patience: Duration, rescue: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watcher = shared.clone();
        let watch = move || watcher.watch(patience, &rescue);
        let thread = std::thread::Builder::new().name("store-watchdog".into()).spawn(watch)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Runs one flush under watch.
    pub(crate) fn during<T>(&self, flush: impl FnOnce() -> T) -> T {
        let mut state = self.shared.lock();
        state.flushing_since = Some(Instant::now());
        if state.idle {
            self.shared.changed.notify_one();
        }
        drop(state);
        let result = flush();
        self.shared.lock().flushing_since = None;
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn frees_a_forgotten_flush_and_leaves_others_alone() {
        let (sender, rescued) = mpsc::channel();
        let watchdog =
            Watchdog::start_with(Duration::from_millis(100), move || sender.send(()).unwrap_or_default()).unwrap();
        for _ in 0..1000 {
            watchdog.during(|| ());
        }
        assert!(rescued.try_recv().is_err(), "nobody was to be rescued");
        for _ in 0..2 {
            let freed = watchdog.during(|| rescued.recv_timeout(Duration::from_secs(20)));
            assert!(freed.is_ok(), "a flush that took long was forgotten");
        }
    }
}
