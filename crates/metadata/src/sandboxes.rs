use model::filter::Filters;
use model::{Namespace, check_identifier};
use store::{Durability, View};

use crate::db::{Inner, clean_labels, mask_map, rows};
use crate::encoding::{SandboxRecord, decode};
use crate::keys::Table;
use crate::{Error, Sandbox, Scope};

/// The records of sandboxes of all namespaces. They publish no events.
#[derive(Clone, Copy, Debug)]
pub struct Sandboxes<'a>(&'a Inner);

impl<'a> Sandboxes<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// One sandbox. NOT_FOUND if there is none.
    pub fn get(&self, namespace: &Namespace, id: &str) -> Result<Sandbox, Error> {
        let found = self.0.store.read(|view| find(view, namespace, id))?;
        found.ok_or_else(|| missing(namespace, id))
    }

    /// Those that match, in order of their ids. Fields: `id`, `labels.*`.
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Sandbox>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Sandbox, namespace.as_str(), |id, value| {
                let sandbox = decode::<SandboxRecord>("sandbox", id, value)?.sandbox(id);
                if filters.matches(|path| field(&sandbox, path)) {
                    found.push(sandbox);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Creates one; its timestamps become now. ALREADY_EXISTS if the id is taken.
    pub fn create(&self, scope: &Scope, mut sandbox: Sandbox) -> Result<Sandbox, Error> {
        validate(&mut sandbox)?;
        let key = Table::Sandbox.key(scope.namespace.as_str(), &sandbox.id);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_some() {
                return Err(Error::SandboxExists(sandbox.id));
            }
            sandbox.created_at = tx.now;
            sandbox.updated_at = tx.now;
            tx.touch_namespace(&scope.namespace)?;
            tx.put_record(&key, &SandboxRecord::new(&sandbox))?;
            Ok(sandbox)
        })
    }

    /// Changes the fields that `mask` names: `labels`, `labels.<key>`, `extensions`, `extensions.<key>`, `runtime`, `spec`.
    /// An empty mask changes all of them and must repeat the runtime's name. NOT_FOUND if there is no such sandbox.
    pub fn update(&self, scope: &Scope, sandbox: &Sandbox, mask: &[String]) -> Result<Sandbox, Error> {
        let key = Table::Sandbox.key(scope.namespace.as_str(), &sandbox.id);
        let updated = self.0.write(Durability::OnDisk, |tx| {
            let stored = find(tx, &scope.namespace, &sandbox.id)?;
            let mut updated = stored.ok_or_else(|| missing(&scope.namespace, &sandbox.id))?;
            if mask.is_empty() {
                if updated.runtime != sandbox.runtime {
                    return Err(Error::Immutable("sandbox.Runtime.Name"));
                }
                ["labels", "extensions", "spec", "runtime"]
                    .iter()
                    .try_for_each(|path| apply(&mut updated, sandbox, path))?;
            }
            mask.iter().try_for_each(|path| apply(&mut updated, sandbox, path))?;
            validate(&mut updated)?;
            updated.updated_at = tx.now;
            tx.put_record(&key, &SandboxRecord::new(&updated))?;
            Ok(updated)
        })?;
        // A label may have let something go.
        self.0.gc.mark_dirty();
        Ok(updated)
    }

    /// Deletes the record. NOT_FOUND if there is none.
    pub fn delete(&self, scope: &Scope, id: &str) -> Result<(), Error> {
        let key = Table::Sandbox.key(scope.namespace.as_str(), id);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_none() {
                return Err(missing(&scope.namespace, id));
            }
            tx.delete(&key);
            Ok(())
        })?;
        self.0.gc.mark_dirty();
        Ok(())
    }
}

fn missing(namespace: &Namespace, id: &str) -> Error {
    Error::NoSandbox { id: id.chars().take(128).collect(), namespace: namespace.as_str().to_owned() }
}

fn find(view: &View, namespace: &Namespace, id: &str) -> Result<Option<Sandbox>, Error> {
    // An id that is none has no record, and would be no key.
    if check_identifier(id).is_err() {
        return Ok(None);
    }
    let Some(stored) = view.get(&Table::Sandbox.key(namespace.as_str(), id))? else { return Ok(None) };
    Ok(Some(decode::<SandboxRecord>("sandbox", id, &stored)?.sandbox(id)))
}

fn apply(stored: &mut Sandbox, wanted: &Sandbox, path: &str) -> Result<(), Error> {
    if mask_map(path, "labels", &mut stored.labels, &wanted.labels)
        || mask_map(path, "extensions", &mut stored.extensions, &wanted.extensions)
    {
        return Ok(());
    }
    match path {
        "runtime" => {
            stored.runtime.clone_from(&wanted.runtime);
            stored.runtime_options.clone_from(&wanted.runtime_options);
        }
        "spec" => stored.spec.clone_from(&wanted.spec),
        _ => {
            let path = path.chars().take(128).collect();
            return Err(Error::Mask { path, subject: format!("sandbox {:?}", wanted.id) });
        }
    }
    Ok(())
}

/// Checks a sandbox, and drops labels without a value.
fn validate(sandbox: &mut Sandbox) -> Result<(), Error> {
    check_identifier(&sandbox.id).map_err(|source| Error::Identifier { field: "sandbox.ID", source })?;
    if sandbox.extensions.contains_key("") {
        return Err(Error::Required("sandbox.Extensions keys"));
    }
    clean_labels("sandboxes", &mut sandbox.labels)?;
    if sandbox.runtime.is_empty() {
        return Err(Error::Required("sandbox.Runtime.Name"));
    }
    Ok(())
}

fn field(sandbox: &Sandbox, path: &[&str]) -> Option<String> {
    match path {
        ["id"] => Some(sandbox.id.clone()),
        ["labels", rest @ ..] => model::filter::label(&sandbox.labels, rest).map(str::to_owned),
        _ => None,
    }
}
