//! What is active, and the way there and back.
//!
//! ```text
//!            activate                     deactivate, collected
//! (free) ───────────────▶ busy ─▶ active ───────────────────────▶ busy ─▶ (free)
//!                          └─ failed: undone ─▶ (free)              └─ cannot be unmounted: free, swept later
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ::mount::UnmountFlags;
use model::{Labels, Mount, Timestamp, check_label};

use crate::plan::{Plan, Steps, Transformer, plan};
use crate::record::Record;
use crate::roots::Roots;
use crate::{Activation, ActiveMount, Error, format, loops, mkdir, mkfs};

/// The directory below the state directory, named as containerd names it.
const DIRECTORY: &str = "io.containerd.mount-manager.v1.bolt";
/// Name of the record in the directory of an activation.
const RECORD: &str = "record.json";
/// Longest name, in bytes: that of a container is 76.
const NAME_BYTES_MAX: usize = 480;
/// Mounts of one activation, as with containerd.
const MOUNTS_MAX: usize = 255;
/// All texts of one activation's mounts together.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Activations at the same time.
const ACTIVE_MAX: usize = 16_384;

type Key = (String, String);

/// The mounts of all namespaces. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Manager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    targets: PathBuf,
    roots: Roots,
    boot_id: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Entry>,
    /// Directories that belong to nobody and could not be removed.
    leftovers: BTreeSet<u64>,
    last_number: u64,
}

#[derive(Debug)]
enum Entry {
    /// Being made or undone.
    Busy,
    Active(u64, Record),
}

/// What is to be activated.
#[derive(Clone, Debug, Default)]
pub struct Activate {
    /// The namespace of the name.
    pub namespace: String,
    /// The name, any text of 1 to 480 bytes.
    pub name: String,
    /// The mounts, which may refer to those before them.
    pub mounts: Vec<Mount>,
    /// Labels to keep with them.
    pub labels: Labels,
    /// The lease that keeps them.
    pub lease: Option<String>,
    /// Make all of them, and give a bind mount of the last.
    pub temporary: bool,
    /// Types that the caller handles by itself.
    pub allowed: Vec<String>,
}

