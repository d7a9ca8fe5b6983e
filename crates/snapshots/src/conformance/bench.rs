use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Code, Coded as _, Labels, Mount, Timestamp};
use store::{Durability, Options, Store, Transaction, WriteError};

use super::Failure;
use crate::records::{Commit, New, Record, Table};
use crate::{Driver, Error, Kind, Snapshotter, records};

/// A client's view of one driver: requests become calls as the crate's docs say.
pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) snapshotter: Snapshotter,
    pub(crate) work: PathBuf,
    pub(crate) labels: Labels,
}

/// A change to a tree of files.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Dir(&'static str, u32),
    File(String, String, u32),
    Remove(&'static str),
    Chown(&'static str, u32),
    Rename(&'static str, &'static str),
}

pub(crate) fn file(path: &str, content: &str) -> Op {
    Op::File(path.to_owned(), content.to_owned(), 0o644)
}

pub(crate) fn ensure(condition: bool, what: impl Into<String>) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Wrong(what.into())) }
}

pub(crate) fn refused<T>(result: Result<T, Error>, code: Code, what: &str) -> Result<(), Failure> {
    match result {
        Ok(_) => Err(Failure::Wrong(format!("{what} succeeded"))),
        Err(error) => ensure(error.code() == code, format!("{what}: {} instead of {code:?}", model::render(&error))),
    }
}

pub(crate) fn io<T>(what: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|source| Failure::Io(what.to_owned(), source))
}

impl Bench {
    pub(crate) fn new(
        scratch: &Path,
        open: &impl Fn(&Path) -> Result<Arc<dyn Driver>, Error>,
    ) -> Result<Self, Failure> {
        let work = scratch.join("work");
        io("make a directory", fs::create_dir_all(&work))?;
        let store = Store::open(&scratch.join("store"), Options::default())?;
        let driver = open(&scratch.join("root"))?;
        let snapshotter = store.read(|view| Snapshotter::open(driver, view))?;
        Ok(Self { store, snapshotter, work, labels: Labels::new() })
    }

