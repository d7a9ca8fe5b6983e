//! Reading at one version, with or without changes of one's own on top.

use std::ops::{Bound, Deref};
use std::sync::Arc;

use crate::commit::Opening;
use crate::engine::{Engine, Found};
use crate::mvcc::{Changes, Versions, next_key};
use crate::record::{self, Limits};
use crate::{Error, Key, MAX_TRANSACTION_BYTES, Value};

/// One version of one opening of the database, kept readable.
#[derive(Debug)]
struct Base {
    engine: Arc<Engine>,
    versions: Arc<Versions>,
    version: u64,
}

impl Base {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        // The tree is read first: whatever changes it afterwards is noted before it does.
        let found = self.engine.find(key)?;
        self.at_version(key, found)
    }

    /// What `key` had at this version, given what the tree has now.
    fn at_version(&self, key: &[u8], found: Found) -> Result<Option<Value>, Error> {
        match (self.versions.replaced(self.version, key), found) {
            (Some(old), _) => Ok(old),
            (None, Found::Value(value)) => Ok(value),
            (None, Found::Torn) => Err(self.engine.damaged("a part of a value is missing")),
        }
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.versions.leave(self.version);
    }
}

/// A consistent view of the database: it does not change while others write.
///
/// When the database has failed, every read of it returns [`Error::Poisoned`].
#[derive(Debug)]
pub struct View {
    base: Result<Base, Error>,
    /// Changes that are not visible to readers yet, newest first: of this transaction, then of those before it.
    layers: Vec<Arc<Changes>>,
}

impl View {
    pub(crate) fn new(opening: Result<Opening, Error>, layers: Vec<Arc<Changes>>) -> Self {
        let base = opening.map(|Opening { engine, versions }| {
            let version = versions.enter();
            Base { engine, versions, version }
        });
        Self { base, layers }
    }

    /// The value of `key`, if it has one.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        match self.layers.iter().find_map(|layer| layer.get(key)) {
            Some(changed) => Ok(changed.clone()),
            None => self.base.as_ref().map_err(Error::clone)?.get(key),
        }
    }

    /// The entries whose key starts with `prefix` and is not less than `from`, in key order.
    ///
    /// `from` is a whole key, prefix included; to resume after a key, append a zero byte to it. The iterator ends after
    /// its first error.
    pub fn scan(&self, prefix: &[u8], from: Option<&[u8]>) -> Scan<'_> {
        let start = from.filter(|from| *from > prefix).unwrap_or(prefix);
        let first = record::entry_key(start);
        let end = record::end_of_prefix(prefix).max(first.clone());
        let entries = self.base.as_ref().ok().map(|base| Entries {
            base,
            range: base.engine.range(first, end),
            peeked: None,
            ended: false,
        });
        Scan { view: self, prefix: prefix.to_owned(), cursor: Bound::Included(start.to_owned()), entries, ended: false }
    }
}

/// What the tree has, one entry ahead.
struct Entries<'a> {
    base: &'a Base,
    range: sled::Iter,
    peeked: Option<(Key, sled::IVec)>,
    ended: bool,
}

impl Entries<'_> {
    /// The next key that the tree has, and the next that a newer group replaced in it.
    fn candidates(&mut self, cursor: Bound<&[u8]>) -> Result<[Option<Key>; 2], Error> {
        // As in `Base::get`: the tree is asked first, then what was replaced in it since.
        if self.peeked.is_none() && !self.ended {
            match self.base.engine.next(&mut self.range)? {
                Some((key, raw)) => self.peeked = Some((record::user_key(&key).into(), raw)),
                None => self.ended = true,
            }
        }
        let replaced = self.base.versions.next_replaced(self.base.version, cursor);
        Ok([self.peeked.as_ref().map(|(key, _)| key.clone()), replaced])
    }

    /// The value of a candidate.
    fn resolve(&self, key: &Key, raw: Option<sled::IVec>) -> Result<Option<Value>, Error> {
        let found = match raw {
            Some(raw) => self.base.engine.load(key, &raw)?,
            None => Found::Value(None),
        };
        self.base.at_version(key, found)
    }
}

