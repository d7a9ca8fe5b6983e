//! A task's directory: made whole or not at all, and removed without ever touching what is mounted in it.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<ns>/<id>/config.json        the spec, verbatim
//!                                               /rootfs/            where a shim may mount the root
//!                                               /work               symlink to <root>/…/<ns>/<id>
//!                                               /bootstrap.json     where the shim listens
//!                                               /shim-binary-path   what was executed
//!                                               /shim.log           our own shim's standard error
//!                                               /log                FIFO that a foreign shim logs to, or a link
//! <state>/shims.log                                                  FIFO that our own shims log to
//! ```
//!
//! **Invariant:** a bundle under its plain name is complete. One under a hidden name (a dot before the id, which no
//! valid id has) is being made or removed, and belongs to nobody after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use sys::crash::{daemon as crash, point};

use crate::bootstrap::{self, Bootstrap};
use crate::{Error, shim_log};

/// Name of the directory of bundles below the state and of work directories below the root.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// Where bundles, work directories and sockets are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    state: PathBuf,
    root: PathBuf,
    pub(crate) sockets: PathBuf,
    /// The FIFO that our own shims share.
    pub(crate) log: PathBuf,
}

impl Layout {
    /// Makes the directories that all bundles share.
    pub(crate) fn prepare(state: &Path, root: &Path) -> Result<Self, Error> {
        let layout = Self {
            state: state.join(TASKS),
            root: root.join(TASKS),
            sockets: state.join("s"),
            log: state.join("shims.log"),
        };
        // A container with a user namespace reaches its root through these, as nobody.
        make_directory(&layout.state, 0o711)?;
        make_directory(&layout.root, 0o711)?;
        make_directory(&layout.sockets, 0o700)?;
        shim_log::prepare(&layout.log)?;
        Ok(layout)
    }

