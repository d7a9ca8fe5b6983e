//! The record by which runc's command line finds a container of ours.
//!
//! A client may name a root for the runtime (option `root`), as Docker Engine does, and look there later: `runc --root
//! ROOT/NAMESPACE` lists and shows the container, `gantry-oci` also kills and deletes it. Without that option nobody has
//! a place to look at, and nothing is written.
//!
//! **Invariant:** the container does not depend on these files; whoever removes them takes nothing from us. And nothing of
//! another runtime's, or of a container that lives, is replaced or removed: only what we made, or one of us left.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use serde_json::Value;

use crate::error::Error;
use crate::libcontainer::{self, SPEC, START, STATE, Saved};

/// In the bundle, a link to the directory of these files, for a `delete` after our death.
const LINK: &str = "runtime-root";

/// The files of one container, until they are removed.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: PathBuf,
    document: Value,
}

impl Listing {
    /// Lists a container that waits to be started, below `root`, which must be an absolute path.
    pub(crate) fn make(
        root: &str,
        namespace: &str,
        bundle: &Path,
        spec: &oci::Spec,
        container: &runtime::Container,
    ) -> Result<Self, Error> {
        if !Path::new(root).is_absolute() {
            return Err(Error::InvalidRequest(format!("runtime root {root:?} must be an absolute path")));
        }
        let state = container.state();
        let directory = Path::new(root).join(namespace).join(&state.id);
        let saved = Saved { state, created: model::Timestamp::now().to_string(), owner: 0, streams: Vec::new() };
        let document = libcontainer::document(&saved, spec, container)
            .map_err(|source| Error::file("describe the container for", &directory, std::io::Error::from(source)))?;
        let listing = Self { directory, document };
        if let Some(taken) = taken(&listing.directory) {
            return Err(Error::ContainerExists(format!("{}, {taken}", listing.directory.display())));
        }
        symlink(&listing.directory, bundle.join(LINK))
            .map_err(|source| Error::file("link the runtime root in", bundle, source))?;
        match listing.fill(bundle) {
            Ok(()) => Ok(listing),
            Err(source) => {
                let _ = rustix::fs::unlink(bundle.join(LINK));
                remove_directory(&listing.directory);
                Err(Error::file("list the container in", &listing.directory, source))
            }
        }
    }

    fn fill(&self, bundle: &Path) -> std::io::Result<()> {
        // Nobody else may look: what is here says where secrets are.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // Of a container of that name that has ended, whose shim died.
        remove_files(&self.directory);
        symlink(bundle.join(SPEC), self.directory.join(SPEC))?;
        rustix::fs::mknodat(CWD, self.directory.join(START), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        self.write()
    }

    /// The container runs now.
    pub(crate) fn started(&mut self) -> Result<(), Error> {
        self.document["gantry"]["state"]["started"] = Value::Bool(true);
        let _ = rustix::fs::unlink(self.directory.join(START));
        match self.write() {
            // Deleted by somebody else.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| Error::file("list the container in", &self.directory, source)),
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let text = self.document.to_string();
        Ok(sys::fs::replace_file(&self.directory.join(STATE), text.as_bytes(), 0o600)?)
    }

    /// The container is gone.
    pub(crate) fn remove(self) {
        remove_directory(&self.directory);
    }
}

/// Whose the place is, if it is not free: a record that is not ours may be of any runtime's container, and one of ours of a
/// container that lives.
fn taken(directory: &Path) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Document {
        gantry: Saved,
    }
    let bytes = match std::fs::read(directory.join(STATE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => return Some("whose record cannot be read"),
    };
    let Ok(Document { gantry }) = serde_json::from_slice(&bytes) else { return Some("of another runtime") };
    let init = gantry.state.init;
    let init = sys::process::ProcessIdentity { pid: init.pid, start_time: init.start_time };
    sys::process::pidfd_of(init).is_ok().then_some("which lives")
}

/// Removes the files of the container of `bundle`, if it was listed.
pub(crate) fn remove_of(bundle: &Path) {
    if let Ok(directory) = std::fs::read_link(bundle.join(LINK)) {
        remove_directory(&directory);
    }
}

/// What others have put there stays, and the directory with it.
fn remove_directory(directory: &Path) {
    remove_files(directory);
    let _ = rustix::fs::rmdir(directory);
}

fn remove_files(directory: &Path) {
    for name in [STATE, SPEC, START] {
        let _ = rustix::fs::unlink(directory.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_others_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = |pid: u32, start_time: u64| {
            serde_json::json!({"gantry": {
                "state": {"id": "a", "bundle": "/b", "init": {"pid": pid, "start_time": start_time}, "started": true, "cgroup": ""},
                "created": "", "owner": 0
            }})
        };
        let own = sys::process::identity(std::process::id()).unwrap();
        assert_eq!(taken(directory.path()), None);
        for (record, want) in [
            (serde_json::json!({"id": "a"}), Some("of another runtime")),
            (serde_json::json!([]), Some("of another runtime")),
            (state(own.pid, own.start_time), Some("which lives")),
            (state(own.pid, own.start_time + 1), None),
        ] {
            std::fs::write(directory.path().join(STATE), record.to_string()).unwrap();
            assert_eq!(taken(directory.path()), want, "{record}");
        }
    }
}
