//! The store as a database under test.

use std::path::Path;

use store::{Durability, Error, Options, Store, View, WriteError};

use crate::harness::{COUNTER, Database, SEGMENT_BYTES, State, changes, count};

pub(crate) struct Guarded(Store);

impl Database for Guarded {
    fn open(dir: &Path) -> Result<Self, String> {
        let options = Options { segment_bytes: SEGMENT_BYTES, reserve_bytes: 64 << 10, ..Options::default() };
        Store::open(dir, options).map(Self).map_err(|error| format!("{error:?}"))
    }

    fn commit(&self, on_disk: bool) -> Result<u64, String> {
        let durability = if on_disk { Durability::OnDisk } else { Durability::Ordered };
        let result = self.0.write(durability, |tx| {
            let n = 1 + count(tx.get(COUNTER)?.as_deref()).unwrap();
            for (key, value) in changes(n) {
                match value {
                    Some(value) => tx.put(&key, &value)?,
                    None => tx.delete(&key),
                }
            }
            Ok(n)
        });
        result.map_err(|error: WriteError<Error>| format!("{error:?}"))
    }

    fn state(&self) -> Result<State, String> {
        let entries = |view: &View| {
            view.scan(b"", None).map(|entry| entry.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect::<Result<_, _>>()
        };
        self.0.read(entries).map_err(|error: Error| format!("{error:?}"))
    }
}
