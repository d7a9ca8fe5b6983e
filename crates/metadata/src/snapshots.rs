use model::filter::Filters;
use model::{Labels, Mount, Namespace};
use snapshots::records::{Commit, New, Record, Table};
use snapshots::{Kind, Snapshotter, TARGET_LABEL, Usage};
use store::{Durability, View};

use crate::db::{Inner, clean_labels, mask_map};
use crate::guard::{Guard, Held};
use crate::{Error, Scope, payload};

/// The snapshots of all namespaces and snapshotters.
///
/// The order of a request that makes something is: directories, then the record in one transaction. A directory whose
/// record is never written is removed at once, or by the next collection.
#[derive(Clone, Copy, Debug)]
pub struct Snapshots<'a>(&'a Inner);

/// What a new snapshot is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewSnapshot<'a> {
    /// Name of the snapshotter.
    pub snapshotter: &'a str,
    /// Its key, any text.
    pub key: &'a str,
    /// Name of a committed snapshot, or empty.
    pub parent: &'a str,
    /// Its labels. `containerd.io/snapshot.ref` names the committed snapshot that the client works towards.
    pub labels: &'a Labels,
}

/// What a commit makes of an active snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCommit<'a> {
    /// Name of the snapshotter.
    pub snapshotter: &'a str,
    /// The name it gets.
    pub name: &'a str,
    /// The key it has.
    pub key: &'a str,
    /// Its labels from now on; the old ones go.
    pub labels: &'a Labels,
    /// A parent for a snapshot that has none, for snapshotters that can; otherwise ignored.
    pub parent: &'a str,
}