    pub(crate) fn table(&self) -> Table<'_> {
        Table::new("conformance", self.snapshotter.name())
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        self.snapshotter.driver()
    }

    pub(crate) fn write<T>(&self, f: impl FnOnce(&mut Transaction) -> Result<T, Error>) -> Result<T, Error> {
        // The suite is about order and rules; what is on disk when is the store's own suite.
        self.store.write(Durability::Ordered, f).map_err(|error| match error {
            WriteError::Refused(error) => error,
            WriteError::Store(error) => error.into(),
        })
    }

    pub(crate) fn make(&self, kind: Kind, key: &str, parent: &str, labels: &Labels) -> Result<Record, Error> {
        let parents = self.store.read(|view| self.table().parents(view, key, parent))?;
        let pending = self.snapshotter.prepare(kind, &parents, labels)?;
        let new = New { key, kind, parent, labels };
        let record = self.write(|tx| self.table().create(tx, &new, pending.id(), Timestamp::now()))?;
        pending.keep();
        Ok(record)
    }

    pub(crate) fn prepare(&self, key: &str, parent: &str) -> Result<Record, Error> {
        self.make(Kind::Active, key, parent, &self.labels)
    }

    pub(crate) fn view(&self, key: &str, parent: &str) -> Result<Record, Error> {
        self.make(Kind::View, key, parent, &self.labels)
    }

    pub(crate) fn commit(&self, name: &str, key: &str) -> Result<Record, Error> {
        self.commit_onto(name, key, "")
    }

    pub(crate) fn commit_onto(&self, name: &str, key: &str, parent: &str) -> Result<Record, Error> {
        let active = self.store.read(|view| self.table().committable(view, name, key, parent))?;
        let usage = self.driver().commit(active.id)?;
        let commit = Commit { name, key, labels: &self.labels, parent };
        self.write(|tx| self.table().commit(tx, &commit, usage, Timestamp::now()))
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Error> {
        let record = self.write(|tx| self.table().remove(tx, key))?;
        self.driver().remove(record.id)
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Record, Error> {
        self.store.read(|view| self.table().stat(view, key))
    }

    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let record = self.store.read(|view| self.table().mountable(view, key))?;
        self.driver().mounts(record.id, record.kind, &record.parents, &record.labels)
    }

    pub(crate) fn live(&self) -> Result<std::collections::HashSet<u64>, Error> {
        self.store.read(|view| records::live_ids(view, self.snapshotter.name()))
    }

    /// Runs `f` on the mounted snapshot.
    pub(crate) fn mounted<T>(&self, key: &str, f: impl FnOnce(&Path) -> Result<T, Failure>) -> Result<T, Failure> {
        let target = self.work.join("mounted");
        io("make a directory", fs::create_dir_all(&target))?;
        mount::mount_all(&self.mounts(key)?, &target)?;
        let result = f(&target);
        mount::unmount_all(&target, mount::UnmountFlags::empty())?;
        result
    }

    /// A layer: the changes made to a new snapshot on `parent`, committed as `name`.
    pub(crate) fn layer(&self, name: &str, parent: &str, ops: &[Op]) -> Result<(), Failure> {
        let key = format!("active {name}");
        self.prepare(&key, parent)?;
        self.mounted(&key, |root| ops.iter().try_for_each(|op| op.apply(root)))?;
        self.commit(name, &key)?;
        Ok(())
    }

    /// Makes a layer of each set of changes, and the same changes to one plain directory; after each, a new snapshot
    /// on the layer and a view of it must look like the directory.
    pub(crate) fn same_as_flat(&self, layers: &[Vec<Op>]) -> Result<(), Failure> {
        let flat = self.work.join("flat");
        io("make a directory", fs::create_dir_all(&flat))?;
        let mut parent = String::new();
        for (number, ops) in layers.iter().enumerate() {
            let name = format!("layer {number}");
            self.layer(&name, &parent, ops)?;
            ops.iter().try_for_each(|op| op.apply(&flat))?;
            let want = describe(&flat)?;
            for (kind, key) in [(Kind::Active, "looking"), (Kind::View, "viewing")] {
                self.make(kind, key, &name, &self.labels)?;
                let found = self.mounted(key, describe)?;
                ensure(found == want, format!("{name} as {key}:\n{found:#?}\ninstead of\n{want:#?}"))?;
                self.remove(key)?;
            }
            parent = name;
        }
        Ok(())
    }
}

impl Op {
    pub(crate) fn apply(&self, root: &Path) -> Result<(), Failure> {
        let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        let result = match self {
            Self::Dir(path, bits) => fs::create_dir(root.join(path)).and_then(|()| mode(&root.join(path), *bits)),
            Self::File(path, content, bits) => {
                fs::write(root.join(path), content).and_then(|()| mode(&root.join(path), *bits))
            }
            Self::Remove(path) => {
                let path = root.join(path);
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            }
            Self::Chown(path, owner) => std::os::unix::fs::lchown(root.join(path), Some(*owner), Some(*owner)),
            Self::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
        };
        io(&format!("{self:?} in {}", root.display()), result)
    }
}

/// What a tree looks like, one line per file.
pub(crate) fn describe(root: &Path) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let what = path.display().to_string();
        let metadata = io(&what, path.symlink_metadata())?;
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            io(&what, fs::read_to_string(&path))?
        } else if kind.is_symlink() {
            io(&what, fs::read_link(&path))?.display().to_string()
        } else {
            String::new()
        };
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let device = kind.is_char_device() || kind.is_block_device();
        let number = if device { metadata.rdev() } else { 0 };
        let (bits, user, group) = (metadata.mode(), metadata.uid(), metadata.gid());
        lines.push(format!("/{name} {bits:o} {user}:{group} {number} {content:?}"));
        if kind.is_dir() {
            for entry in io(&what, fs::read_dir(&path))? {
                pending.push(io(&what, entry)?.path());
            }
        }
    }
    lines.sort();
    Ok(lines)
}
