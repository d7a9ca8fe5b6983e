use std::time::{SystemTime, UNIX_EPOCH};

use model::filter::Filters;
use model::{Digest, Labels, Namespace};
use store::Durability;

use crate::db::{Inner, rows};
use crate::encoding::{LeaseRecord, decode};
use crate::keys::{self, KIND_BYTES_MAX, LEASE_BYTES_MAX, NAME_BYTES_MAX, Table, check_name};
use crate::{Error, Lease, Resource, Scope};

/// The leases of all namespaces. They publish no events.
#[derive(Clone, Copy, Debug)]
pub struct Leases<'a>(&'a Inner);

impl<'a> Leases<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// Creates one; an empty id becomes a random one. ALREADY_EXISTS if the id is taken.
    pub fn create(&self, namespace: &Namespace, id: &str, mut labels: Labels) -> Result<Lease, Error> {
        let id = if id.is_empty() { random_id()? } else { id.to_owned() };
        check_name("lease id", &id, LEASE_BYTES_MAX)?;
        // Their length is not limited, as with containerd; the store limits the record.
        labels.retain(|_, value| !value.is_empty());
        let key = Table::Lease.key(namespace.as_str(), &id);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_some() {
                return Err(Error::LeaseExists(id));
            }
            let lease = Lease { id, created_at: tx.now, labels };
            tx.touch_namespace(namespace)?;
            tx.put_record(&key, &LeaseRecord::new(&lease))?;
            Ok(lease)
        })
    }

    /// Deletes one; what only it protected goes soon ([`crate::Metadata::collect_and_wait`] waits for that). NOT_FOUND
    /// if there is none.
    ///
    /// The deletion may be taken back by a power cut: then the lease is garbage of its client, as if the cut had come a
    /// little earlier.
    pub fn delete(&self, namespace: &Namespace, id: &str) -> Result<(), Error> {
        let key = Table::Lease.key(namespace.as_str(), id);
        self.0.write(Durability::Ordered, |tx| {
            if tx.get(&key)?.is_none() {
                return Err(Error::NoLease(id.to_owned()));
            }
            tx.delete(&key);
            let members: Vec<_> = tx.scan(&keys::members(namespace.as_str(), id), None).collect::<Result<_, _>>()?;
            for (member, _) in members {
                tx.delete(&member);
            }
            Ok(())
        })?;
        self.0.gc.mark_dirty();
        Ok(())
    }

    /// Those that match, in order of their ids. Fields: `id`, `labels.*`.
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Lease>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Lease, namespace.as_str(), |id, value| {
                let lease = decode::<LeaseRecord>("lease", id, value)?.lease(id);
                if filters.matches(|path| field(&lease, path)) {
                    found.push(lease);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Checks that the lease of a request exists, if it names one: NOT_FOUND otherwise.
    pub fn check(&self, scope: &Scope) -> Result<(), Error> {
        let Some(lease) = &scope.lease else { return Ok(()) };
        let key = Table::Lease.key(scope.namespace.as_str(), lease);
        if lease.len() > LEASE_BYTES_MAX || self.0.store.read(|view| view.get(&key))?.is_none() {
            return Err(Error::NoScopeLease);
        }
        Ok(())
    }

    /// Adds a member, which need not exist. Adding it again changes nothing.
    pub fn add_resource(&self, namespace: &Namespace, lease: &str, resource: &Resource) -> Result<(), Error> {
        check(resource)?;
        self.0.write(Durability::OnDisk, |tx| {
            tx.find_lease(namespace, lease)?;
            tx.add_member(namespace.as_str(), lease, &resource.kind, &resource.id)
        })
    }

    /// Removes a member; it need not be one.
    pub fn delete_resource(&self, namespace: &Namespace, lease: &str, resource: &Resource) -> Result<(), Error> {
        check(resource)?;
        self.0.write(Durability::Ordered, |tx| {
            tx.find_lease(namespace, lease)?;
            tx.delete(&keys::member(namespace.as_str(), lease, &resource.kind, &resource.id));
            Ok(())
        })?;
        self.0.gc.mark_dirty();
        Ok(())
    }

    /// The members, in the order content, images, ingests, snapshots.
    pub fn resources(&self, namespace: &Namespace, lease: &str) -> Result<Vec<Resource>, Error> {
        self.0.store.read(|view| {
            if view.get(&Table::Lease.key(namespace.as_str(), lease))?.is_none() {
                return Err(Error::NoLease(lease.to_owned()));
            }
            let prefix = keys::members(namespace.as_str(), lease);
            let mut found = Vec::new();
            for entry in view.scan(&prefix, None) {
                let (key, _) = entry?;
                if let Some((kind, id)) = keys::split_resource(&key[prefix.len()..]) {
                    found.push(Resource { kind: kind.to_owned(), id: id.to_owned() });
                }
            }
            Ok(found)
        })
    }
}

/// Checks the type of a resource, and its id as far as the type tells its form.
fn check(resource: &Resource) -> Result<(), Error> {
    let short = || resource.kind.chars().take(128).collect::<String>();
    let mut parts = resource.kind.split('/');
    let (first, rest) = (parts.next().unwrap_or_default(), parts.count());
    match (first, rest) {
        ("content", 0) => {
            resource
                .id
                .parse::<Digest>()
                .map_err(|source| Error::Digest { field: "invalid content resource id", source })?;
        }
        ("ingests" | "images", 0) | ("snapshots", 1) => {}
        ("content" | "ingests" | "images" | "snapshots", _) => return Err(Error::ResourceForm(short())),
        _ => return Err(Error::ResourceKind(short())),
    }
    if resource.kind.len() > KIND_BYTES_MAX || resource.kind.contains('\0') {
        return Err(Error::ResourceForm(short()));
    }
    check_name("resource id", &resource.id, NAME_BYTES_MAX)
}

/// An id of the form that containerd makes: nanoseconds and four random characters.
fn random_id() -> Result<String, Error> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let mut random = [0_u8; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::Random(errno.into()))?;
    let tail: String = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect();
    Ok(format!("{nanos}-{tail}"))
}

fn field(lease: &Lease, path: &[&str]) -> Option<String> {
    match path {
        ["id"] => Some(lease.id.clone()),
        ["labels", rest @ ..] => model::filter::label(&lease.labels, rest).map(str::to_owned),
        _ => None,
    }
}
