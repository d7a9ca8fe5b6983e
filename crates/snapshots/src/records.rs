//! The records of snapshots, as functions on a transaction of the store.
//!
//! ```text
//! snapshots/ <namespace> 0 <snapshotter> 0 r <key>                         -> Record, JSON
//! snapshots/ <namespace> 0 <snapshotter> 0 c <parent id, BE> <child id, BE> -> empty
//! ```
//!
//! **Invariant:** a record's `parents` are the ids of committed snapshots that cannot be removed while it exists, so
//! the mounts of a snapshot follow from its record alone.

use std::collections::HashSet;

use model::{Labels, Timestamp};
use serde::{Deserialize, Serialize};
use store::{Transaction, View};

use crate::{Error, Kind, Usage};

/// Longest key or name of a snapshot, in bytes: what the store leaves behind namespace and snapshotter, which have at most
/// 76 bytes each.
pub const MAX_KEY_BYTES: usize = store::MAX_KEY_BYTES - PREFIX.len() - 2 * 77 - 1;
/// Most parents of a snapshot. Overlayfs takes 500 lower directories.
pub const MAX_PARENTS: usize = 500;

const PREFIX: &[u8] = b"snapshots/";

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its key while active or a view, its name once committed. Not stored: it is part of the store's key.
    #[serde(skip)]
    pub key: String,
    /// Id of its directories; no other snapshot of this snapshotter has had it.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Name of the parent; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Ids of all parents, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<u64>,
    /// When it was prepared or committed.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Its labels, without empty values.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Measured at commit; zero for others.
    #[serde(default)]
    pub usage: Usage,
}

impl Record {
    /// The value of a filter's field: `kind`, `name`, `parent` and `labels.*`, whose further
    /// components are joined by dots again. `None` is "absent".
    pub fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["kind"] => Some(self.kind.as_str().to_owned()),
            ["name"] => Some(self.key.clone()),
            ["parent"] => Some(self.parent.clone()),
            ["labels", rest @ ..] => self.labels.get(&rest.join(".")).cloned(),
            _ => None,
        }
    }
}

/// What a new snapshot is to be.
#[derive(Clone, Debug)]
pub struct New<'a> {
    /// Its key.
    pub key: &'a str,
    /// `View` or `Active`.
    pub kind: Kind,
    /// Name of its parent; empty for none.
    pub parent: &'a str,
    /// All its labels.
    pub labels: &'a Labels,
}

/// The snapshots of one namespace and one snapshotter.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    namespace: &'a str,
    snapshotter: &'a str,
}

impl<'a> Table<'a> {
    /// Names a table; it need not hold anything. Neither text may contain a NUL byte (identifiers never do).
    pub fn new(namespace: &'a str, snapshotter: &'a str) -> Self {
        Self { namespace, snapshotter }
    }

    /// The snapshot `key`. NOT_FOUND if there is none.
    pub fn stat(&self, view: &View, key: &str) -> Result<Record, Error> {
        self.find(view, key)?.ok_or_else(|| Error::NotFound(key.to_owned()))
    }

    /// The snapshot `key`, if there is one.
    pub fn find(&self, view: &View, key: &str) -> Result<Option<Record>, Error> {
        check_key(key)?;
        let found = view.get(&self.record_key(key))?;
        found.map(|value| decode(key, &value)).transpose()
    }

    /// Checks that a snapshot with this key and parent could be created, and returns the ids of its parents, nearest
    /// first. ALREADY_EXISTS for the key, NOT_FOUND for the parent, INVALID_ARGUMENT for one that is not committed.
    pub fn parents(&self, view: &View, key: &str, parent: &str) -> Result<Vec<u64>, Error> {
        if self.find(view, key)?.is_some() {
            return Err(Error::Exists(key.to_owned()));
        }
        self.chain(view, parent)
    }

    /// Creates the record of a snapshot whose directories exist under `id`. Fails as [`Table::parents`] does.
    pub fn create(&self, tx: &mut Transaction, new: &New<'_>, id: u64, now: Timestamp) -> Result<Record, Error> {
        let parents = self.parents(tx, new.key, new.parent)?;
        let record = Record {
            key: new.key.to_owned(),
            id,
            kind: new.kind,
            parent: new.parent.to_owned(),
            parents,
            created: now,
            updated: now,
            labels: without_empty(new.labels),
            usage: Usage::default(),
        };
        self.link(tx, &record)?;
        self.put(tx, &record)?;
        Ok(record)
    }

