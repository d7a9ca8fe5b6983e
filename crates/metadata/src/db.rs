//! The one way to the store: a transaction, the events that it implies, and what happens behind it.
//!
//! **Invariant:** every mutation of the metadata is one [`Inner::write`], whose events are in the journal when it
//! returns.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use content::ContentStore;
use events::{Envelope, Journal};
use model::{Any, Labels, Namespace, Timestamp, check_label};
use prost::Message;
use snapshots::{Driver, Snapshotter};
use store::{Durability, Store, Transaction, View, WriteError};
use sys::crash::daemon::{OUTBOX_COMMITTED, OUTBOX_PUBLISHED};
use sys::crash::point;

use crate::encoding::{LeaseRecord, NamespaceRecord, decode};
use crate::gc::{Control, Outside, Runs};
use crate::guard::Guards;
use crate::keys::{self, Table};
use crate::outbox::{Outbox, Put};
use crate::{Error, Scope};

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) content: ContentStore,
    pub(crate) snapshotters: BTreeMap<String, Snapshotter>,
    pub(crate) guards: Arc<Guards>,
    pub(crate) gc: Arc<Control>,
    pub(crate) runs: Runs,
    pub(crate) outside: Outside,
    pub(crate) outbox: Outbox,
}

/// A transaction with the time it happens at and the events it implies.
pub(crate) struct Tx<'a> {
    raw: &'a mut Transaction,
    pub(crate) now: Timestamp,
    events: Vec<Envelope>,
}

impl Deref for Tx<'_> {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        self.raw
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut Transaction {
        self.raw
    }
}

impl Inner {
    pub(crate) fn open(
        store: Store,
        content: ContentStore,
        drivers: Vec<Arc<dyn Driver>>,
        journal: Journal,
    ) -> Result<Self, Error> {
        check_schema(&store)?;
        let (outbox, snapshotters) = store.read(|view| {
            let mut snapshotters = BTreeMap::new();
            for driver in drivers {
                snapshotters.insert(driver.name().to_owned(), Snapshotter::open(driver, view)?);
            }
            Ok::<_, Error>((Outbox::open(journal, view)?, snapshotters))
        })?;
        let gc = Arc::new(Control::new());
        // A journal that is full must not keep the daemon down: the worker tries again.
        gc.outbox_changed(outbox.publish().is_err());
        let guards = Arc::new(Guards::new(Arc::clone(&gc)));
        Ok(Self {
            store,
            content,
            snapshotters,
            guards,
            gc,
            runs: Runs::default(),
            outside: Outside::default(),
            outbox,
        })
    }

    /// Runs one transaction and publishes its events. When `f` fails nothing is kept.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut put = Put::default();
        let result = self.store.write(durability, |raw| {
            let mut tx = Tx { raw, now: Timestamp::now(), events: Vec::new() };
            let value = f(&mut tx)?;
            let events = std::mem::take(&mut tx.events);
            put = self.outbox.put(tx.raw, events)?;
            Ok(value)
        });
        match result {
            Ok(value) => {
                point(OUTBOX_COMMITTED);
                self.outbox.commit(&put);
                // What cannot be published now stays in the outbox, and the worker tries again.
                let late = self.outbox.publish().is_err();
                point(OUTBOX_PUBLISHED);
                self.gc.outbox_changed(late || self.outbox.is_crowded());
                Ok(value)
            }
            Err(error) => {
                self.outbox.cancel(put);
                Err(match error {
                    WriteError::Refused(error) => error,
                    WriteError::Store(error) => Error::Store(error),
                })
            }
        }
    }

    /// Publishes what is late, and removes entries of published events for which no transaction came along. No flush.
    pub(crate) fn settle_outbox(&self) {
        if self.outbox.has_leftovers() {
            let _ = self.outbox.publish();
            let _ = self.write(Durability::Ordered, |_| Ok(()));
        }
    }

    /// Whether [`Inner::settle_outbox`] would have something to do.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.outbox.has_leftovers()
    }

    pub(crate) fn snapshotter(&self, name: &str) -> Result<&Snapshotter, Error> {
        if name.is_empty() {
            return Err(Error::SnapshotterMissing);
        }
        self.snapshotters.get(name).ok_or_else(|| Error::NoSnapshotter(name.chars().take(128).collect()))
    }
}

