//! The metadata as the services use it.

mod containers;
mod content;
mod gc;
mod images;
mod leases;
mod life;
mod namespaces;
mod outbox;
mod sandboxes;
mod snapshots;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::content::ContentStore;
use ::snapshots::{Driver, Native};
use events::Journal;
use model::filter::Filters;
use model::{Any, Code, Coded, Digest, Labels, Namespace, render};
use store::Store;

use crate::{Container, Descriptor, Error, Image, Lease, Metadata, NewSnapshot, Scope, SnapshotCommit, WriterOptions};

/// A daemon's metadata in directories of its own.
struct World {
    metadata: Metadata,
    journal: Journal,
    content: ContentStore,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), "boot")
    }

    fn at(dir: tempfile::TempDir, boot: &str) -> Self {
        let (store, content, drivers, journal) = parts(dir.path(), boot);
        let metadata = Metadata::open(store, content.clone(), drivers, journal.clone()).unwrap();
        // The run that is due at the start; from now on only deletions make one due.
        metadata.collect_and_wait().unwrap();
        Self { metadata, journal, content, dir }
    }

    /// As after a kill: nothing is written at the end.
    fn restart(self, boot: &str) -> Self {
        let dir = self.dir;
        drop(self.metadata);
        Self::at(dir, boot)
    }

    /// Namespace and topic of everything published.
    fn events(&self) -> Vec<String> {
        let found = self.journal.recent(|_| true).unwrap();
        found.iter().map(|entry| format!("{} {}", entry.envelope.namespace, entry.envelope.topic)).collect()
    }

    fn collect(&self) {
        self.metadata.collect_and_wait().unwrap();
    }

    /// Writes a blob and commits it with labels.
    fn blob(&self, scope: &Scope, text: &str, blob_labels: &[(&str, &str)]) -> Digest {
        let options = WriterOptions { reference: text, expected: None, total: 0 };
        let mut writer = self.metadata.content().open_writer(scope, &options).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.commit(0, None, labels(blob_labels)).unwrap().0
    }

    fn image(&self, scope: &Scope, name: &str, target: &Digest) {
        self.metadata.images().create(scope, image(name, target.as_str()), None).unwrap();
    }

    fn prepare(&self, scope: &Scope, key: &str, parent: &str) {
        let labels = Labels::new();
        let new = NewSnapshot { snapshotter: "native", key, parent, labels: &labels };
        self.metadata.snapshots().prepare(scope, &new).unwrap();
    }

    /// Prepares and commits a snapshot.
    fn layer(&self, scope: &Scope, name: &str, parent: &str, layer_labels: &[(&str, &str)]) {
        let key = format!("extract {name}");
        self.prepare(scope, &key, parent);
        let labels = labels(layer_labels);
        let commit = SnapshotCommit { snapshotter: "native", name, key: &key, labels: &labels, parent: "" };
        self.metadata.snapshots().commit(scope, &commit).unwrap();
    }

    fn snapshots(&self, namespace: &str) -> Vec<String> {
        let found = self.metadata.snapshots().list(&ns(namespace), "native", &Filters::default()).unwrap();
        found.into_iter().map(|record| record.key).collect()
    }

    fn images(&self, namespace: &str) -> Vec<String> {
        let found = self.metadata.images().list(&ns(namespace), &Filters::default()).unwrap();
        found.into_iter().map(|image| image.name).collect()
    }

    fn has_blob(&self, namespace: &str, digest: &Digest) -> bool {
        self.metadata.content().info(&ns(namespace), digest).is_ok()
    }

    fn has_bytes(&self, digest: &Digest) -> bool {
        self.content.info(digest).is_ok()
    }

    /// Numbers of snapshots that have directories.
    fn directories(&self) -> usize {
        let path = self.dir.path().join("root/io.containerd.snapshotter.v1.native/snapshots");
        std::fs::read_dir(path).map_or(0, |found| {
            found.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().parse::<u64>().is_ok()).count()
        })
    }

    fn lease(&self, namespace: &str, id: &str, lease_labels: &[(&str, &str)]) -> Lease {
        self.metadata.leases().create(&ns(namespace), id, labels(lease_labels)).unwrap()
    }
}

fn parts(dir: &Path, boot: &str) -> (Store, ContentStore, Vec<Arc<dyn Driver>>, Journal) {
    let root = dir.join("root");
    std::fs::create_dir_all(&root).unwrap();
    let options = store::Options { reserve_bytes: 0, ..store::Options::default() };
    let store = Store::open(&root.join("store"), options).unwrap();
    let content = ContentStore::open(&root.join("content")).unwrap();
    let native = Native::open(&root.join("io.containerd.snapshotter.v1.native")).unwrap();
    let journal = Journal::open(&dir.join("state"), boot, events::Config::default()).unwrap();
    (store, content, vec![Arc::new(native)], journal)
}

fn ns(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn scope(namespace: &str) -> Scope {
    Scope::new(ns(namespace))
}

fn leased(namespace: &str, lease: &str) -> Scope {
    Scope { lease: Some(lease.to_owned()), ..scope(namespace) }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mask(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

fn filters(texts: &[&str]) -> Filters {
    Filters::parse(texts).unwrap()
}

fn any(text: &str) -> Any {
    Any { type_url: "test".into(), value: text.as_bytes().to_vec() }
}

fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        runtime: "io.containerd.runc.v2".into(),
        spec: Some(any("spec")),
        ..Container::default()
    }
}

fn image(name: &str, digest: &str) -> Image {
    let target = Descriptor { media_type: "m".into(), digest: digest.into(), size: 1, annotations: BTreeMap::new() };
    Image { name: name.into(), target, ..Image::default() }
}

/// A digest of some algorithm's length, of nothing that exists.
fn some_digest(digit: char) -> Digest {
    format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, code: Code, text: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.code(), render(&error).as_str()), (code, text));
}
