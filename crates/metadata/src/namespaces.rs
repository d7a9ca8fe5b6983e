use model::{Labels, Namespace};
use snapshots::records;
use store::{Durability, View};

use crate::db::{self, Inner, clean_labels};
use crate::encoding::{NamespaceRecord, decode};
use crate::keys::{self, Table};
use crate::{Error, NamespaceInfo, payload};

/// The namespaces. The first write to a namespace creates it; so does an update.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces<'a>(&'a Inner);

impl<'a> Namespaces<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// One namespace. One that nobody created has no labels, and that is no error: clients ask for the labels of a
    /// namespace before they use it for the first time.
    pub fn get(&self, name: &Namespace) -> Result<NamespaceInfo, Error> {
        let found = self.0.store.read(|view| find(view, name))?;
        Ok(NamespaceInfo { name: name.as_str().to_owned(), labels: found.map(|r| r.labels).unwrap_or_default() })
    }

    /// All of them, in order of their names.
    pub fn list(&self) -> Result<Vec<NamespaceInfo>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            for entry in view.scan(keys::NAMESPACES, None) {
                let (key, value) = entry?;
                let name = String::from_utf8_lossy(&key[keys::NAMESPACES.len()..]).into_owned();
                let labels = decode::<NamespaceRecord>("namespace", &name, &value)?.labels;
                found.push(NamespaceInfo { name, labels });
            }
            Ok(found)
        })
    }

    /// Creates one. ALREADY_EXISTS if it exists, however it came to be.
    pub fn create(&self, name: &Namespace, mut labels: Labels) -> Result<NamespaceInfo, Error> {
        clean_labels("namespace", &mut labels)?;
        self.0.write(Durability::OnDisk, |tx| {
            if find(tx, name)?.is_some() {
                return Err(Error::NamespaceExists(name.as_str().to_owned()));
            }
            tx.put_record(&keys::namespace(name), &NamespaceRecord { labels: labels.clone() })?;
            tx.event(name.as_str(), "/namespaces/create", payload::namespace_create(name.as_str(), &labels));
            Ok(NamespaceInfo { name: name.as_str().to_owned(), labels })
        })
    }

    /// Changes the labels that `mask` names (`labels.<key>`), or all with an empty mask. Creates the namespace where it
    /// does not exist.
    pub fn update(&self, name: &Namespace, labels: &Labels, mask: &[String]) -> Result<NamespaceInfo, Error> {
        self.0.write(Durability::OnDisk, |tx| {
            let mut stored = find(tx, name)?.unwrap_or_default().labels;
            if mask.is_empty() {
                stored.clone_from(labels);
            }
            for path in mask {
                if !path.starts_with("labels.") || !db::mask_map(path, "labels", &mut stored, labels) {
                    return Err(Error::Mask { path: path.clone(), subject: format!("namespace {:?}", name.as_str()) });
                }
            }
            clean_labels("namespace", &mut stored)?;
            tx.put_record(&keys::namespace(name), &NamespaceRecord { labels: stored.clone() })?;
            tx.event(name.as_str(), "/namespaces/update", payload::namespace_update(name.as_str(), &stored));
            Ok(NamespaceInfo { name: name.as_str().to_owned(), labels: stored })
        })
    }

    /// Deletes one that holds no images, blobs, containers and snapshots; its leases and ingests go with it. NOT_FOUND
    /// if it does not exist, FAILED_PRECONDITION if it holds something.
    pub fn delete(&self, name: &Namespace) -> Result<(), Error> {
        self.0.write(Durability::OnDisk, |tx| {
            if find(tx, name)?.is_none() {
                return Err(Error::NoNamespace(name.as_str().to_owned()));
            }
            let holds = contents(tx, name)?;
            if !holds.is_empty() {
                return Err(Error::NamespaceInUse { name: name.as_str().to_owned(), holds: holds.join(", ") });
            }
            for table in [Table::Lease, Table::Member, Table::Ingest, Table::Sandbox] {
                let found: Vec<_> = tx.scan(&table.prefix(name.as_str()), None).collect::<Result<_, _>>()?;
                for (key, _) in found {
                    tx.delete(&key);
                }
            }
            tx.delete(&keys::namespace(name));
            tx.event(name.as_str(), "/namespaces/delete", payload::namespace_delete(name.as_str()));
            Ok(())
        })?;
        self.0.gc.find_orphans();
        Ok(())
    }
}

fn find(view: &View, name: &Namespace) -> Result<Option<NamespaceRecord>, Error> {
    let stored = view.get(&keys::namespace(name))?;
    stored.map(|value| decode("namespace", name.as_str(), &value)).transpose()
}

/// What keeps a namespace from being deleted, in containerd's words.
fn contents(view: &View, name: &Namespace) -> Result<Vec<String>, Error> {
    let mut holds = Vec::new();
    for (table, word) in [(Table::Image, "images"), (Table::Blob, "blobs"), (Table::Container, "containers")] {
        if view.scan(&table.prefix(name.as_str()), None).next().transpose()?.is_some() {
            holds.push(word.to_owned());
        }
    }
    for snapshotter in records::snapshotters(view, name.as_str())? {
        holds.push(format!("snapshots on {snapshotter:?} snapshotter"));
    }
    Ok(holds)
}
