//! Engines in a temporary directory, for the tests of this crate.

use metadata::{BlobInfo, Metadata, Scope};
use tempfile::TempDir;

use crate::write::WriteSession;

pub(crate) struct Fixture {
    metadata: Metadata,
    _root: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let options = store::Options { reserve_bytes: 0, ..store::Options::default() };
        let store = store::Store::open(&root.path().join("store"), options).unwrap();
        let content = content::ContentStore::open(&root.path().join("content")).unwrap();
        let config = events::Config { fields: api_grpc::event_field, ..events::Config::default() };
        let journal = events::Journal::open(root.path(), "boot", config).unwrap();
        Self { metadata: Metadata::open(store, content, Vec::new(), journal).unwrap(), _root: root }
    }

    pub(crate) fn session(&self, namespace: &str) -> WriteSession {
        WriteSession::new(self.metadata.clone(), Scope::new(namespace.parse().unwrap()))
    }

    pub(crate) fn info(&self, namespace: &str, digest: &str) -> Result<BlobInfo, metadata::Error> {
        self.metadata.content().info(&namespace.parse().unwrap(), &digest.parse().unwrap())
    }
}