impl Manager {
    /// Takes over what an earlier daemon of this boot left active, and removes what belongs to nobody. Clients may have
    /// things made below `root` and the mounts' own directories.
    pub fn open(state: &Path, root: &Path, boot_id: &str) -> Result<Self, Error> {
        let targets = state.join(DIRECTORY).join("t");
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&targets).map_err(|source| Error::file("make directory", &targets, source))?;
        let roots = Roots::open(&[&targets, root])?;
        let mut found = State::default();
        for number in numbers(&targets)? {
            found.last_number = found.last_number.max(number);
            match Record::read(&targets.join(number.to_string()).join(RECORD), boot_id) {
                Some(record) => {
                    let key = (record.namespace.clone(), record.activation.name.clone());
                    found.entries.insert(key, Entry::Active(number, record));
                }
                None => drop(found.leftovers.insert(number)),
            }
        }
        let boot_id = boot_id.to_owned();
        let manager =
            Self(Arc::new(Inner { targets, roots, boot_id, state: Mutex::new(found), changed: Condvar::new() }));
        manager.sweep();
        Ok(manager)
    }

    /// Makes the mounts that need help and all before them; tells which are left to the caller.
    ///
    /// [`Error::NotNeeded`] (UNIMPLEMENTED) if none needs help, ALREADY_EXISTS if the name is active. On an error nothing
    /// is left. Waits for another request that is busy with the same name.
    pub fn activate(&self, request: Activate) -> Result<Activation, Error> {
        check(&request)?;
        let plan = plan(&request.mounts, &request.allowed, request.temporary).ok_or(Error::NotNeeded)?;
        let key = (request.namespace.clone(), request.name.clone());
        let number = self.0.reserve(&key)?;
        let made = self.0.make(number, request, &plan);
        if made.is_err() {
            self.0.remove_directory(number, UnmountFlags::empty());
        }
        let mut state = self.0.state();
        let result = match made {
            Ok(record) => {
                let activation = record.activation.clone();
                state.entries.insert(key, Entry::Active(number, record));
                Ok(activation)
            }
            Err(error) => {
                state.entries.remove(&key);
                Err(error)
            }
        };
        drop(state);
        self.0.changed.notify_all();
        result
    }

    /// Undoes the mounts of a name, the last one first. NOT_FOUND if it is not active. When they cannot be unmounted the
    /// name is free nevertheless, and the next [`Manager::sweep`] tries again.
    pub fn deactivate(&self, namespace: &str, name: &str) -> Result<(), Error> {
        let key = (namespace.to_owned(), name.to_owned());
        let number = {
            let mut state = self.0.settled(&key);
            let Some(Entry::Active(number, _)) = state.entries.get(&key) else {
                return Err(Error::Missing(name.chars().take(128).collect()));
            };
            let number = *number;
            state.entries.insert(key.clone(), Entry::Busy);
            number
        };
        let dismantled = self.0.dismantle(number, UnmountFlags::empty());
        let mut state = self.0.state();
        state.entries.remove(&key);
        if dismantled.is_err() {
            state.leftovers.insert(number);
        }
        drop(state);
        self.0.changed.notify_all();
        dismantled
    }

    /// Whether nothing is active under a name, and nobody busy with it. Does not wait.
    pub fn is_free(&self, namespace: &str, name: &str) -> bool {
        !self.0.state().entries.contains_key(&(namespace.to_owned(), name.to_owned()))
    }

    /// What is active under a name. NOT_FOUND if nothing is.
    pub fn info(&self, namespace: &str, name: &str) -> Result<Activation, Error> {
        let key = (namespace.to_owned(), name.to_owned());
        match self.0.settled(&key).entries.get(&key) {
            Some(Entry::Active(_, record)) => Ok(record.activation.clone()),
            Some(Entry::Busy) | None => Err(Error::Missing(name.chars().take(128).collect())),
        }
    }

    /// All that is active in a namespace, in order of names.
    pub fn list(&self, namespace: &str) -> Vec<Activation> {
        let records = self.records();
        records.into_iter().filter(|(of, ..)| of == namespace).map(|(_, _, activation)| activation).collect()
    }

    /// Namespace, lease and mounts of everything that is active.
    pub fn records(&self) -> Vec<(String, Option<String>, Activation)> {
        let state = self.0.state();
        let records = state.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Active(_, record) => Some((key.0.clone(), record.lease.clone(), record.activation.clone())),
            Entry::Busy => None,
        });
        records.collect()
    }

    /// Changes labels: those that `mask` names (`labels`, `labels.<key>`), all of them without a mask. NOT_FOUND if the
    /// name is not active.
    pub fn update(&self, namespace: &str, name: &str, labels: &Labels, mask: &[String]) -> Result<Activation, Error> {
        for (key, value) in labels {
            check_label(key, value)?;
        }
        let key = (namespace.to_owned(), name.to_owned());
        let mut state = self.0.settled(&key);
        let Some(Entry::Active(number, record)) = state.entries.get_mut(&key) else {
            return Err(Error::Missing(name.chars().take(128).collect()));
        };
        let mut updated = record.clone();
        let stored = &mut updated.activation.labels;
        if mask.is_empty() {
            stored.clone_from(labels);
        }
        for path in mask {
            match path.strip_prefix("labels") {
                Some("") => stored.clone_from(labels),
                Some(rest) if rest.starts_with('.') => match labels.get(&rest[1..]) {
                    Some(value) => drop(stored.insert(rest[1..].to_owned(), value.clone())),
                    None => drop(stored.remove(&rest[1..])),
                },
                Some(_) | None => return Err(Error::Mask(path.chars().take(128).collect())),
            }
        }
        stored.retain(|_, value| !value.is_empty());
        self.0.write(*number, &updated)?;
        *record = updated;
        Ok(record.activation.clone())
    }

    /// Removes what belongs to nobody, as far as it can: what is still in use goes out of sight and ends with its use.
    pub fn sweep(&self) {
        let leftovers = std::mem::take(&mut self.0.state().leftovers);
        for number in leftovers {
            self.0.remove_directory(number, UnmountFlags::DETACH);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once nobody is busy with a name.
    fn settled(&self, key: &Key) -> MutexGuard<'_, State> {
        let busy = |state: &mut State| matches!(state.entries.get(key), Some(Entry::Busy));
        self.changed.wait_while(self.state(), busy).unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, key: &Key) -> Result<u64, Error> {
        let mut state = self.settled(key);
        if state.entries.contains_key(key) {
            return Err(Error::Exists(key.1.clone()));
        }
        if state.entries.len() >= ACTIVE_MAX {
            return Err(Error::Full(ACTIVE_MAX));
        }
        state.last_number += 1;
        state.entries.insert(key.clone(), Entry::Busy);
        Ok(state.last_number)
    }

    fn make(&self, number: u64, request: Activate, plan: &Plan) -> Result<Record, Error> {
        let directory = self.targets.join(number.to_string());
        make_directory(&directory)?;
        let mut active: Vec<ActiveMount> = Vec::new();
        let mut system = request.mounts;
        let mut text = 0;
        for (index, steps) in plan.steps.iter().enumerate() {
            if index > plan.ours || (index == plan.ours && !plan.transform_next) {
                break;
            }
            let Some(mount) = system.get_mut(index) else { break };
            self.transform(mount, steps, &active)?;
            text += text_bytes(mount);
            if text > TEXT_BYTES_MAX {
                return Err(Error::TooLong { name: request.name, bytes: text, max: TEXT_BYTES_MAX });
            }
            if index < plan.ours {
                let place = directory.join(index.to_string());
                make_one(mount, steps, &place, &request.name, index)?;
                let mount_point = place.display().to_string();
                active.push(ActiveMount { mount: mount.clone(), mount_point, mounted_at: Timestamp::now() });
            }
        }
        system.drain(..plan.ours);
        if let Some(last) = active.last().filter(|_| request.temporary) {
            let options = vec!["rbind".to_owned()];
            let source = last.mount_point.clone();
            system.push(Mount { kind: "bind".to_owned(), source, target: String::new(), options });
        }
        let labels = request.labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let activation = Activation { name: request.name, active, system, labels };
        let (boot_id, namespace, lease) = (self.boot_id.clone(), request.namespace, request.lease);
        let record = Record { boot_id, namespace, lease, activation };
        self.write(number, &record)?;
        Ok(record)
    }

    fn transform(&self, mount: &mut Mount, steps: &Steps, active: &[ActiveMount]) -> Result<(), Error> {
        mount.kind.clone_from(&steps.kind);
        for transformer in &steps.transformers {
            match transformer {
                Transformer::Format => format::format(mount, active)?,
                Transformer::Mkfs => mkfs::mkfs(mount, &self.roots)?,
                Transformer::Mkdir => mkdir::mkdir(mount, &self.roots)?,
            }
        }
        Ok(())
    }

    fn write(&self, number: u64, record: &Record) -> Result<(), Error> {
        let path = self.targets.join(number.to_string()).join(RECORD);
        let bytes = serde_json::to_vec(record).map_err(|error| Error::file("encode", &path, io::Error::from(error)))?;
        sys::fs::replace_file(&path, &bytes, 0o600).map_err(|errno| Error::file("write", &path, errno))
    }

    /// As [`Inner::dismantle`]; what cannot be removed is left over.
    fn remove_directory(&self, number: u64, flags: UnmountFlags) {
        if let Err(error) = self.dismantle(number, flags) {
            tracing::warn!(number, error = %model::render(&error), "mounts are left over; the collector tries again");
            self.state().leftovers.insert(number);
        }
    }

    /// Removes the record, then the mounts, the last one first, then the directory. What is not there is fine.
    fn dismantle(&self, number: u64, flags: UnmountFlags) -> Result<(), Error> {
        let directory = self.targets.join(number.to_string());
        absent_is_fine(fs::remove_file(directory.join(RECORD)))
            .map_err(|source| Error::file("remove the record in", &directory, source))?;
        for index in numbers(&directory)?.into_iter().rev() {
            let place = directory.join(index.to_string());
            if place.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
                loops::detach(&place)?;
            } else {
                ::mount::unmount_recursive(&place, flags).map_err(|error| Error::Unmount(Box::new(error)))?;
                absent_is_fine(fs::remove_dir(&place)).map_err(|e| Error::file("remove directory", &place, e))?;
            }
        }
        match fs::remove_dir(&directory) {
            // A record that was being written when the daemon died.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_files(&directory),
            result => absent_is_fine(result),
        }
        .map_err(|source| Error::file("remove directory", &directory, source))
    }
}

