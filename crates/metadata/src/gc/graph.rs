//! What refers to what in one namespace, and what nothing refers to.
//!
//! **Invariant:** references never cross namespaces, so each namespace is a graph of its own.

use std::collections::{BTreeMap, HashMap, HashSet};

use model::{Digest, Labels, Timestamp};
use snapshots::records::{self, Record};
use store::View;

use super::labels::{self, Reference, Target};
use super::outside::Member;
use crate::Error;
use crate::db::rows;
use crate::encoding::{BlobRecord, ContainerEdges, ImageRecord, IngestRecord, LeaseRecord, SandboxEdges, decode};
use crate::guard::Held;
use crate::keys::{Table, split_member};

/// A thing that can refer or be referred to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    Container(String),
    Sandbox(String),
    Image(String),
    Content(String),
    Ingest(String),
    Snapshot { snapshotter: String, key: String },
    Outside { kind: &'static str, id: String },
}

impl From<Target<'_>> for Node {
    fn from(target: Target<'_>) -> Self {
        match target {
            Target::Content(digest) => Self::Content(digest.to_owned()),
            Target::Image(name) => Self::Image(name.to_owned()),
            Target::Container(id) => Self::Container(id.to_owned()),
            Target::Snapshot { snapshotter, key } => {
                Self::Snapshot { snapshotter: snapshotter.to_owned(), key: key.to_owned() }
            }
            Target::Outside { kind, id } => Self::Outside { kind, id: id.to_owned() },
        }
    }
}

/// How far a mark reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// What the object is made of: a snapshot's parents, an image's target. From a flat lease.
    Flat,
    /// What its labels refer to, as well.
    Full,
}

/// The records of one namespace.
#[derive(Debug, Default)]
pub(super) struct Graph {
    namespace: String,
    containers: BTreeMap<String, ContainerEdges>,
    sandboxes: BTreeMap<String, SandboxEdges>,
    images: BTreeMap<String, ImageRecord>,
    blobs: BTreeMap<String, BlobRecord>,
    ingests: BTreeMap<String, IngestRecord>,
    snapshots: BTreeMap<String, BTreeMap<String, Record>>,
    leases: BTreeMap<String, LeaseRecord>,
    members: Vec<(String, Node)>,
    outside: BTreeMap<(&'static str, String), Member>,
}

/// What can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Garbage {
    pub(super) leases: Vec<String>,
    pub(super) images: Vec<String>,
    pub(super) blobs: Vec<Digest>,
    pub(super) ingests: Vec<String>,
    /// Snapshotter and key; children before their parents.
    pub(super) snapshots: Vec<(String, String)>,
    /// Kind and id.
    pub(super) outside: Vec<(&'static str, String)>,
}

impl Garbage {
    /// Whether there are no records to remove.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
            && self.images.is_empty()
            && self.blobs.is_empty()
            && self.ingests.is_empty()
            && self.snapshots.is_empty()
    }
}

