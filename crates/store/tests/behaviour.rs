//! What callers of the store rely on, apart from power cuts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use store::{Durability, Error, MAX_KEY_BYTES, MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, Options, Store, WriteError};
use tempfile::TempDir;

fn small() -> Options {
    Options { segment_bytes: 64 << 10, reserve_bytes: 0, ..Options::default() }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, small()).unwrap()
}

fn put(store: &Store, durability: Durability, entries: &[(&[u8], &[u8])]) {
    store.write(durability, |tx| entries.iter().try_for_each(|(key, value)| tx.put(key, value))).unwrap();
}

fn all(store: &Store) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = |view: &store::View| {
        view.scan(b"", None).map(|entry| entry.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect::<Result<_, Error>>()
    };
    store.read(entries).unwrap()
}

#[test]
fn a_transaction_reads_its_own_writes_and_a_refused_one_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, Durability::OnDisk, &[(b"a", b"1"), (b"c", b"3")]);
    let refused = store.write(Durability::OnDisk, |tx| {
        tx.put(b"b", b"2").unwrap();
        tx.delete(b"c");
        tx.put(b"d", b"4").unwrap();
        assert_eq!(tx.get(b"b").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(tx.get(b"c").unwrap(), None);
        let keys: Vec<_> = tx.scan(b"", None).map(|entry| entry.unwrap().0.to_vec()).collect();
        assert_eq!(keys, [b"a", b"b", b"d"]);
        Err::<(), _>("no")
    });
    assert!(matches!(refused, Err(WriteError::Refused("no"))));
    let expected = BTreeMap::from([(b"a".to_vec(), b"1".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
    assert_eq!(all(&store), expected);
    drop(store);
    assert_eq!(all(&open(dir.path())), expected);
}

#[test]
fn scans_stay_within_prefix_and_start() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let keys: [&[u8]; 8] = [b"a", b"b/1", b"b/2", b"b/2/x", b"b/3", b"b0", b"c", b"\xff\xff"];
    store.write(Durability::OnDisk, |tx| keys.iter().try_for_each(|key| tx.put(key, key))).unwrap();
    type Case<'a> = (&'a [u8], Option<&'a [u8]>, &'a [&'a [u8]]);
    let cases: [Case<'_>; 9] = [
        (b"", None, &keys),
        (b"b/", None, &keys[1..5]),
        (b"b/", Some(b"b/2"), &keys[2..5]),
        (b"b/", Some(b"b/2\0"), &keys[3..5]),
        (b"b/", Some(b"a"), &keys[1..5]),
        (b"b/", Some(b"c"), &[]),
        (b"x", None, &[]),
        (b"\xff", None, &keys[7..]),
        (b"\xff\xff\xff", None, &[]),
    ];
    for (prefix, from, expected) in cases {
        let found = store.read(|view| view.scan(prefix, from).map(|e| e.unwrap().0.to_vec()).collect::<Vec<_>>());
        assert_eq!(found, expected, "{prefix:?} {from:?}");
    }
}

#[test]
fn sizes_are_limited_and_large_values_survive_in_any_order() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let refused = |key: &[u8], value: &[u8]| match store.write(Durability::OnDisk, |tx| tx.put(key, value)) {
        Err(WriteError::Refused(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(b"", b"x"), Error::KeySize { bytes: 0, max: MAX_KEY_BYTES }));
    assert!(matches!(refused(&[b'k'; MAX_KEY_BYTES + 1], b"x"), Error::KeySize { .. }));
    assert!(matches!(refused(b"k", &vec![0; MAX_VALUE_BYTES + 1]), Error::ValueSize { .. }));
    let error = store.write(Durability::OnDisk, |tx| {
        (0..=MAX_TRANSACTION_BYTES / MAX_VALUE_BYTES)
            .try_for_each(|n| tx.put(format!("k{n}").as_bytes(), &vec![0; MAX_VALUE_BYTES]))
    });
    assert!(matches!(error, Err(WriteError::Refused(Error::TransactionSize { .. }))));

    let mut expected = BTreeMap::new();
    for (round, length) in
        [0, 1, 4095, 4096, 4097, 10_000, MAX_VALUE_BYTES, 9000, 3, 130_000, 0].into_iter().enumerate()
    {
        for name in ["a", "b"] {
            let key = name.repeat(MAX_KEY_BYTES).into_bytes();
            let value: Vec<u8> = (0..length).map(|at| (at * 31 + round) as u8).collect();
            put(&store, Durability::OnDisk, &[(&key, &value)]);
            expected.insert(key, value);
            assert_eq!(all(&store), expected);
        }
    }
    drop(store);
    assert_eq!(all(&Store::open(dir.path(), Options::default()).unwrap()), expected);
    let blobs = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert_eq!(blobs, 0, "sled does not sync the files that it makes for large pages");
}

#[test]
fn pages_never_outgrow_the_log() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    for round in 0..40_u32 {
        store
            .write(Durability::Ordered, |tx| {
                (0..60_u32).try_for_each(|n| {
                    let mut key = vec![b'k'; MAX_KEY_BYTES - 4];
                    key.extend((n * 40 + round).wrapping_mul(2_654_435_761).to_be_bytes());
                    tx.put(&key, &[7; 4096])
                })
            })
            .unwrap();
    }
    assert_eq!(all(&store).len(), 2400);
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
}

#[test]
fn a_second_opener_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), small()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another process"));
    let clone = store.clone();
    drop(store);
    assert!(matches!(Store::open(dir.path(), small()), Err(Error::Locked { .. })));
    drop(clone);
    for _ in 0..20 {
        drop(open(dir.path()));
    }
}

