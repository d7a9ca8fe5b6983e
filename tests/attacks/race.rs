//! A second process that swaps paths while the runtime works. A thread of ours stands for it: the runtime is another
//! process either way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::lab::{Lab, Output, Verdict};

/// Exchanges two names for as long as it lives.
pub(crate) struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    /// `breath` is how many turns of the processor the swapper waits between two exchanges at most.
    pub(crate) fn new(one: PathBuf, other: PathBuf) -> Self {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&swaps));
        let thread = std::thread::spawn(move || {
            let mut breath = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                // A name that is missing for a moment is no reason to end.
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                // Different rhythms meet different windows.
                breath = (breath + 997) % 20_000;
                for _ in 0..breath {
                    std::hint::spin_loop();
                }
            }
        });
        Self { stop, swaps, thread: Some(thread) }
    }

    pub(crate) fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs rounds of an attack against a swapper until one wins `enough` or the bounds are reached. `round` gives what was
/// reached, if anything, and how the runtime ended.
pub(crate) fn race(
    lab: &Lab,
    one: &Path,
    other: &Path,
    mut round: impl FnMut() -> (Option<String>, Output),
) -> Verdict {
    let began = Instant::now();
    let swapper = Swapper::new(one.to_owned(), other.to_owned());
    let (mut rounds, mut won, mut worked) = (0, 0, 0);
    let mut first = None;
    while rounds < lab.rounds && began.elapsed() < lab.race_time {
        let (reached, output) = round();
        rounds += 1;
        worked += u32::from(output.ok());
        if let Some(reached) = reached {
            won += 1;
            first.get_or_insert(reached);
            // Once is enough to know; a few more to tell how likely it is.
            if won >= 3 {
                break;
            }
        }
    }
    let told = format!("{won} of {rounds} rounds won, {worked} containers ran, {} swaps", swapper.swaps());
    match first {
        Some(reached) => Verdict::Bites(format!("{reached}; {told}")),
        None => Verdict::Stopped(told),
    }
}