    pub(crate) fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        self.state.join(namespace).join(id)
    }

    fn hidden(&self, namespace: &str, id: &str) -> PathBuf {
        self.state.join(namespace).join(format!(".{id}"))
    }

    fn work(&self, namespace: &str, id: &str) -> PathBuf {
        self.root.join(namespace).join(id)
    }

    /// The shim's socket. Its name has a fixed length, because a socket's path may have 107 bytes only.
    pub(crate) fn socket(&self, namespace: &str, id: &str) -> PathBuf {
        let hash = Sha256::digest(format!("{namespace}/{id}"));
        let name: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.sockets.join(name)
    }

    /// Makes a bundle for our own shim, which listens where we tell it. Leftovers of the same name belong to nobody,
    /// because the caller has reserved the name.
    pub(crate) fn make(&self, namespace: &str, id: &str, spec: &[u8], shim: &Path) -> Result<PathBuf, Error> {
        self.make_for(Shim::ToldWhere, namespace, id, spec, shim)
    }

    /// As [`Layout::make`], for a shim that says by itself where it listens: see [`Layout::listens`].
    pub(crate) fn make_for_foreign(
        &self,
        namespace: &str,
        id: &str,
        spec: &[u8],
        shim: &Path,
    ) -> Result<PathBuf, Error> {
        self.make_for(Shim::Tells, namespace, id, spec, shim)
    }

    /// Keeps where the shim of a bundle listens.
    pub(crate) fn listens(bundle: &Path, bootstrap: &Bootstrap) -> Result<(), Error> {
        let path = bundle.join(bootstrap::FILE);
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec(bootstrap)?;
            let directory = File::open(bundle)?;
            Ok(sys::fs::write_atomic(directory.as_fd(), bootstrap::FILE, &bytes, 0o644)?)
        };
        write().map_err(|source| Error::Bundle { operation: "write", path, source })
    }

    fn make_for(&self, kind: Shim, namespace: &str, id: &str, spec: &[u8], shim: &Path) -> Result<PathBuf, Error> {
        let bundle = self.bundle(namespace, id);
        if bundle.symlink_metadata().is_ok() {
            self.remove(namespace, id)?;
        }
        let hidden = self.hidden(namespace, id);
        let made = self.fill(kind, &hidden, namespace, id, spec, shim).and_then(|()| {
            fs::rename(&hidden, &bundle).map_err(|source| Error::Bundle {
                operation: "rename to",
                path: bundle.clone(),
                source,
            })
        });
        match made {
            Ok(()) => Ok(bundle),
            Err(error) => {
                if let Err(cleanup) = self.remove(namespace, id) {
                    tracing::warn!(error = %model::render(&cleanup), "a half-made bundle stays until the next start");
                }
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        kind: Shim,
        bundle: &Path,
        namespace: &str,
        id: &str,
        spec: &[u8],
        shim: &Path,
    ) -> Result<(), Error> {
        let work = self.work(namespace, id);
        for path in [bundle, &work] {
            if let Some(parent) = path.parent() {
                make_directory(parent, 0o711)?;
            }
            remove_tree(path)?;
        }
        let group = mapped_group(spec);
        create_directory(bundle, if group.is_some() { 0o710 } else { 0o700 })?;
        if let Some(group) = group {
            std::os::unix::fs::chown(bundle, None, Some(group)).map_err(|source| Error::Bundle {
                operation: "give to the mapped group",
                path: bundle.to_owned(),
                source,
            })?;
        }
        create_directory(&bundle.join("rootfs"), 0o711)?;
        create_directory(&work, 0o711)?;
        link(&work, &bundle.join("work"))?;
        create_file(&bundle.join("config.json"), 0o644, spec)?;
        match kind {
            Shim::ToldWhere => {
                let address = format!("unix://{}", self.socket(namespace, id).display());
                let bootstrap = serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" });
                create_file(&bundle.join(bootstrap::FILE), 0o644, bootstrap.to_string().as_bytes())?;
                link(&self.log, &bundle.join(shim_log::FIFO))?;
            }
            Shim::Tells => shim_log::make(&bundle.join(shim_log::FIFO))?,
        }
        create_file(&bundle.join("shim-binary-path"), 0o600, shim.as_os_str().as_encoded_bytes())
    }

    /// Removes bundle, work directory and socket. What is not there is removed already. Never walks through a mount:
    /// a root that is still mounted is detached first, and its empty directory is removed by `rmdir`.
    pub(crate) fn remove(&self, namespace: &str, id: &str) -> Result<(), Error> {
        self.remove_socket(namespace, id)?;
        let bundle = self.bundle(namespace, id);
        let hidden = self.hidden(namespace, id);
        for path in [&bundle, &hidden] {
            clear_rootfs(&path.join("rootfs"))?;
        }
        remove_tree(&hidden)?;
        absent_is_fine(fs::rename(&bundle, &hidden)).map_err(|source| Error::Bundle {
            operation: "rename for removal",
            path: bundle,
            source,
        })?;
        point(crash::BUNDLE_HIDDEN);
        remove_tree(&hidden)?;
        remove_tree(&self.work(namespace, id))
    }

    /// Removes what an unfinished removal or creation left beside a whole bundle.
    pub(crate) fn remove_hidden(&self, namespace: &str, id: &str) -> Result<(), Error> {
        let hidden = self.hidden(namespace, id);
        clear_rootfs(&hidden.join("rootfs"))?;
        remove_tree(&hidden)
    }

    /// Removes the socket alone.
    pub(crate) fn remove_socket(&self, namespace: &str, id: &str) -> Result<(), Error> {
        let path = self.socket(namespace, id);
        absent_is_fine(fs::remove_file(&path)).map_err(|source| Error::Bundle {
            operation: "remove socket",
            path,
            source,
        })
    }

    /// The namespaces that have bundles, and the names in each: hidden ones without their dot, and told apart.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for namespace in directories(&self.state)? {
            for name in directories(&self.state.join(&namespace))? {
                let (id, hidden) = match name.strip_prefix('.') {
                    Some(id) => (id.to_owned(), true),
                    None => (name, false),
                };
                entries.push(Entry { namespace: namespace.clone(), id, hidden });
            }
        }
        Ok(entries)
    }

    /// Removes work directories and sockets that belong to no bundle.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        let mut sockets = Vec::new();
        for entry in self.entries()? {
            sockets.push(self.socket(&entry.namespace, &entry.id));
        }
        for namespace in directories(&self.root)? {
            for id in directories(&self.root.join(&namespace))? {
                if self.bundle(&namespace, &id).symlink_metadata().is_err() {
                    remove_tree(&self.root.join(&namespace).join(id))?;
                }
            }
        }
        let failed = |source| Error::Bundle { operation: "list sockets in", path: self.sockets.clone(), source };
        for socket in fs::read_dir(&self.sockets).map_err(failed)? {
            let path = socket.map_err(failed)?.path();
            if !sockets.contains(&path) {
                absent_is_fine(fs::remove_file(&path)).map_err(|source| Error::Bundle {
                    operation: "remove stale socket",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// Who says where a shim listens.
#[derive(Clone, Copy)]
enum Shim {
    ToldWhere,
    Tells,
}

/// A directory where a bundle may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) hidden: bool,
}

/// Annotations that put several containers under one shim, the stronger first.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Whether a container may share its shim with others: its annotations name a group.
pub(crate) fn grouped(spec: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    // Nearly no spec names one, and reading one costs more than a search.
    let named = GROUPS.iter().any(|name| spec.windows(name.len()).any(|bytes| bytes == name.as_bytes()));
    named
        && serde_json::from_slice::<Annotated>(spec).is_ok_and(|spec| {
            let annotations = spec.annotations.unwrap_or_default();
            GROUPS.iter().any(|name| annotations.get(*name).is_some_and(|group| !group.is_empty()))
        })
}

/// The part of a spec that decides who may reach the bundle.
#[derive(Deserialize)]
struct SpecView {
    linux: Option<LinuxView>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LinuxView {
    #[serde(default)]
    gid_mappings: Vec<MappingView>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MappingView {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
}

/// The host's group that is group 0 in the container's user namespace. A spec that cannot be read has none; whoever
/// runs it will complain.
fn mapped_group(spec: &[u8]) -> Option<u32> {
    let spec: SpecView = serde_json::from_slice(spec).ok()?;
    spec.linux?.gid_mappings.into_iter().find(|mapping| mapping.container_id == 0).map(|mapping| mapping.host_id)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Bundle { operation: "make directory", path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

/// Makes one directory with exactly this mode, whatever the umask is.
fn create_directory(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|source| Error::Bundle { operation: "make directory", path: path.to_owned(), source })
}

fn create_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    let create = || -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)
    };
    create().map_err(|source| Error::Bundle { operation: "write", path: path.to_owned(), source })
}

fn link(target: &Path, path: &Path) -> Result<(), Error> {
    std::os::unix::fs::symlink(target, path).map_err(|source| Error::Bundle {
        operation: "make link",
        path: path.to_owned(),
        source,
    })
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Detaches what a dead shim left mounted on a root and removes the directory.
fn clear_rootfs(rootfs: &Path) -> Result<(), Error> {
    // Mounts can be stacked; the bound ends a fight with somebody who keeps mounting.
    for _ in 0..64 {
        match fs::remove_dir(rootfs) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                sys::mount::umount_detach(rootfs).map_err(|errno| Error::Bundle {
                    operation: "unmount",
                    path: rootfs.to_owned(),
                    source: errno.into(),
                })?;
            }
            other => {
                return absent_is_fine(other).map_err(|source| Error::Bundle {
                    operation: "remove rootfs of bundle",
                    path: rootfs.to_owned(),
                    source,
                });
            }
        }
    }
    Err(Error::Bundle { operation: "unmount", path: rootfs.to_owned(), source: io::ErrorKind::ResourceBusy.into() })
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Bundle { operation: "remove", path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    absent_is_fine(sys::fs::remove_tree(parent.as_fd(), name).map_err(io::Error::from)).map_err(failed)
}

/// Names of the directories in a directory; none where it does not exist, and none that is not UTF-8, because we never
/// make such.
fn directories(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Bundle { operation: "list", path: path.to_owned(), source };
    let listing = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