#[test]
fn a_view_does_not_change_while_others_write() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, Durability::OnDisk, &[(b"a", b"1"), (b"b", b"1"), (b"d", &[1; 5000])]);
    let before = all(&store);
    store.read(|view| {
        let mut half = view.scan(b"", None);
        assert_eq!(&*half.next().unwrap().unwrap().0, b"a");
        for round in 0..50_u8 {
            store
                .write(Durability::Ordered, |tx| {
                    tx.put(b"a", &[round])?;
                    tx.delete(b"b");
                    tx.put(b"c", &[round; 300])?;
                    tx.put(b"d", &vec![round; 20 * usize::from(round)])
                })
                .unwrap();
            let seen: BTreeMap<_, _> =
                view.scan(b"", None).map(|e| e.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            assert_eq!(seen, before);
            assert_eq!(view.get(b"b").unwrap().as_deref(), Some(&b"1"[..]));
            assert_eq!(view.get(b"c").unwrap(), None);
        }
        let rest: Vec<_> = half.map(|entry| entry.unwrap().0.to_vec()).collect();
        assert_eq!(rest, [b"b", b"d"]);
    });
    assert_eq!(store.read(|view| view.get(b"a").unwrap()).as_deref(), Some(&[49][..]));
    assert_eq!(all(&store).len(), 3);
}

/// Writers move units between counters; the sum never changes, for nobody and at no time.
#[test]
fn readers_never_see_half_a_transaction() {
    const KEYS: u64 = 40;
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let number = |value: Option<store::Value>| u64::from_be_bytes(value.unwrap()[..8].try_into().unwrap());
    let encode = |number: u64| [&number.to_be_bytes()[..], &vec![0; (number % 900) as usize]].concat();
    store
        .write(Durability::OnDisk, |tx| (0..KEYS).try_for_each(|key| tx.put(&key.to_be_bytes(), &encode(1000))))
        .unwrap();
    let done = AtomicBool::new(false);
    let (reads, moves) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6_u64)
            .map(|writer| {
                let (store, moves) = (&store, &moves);
                scope.spawn(move || {
                    let mut random = writer + 1;
                    for _ in 0..400 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let (from, to) = ((random >> 33) % KEYS, (random >> 43) % KEYS);
                        let durability = if random >> 60 < 4 { Durability::OnDisk } else { Durability::Ordered };
                        let moved = store.write(durability, |tx| {
                            let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
                            let amount = number(tx.get(&from).unwrap()).min(7);
                            tx.put(&from, &encode(number(tx.get(&from).unwrap()) - amount)).unwrap();
                            tx.put(&to, &encode(number(tx.get(&to).unwrap()) + amount)).unwrap();
                            if random >> 50 & 7 == 0 { Err(()) } else { Ok(()) }
                        });
                        moves.fetch_add(u64::from(moved.is_ok()), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    store.read(|view| {
                        let scanned: u64 = view.scan(b"", None).map(|entry| number(Some(entry.unwrap().1))).sum();
                        let got: u64 = (0..KEYS).map(|key| number(view.get(&key.to_be_bytes()).unwrap())).sum();
                        assert_eq!((scanned, got), (1000 * KEYS, 1000 * KEYS));
                    });
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) > 10 && moves.load(Ordering::Relaxed) > 1000);
    drop(store);
    let store = open(dir.path());
    let sum: u64 = store.read(|view| view.scan(b"", None).map(|entry| number(Some(entry.unwrap().1))).sum());
    assert_eq!(sum, 1000 * KEYS);
}

#[test]
fn a_panicking_closure_and_an_idle_one_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.write(Durability::OnDisk, |tx| -> Result<(), Infallible> {
            tx.put(b"a", b"1").unwrap();
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    store.write(Durability::OnDisk, |_| Ok::<_, Infallible>(())).unwrap();
    assert_eq!(all(&store), BTreeMap::new());
    put(&store, Durability::OnDisk, &[(b"b", b"2")]);
    assert_eq!(all(&store).len(), 1);
}

#[test]
fn a_dump_restores_and_a_damaged_one_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir.path().join("first"));
    for n in 0..500_u32 {
        put(&store, Durability::Ordered, &[(format!("key/{n}").as_bytes(), &vec![n as u8; (n * 7 % 3000) as usize])]);
    }
    let mut dump = Vec::new();
    assert_eq!(store.dump(&mut dump).unwrap(), 500);
    let restored = Store::restore(&dir.path().join("second"), small(), &mut &dump[..]).unwrap();
    assert_eq!(all(&restored), all(&store));
    let again = Store::restore(&dir.path().join("second"), small(), &mut &dump[..]).unwrap_err();
    assert!(matches!(again, Error::Restore { .. }));

    let mut altered = dump.clone();
    altered[dump.len() / 2] ^= 1;
    let cases = [
        ("altered", &altered[..]),
        ("cut", &dump[..dump.len() - 1]),
        ("other", b"#!/bin/sh echo hello"),
        ("empty", b""),
    ];
    for (name, bytes) in cases {
        let target = dir.path().join(name);
        assert!(Store::restore(&target, small(), &mut &bytes[..]).is_err(), "{name}");
        assert!(!target.exists(), "{name}");
    }
}

#[test]
fn an_interrupted_creation_starts_over() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("creating"), b"").unwrap();
    for name in ["db", "conf", "snap.0000"] {
        std::fs::write(dir.path().join(name), [0; 60]).unwrap();
    }
    put(&open(dir.path()), Durability::OnDisk, &[(b"a", b"1")]);
    assert!(!dir.path().join("creating").exists());
    std::fs::write(dir.path().join("snap.0000000000FFFFFF.generating"), b"half").unwrap();
    assert_eq!(all(&open(dir.path())).len(), 1);
}
