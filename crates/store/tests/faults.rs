//! What happens when the disk is full or fails, and when the process is killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "harness/guarded.rs"]
mod guarded;
mod harness;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use guarded::Guarded;
use harness::isolation::{Mount, in_mount_namespace, in_own_process};
use harness::{Database, Model, Random, SEGMENT_BYTES, check, run, this_test};
use model::{Code, Coded};
use store::{Durability, Error, Options, Store, WriteError};
use tempfile::TempDir;

/// While set, syncs of files fail as those of a broken disk do.
static BROKEN_DISK: AtomicBool = AtomicBool::new(false);
/// How many syncs a broken disk still does.
static SPARED: AtomicI64 = AtomicI64::new(0);
static SYNCS: AtomicU64 = AtomicU64::new(0);

/// Stands in for the C function of the same name, which the store and its guard call.
#[expect(unsafe_code, reason = "the only way to break a disk without one")]
#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: libc::c_int) -> libc::c_int {
    SYNCS.fetch_add(1, Ordering::SeqCst);
    if BROKEN_DISK.load(Ordering::SeqCst) && SPARED.fetch_sub(1, Ordering::SeqCst) <= 0 {
        // SAFETY: the function takes nothing and returns where the calling thread's errno is.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: that place is valid for as long as the thread lives.
        unsafe { *errno = libc::EIO };
        return -1;
    }
    // SAFETY: the system call takes no pointers.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as libc::c_int }
}

fn put(store: &Store, durability: Durability, key: &str, bytes: usize) -> Result<(), WriteError<Error>> {
    store.write(durability, |tx| tx.put(key.as_bytes(), &vec![b'v'; bytes]))
}

fn delete(store: &Store, key: &str) -> Result<(), WriteError<Error>> {
    store.write(Durability::OnDisk, |tx| {
        tx.delete(key.as_bytes());
        // Whoever deletes also says so somewhere.
        tx.put(b"event", key.as_bytes())
    })
}

#[test]
fn a_lone_write_costs_one_fdatasync_and_an_ordered_one_none() {
    // Syncs are counted and broken for a whole process.
    if !in_own_process("a_lone_write_costs_one_fdatasync_and_an_ordered_one_none") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    for (durability, expected) in [(Durability::OnDisk, 100), (Durability::Ordered, 0)] {
        let before = SYNCS.load(Ordering::SeqCst);
        // A fifth of a segment: entering a new one costs two more.
        (0..100).for_each(|n| put(&store, durability, &format!("key/{n}"), 1000).unwrap());
        assert_eq!(SYNCS.load(Ordering::SeqCst) - before, expected, "{durability:?}");
    }
    // Whoever changes nothing waits for nothing.
    let before = SYNCS.load(Ordering::SeqCst);
    store.write(Durability::OnDisk, |_| Ok::<_, Error>(())).unwrap();
    assert_eq!(SYNCS.load(Ordering::SeqCst), before);
}

#[test]
fn callers_share_a_flush() {
    // Syncs are counted and broken for a whole process.
    if !in_own_process("callers_share_a_flush") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let before = SYNCS.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let store = &store;
            scope.spawn(move || {
                (0..50).for_each(|n| put(store, Durability::OnDisk, &format!("{thread}/{n}"), 200).unwrap());
            });
        }
    });
    let syncs = SYNCS.load(Ordering::SeqCst) - before;
    assert!(syncs < 800 / 2, "{syncs} syncs for 800 transactions of 16 callers");
}

#[test]
fn a_broken_disk_is_reported_and_survived() {
    // Syncs are counted and broken for a whole process.
    if !in_own_process("a_broken_disk_is_reported_and_survived") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    let store = Store::open(dir.path(), options).unwrap();
    put(&store, Durability::OnDisk, "before", 10).unwrap();
    for (name, bytes) in [("small", 10), ("large", 60_000)] {
        BROKEN_DISK.store(true, Ordering::SeqCst);
        let error = match put(&store, Durability::OnDisk, name, bytes) {
            Err(WriteError::Store(error)) => error,
            other => panic!("{name}: {other:?}"),
        };
        BROKEN_DISK.store(false, Ordering::SeqCst);
        assert_eq!(error.code(), Code::Internal, "{error:?}");
        let error = store.read(|view| view.get(b"before")).unwrap_err();
        assert!(matches!(&error, Error::Poisoned { reason, .. } if reason.contains("nput/output error")), "{error:?}");
        assert!(store.read(|view| view.scan(b"", None).next()).unwrap().is_err());
        assert!(matches!(put(&store, Durability::OnDisk, "x", 1), Err(WriteError::Store(Error::Poisoned { .. }))));
        store.reopen().unwrap();
        assert!(store.read(|view| view.get(b"before")).unwrap().is_some());
        let half = store.read(|view| view.get(name.as_bytes())).unwrap();
        assert!(
            half.is_none_or(|value| value.len() == bytes),
            "a transaction that failed is there whole or not at all"
        );
        put(&store, Durability::OnDisk, "after", 10).unwrap();
    }
    store.reopen().unwrap();
}

