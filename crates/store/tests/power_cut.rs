//! Nothing acknowledged is lost when the power goes. `power_cut_control.rs` shows that these tests can fail.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![expect(unsafe_code, reason = "the harness stands in for C functions")]

#[path = "harness/guarded.rs"]
mod guarded;
mod harness;
#[path = "harness/image.rs"]
mod image;
#[path = "harness/recorder.rs"]
mod recorder;

use std::path::Path;

use guarded::Guarded;
use harness::isolation::{in_mount_namespace, in_own_process};
use harness::{Database, Model, Random, check};
use image::on_disk;
use recorder::Replay;
use tempfile::TempDir;

/// Runs in a process of its own for each image; without its order in the environment it has nothing to do.
#[test]
fn check_an_image() {
    if let Some((dir, acknowledged)) = image::to_check()
        && let Err(error) = check::<Guarded>(&dir, acknowledged, &mut Model::default())
    {
        panic!("\nFOUND: {error}");
    }
}

#[test]
fn two_hundred_images_lose_nothing() {
    if in_mount_namespace("two_hundred_images_lose_nothing") {
        let outcome = image::cut::<Guarded>(3000, 200, "check_an_image");
        let (segments, reused) = outcome.segments;
        println!("{} cuts, {} failures, {reused} of {segments} segments reused", outcome.cuts, outcome.failures.len());
        assert_eq!((outcome.cuts, &outcome.failures), (200, &Vec::new()));
        assert!(reused * 2 > segments, "the log must come round: {reused} of {segments}");
    }
}

/// Records the life of a database from nothing: `threads` write at once, and it is opened again in the middle.
fn record(dir: &Path, threads: u64, transactions: u64) -> Replay {
    recorder::assert_recording(dir);
    recorder::start(dir);
    for _ in 0..2 {
        let database = Guarded::open(dir).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let database = &database;
                scope.spawn(move || {
                    for round in 0..transactions / threads / 2 {
                        let on_disk = on_disk(round + 3 * thread);
                        let n = database.commit(on_disk).unwrap();
                        if on_disk {
                            recorder::acknowledged(n);
                        }
                    }
                });
            }
        });
    }
    Replay::new(recorder::stop())
}

fn check_replay(replay: &Replay, moment: u64, random: &mut Random, model: &mut Model) -> Result<u64, String> {
    let dir = TempDir::new().unwrap();
    replay.cut(moment, random).lay_out(dir.path());
    let result = check::<Guarded>(dir.path(), replay.acknowledged(moment), model);
    result.map_err(|error| format!("cut at {moment} of {}: {error}", replay.end()))
}

/// The process is killed at a moment, the next one recovers, and the power goes before, while or after it does.
fn cut_a_recovery(replay: &Replay, killed_at: u64, random: &mut Random, model: &mut Model) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    replay.killed(killed_at).lay_out(dir.path());
    recorder::start(dir.path());
    let database = Guarded::open(dir.path()).unwrap();
    for _ in 0..8 {
        recorder::acknowledged(database.commit(true).unwrap());
    }
    let both = replay.followed_by(killed_at, recorder::stop());
    drop(database);
    let moments: Vec<_> = (0..6).map(|_| killed_at + random.below(both.end() - killed_at)).collect();
    moments.into_iter().filter_map(|moment| check_replay(&both, moment, random, model).err()).collect()
}

#[test]
fn replays_with_lost_and_torn_writes_lose_nothing() {
    // The recorder watches the whole process, so this test has one of its own.
    if !in_own_process("replays_with_lost_and_torn_writes_lose_nothing") {
        return;
    }
    let mut model = Model::default();
    let mut random = Random(2);
    for threads in [1, 4] {
        let dir = TempDir::new().unwrap();
        let replay = record(dir.path(), threads, 1200);
        let mut failures = Vec::new();
        for round in 0..200 {
            // The beginning, where the files are made, is a small part of the recording; look at it closely.
            let bound = if round % 4 == 0 { 200 } else { replay.end() };
            failures.extend(check_replay(&replay, 1 + random.below(bound), &mut random, &mut model).err());
        }
        for round in 0..25 {
            let bound = if round % 4 == 0 { 200 } else { replay.end() };
            failures.extend(cut_a_recovery(&replay, random.below(bound), &mut random, &mut model));
        }
        assert_eq!(failures, Vec::<String>::new(), "{threads} threads");
    }
}
