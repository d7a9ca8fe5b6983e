use std::collections::BTreeMap;

use model::filter::Filters;
use model::{Any, Namespace, check_identifier};
use store::{Durability, View};

use crate::db::{Inner, clean_labels, mask_map, rows};
use crate::encoding::{ContainerRecord, decode};
use crate::keys::Table;
use crate::{Container, Error, Scope, payload};

/// The containers of all namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Containers<'a>(&'a Inner);

impl<'a> Containers<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// One container. NOT_FOUND if there is none.
    pub fn get(&self, namespace: &Namespace, id: &str) -> Result<Container, Error> {
        self.0
            .store
            .read(|view| find(view, namespace, id))
            .and_then(|found| found.ok_or_else(|| missing(namespace, id)))
    }

    /// Those that match, in order of their ids, from one view of the store. Fields: `id`, `image`, `runtime.name`,
    /// `labels.*`.
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Container>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Container, namespace.as_str(), |id, value| {
                let container = decode::<ContainerRecord>("container", id, value)?.container(id);
                if filters.matches(|path| field(&container, path)) {
                    found.push(container);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Creates one; its timestamps become now. ALREADY_EXISTS if the id is taken. INVALID_ARGUMENT, too, for one that is
    /// larger than a value of the store may be (1 MiB, specification included).
    pub fn create(&self, scope: &Scope, mut container: Container) -> Result<Container, Error> {
        validate(&mut container).map_err(invalid("create container"))?;
        let key = Table::Container.key(scope.namespace.as_str(), &container.id);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_some() {
                return Err(Error::ContainerExists(container.id));
            }
            container.created_at = tx.now;
            container.updated_at = tx.now;
            tx.touch_namespace(&scope.namespace)?;
            tx.put_record(&key, &ContainerRecord::new(&container))?;
            tx.event(scope.namespace.as_str(), "/containers/create", payload::container_create(&container));
            Ok(container)
        })
    }

    /// Changes the fields that `mask` names: `labels`, `labels.<key>`, `spec`, `extensions`, `extensions.<key>`,
    /// `image`, `snapshotkey`. An empty mask changes all of them and must repeat snapshotter and runtime. Extensions are
    /// never removed. NOT_FOUND if there is no such container.
    pub fn update(&self, scope: &Scope, container: &Container, mask: &[String]) -> Result<Container, Error> {
        if container.id.is_empty() {
            return Err(Error::Required("Container.ID"));
        }
        let key = Table::Container.key(scope.namespace.as_str(), &container.id);
        self.0.write(Durability::OnDisk, |tx| {
            let stored = find(tx, &scope.namespace, &container.id)?;
            let mut updated = stored.ok_or_else(|| missing(&scope.namespace, &container.id))?;
            apply(&mut updated, container, mask)?;
            validate(&mut updated).map_err(invalid("update"))?;
            updated.updated_at = tx.now;
            tx.put_record(&key, &ContainerRecord::new(&updated))?;
            tx.event(scope.namespace.as_str(), "/containers/update", payload::container_update(&updated));
            Ok(updated)
        })
    }

    /// Deletes one, whether it has a task or not. NOT_FOUND if there is none.
    pub fn delete(&self, scope: &Scope, id: &str) -> Result<(), Error> {
        let key = Table::Container.key(scope.namespace.as_str(), id);
        // Looked up first: a refusal should not cost a place in the writers' queue.
        if self.0.store.read(|view| view.get(&key))?.is_none() {
            return Err(missing(&scope.namespace, id));
        }
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_none() {
                return Err(missing(&scope.namespace, id));
            }
            tx.delete(&key);
            tx.event(scope.namespace.as_str(), "/containers/delete", payload::container_delete(id));
            Ok(())
        })?;
        self.0.gc.mark_dirty();
        Ok(())
    }
}

fn missing(namespace: &Namespace, id: &str) -> Error {
    Error::NoContainer { id: id.to_owned(), namespace: namespace.as_str().to_owned() }
}

fn find(view: &View, namespace: &Namespace, id: &str) -> Result<Option<Container>, Error> {
    let Some(stored) = view.get(&Table::Container.key(namespace.as_str(), id))? else { return Ok(None) };
    Ok(Some(decode::<ContainerRecord>("container", id, &stored)?.container(id)))
}

fn apply(stored: &mut Container, wanted: &Container, mask: &[String]) -> Result<(), Error> {
    const ALL: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];
    if mask.is_empty() {
        if stored.snapshotter != wanted.snapshotter {
            return Err(Error::Immutable("container.Snapshotter"));
        }
        if stored.runtime != wanted.runtime {
            return Err(Error::Immutable("container.Runtime.Name"));
        }
        return ALL.iter().try_for_each(|path| apply_path(stored, wanted, path));
    }
    mask.iter().try_for_each(|path| apply_path(stored, wanted, path))
}

fn apply_path(stored: &mut Container, wanted: &Container, path: &str) -> Result<(), Error> {
    if mask_map(path, "labels", &mut stored.labels, &wanted.labels) {
        return Ok(());
    }
    match path {
        "spec" => stored.spec.clone_from(&wanted.spec),
        "image" => stored.image.clone_from(&wanted.image),
        "snapshotkey" => stored.snapshot_key.clone_from(&wanted.snapshot_key),
        // Replacing the map removes nothing, as with containerd, whose clients rely on extensions staying.
        "extensions" => merge(&mut stored.extensions, &wanted.extensions),
        path if path.starts_with("extensions.") => {
            let key = &path["extensions.".len()..];
            if let Some(any) = wanted.extensions.get(key) {
                stored.extensions.insert(key.to_owned(), any.clone());
            }
        }
        _ => return Err(Error::Mask { path: path.to_owned(), subject: format!("{:?}", wanted.id) }),
    }
    Ok(())
}

fn merge(stored: &mut BTreeMap<String, Any>, wanted: &BTreeMap<String, Any>) {
    stored.extend(wanted.iter().map(|(name, any)| (name.clone(), any.clone())));
}

/// Checks a container in containerd's order, and drops labels without a value.
fn invalid(operation: &'static str) -> impl Fn(Error) -> Error {
    move |source| Error::Invalid { operation, source: Box::new(source) }
}

fn validate(container: &mut Container) -> Result<(), Error> {
    check_identifier(&container.id).map_err(|source| Error::Identifier { field: "container.ID", source })?;
    if container.extensions.contains_key("") {
        return Err(Error::Required("container.Extensions keys"));
    }
    clean_labels("containers", &mut container.labels)?;
    if container.runtime.is_empty() {
        return Err(Error::Required("container.Runtime.Name"));
    }
    if container.spec.is_none() {
        return Err(Error::Required("container.Spec"));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(Error::Required("container.Snapshotter"));
    }
    Ok(())
}

fn field(container: &Container, path: &[&str]) -> Option<String> {
    let present = |text: &String| (!text.is_empty()).then(|| text.clone());
    match path {
        ["id"] => present(&container.id),
        ["image"] => present(&container.image),
        ["runtime", "name"] => present(&container.runtime),
        ["labels", rest @ ..] => model::filter::label(&container.labels, rest).map(str::to_owned),
        _ => None,
    }
}