/// sled's own threads sync where a segment ends and begins; an error there must reach the caller, too.
#[test]
fn a_disk_that_breaks_under_the_threads_of_sled_is_reported() {
    if !in_own_process("a_disk_that_breaks_under_the_threads_of_sled_is_reported") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Options { segment_bytes: SEGMENT_BYTES, ..Options::default() }).unwrap();
    for round in 0..16 {
        // The end of a segment, or the beginning of the next.
        SPARED.store(round as i64 % 2, Ordering::SeqCst);
        BROKEN_DISK.store(true, Ordering::SeqCst);
        // Never the same value twice: that would not be written.
        let error = (round..).find_map(|bytes| put(&store, Durability::Ordered, "k", bytes % 90).err()).unwrap();
        BROKEN_DISK.store(false, Ordering::SeqCst);
        assert!(matches!(error, WriteError::Store(Error::Engine { .. })), "{error:?}");
        store.reopen().unwrap();
        assert!(store.read(|view| view.get(b"k")).unwrap().is_some());
    }
}

fn fill_up(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for bytes in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; bytes]).is_ok() {}
    }
    let _ = file.sync_all();
}

#[test]
fn deletes_work_on_a_full_disk() {
    if !in_mount_namespace("deletes_work_on_a_full_disk") {
        return;
    }
    let work = TempDir::new().unwrap();
    let disk = work.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(40 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&disk));
    let mounted = work.path().join("mounted");
    let _mount = Mount::new(&disk, &mounted, "loop");
    let dir = mounted.join("database");
    let options = || Options { reserve_bytes: 4 << 20, ..Options::default() };
    let mut store = Store::open(&dir, options()).unwrap();
    for n in 0..1500 {
        put(&store, Durability::Ordered, &format!("key/{n}"), 5000).unwrap();
    }
    fill_up(&mounted.join("filler"));
    let mut accepted = 0;
    let error = loop {
        match put(&store, Durability::OnDisk, &format!("more/{accepted}"), 5000) {
            Ok(()) => accepted += 1,
            Err(WriteError::Store(error)) => break error,
            Err(WriteError::Refused(error)) => panic!("{error:?}"),
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    assert_eq!(error.code(), Code::ResourceExhausted);
    for n in 0..1000 {
        delete(&store, &format!("key/{n}")).unwrap_or_else(|error| panic!("delete {n}: {error:?}"));
        if n == 300 {
            drop(store);
            store = Store::open(&dir, options()).unwrap();
        }
    }
    assert!(!dir.join("reserve").exists());
    assert_eq!(store.read(|view| view.scan(b"key/", None).count()), 500);

    std::fs::remove_file(mounted.join("filler")).unwrap();
    put(&store, Durability::OnDisk, "there is space again", 5000).unwrap();
    for n in 0..500 {
        put(&store, Durability::OnDisk, &format!("key/{n}"), 5000).unwrap();
    }
    assert!(dir.join("reserve").exists());
    drop(store);
    let store = Store::open(&dir, options()).unwrap();
    assert_eq!(store.read(|view| view.scan(b"key/", None).map(Result::unwrap).count()), 1000);
}

const KILL: &str = "STORE_TEST_KILL";

/// Writes until it is killed; without its order in the environment it has nothing to do.
#[test]
fn write_until_killed() {
    let Some(dir) = std::env::var_os(KILL) else { return };
    let database = Guarded::open(Path::new(&dir)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let database = &database;
            scope.spawn(move || {
                for round in thread.. {
                    let n = database.commit(round % 3 == 0).unwrap();
                    // One line, one write: it is in the pipe before the next transaction begins.
                    std::io::stdout().write_all(format!("\nACK {n}\n").as_bytes()).unwrap();
                    std::io::stdout().flush().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_killed_process_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(5);
    let mut model = Model::default();
    for round in 0..25 {
        let mut command = this_test(&[], "write_until_killed");
        let mut child = command.env(KILL, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let wanted = random.below(80);
        let mut acknowledged = 0;
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(n) = line.unwrap().strip_prefix("ACK ") {
                acknowledged = acknowledged.max(n.parse().unwrap());
                seen += 1;
                if seen == wanted {
                    // What it acknowledges between this and its death is read to the end.
                    child.kill().unwrap();
                }
            }
            if seen == 0 && wanted == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let found = check::<Guarded>(dir.path(), acknowledged, &mut model);
        assert!(found.is_ok(), "round {round}: {found:?}");
    }
}
