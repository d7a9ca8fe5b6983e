//! Archives in and out of a store in a temporary directory.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use ::metadata::{Metadata, Scope};
use model::filter::Filters;
use model::{Code, Coded as _, Digest, Namespace};
use snapshots::{Driver, Native};

use crate::{Error, ExportOptions, ImageStore, ImportOptions, Reference, Session, Unpack, export, import, tag};

mod archives;
mod hostile;
mod layers;

struct World {
    metadata: Metadata,
    _root: tempfile::TempDir,
}

fn ns() -> Namespace {
    "n".parse().unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = content::Hasher::new(content::Algorithm::Sha256);
    hasher.update(bytes);
    hasher.digest()
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = store::Options { reserve_bytes: 0, ..store::Options::default() };
        let store = store::Store::open(&root.path().join("store"), options).unwrap();
        let content = content::ContentStore::open(&root.path().join("content")).unwrap();
        let driver: Arc<dyn Driver> = Arc::new(Native::open(&root.path().join("native")).unwrap());
        let journal = events::Journal::open(root.path(), "boot", events::Config::default()).unwrap();
        Self { metadata: Metadata::open(store, content, vec![driver], journal).unwrap(), _root: root }
    }

    /// Runs a pipeline and gives what it told.
    fn run(&self, work: impl FnOnce(&mut Session) -> Result<(), Error>) -> Result<Vec<String>, Error> {
        let told = Rc::new(RefCell::new(Vec::new()));
        let teller = Rc::clone(&told);
        let tell = move |step: crate::Progress<'_>| {
            teller.borrow_mut().push(format!("{} {}", step.event, step.name).trim().to_owned());
        };
        let mut session = Session::begin(&self.metadata, Scope::new(ns()), tell)?;
        work(&mut session)?;
        drop(session);
        Ok(told.take())
    }

    fn import(&self, archive: &[u8], store: &ImageStore) -> Result<Vec<String>, Error> {
        self.run(|session| import(session, archive, ImportOptions::default(), store))
    }

    fn export(&self, names: &[&str], options: &ExportOptions) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let references = names.iter().map(|name| Reference { name: (*name).into(), ..Reference::default() });
        let store = ImageStore { references: references.collect(), ..ImageStore::default() };
        self.run(|session| export(session, &store, options, &mut bytes))?;
        Ok(bytes)
    }

    fn images(&self) -> Vec<String> {
        let all = self.metadata.images().list(&ns(), &Filters::default()).unwrap();
        all.into_iter().map(|image| image.name).collect()
    }

    fn blobs(&self) -> Vec<Digest> {
        self.metadata.collect_and_wait().unwrap();
        let all = self.metadata.content().list(&ns(), &Filters::default()).unwrap();
        all.into_iter().map(|info| info.digest).collect()
    }

    fn snapshots(&self) -> Vec<String> {
        let all = self.metadata.snapshots().list(&ns(), "native", &Filters::default()).unwrap();
        all.into_iter().map(|record| record.key).collect()
    }

    /// Fails if anything but images and what they refer to is there.
    fn assert_clean(&self) {
        assert_eq!(self.metadata.leases().list(&ns(), &Filters::default()).unwrap(), []);
        assert_eq!(self.metadata.content().statuses(&ns(), &Filters::default()).unwrap(), []);
        if self.images().is_empty() {
            assert_eq!(self.blobs(), []);
            assert_eq!(self.metadata.content().store().list().unwrap().len(), 0);
            assert!(self.snapshots().is_empty());
        }
    }
}

/// Names by their annotations, whatever they begin with.
fn annotated() -> ImageStore {
    let any = Reference { name: "import".into(), is_prefix: true, allow_overwrite: true, ..Reference::default() };
    ImageStore { references: vec![any], ..ImageStore::default() }
}

fn unpacked() -> ImageStore {
    ImageStore { unpacks: vec![Unpack::default()], ..annotated() }
}