fn check(request: &Activate) -> Result<(), Error> {
    let (bytes, count) = (request.name.len(), request.mounts.len());
    if !(1..=NAME_BYTES_MAX).contains(&bytes) {
        return Err(Error::Name { bytes, max: NAME_BYTES_MAX });
    }
    if count > MOUNTS_MAX {
        return Err(Error::TooMany { count, max: MOUNTS_MAX });
    }
    let text: usize = request.mounts.iter().map(text_bytes).sum();
    if text > TEXT_BYTES_MAX {
        return Err(Error::TooLong { name: request.name.clone(), bytes: text, max: TEXT_BYTES_MAX });
    }
    request.labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
    Ok(())
}

fn text_bytes(mount: &Mount) -> usize {
    let options: usize = mount.options.iter().map(|option| option.len() + 1).sum();
    mount.kind.len() + mount.source.len() + mount.target.len() + options
}

/// Makes one mount at `place`.
fn make_one(mount: &Mount, steps: &Steps, place: &Path, name: &str, index: usize) -> Result<(), Error> {
    if steps.is_loop {
        return loops::attach(mount, place);
    }
    if let Some(option) = mount.options.iter().find(|option| option.starts_with("X-containerd.")) {
        return Err(Error::Option { option: option.clone(), problem: "internal mount option was not consumed" });
    }
    make_directory(place)?;
    ::mount::mount_all(std::slice::from_ref(mount), place).map_err(|source| Error::Mount {
        name: name.to_owned(),
        index,
        source: Box::new(source),
    })
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().mode(0o700).create(path);
    made.map_err(|source| Error::file("make directory", path, source))
}

/// The entries of a directory whose names are numbers, in order. None if there is no directory.
fn numbers(directory: &Path) -> Result<Vec<u64>, Error> {
    let failed = |source| Error::file("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn remove_files(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(directory)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
