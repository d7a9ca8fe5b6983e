//! The thread that collects.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::control::Task;
use crate::Error;
use crate::db::Inner;

/// The runs so far. Who holds the lock may run.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    begun: AtomicU64,
    last: Mutex<LastRun>,
}

/// The last run that has ended, or the one of who holds it.
#[derive(Debug, Default)]
pub(super) struct LastRun {
    pub(super) number: u64,
    /// Why it failed.
    pub(super) failed: Option<String>,
}

impl Runs {
    /// Runs with a greater number begin after this call.
    pub(super) fn ticket(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The number of a run that begins now.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LastRun> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owns the thread; dropping it ends the thread after what it is doing.
#[derive(Debug)]
pub(crate) struct Worker {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(inner: Arc<Inner>) -> Result<Self, Error> {
        let thread = {
            let inner = Arc::clone(&inner);
            std::thread::Builder::new().name("gc".to_owned()).spawn(move || work(&inner)).map_err(Error::Thread)?
        };
        Ok(Self { inner, thread: Some(thread) })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.inner.gc.stop();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say; a panic of it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn work(inner: &Inner) {
    loop {
        match inner.gc.wait() {
            Task::Stop => return,
            Task::Collect => inner.collect(),
            Task::RemoveSnapshots => inner.remove_taken_snapshots(),
            Task::SettleOutbox => {
                inner.settle_outbox();
                inner.gc.outbox_settled(inner.has_leftovers());
            }
        }
    }
}
