//! Where records stand in the store.
//!
//! ```text
//! m/schema                                                                 version, u64 BE
//! m/outbox/ <origin, u64 BE>                                               EventRecord
//! m/namespace/ <namespace>                                                 NamespaceRecord
//! m/container/ <namespace> 0 <id>                                          ContainerRecord
//! m/image/ <namespace> 0 <name>                                            ImageRecord
//! m/blob/ <namespace> 0 <digest>                                           BlobRecord
//! m/ingest/ <namespace> 0 <reference>                                      IngestRecord
//! m/sandbox/ <namespace> 0 <id>                                            SandboxRecord
//! m/lease/ <namespace> 0 <id>                                              LeaseRecord
//! m/member/ <namespace> 0 <length of id, u32 BE> <lease id> <kind> 0 <id>  empty
//! ```
//!
//! //! **Invariant:** a namespace is an identifier, so the NUL behind it cannot be part of it, and names of any form can
//! stand at the end of a key. Kinds hold no NUL.

use model::Namespace;

use crate::Error;

/// Version of the layout and of the records that this program writes.
pub(crate) const SCHEMA_VERSION: u64 = 1;
pub(crate) const SCHEMA: &[u8] = b"m/schema";
pub(crate) const OUTBOX: &[u8] = b"m/outbox/";
pub(crate) const NAMESPACES: &[u8] = b"m/namespace/";

/// Longest name of an image or an ingest. A repository, a tag and a digest together have at most 457 bytes.
pub(crate) const NAME_BYTES_MAX: usize = 480;
/// Longest id of a lease.
pub(crate) const LEASE_BYTES_MAX: usize = 128;
/// Longest kind of a lease's member.
pub(crate) const KIND_BYTES_MAX: usize = 64;

// A member's key holds one of each, and a namespace.
const _: () =
    assert!(store::MAX_KEY_BYTES >= "m/member/".len() + 77 + 4 + LEASE_BYTES_MAX + KIND_BYTES_MAX + 1 + NAME_BYTES_MAX);

/// A table whose rows belong to namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    Container,
    Image,
    Blob,
    Ingest,
    Lease,
    Member,
    Sandbox,
}

impl Table {
    const fn name(self) -> &'static str {
        match self {
            Self::Container => "m/container/",
            Self::Image => "m/image/",
            Self::Blob => "m/blob/",
            Self::Ingest => "m/ingest/",
            Self::Lease => "m/lease/",
            Self::Member => "m/member/",
            Self::Sandbox => "m/sandbox/",
        }
    }

    /// What the keys of a namespace's rows start with.
    pub(crate) fn prefix(self, namespace: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(96);
        key.extend_from_slice(self.name().as_bytes());
        key.extend_from_slice(namespace.as_bytes());
        key.push(0);
        key
    }

    /// The key of a row.
    pub(crate) fn key(self, namespace: &str, name: &str) -> Vec<u8> {
        let mut key = self.prefix(namespace);
        key.extend_from_slice(name.as_bytes());
        key
    }
}

/// The key of a namespace.
pub(crate) fn namespace(namespace: &Namespace) -> Vec<u8> {
    [NAMESPACES, namespace.as_str().as_bytes()].concat()
}

/// The key of an event in the outbox.
pub(crate) fn outbox(origin: u64) -> Vec<u8> {
    [OUTBOX, &origin.to_be_bytes()[..]].concat()
}

/// What the keys of a lease's members start with.
pub(crate) fn members(namespace: &str, lease: &str) -> Vec<u8> {
    let mut key = Table::Member.prefix(namespace);
    // `check_name` bounds the length far below 4 GiB.
    key.extend_from_slice(&u32::try_from(lease.len()).unwrap_or(u32::MAX).to_be_bytes());
    key.extend_from_slice(lease.as_bytes());
    key
}

/// The key of a member of a lease.
pub(crate) fn member(namespace: &str, lease: &str, kind: &str, id: &str) -> Vec<u8> {
    let mut key = members(namespace, lease);
    key.extend_from_slice(kind.as_bytes());
    key.push(0);
    key.extend_from_slice(id.as_bytes());
    key
}

/// Lease, kind and id in a member's key, of which `rest` is what follows the prefix of the namespace.
pub(crate) fn split_member(rest: &[u8]) -> Option<(&str, &str, &str)> {
    let (length, rest) = rest.split_at_checked(4)?;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    let (lease, rest) = rest.split_at_checked(length)?;
    let (kind, id) = split_resource(rest)?;
    Some((std::str::from_utf8(lease).ok()?, kind, id))
}

/// Kind and id behind the prefix of a lease's members.
pub(crate) fn split_resource(rest: &[u8]) -> Option<(&str, &str)> {
    let nul = rest.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&rest[..nul]).ok()?, std::str::from_utf8(&rest[nul + 1..]).ok()?))
}

/// Refuses a name that the store could not hold.
pub(crate) fn check_name(field: &'static str, name: &str, max: usize) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Required(field));
    }
    if name.len() > max {
        return Err(Error::TooLong { field, bytes: name.len(), max });
    }
    Ok(())
}