impl<'a> Snapshots<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// Makes an active snapshot and returns its mounts.
    ///
    /// ALREADY_EXISTS if the key, or the snapshot that [`TARGET_LABEL`] names, exists; that one is in the request's lease
    /// then. NOT_FOUND for a missing parent.
    pub fn prepare(&self, scope: &Scope, new: &NewSnapshot<'_>) -> Result<Vec<Mount>, Error> {
        self.make(scope, new, Kind::Active)
    }

    /// Makes a read-only snapshot and returns its mounts; fails as [`Snapshots::prepare`] does. No event is published.
    pub fn view(&self, scope: &Scope, new: &NewSnapshot<'_>) -> Result<Vec<Mount>, Error> {
        self.make(scope, new, Kind::View)
    }

    /// Removes what no record of any namespace mentions: directories of this snapshotter above all. They are gone when it
    /// returns, unless a request in flight holds them.
    pub fn cleanup(&self, snapshotter: &str) -> Result<(), Error> {
        self.0.snapshotter(snapshotter)?;
        self.0.gc.find_orphans();
        self.0.collect_and_wait()
    }

    /// The mounts of an active snapshot or a view. FAILED_PRECONDITION for a committed one.
    pub fn mounts(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Error> {
        let driver = self.0.snapshotter(snapshotter)?;
        let record = self.0.store.read(|view| table(namespace, snapshotter).mountable(view, key))?;
        mounts_of(driver, &record)
    }

    /// Turns an active snapshot into a committed one. When it returns, its files are on disk.
    ///
    /// ALREADY_EXISTS if the name is taken: that snapshot is in the request's lease then, and the active one is as it
    /// was. NOT_FOUND for a missing key, FAILED_PRECONDITION for one that is not active.
    pub fn commit(&self, scope: &Scope, commit: &SnapshotCommit<'_>) -> Result<(), Error> {
        let snapshotter = self.0.snapshotter(commit.snapshotter)?;
        let mut labels = commit.labels.clone();
        clean_labels("snapshot", &mut labels)?;
        let table = table(&scope.namespace, commit.snapshotter);
        let _held = self.hold(&scope.namespace, commit.snapshotter, commit.key);
        let found = self.0.store.read(|view| {
            if table.find(view, commit.name)?.is_some() {
                return Ok(None);
            }
            let record = table.stat(view, commit.key)?;
            // Asked for only where there is none yet.
            let parent = if record.parent.is_empty() { commit.parent } else { "" };
            if !parent.is_empty() && !snapshotter.driver().capabilities().contains(&"rebase") {
                return Err(snapshots::Error::NoRebase(commit.snapshotter.to_owned()));
            }
            table.committable(view, commit.name, commit.key, parent).map(|record| Some((record, parent)))
        })?;
        let Some((record, parent)) = found else {
            self.lease_existing(scope, commit.snapshotter, commit.name)?;
            return Err(Error::SnapshotExists(commit.name.to_owned()));
        };
        let usage = snapshotter.driver().commit(record.id)?;
        let kind = lease_kind(commit.snapshotter);
        let namespace = scope.namespace.as_str();
        let committed = self.0.write(Durability::OnDisk, |tx| {
            tx.lease(scope, &kind, commit.name)?;
            if table.find(tx, commit.name)?.is_some() {
                return Ok(false);
            }
            let commit = Commit { name: commit.name, key: commit.key, labels: &labels, parent };
            let now = tx.now;
            table.commit(tx, &commit, usage, now)?;
            tx.unlease(scope, &kind, commit.key);
            tx.event(
                namespace,
                "/snapshot/commit",
                payload::snapshot_commit(snapshotter.name(), commit.key, commit.name),
            );
            Ok(true)
        })?;
        if committed { Ok(()) } else { Err(Error::SnapshotExists(commit.name.to_owned())) }
    }

    /// Removes a snapshot; its key is free at once, its directories go soon. FAILED_PRECONDITION if it has children.
    ///
    /// The removal of an active snapshot or a view may be taken back by a power cut, without its files.
    pub fn remove(&self, scope: &Scope, snapshotter: &str, key: &str) -> Result<(), Error> {
        self.0.snapshotter(snapshotter)?;
        let table = table(&scope.namespace, snapshotter);
        let kind = self.0.store.read(|view| table.stat(view, key))?.kind;
        let durability = match kind {
            // What is committed is what others were told to rely on.
            Kind::Committed => Durability::OnDisk,
            Kind::Active | Kind::View => Durability::Ordered,
        };
        let record = self.0.write(durability, |tx| {
            let record = table.remove(tx, key)?;
            tx.unlease(scope, &lease_kind(snapshotter), key);
            tx.event(scope.namespace.as_str(), "/snapshot/remove", payload::snapshot_remove(snapshotter, key));
            Ok(record)
        })?;
        self.0.gc.remove_snapshot(snapshotter, record.id);
        if !record.parent.is_empty() || has_references(&record.labels) {
            self.0.gc.mark_dirty();
        }
        Ok(())
    }

    /// What is recorded of a snapshot.
    pub fn stat(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Record, Error> {
        self.0.snapshotter(snapshotter)?;
        Ok(self.0.store.read(|view| table(namespace, snapshotter).stat(view, key))?)
    }

    /// Changes the labels that `mask` names: `labels` or `labels.<key>`; an empty mask replaces all.
    pub fn update(
        &self,
        scope: &Scope,
        snapshotter: &str,
        key: &str,
        labels: &Labels,
        mask: &[String],
    ) -> Result<Record, Error> {
        self.0.snapshotter(snapshotter)?;
        let table = table(&scope.namespace, snapshotter);
        self.0.write(Durability::OnDisk, |tx| {
            let mut updated = table.stat(tx, key)?.labels;
            if mask.is_empty() {
                updated.clone_from(labels);
            }
            for path in mask {
                if !mask_map(path, "labels", &mut updated, labels) {
                    return Err(Error::Mask { path: path.clone(), subject: format!("snapshot {key:?}") });
                }
            }
            clean_labels("snapshot", &mut updated)?;
            let now = tx.now;
            Ok(table.update(tx, key, now, |labels| *labels = updated)?)
        })
    }

    /// Those that match, in order of their keys. Fields: `kind`, `name`, `parent`, `labels.*`.
    pub fn list(&self, namespace: &Namespace, snapshotter: &str, filters: &Filters) -> Result<Vec<Record>, Error> {
        self.0.snapshotter(snapshotter)?;
        let mut records = self.0.store.read(|view| table(namespace, snapshotter).list(view))?;
        records.retain(|record| filters.matches(|path| record.field(path)));
        Ok(records)
    }

    /// What a snapshot takes on disk: measured at commit for a committed one, now for an active one (which may take
    /// long), nothing for a view.
    pub fn usage(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Result<Usage, Error> {
        let driver = self.0.snapshotter(snapshotter)?.driver();
        let record = self.stat(namespace, snapshotter, key)?;
        match record.kind {
            Kind::Committed => Ok(record.usage),
            Kind::Active => Ok(driver.usage(record.id)?),
            Kind::View => Ok(Usage::default()),
        }
    }

    fn make(&self, scope: &Scope, new: &NewSnapshot<'_>, kind: Kind) -> Result<Vec<Mount>, Error> {
        let snapshotter = self.0.snapshotter(new.snapshotter)?;
        let mut labels = new.labels.clone();
        clean_labels("snapshot", &mut labels)?;
        let target = labels.get(TARGET_LABEL).cloned().unwrap_or_default();
        let table = table(&scope.namespace, new.snapshotter);
        // The parent must not go while its child's directories are made.
        let _parent = (!new.parent.is_empty()).then(|| self.hold(&scope.namespace, new.snapshotter, new.parent));
        let found = self.0.store.read(|view| match existing(view, table, &target, new.key)? {
            Some(existing) => Ok(Err(existing)),
            None => table.parents(view, new.key, new.parent).map(Ok),
        })?;
        let parents = match found {
            Ok(parents) => parents,
            Err(existing) => {
                self.lease_existing(scope, new.snapshotter, existing.name())?;
                return Err(existing.into());
            }
        };
        let pending = snapshotter.prepare(kind, &parents, &labels)?;
        let made = self.0.write(Durability::OnDisk, |tx| {
            if let Some(existing) = existing(tx, table, &target, new.key)? {
                tx.lease(scope, &lease_kind(new.snapshotter), existing.name())?;
                return Ok(Err(existing));
            }
            tx.touch_namespace(&scope.namespace)?;
            tx.lease(scope, &lease_kind(new.snapshotter), new.key)?;
            let now = tx.now;
            let snapshot = New { key: new.key, kind, parent: new.parent, labels: &labels };
            let record = table.create(tx, &snapshot, pending.id(), now)?;
            if kind == Kind::Active {
                tx.event(
                    scope.namespace.as_str(),
                    "/snapshot/prepare",
                    payload::snapshot_prepare(new.snapshotter, new.key, new.parent),
                );
            }
            Ok(Ok(record))
        })?;
        let record = made.map_err(Error::from)?;
        pending.keep();
        mounts_of(snapshotter, &record)
    }

    /// Puts a snapshot that a request ran into in the request's lease: the client goes on to rely on it.
    fn lease_existing(&self, scope: &Scope, snapshotter: &str, name: &str) -> Result<(), Error> {
        if scope.lease.is_none() {
            return Ok(());
        }
        self.0.write(Durability::OnDisk, |tx| {
            if table(&scope.namespace, snapshotter).find(tx, name)?.is_some() {
                tx.lease(scope, &lease_kind(snapshotter), name)?;
            }
            Ok(())
        })
    }

    fn hold(&self, namespace: &Namespace, snapshotter: &str, key: &str) -> Guard {
        let held = Held::Snapshot(namespace.as_str().to_owned(), snapshotter.to_owned(), key.to_owned());
        self.0.guards.hold(held)
    }
}

/// Why a snapshot cannot be made.
enum Existing {
    Target(String),
    Key(String),
}

impl Existing {
    fn name(&self) -> &str {
        match self {
            Self::Target(name) | Self::Key(name) => name,
        }
    }
}

impl From<Existing> for Error {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Target(name) => Self::TargetExists(name),
            Existing::Key(name) => Self::SnapshotExists(name),
        }
    }
}

fn existing(view: &View, table: Table<'_>, target: &str, key: &str) -> Result<Option<Existing>, snapshots::Error> {
    if !target.is_empty() && table.find(view, target)?.is_some() {
        return Ok(Some(Existing::Target(target.to_owned())));
    }
    Ok(table.find(view, key)?.map(|_| Existing::Key(key.to_owned())))
}

fn table<'a>(namespace: &'a Namespace, snapshotter: &'a str) -> Table<'a> {
    Table::new(namespace.as_str(), snapshotter)
}

/// The kind that a lease's members of this snapshotter have.
fn lease_kind(snapshotter: &str) -> String {
    format!("snapshots/{snapshotter}")
}

fn mounts_of(snapshotter: &Snapshotter, record: &Record) -> Result<Vec<Mount>, Error> {
    Ok(snapshotter.driver().mounts(record.id, record.kind, &record.parents, &record.labels)?)
}

/// Whether the removal of something with these labels may make other things garbage.
fn has_references(labels: &Labels) -> bool {
    labels.keys().any(|key| key.starts_with("containerd.io/gc."))
}
