//! A run of the collector.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use model::{Code, Coded, Digest, Namespace, Timestamp};
use snapshots::records;
use store::{Durability, View};

use super::control::Work;
use super::graph::{Garbage, Graph};
use super::outside::Member;
use crate::db::{Inner, Tx, namespaces, rows};
use crate::encoding::{IngestRecord, decode};
use crate::guard::Held;
use crate::keys::{self, Table};
use crate::{Error, payload, writer};

impl Inner {
    /// Waits for a run that began after this call.
    pub(crate) fn collect_and_wait(&self) -> Result<(), Error> {
        let ticket = self.runs.ticket();
        let mut last = self.runs.lock();
        // A run that began after the ticket was drawn has ended by now: it has served us as well.
        if last.number > ticket {
            return last.failed.clone().map_or(Ok(()), |text| Err(Error::Collect(text)));
        }
        self.run(&mut last)
    }

    /// One run, if the lock on runs is ours.
    fn run(&self, last: &mut super::worker::LastRun) -> Result<(), Error> {
        last.number = self.runs.begin();
        let started = Instant::now();
        let mut work = self.gc.begin();
        let result = self.sweep(&mut work).and_then(|()| self.remove_unreferenced(&mut work));
        self.gc.end(started, work, result.is_err());
        last.failed = result.as_ref().err().map(|error| model::render(error));
        result
    }

    /// A run for the worker; what failed is tried again.
    pub(super) fn collect(&self) {
        let mut last = self.runs.lock();
        let _ = self.run(&mut last);
    }

    /// Removes the records of garbage and adds what was theirs to `work`.
    fn sweep(&self, work: &mut Work) -> Result<(), Error> {
        let outside = self.outside.members();
        let found = self.store.read(|view| self.garbage(view, Timestamp::now(), &outside))?;
        let mut ended = ended(&found);
        if found.iter().all(|(_, garbage)| garbage.is_empty()) {
            self.outside.remove(&ended);
            return Ok(());
        }
        let mut removed = Work::default();
        // On disk before the bytes go: a blob that has a record must have its bytes.
        self.write(Durability::OnDisk, |tx| {
            // Found again where nobody else writes: a request may have taken something since.
            let now = tx.now;
            let found = self.garbage(tx, now, &outside)?;
            ended = self::ended(&found);
            for (namespace, garbage) in found {
                remove_records(tx, &namespace, garbage, &mut removed)?;
            }
            Ok(())
        })?;
        work.merge(removed);
        self.outside.remove(&ended);
        Ok(())
    }