impl Graph {
    /// Reads the records of a namespace, and takes what `outside` has of it.
    pub(super) fn read(view: &View, namespace: &str, outside: &[(&'static str, Member)]) -> Result<Self, Error> {
        let mut graph = Self { namespace: namespace.to_owned(), ..Self::default() };
        rows(view, Table::Container, namespace, |id, value| {
            graph.containers.insert(id.to_owned(), decode("container", id, value)?);
            Ok(())
        })?;
        rows(view, Table::Sandbox, namespace, |id, value| {
            graph.sandboxes.insert(id.to_owned(), decode("sandbox", id, value)?);
            Ok(())
        })?;
        rows(view, Table::Image, namespace, |name, value| {
            graph.images.insert(name.to_owned(), decode("image", name, value)?);
            Ok(())
        })?;
        rows(view, Table::Blob, namespace, |digest, value| {
            graph.blobs.insert(digest.to_owned(), decode("content", digest, value)?);
            Ok(())
        })?;
        rows(view, Table::Ingest, namespace, |reference, value| {
            graph.ingests.insert(reference.to_owned(), decode("ingest", reference, value)?);
            Ok(())
        })?;
        rows(view, Table::Lease, namespace, |id, value| {
            graph.leases.insert(id.to_owned(), decode("lease", id, value)?);
            Ok(())
        })?;
        let prefix = Table::Member.prefix(namespace);
        for entry in view.scan(&prefix, None) {
            let (key, _) = entry?;
            if let Some((lease, kind, id)) = split_member(&key[prefix.len()..])
                && let Some(node) = member(kind, id)
            {
                graph.members.push((lease.to_owned(), node));
            }
        }
        for snapshotter in records::snapshotters(view, namespace)? {
            let found = records::Table::new(namespace, &snapshotter).list(view)?;
            let found = found.into_iter().map(|record| (record.key.clone(), record)).collect();
            graph.snapshots.insert(snapshotter, found);
        }
        for (kind, member) in outside.iter().filter(|(_, member)| member.namespace == namespace) {
            graph.outside.insert((kind, member.id.clone()), member.clone());
        }
        Ok(graph)
    }

    /// What neither a root nor a request in flight leads to.
    pub(super) fn garbage(&self, now: Timestamp, held: &HashSet<Held>) -> Garbage {
        let marks = self.mark(now, held);
        let dead = |node: &Node| !marks.contains_key(node);
        let mut garbage = Garbage::default();
        for (id, lease) in &self.leases {
            if labels::expired(&lease.labels, now) {
                garbage.leases.push(id.clone());
            }
        }
        garbage.images.extend(self.images.keys().filter(|name| dead(&Node::Image((*name).clone()))).cloned());
        let blobs = self.blobs.keys().filter(|digest| dead(&Node::Content((*digest).clone())));
        garbage.blobs.extend(blobs.filter_map(|digest| digest.parse().ok()));
        let ingests = self.ingests.keys().filter(|reference| dead(&Node::Ingest((*reference).clone())));
        garbage.ingests.extend(ingests.cloned());
        for (snapshotter, found) in &self.snapshots {
            let mut records: Vec<_> = found
                .values()
                .filter(|record| dead(&Node::Snapshot { snapshotter: snapshotter.clone(), key: record.key.clone() }))
                .collect();
            records.sort_by_key(|record| std::cmp::Reverse(record.parents.len()));
            garbage.snapshots.extend(records.into_iter().map(|record| (snapshotter.clone(), record.key.clone())));
        }
        let outside = self.outside.keys().filter(|(kind, id)| dead(&Node::Outside { kind, id: id.clone() }));
        garbage.outside.extend(outside.cloned());
        garbage
    }

    fn mark(&self, now: Timestamp, held: &HashSet<Held>) -> HashMap<Node, Mark> {
        let back = self.back_references();
        let mut marks = HashMap::new();
        let mut queue = self.roots(now, held);
        while let Some((node, mark)) = queue.pop() {
            if marks.get(&node).is_some_and(|known| *known >= mark) {
                continue;
            }
            self.parts(&node, |part| queue.push((part, mark)));
            if mark == Mark::Full {
                for label in self.labels(&node).into_iter().flatten() {
                    if let Some(Reference::To(target)) = labels::reference(label.0, label.1) {
                        queue.push((target.into(), mark));
                    }
                }
                let kept = back.get(&node).into_iter().flatten();
                queue.extend(kept.map(|node| (node.clone(), mark)));
            }
            marks.insert(node, mark);
        }
        marks
    }

    fn roots(&self, now: Timestamp, held: &HashSet<Held>) -> Vec<(Node, Mark)> {
        let mut roots = Vec::new();
        for (lease, node) in &self.members {
            let Some(lease) = self.leases.get(lease) else { continue };
            if !labels::expired(&lease.labels, now) {
                let flat = lease.labels.contains_key(labels::FLAT);
                roots.push((node.clone(), if flat { Mark::Flat } else { Mark::Full }));
            }
        }
        for ((kind, id), member) in &self.outside {
            let lease = member.lease.as_ref().map(|lease| self.leases.get(lease));
            let mark = match lease {
                // What says who needs it goes with that.
                None if labels::has_back_reference(&member.labels) => continue,
                None => Mark::Full,
                Some(Some(lease)) if labels::expired(&lease.labels, now) => continue,
                Some(Some(lease)) if lease.labels.contains_key(labels::FLAT) => Mark::Flat,
                Some(Some(_)) => Mark::Full,
                Some(None) => continue,
            };
            roots.push((Node::Outside { kind, id: id.clone() }, mark));
        }
        let mut root = |node| roots.push((node, Mark::Full));
        self.containers.keys().for_each(|id| root(Node::Container(id.clone())));
        self.sandboxes.keys().for_each(|id| root(Node::Sandbox(id.clone())));
        for (name, image) in &self.images {
            if !labels::expired(&image.labels, now) {
                root(Node::Image(name.clone()));
            }
        }
        for (digest, blob) in &self.blobs {
            if blob.labels.contains_key(labels::ROOT) {
                root(Node::Content(digest.clone()));
            }
        }
        for (reference, ingest) in &self.ingests {
            if ingest.expire_at.is_some_and(|end| Timestamp::from(end) > now) {
                root(Node::Ingest(reference.clone()));
            }
        }
        for (snapshotter, found) in &self.snapshots {
            for record in found.values().filter(|record| record.labels.contains_key(labels::ROOT)) {
                root(Node::Snapshot { snapshotter: snapshotter.clone(), key: record.key.clone() });
            }
        }
        for held in held {
            self.held(held).into_iter().for_each(&mut root);
        }
        roots
    }

    /// The node of something held, if it is of this namespace.
    fn held(&self, held: &Held) -> Option<Node> {
        match held {
            Held::Blob(digest) => Some(Node::Content(digest.clone())),
            Held::Ingest(key) => {
                let reference = key.strip_prefix(&self.namespace)?.strip_prefix("/1/")?;
                Some(Node::Ingest(reference.to_owned()))
            }
            Held::Snapshot(namespace, snapshotter, key) => (*namespace == self.namespace)
                .then(|| Node::Snapshot { snapshotter: snapshotter.clone(), key: key.clone() }),
        }
    }

    /// What an object cannot be without.
    fn parts(&self, node: &Node, mut part: impl FnMut(Node)) {
        match node {
            Node::Container(id) => {
                if let Some(container) = self.containers.get(id).filter(|found| !found.snapshot_key.is_empty()) {
                    let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
                    part(Node::Snapshot { snapshotter, key });
                }
            }
            Node::Image(name) => {
                if let Some(image) = self.images.get(name) {
                    part(Node::Content(image.digest.clone()));
                }
            }
            Node::Ingest(reference) => {
                if let Some(ingest) = self.ingests.get(reference).filter(|found| !found.expected.is_empty()) {
                    part(Node::Content(ingest.expected.clone()));
                }
            }
            Node::Snapshot { snapshotter, .. } => {
                if let Some(record) = self.snapshot(node).filter(|record| !record.parent.is_empty()) {
                    part(Node::Snapshot { snapshotter: snapshotter.clone(), key: record.parent.clone() });
                }
            }
            Node::Content(_) | Node::Sandbox(_) | Node::Outside { .. } => {}
        }
    }

    fn snapshot(&self, node: &Node) -> Option<&Record> {
        let Node::Snapshot { snapshotter, key } = node else { return None };
        self.snapshots.get(snapshotter)?.get(key)
    }

    fn labels(&self, node: &Node) -> Option<&Labels> {
        match node {
            Node::Container(id) => self.containers.get(id).map(|found| &found.labels),
            Node::Sandbox(id) => self.sandboxes.get(id).map(|found| &found.labels),
            Node::Image(name) => self.images.get(name).map(|found| &found.labels),
            Node::Content(digest) => self.blobs.get(digest).map(|found| &found.labels),
            Node::Ingest(_) => None,
            Node::Snapshot { .. } => self.snapshot(node).map(|found| &found.labels),
            Node::Outside { kind, id } => self.outside.get(&(*kind, id.clone())).map(|found| &found.labels),
        }
    }

    /// Labels by which an object names what keeps it, turned around.
    fn back_references(&self) -> HashMap<Node, Vec<Node>> {
        let mut back: HashMap<Node, Vec<Node>> = HashMap::new();
        let mut add = |node: &dyn Fn() -> Node, labels: &Labels| {
            for (key, value) in labels {
                if let Some(Reference::From(keeper)) = labels::reference(key, value) {
                    back.entry(keeper.into()).or_default().push(node());
                }
            }
        };
        for (name, image) in &self.images {
            add(&|| Node::Image(name.clone()), &image.labels);
        }
        for (digest, blob) in &self.blobs {
            add(&|| Node::Content(digest.clone()), &blob.labels);
        }
        for (snapshotter, found) in &self.snapshots {
            for record in found.values() {
                let node = || Node::Snapshot { snapshotter: snapshotter.clone(), key: record.key.clone() };
                add(&node, &record.labels);
            }
        }
        for ((kind, id), member) in &self.outside {
            add(&|| Node::Outside { kind, id: id.clone() }, &member.labels);
        }
        back
    }
}

/// The node of a lease's member; `None` for a kind that an older or newer program wrote.
fn member(kind: &str, id: &str) -> Option<Node> {
    let id = id.to_owned();
    match kind {
        "content" => Some(Node::Content(id)),
        "images" => Some(Node::Image(id)),
        "ingests" => Some(Node::Ingest(id)),
        _ => {
            let snapshotter = kind.strip_prefix("snapshots/")?.to_owned();
            Some(Node::Snapshot { snapshotter, key: id })
        }
    }
}
