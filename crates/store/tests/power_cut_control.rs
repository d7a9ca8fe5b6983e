//! The control run of `power_cut.rs`: sled as shipped, in the same two tests, must fail both.
//!
//! Nothing here names the crate `store`, so it is not linked, and sled's `sync_file_range` is the C library's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![expect(unsafe_code, reason = "the harness stands in for C functions")]

mod harness;
#[path = "harness/image.rs"]
mod image;
#[expect(dead_code, reason = "only the guarded store is worth a second cut")]
#[path = "harness/recorder.rs"]
mod recorder;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use harness::isolation::{in_mount_namespace, in_own_process};
use harness::{COUNTER, Database, Model, Random, SEGMENT_BYTES, State, changes, check, count};
use recorder::Replay;
use tempfile::TempDir;

struct AsShipped(sled::Db);

impl Database for AsShipped {
    fn open(dir: &Path) -> Result<Self, String> {
        let config = sled::Config::new().path(dir).segment_size(SEGMENT_BYTES).flush_every_ms(None);
        config.open().map(Self).map_err(|error| format!("{error:?}"))
    }

    fn commit(&self, on_disk: bool) -> Result<u64, String> {
        let n = 1 + count(self.0.get(COUNTER).unwrap().as_deref()).unwrap();
        let mut batch = sled::Batch::default();
        for (key, value) in changes(n) {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.0.apply_batch(batch).map_err(|error| format!("{error:?}"))?;
        if on_disk {
            self.0.flush().map_err(|error| format!("{error:?}"))?;
        }
        Ok(n)
    }

    fn state(&self) -> Result<State, String> {
        let entries = self.0.iter().map(|entry| entry.map(|(k, v)| (k.to_vec(), v.to_vec())));
        entries.collect::<Result<_, _>>().map_err(|error| format!("{error:?}"))
    }
}

/// Runs in a process of its own for each image; without its order in the environment it has nothing to do.
#[test]
fn check_an_image() {
    if let Some((dir, acknowledged)) = image::to_check()
        && let Err(error) = check::<AsShipped>(&dir, acknowledged, &mut Model::default())
    {
        panic!("\nFOUND: {error}");
    }
}

#[test]
fn images_lose_what_was_acknowledged() {
    if in_mount_namespace("images_lose_what_was_acknowledged") {
        let outcome = image::cut::<AsShipped>(600, 20, "check_an_image");
        println!("{} cuts, {} failures: {:?}", outcome.cuts, outcome.failures.len(), outcome.failures.first());
        assert!(!outcome.failures.is_empty(), "this test cannot see lost writes");
    }
}

#[test]
fn replays_lose_what_was_acknowledged() {
    // The recorder watches the whole process, so this test has one of its own.
    if !in_own_process("replays_lose_what_was_acknowledged") {
        return;
    }
    let dir = TempDir::new().unwrap();
    recorder::assert_recording(dir.path());
    recorder::start(dir.path());
    let database = AsShipped::open(dir.path()).unwrap();
    for _ in 0..300 {
        recorder::acknowledged(database.commit(true).unwrap());
    }
    let replay = Replay::new(recorder::stop());
    let mut random = Random(3);
    let mut model = Model::default();
    let mut failures = Vec::new();
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let moment = random.below(replay.end());
        replay.cut(moment, &mut random).lay_out(dir.path());
        let acknowledged = replay.acknowledged(moment);
        // sled panics on some of what it finds.
        let result = catch_unwind(AssertUnwindSafe(|| check::<AsShipped>(dir.path(), acknowledged, &mut model)));
        failures.extend(result.unwrap_or_else(|_| Err("it panicked".into())).err());
    }
    println!("20 cuts, {} failures: {:?}", failures.len(), failures.first());
    assert!(!failures.is_empty(), "this test cannot see lost writes");
}