    fn garbage(
        &self,
        view: &View,
        now: Timestamp,
        outside: &[(&'static str, Member)],
    ) -> Result<Vec<(String, Garbage)>, Error> {
        let held = self.guards.held();
        let mut found = Vec::new();
        let mut names: BTreeSet<String> = namespaces(view)?.into_iter().collect();
        names.extend(outside.iter().map(|(_, member)| member.namespace.clone()));
        for namespace in names {
            let garbage = Graph::read(view, &namespace, outside)?.garbage(now, &held);
            if !garbage.is_empty() || !garbage.outside.is_empty() {
                found.push((namespace, garbage));
            }
        }
        Ok(found)
    }

    /// Removes bytes and directories that no record mentions. What is held stays in `work`.
    fn remove_unreferenced(&self, work: &mut Work) -> Result<(), Error> {
        self.remove_snapshots(std::mem::take(&mut work.snapshots), work);
        if work.orphans {
            self.find_orphans(work)?;
        }
        for key in std::mem::take(&mut work.ingests) {
            let removed = self.guards.remove(&Held::Ingest(key.clone()), || {
                if self.ingest_exists(&key)? {
                    Ok(())
                } else {
                    crate::content::ignore_missing(self.content.abort(&key))
                }
            });
            match removed {
                Some(result) => result?,
                None => drop(work.ingests.insert(key)),
            }
        }
        for digest in std::mem::take(&mut work.blobs) {
            let removed = self.guards.remove(&crate::content::held(&digest), || {
                if !self.blob_exists(&digest)? {
                    self.content.delete(&digest)?;
                }
                Ok::<_, Error>(())
            });
            match removed {
                Some(result) => result?,
                None => drop(work.blobs.insert(digest)),
            }
        }
        Ok(())
    }

    /// Removes directories of snapshots that were removed since the last run. It excludes runs, so that who waits for one
    /// waits for this, too.
    pub(super) fn remove_taken_snapshots(&self) {
        let _excluded = self.runs.lock();
        let mut left = Work::default();
        self.remove_snapshots(self.gc.take_snapshots(), &mut left);
        if left.orphans {
            self.gc.find_orphans();
        }
    }

    /// Removes directories of snapshots whose records are gone. One that cannot be removed is an orphan from then on.
    fn remove_snapshots(&self, snapshots: Vec<(String, u64)>, left: &mut Work) {
        for (name, id) in snapshots {
            if let Some(snapshotter) = self.snapshotters.get(&name)
                && snapshotter.driver().remove(id).is_err()
            {
                left.orphans = true;
            }
        }
    }

    /// Adds every blob and ingest to `work`, and removes directories of snapshots without a record.
    fn find_orphans(&self, work: &mut Work) -> Result<(), Error> {
        for snapshotter in self.snapshotters.values() {
            snapshotter.collect(|| self.store.read(|view| records::live_ids(view, snapshotter.name())))?;
        }
        work.ingests.extend(self.content.statuses()?.into_iter().map(|status| status.key));
        let recorded = self.store.read(blobs)?;
        let stored = self.content.list()?.into_iter().map(|info| info.digest);
        work.blobs.extend(stored.filter(|digest| !recorded.contains(digest.as_str())));
        work.orphans = false;
        Ok(())
    }

    fn ingest_exists(&self, key: &str) -> Result<bool, Error> {
        let Some((namespace, reference)) = key.split_once("/1/") else { return Ok(false) };
        Ok(self.store.read(|view| view.get(&Table::Ingest.key(namespace, reference)))?.is_some())
    }

    /// Whether any namespace has the blob, or an ingest that refers to it.
    fn blob_exists(&self, digest: &Digest) -> Result<bool, Error> {
        self.store.read(|view| {
            for namespace in namespaces(view)? {
                if view.get(&Table::Blob.key(&namespace, digest.as_str()))?.is_some() {
                    return Ok(true);
                }
                let mut expected = false;
                rows(view, Table::Ingest, &namespace, |reference, value| {
                    let record = decode::<IngestRecord>("ingest", reference, value)?;
                    expected |= record.expected == digest.as_str();
                    Ok(())
                })?;
                if expected {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}

/// What lives outside of the store and can go: kind, namespace, id.
fn ended(found: &[(String, Garbage)]) -> Vec<(&'static str, String, String)> {
    let each = found.iter().flat_map(|(namespace, garbage)| {
        garbage.outside.iter().map(move |(kind, id)| (*kind, namespace.clone(), id.clone()))
    });
    each.collect()
}

/// The digests of all blobs that some namespace has.
fn blobs(view: &View) -> Result<HashSet<String>, Error> {
    let mut found = HashSet::new();
    for namespace in namespaces(view)? {
        rows(view, Table::Blob, &namespace, |digest, _| {
            found.insert(digest.to_owned());
            Ok(())
        })?;
    }
    Ok(found)
}

fn remove_records(tx: &mut Tx<'_>, namespace: &str, garbage: Garbage, removed: &mut Work) -> Result<(), Error> {
    for lease in garbage.leases {
        let members: Vec<_> = tx.scan(&keys::members(namespace, &lease), None).collect::<Result<_, _>>()?;
        for (member, _) in members {
            tx.delete(&member);
        }
        tx.delete(&Table::Lease.key(namespace, &lease));
    }
    for name in garbage.images {
        tx.delete(&Table::Image.key(namespace, &name));
        tx.event(namespace, "/images/delete", payload::image_delete(&name));
    }
    for digest in garbage.blobs {
        tx.delete(&Table::Blob.key(namespace, digest.as_str()));
        removed.blobs.insert(digest);
    }
    for reference in garbage.ingests {
        let key = Table::Ingest.key(namespace, &reference);
        if let Some(stored) = tx.get(&key)? {
            let record = decode::<IngestRecord>("ingest", &reference, &stored)?;
            removed.blobs.extend(record.expected.parse::<Digest>());
        }
        tx.delete(&key);
        if let Ok(namespace) = namespace.parse::<Namespace>() {
            removed.ingests.insert(writer::backend_key(&namespace, &reference));
        }
    }
    for (snapshotter, key) in garbage.snapshots {
        match records::Table::new(namespace, &snapshotter).remove(tx, &key) {
            Ok(record) => {
                tx.event(namespace, "/snapshot/remove", payload::snapshot_remove(&snapshotter, &key));
                removed.snapshots.push((snapshotter, record.id));
            }
            // Its child is held by a request in flight, which keeps all of the chain.
            Err(error) if error.code() == Code::FailedPrecondition => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