    /// The active snapshot `key` that is to become `name`; `parent` as in [`Table::commit`], which fails the same way.
    pub fn committable(&self, view: &View, name: &str, key: &str, parent: &str) -> Result<Record, Error> {
        check_key(name)?;
        if self.find(view, name)?.is_some() {
            return Err(Error::Exists(name.to_owned()));
        }
        let mut record = self.stat(view, key)?;
        if record.kind != Kind::Active {
            return Err(Error::NotActive(key.to_owned()));
        }
        if !parent.is_empty() && parent != record.parent {
            if !record.parent.is_empty() {
                return Err(Error::HasParent { key: key.to_owned(), parent: record.parent });
            }
            record.parents = self.chain(view, parent)?;
            parent.clone_into(&mut record.parent);
        }
        Ok(record)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name` with exactly `labels`. `parent` is honoured
    /// only where the active snapshot has none (only for drivers with the capability `rebase`); empty means no change.
    ///
    /// ALREADY_EXISTS for `name`, NOT_FOUND for `key`, FAILED_PRECONDITION for a view.
    pub fn commit(
        &self,
        tx: &mut Transaction,
        commit: &Commit<'_>,
        usage: Usage,
        now: Timestamp,
    ) -> Result<Record, Error> {
        let mut record = self.committable(tx, commit.name, commit.key, commit.parent)?;
        tx.delete(&self.record_key(commit.key));
        commit.name.clone_into(&mut record.key);
        record.kind = Kind::Committed;
        record.created = now;
        record.updated = now;
        record.labels = without_empty(commit.labels);
        record.usage = usage;
        self.link(tx, &record)?;
        self.put(tx, &record)?;
        Ok(record)
    }

    /// The snapshot `key` for its mounts. FAILED_PRECONDITION if it is committed.
    pub fn mountable(&self, view: &View, key: &str) -> Result<Record, Error> {
        let record = self.stat(view, key)?;
        match record.kind {
            Kind::Active | Kind::View => Ok(record),
            Kind::Committed => Err(Error::NotMountable(key.to_owned())),
        }
    }

    /// Removes the record of `key` and returns it, so that its directories can be removed once the transaction is
    /// through. FAILED_PRECONDITION if it has children.
    pub fn remove(&self, tx: &mut Transaction, key: &str) -> Result<Record, Error> {
        let record = self.stat(tx, key)?;
        if self.has_children(tx, record.id)? {
            return Err(Error::HasChildren(key.to_owned()));
        }
        if let Some(parent) = record.parents.first() {
            tx.delete(&self.child_key(*parent, record.id));
        }
        tx.delete(&self.record_key(key));
        Ok(record)
    }

    /// Whether other snapshots stand on snapshot `id`.
    pub fn has_children(&self, view: &View, id: u64) -> Result<bool, Error> {
        let mut prefix = self.prefix(b'c');
        prefix.extend_from_slice(&id.to_be_bytes());
        Ok(view.scan(&prefix, None).next().transpose()?.is_some())
    }

    /// Changes the labels of `key`.
    pub fn update(
        &self,
        tx: &mut Transaction,
        key: &str,
        now: Timestamp,
        change: impl FnOnce(&mut Labels),
    ) -> Result<Record, Error> {
        let mut record = self.stat(tx, key)?;
        change(&mut record.labels);
        record.labels.retain(|_, value| !value.is_empty());
        record.updated = now;
        self.put(tx, &record)?;
        Ok(record)
    }

    /// All snapshots, sorted by key.
    pub fn list(&self, view: &View) -> Result<Vec<Record>, Error> {
        let prefix = self.prefix(b'r');
        let mut records = Vec::new();
        for entry in view.scan(&prefix, None) {
            let (key, value) = entry?;
            records.push(decode(&String::from_utf8_lossy(&key[prefix.len()..]), &value)?);
        }
        Ok(records)
    }

    fn chain(&self, view: &View, parent: &str) -> Result<Vec<u64>, Error> {
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let Some(record) = self.find(view, parent)? else {
            return Err(Error::ParentNotFound(parent.to_owned()));
        };
        if record.kind != Kind::Committed {
            return Err(Error::ParentNotCommitted(parent.to_owned()));
        }
        if record.parents.len() >= MAX_PARENTS {
            return Err(Error::TooManyParents { max: MAX_PARENTS });
        }
        let mut chain = Vec::with_capacity(record.parents.len() + 1);
        chain.push(record.id);
        chain.extend(record.parents);
        Ok(chain)
    }

    fn link(&self, tx: &mut Transaction, record: &Record) -> Result<(), Error> {
        if let Some(parent) = record.parents.first() {
            tx.put(&self.child_key(*parent, record.id), b"")?;
        }
        Ok(())
    }

    fn put(&self, tx: &mut Transaction, record: &Record) -> Result<(), Error> {
        let value = serde_json::to_vec(record).map_err(|source| Error::Damaged { key: record.key.clone(), source })?;
        Ok(tx.put(&self.record_key(&record.key), &value)?)
    }

    fn prefix(&self, table: u8) -> Vec<u8> {
        let mut key = namespace_prefix(self.namespace);
        key.extend_from_slice(self.snapshotter.as_bytes());
        key.extend_from_slice(&[0, table]);
        key
    }

    fn record_key(&self, key: &str) -> Vec<u8> {
        let mut full = self.prefix(b'r');
        full.extend_from_slice(key.as_bytes());
        full
    }

    fn child_key(&self, parent: u64, child: u64) -> Vec<u8> {
        let mut full = self.prefix(b'c');
        full.extend_from_slice(&parent.to_be_bytes());
        full.extend_from_slice(&child.to_be_bytes());
        full
    }
}

/// What a commit makes of an active snapshot.
#[derive(Clone, Debug)]
pub struct Commit<'a> {
    /// The name it gets.
    pub name: &'a str,
    /// The key it has.
    pub key: &'a str,
    /// Its labels from now on; those of the active snapshot are dropped.
    pub labels: &'a Labels,
    /// Its parent, where it has none yet; empty for no change.
    pub parent: &'a str,
}

/// Whether a namespace has no snapshots at all.
pub fn namespace_is_empty(view: &View, namespace: &str) -> Result<bool, Error> {
    Ok(view.scan(&namespace_prefix(namespace), None).next().transpose()?.is_none())
}

/// The snapshotters that have snapshots in a namespace, sorted.
pub fn snapshotters(view: &View, namespace: &str) -> Result<Vec<String>, Error> {
    let prefix = namespace_prefix(namespace);
    let mut names: Vec<String> = Vec::new();
    for entry in view.scan(&prefix, None) {
        let (key, _) = entry?;
        let rest = &key[prefix.len()..];
        let name = &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())];
        if names.last().is_none_or(|last| last.as_bytes() != name) {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

/// The ids that records of any namespace hold for a snapshotter.
pub fn live_ids(view: &View, snapshotter: &str) -> Result<HashSet<u64>, Error> {
    let mut ids = HashSet::new();
    for entry in view.scan(PREFIX, None) {
        let (key, value) = entry?;
        let mut parts = key[PREFIX.len()..].splitn(3, |byte| *byte == 0);
        let (Some(_), Some(name), Some([b'r', record_key @ ..])) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if name == snapshotter.as_bytes() {
            ids.insert(decode(&String::from_utf8_lossy(record_key), &value)?.id);
        }
    }
    Ok(ids)
}

fn namespace_prefix(namespace: &str) -> Vec<u8> {
    let mut key = PREFIX.to_vec();
    key.extend_from_slice(namespace.as_bytes());
    key.push(0);
    key
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(Error::KeyTooLong { bytes: key.len(), max: MAX_KEY_BYTES });
    }
    Ok(())
}

fn decode(key: &str, value: &[u8]) -> Result<Record, Error> {
    let mut record: Record =
        serde_json::from_slice(value).map_err(|source| Error::Damaged { key: key.to_owned(), source })?;
    key.clone_into(&mut record.key);
    Ok(record)
}

fn without_empty(labels: &Labels) -> Labels {
    labels.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.clone(), value.clone())).collect()
}