/// The iterator of [`View::scan`].
pub struct Scan<'a> {
    view: &'a View,
    prefix: Vec<u8>,
    cursor: Bound<Vec<u8>>,
    /// Absent when the database has failed.
    entries: Option<Entries<'a>>,
    ended: bool,
}

impl std::fmt::Debug for Scan<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Scan").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Scan<'_> {
    fn step(&mut self) -> Result<Option<(Key, Value)>, Error> {
        let layers = &self.view.layers;
        let Some(entries) = &mut self.entries else {
            return self.view.base.as_ref().map(|_| None).map_err(Error::clone);
        };
        loop {
            let cursor = self.cursor.as_ref().map(Vec::as_slice);
            let [stored, replaced] = entries.candidates(cursor)?;
            let changed = layers.iter().filter_map(|layer| next_key(layer, cursor)).min().cloned();
            let next = [stored, replaced, changed].into_iter().flatten().min();
            let Some(key) = next.filter(|key| key.starts_with(&self.prefix)) else { return Ok(None) };
            let raw = entries.peeked.take_if(|(stored, _)| *stored == key).map(|(_, raw)| raw);
            let value = match layers.iter().find_map(|layer| layer.get(&key)) {
                Some(changed) => changed.clone(),
                None => entries.resolve(&key, raw)?,
            };
            self.cursor = Bound::Excluded(key.to_vec());
            if let Some(value) = value {
                return Ok(Some((key, value)));
            }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Key, Value), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.step().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

/// A [`View`] that can also be written; its reads include its own writes.
#[derive(Debug)]
pub struct Transaction {
    view: View,
    limits: Limits,
    bytes: usize,
}

impl Deref for Transaction {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Transaction {
    /// `view` must have an empty layer of its own in front.
    pub(crate) fn new(view: View, limits: Limits) -> Self {
        Self { view, limits, bytes: 0 }
    }

    /// Sets the value of `key`. Refuses a key, a value or a transaction that is too large.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let limits = self.limits;
        if key.is_empty() || key.len() > limits.key_bytes {
            return Err(Error::KeySize { bytes: key.len(), max: limits.key_bytes });
        }
        if value.len() > limits.value_bytes {
            return Err(Error::ValueSize { bytes: value.len(), max: limits.value_bytes });
        }
        let bytes = self.bytes + key.len() + value.len();
        if bytes > MAX_TRANSACTION_BYTES {
            return Err(Error::TransactionSize { bytes, max: MAX_TRANSACTION_BYTES });
        }
        self.bytes = bytes;
        self.change(key, Some(value.into()));
        Ok(())
    }

    /// Removes `key`; it need not exist.
    pub fn delete(&mut self, key: &[u8]) {
        self.change(key, None);
    }

    fn change(&mut self, key: &[u8], value: Option<Value>) {
        if let Some(own) = self.view.layers.first_mut() {
            Arc::make_mut(own).insert(key.into(), value);
        }
    }

    /// The bytes that the transaction puts into the log, roughly.
    pub(crate) fn log_bytes(&self) -> usize {
        let keys = self.changes().keys().map(|key| key.len() + 64).sum::<usize>();
        self.bytes + keys
    }

    /// Whether it removes something that was there.
    pub(crate) fn deletes(&self) -> Result<bool, Error> {
        let own = self.changes();
        for (key, _) in own.iter().filter(|(_, value)| value.is_none()) {
            let before = self.view.layers.iter().skip(1).find_map(|layer| layer.get(key));
            let existed = match before {
                Some(value) => value.is_some(),
                None => self.view.base.as_ref().map_err(Error::clone)?.get(key)?.is_some(),
            };
            if existed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the transaction changes.
    pub(crate) fn changes(&self) -> Arc<Changes> {
        self.view.layers.first().cloned().unwrap_or_default()
    }
}