impl Tx<'_> {
    /// Writes a record.
    pub(crate) fn put_record(&mut self, key: &[u8], record: &impl Message) -> Result<(), Error> {
        Ok(self.raw.put(key, &record.encode_to_vec())?)
    }

    /// Adds an event to those that the transaction implies.
    pub(crate) fn event(&mut self, namespace: &str, topic: &str, event: Any) {
        let envelope =
            Envelope { timestamp: self.now, namespace: namespace.to_owned(), topic: topic.to_owned(), event };
        self.events.push(envelope);
    }

    /// Creates the namespace that something is written to, where nobody did.
    pub(crate) fn touch_namespace(&mut self, namespace: &Namespace) -> Result<(), Error> {
        let key = keys::namespace(namespace);
        if self.get(&key)?.is_none() {
            self.put_record(&key, &NamespaceRecord::default())?;
        }
        Ok(())
    }

    /// Adds something to the request's lease, if it has one, and tells whether it has. NOT_FOUND when there is no such
    /// lease.
    pub(crate) fn lease(&mut self, scope: &Scope, kind: &str, id: &str) -> Result<bool, Error> {
        let Some(lease) = &scope.lease else { return Ok(false) };
        let namespace = scope.namespace.as_str();
        if lease.len() > keys::LEASE_BYTES_MAX || self.get(&Table::Lease.key(namespace, lease))?.is_none() {
            return Err(Error::NoScopeLease);
        }
        self.add_member(namespace, lease, kind, id)?;
        Ok(true)
    }

    /// Adds a member to a lease. Nothing is written, and so nothing flushed, where it is one.
    pub(crate) fn add_member(&mut self, namespace: &str, lease: &str, kind: &str, id: &str) -> Result<(), Error> {
        let key = keys::member(namespace, lease, kind, id);
        if self.get(&key)?.is_none() {
            self.raw.put(&key, b"")?;
        }
        Ok(())
    }

    /// Takes something out of the request's lease.
    pub(crate) fn unlease(&mut self, scope: &Scope, kind: &str, id: &str) {
        if let Some(lease) = scope.lease.as_ref().filter(|lease| lease.len() <= keys::LEASE_BYTES_MAX) {
            self.raw.delete(&keys::member(scope.namespace.as_str(), lease, kind, id));
        }
    }

    /// The record of a lease.
    pub(crate) fn find_lease(&self, namespace: &Namespace, id: &str) -> Result<LeaseRecord, Error> {
        let stored = self.get(&Table::Lease.key(namespace.as_str(), id))?;
        let stored = stored.ok_or_else(|| Error::NoLease(id.to_owned()))?;
        decode("lease", id, &stored)
    }
}

/// The rows of a table in one namespace, in order of their names.
pub(crate) fn rows(
    view: &View,
    table: Table,
    namespace: &str,
    mut visit: impl FnMut(&str, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let prefix = table.prefix(namespace);
    for entry in view.scan(&prefix, None) {
        let (key, value) = entry?;
        // Names come from strings.
        if let Ok(name) = std::str::from_utf8(&key[prefix.len()..]) {
            visit(name, &value)?;
        }
    }
    Ok(())
}

/// The names of all namespaces, in order.
pub(crate) fn namespaces(view: &View) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in view.scan(keys::NAMESPACES, None) {
        let (key, _) = entry?;
        names.push(String::from_utf8_lossy(&key[keys::NAMESPACES.len()..]).into_owned());
    }
    Ok(names)
}

/// Checks labels and removes those without a value, which are never stored.
pub(crate) fn clean_labels(object: &'static str, labels: &mut Labels) -> Result<(), Error> {
    for (key, value) in labels.iter() {
        check_label(key, value).map_err(|source| Error::Label { object, source })?;
    }
    labels.retain(|_, value| !value.is_empty());
    Ok(())
}

/// Applies the path `<field>` or `<field>.<key>` of a field mask to a map; tells whether the path is one of the two.
/// What follows the first dot is the key, whatever it contains.
pub(crate) fn mask_map<V: Clone>(
    path: &str,
    field: &str,
    stored: &mut BTreeMap<String, V>,
    wanted: &BTreeMap<String, V>,
) -> bool {
    let Some(rest) = path.strip_prefix(field) else { return false };
    if rest.is_empty() {
        stored.clone_from(wanted);
        return true;
    }
    let Some(key) = rest.strip_prefix('.') else { return false };
    match wanted.get(key) {
        Some(value) => stored.insert(key.to_owned(), value.clone()),
        None => stored.remove(key),
    };
    true
}

fn check_schema(store: &Store) -> Result<(), Error> {
    let stored = store.read(|view| view.get(keys::SCHEMA))?;
    let have = stored.as_deref().and_then(|value| value.try_into().ok()).map(u64::from_be_bytes);
    match have {
        Some(have) if have > keys::SCHEMA_VERSION => Err(Error::Schema { have, known: keys::SCHEMA_VERSION }),
        Some(_) => Ok(()),
        None => store
            .write(Durability::OnDisk, |tx| tx.put(keys::SCHEMA, &keys::SCHEMA_VERSION.to_be_bytes()))
            .map_err(|error| match error {
                WriteError::Refused(error) | WriteError::Store(error) => Error::Store(error),
            }),
    }
}
