//! A copy of everything that does not depend on sled: the way to another engine, and back from a damaged file.
//!
//! Format: the line `gantry store dump 1`, then entries in key order: the length of the key and of the value (4 bytes
//! each, big-endian), key, value. It ends with a key length of 0 (no key is empty), the number of entries and the
//! FNV-1a hash of all bytes of entries (8 bytes each, big-endian).

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::{Durability, Error, MAX_KEY_BYTES, MAX_VALUE_BYTES, Options, Store, WriteError};

const HEADER: &[u8] = b"gantry store dump 1\n";
const TRANSACTION_BYTES: usize = 1 << 20;

/// FNV-1a: it finds damage, it does not keep out an attacker.
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Store {
    /// Writes all entries, as of one moment, to `to`; how many they are. Writers go on meanwhile.
    pub fn dump(&self, to: &mut impl Write) -> Result<u64, Error> {
        let failed = |source| Error::Dump { operation: "write", source: Arc::new(source) };
        self.read(|view| {
            let mut checksum = Checksum::new();
            let mut count = 0_u64;
            to.write_all(HEADER).map_err(failed)?;
            for entry in view.scan(b"", None) {
                let (key, value) = entry?;
                let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
                for part in [&length(&key), &length(&value), &key[..], &value[..]] {
                    checksum.update(part);
                    to.write_all(part).map_err(failed)?;
                }
                count += 1;
            }
            let end = [&0_u32.to_be_bytes()[..], &count.to_be_bytes(), &checksum.0.to_be_bytes()].concat();
            to.write_all(&end).and_then(|()| to.flush()).map_err(failed)?;
            Ok(count)
        })
    }

    /// Makes a database in `dir`, which must not have one, from a dump.
    ///
    /// The whole dump is read and checked while the database is made; it takes its place only when all of it is on disk.
    pub fn restore(dir: &Path, options: Options, from: &mut impl Read) -> Result<Self, Error> {
        let refuse = |what| Error::Restore { dir: dir.to_owned(), what };
        if dir.join("db").exists() {
            return Err(refuse("there is a database already"));
        }
        let name = dir.file_name().ok_or_else(|| refuse("the path has no last part"))?;
        let part = dir.with_file_name(format!("{}.restoring", name.to_string_lossy()));
        if part.exists() {
            std::fs::remove_dir_all(&part).map_err(Error::file("remove", &part))?;
        }
        fill(&part, options.clone(), from, &refuse)?;
        // An empty directory in the way is replaced by the rename; anything else in it is not ours to lose.
        std::fs::rename(&part, dir).map_err(Error::file("move the restored database to", dir))?;
        if let Some(parent) = dir.parent() {
            crate::engine::sync_path(parent)?;
        }
        Self::open(dir, options)
    }
}

fn fill(
    dir: &Path,
    options: Options,
    from: &mut impl Read,
    refuse: &impl Fn(&'static str) -> Error,
) -> Result<(), Error> {
    let store = Store::open(dir, options)?;
    let mut reader = Reader { from, checksum: Checksum::new() };
    if reader.bytes(HEADER.len())? != HEADER {
        return Err(refuse("this is not a dump of a gantry store"));
    }
    reader.checksum = Checksum::new();
    let mut count = 0_u64;
    let mut entries = Vec::new();
    let mut bytes = 0;
    loop {
        let before = reader.checksum.0;
        let key_bytes = reader.length()?;
        if key_bytes == 0 {
            put(&store, &mut entries)?;
            let (counted, sum) = (reader.number()?, reader.number()?);
            return if (counted, sum) == (count, before) { Ok(()) } else { Err(refuse("the dump is damaged")) };
        }
        let value_bytes = reader.length()?;
        if key_bytes > MAX_KEY_BYTES || value_bytes > MAX_VALUE_BYTES {
            return Err(refuse("the dump is damaged"));
        }
        entries.push((reader.bytes(key_bytes)?, reader.bytes(value_bytes)?));
        count += 1;
        bytes += key_bytes + value_bytes;
        if bytes > TRANSACTION_BYTES {
            put(&store, &mut entries)?;
            bytes = 0;
        }
    }
}

fn put(store: &Store, entries: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Error> {
    let written = store.write(Durability::OnDisk, |transaction| {
        entries.drain(..).try_for_each(|(key, value)| transaction.put(&key, &value))
    });
    written.map_err(|error| match error {
        WriteError::Refused(error) | WriteError::Store(error) => error,
    })
}

struct Reader<'a, R> {
    from: &'a mut R,
    checksum: Checksum,
}

impl<R: Read> Reader<'_, R> {
    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count];
        let read = |source: io::Error| Error::Dump { operation: "read", source: Arc::new(source) };
        self.from.read_exact(&mut bytes).map_err(read)?;
        self.checksum.update(&bytes);
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize, Error> {
        let bytes = self.bytes(4)?;
        Ok(bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn number(&mut self) -> Result<u64, Error> {
        let bytes = self.bytes(8)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
