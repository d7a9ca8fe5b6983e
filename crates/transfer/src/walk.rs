//! From an image's root to what counts of it.
//!
//! **Invariant:** each document is read once, whatever refers to it how often: an archive cannot make the walk longer than
//! itself.

use std::collections::{BTreeMap, HashSet};

use model::Labels;

use crate::document::{CHILDREN_MAX, children};
use crate::image_store::Found;
use crate::platform::Platforms;
use crate::{Descriptor, Error, ImageStore, Session};

/// Most documents of one image.
const DOCUMENTS_MAX: usize = 16 * CHILDREN_MAX;

/// What a walk has found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// What may get names: the root, then its parts.
    pub(crate) found: Vec<Found>,
    /// Manifests with their entries, as far as those count.
    pub(crate) manifests: Vec<Vec<Descriptor>>,
}

/// Walks from `root`, an index, and labels each document with what it refers to, so that the collector keeps it. NOT_FOUND if
/// nothing of it is for the wanted platforms, or a document is missing.
pub(crate) fn walk(session: &Session, store: &ImageStore, root: &Descriptor) -> Result<Walked, Error> {
    let platforms = Platforms(store.platforms.clone());
    let mut walked = Walked { found: vec![Found::Whole(root.clone())], ..Walked::default() };
    let mut seen: HashSet<String> = HashSet::from([root.digest.clone()]);
    let mut todo = vec![root.clone()];
    let mut empty = true;
    while let Some(parent) = todo.pop() {
        let mut entries = children(&parent, &session.document(&parent)?)?;
        session.label(&parent.checked()?, &labels(&entries))?;
        if parent.digest == root.digest {
            walked.found.extend(entries.iter().cloned().map(Found::Part));
        }
        choose(store, &platforms, &parent, &mut entries)?;
        empty &= entries.is_empty();
        // The first is to be the next.
        for entry in entries.iter().rev().filter(|entry| entry.is_index() || entry.is_manifest()) {
            if seen.insert(entry.digest.clone()) {
                todo.push(entry.clone());
            }
        }
        if seen.len() > DOCUMENTS_MAX {
            return Err(Error::Limit { what: "documents of an image", limit: DOCUMENTS_MAX as u64 });
        }
        if parent.is_manifest() {
            walked.manifests.push(entries);
        }
    }
    if empty { Err(Error::Filtered) } else { Ok(walked) }
}

/// Leaves what counts of the entries of a document.
fn choose(
    store: &ImageStore,
    platforms: &Platforms,
    parent: &Descriptor,
    entries: &mut Vec<Descriptor>,
) -> Result<(), Error> {
    let rank = |entry: &Descriptor| match &entry.platform {
        None => Some(usize::MAX),
        platform => platforms.rank(platform.as_ref()),
    };
    if store.all_metadata {
        if parent.platform.is_some() && rank(parent).is_none() {
            entries.retain(Descriptor::is_config);
        }
    } else {
        entries.retain(|entry| rank(entry).is_some());
    }
    if store.manifest_limit > 0 && parent.is_index() {
        entries.sort_by_key(|entry| rank(entry).map_or((1, 0), |rank| (0, rank)));
        if entries.is_empty() {
            return Err(Error::Filtered);
        }
        entries.truncate(store.manifest_limit);
    }
    Ok(())
}

/// The labels by which a document keeps its entries from being collected.
fn labels(entries: &[Descriptor]) -> Labels {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = Labels::new();
    for entry in entries {
        let kind = if entry.is_config() {
            "config"
        } else if entry.is_manifest() {
            "m."
        } else if entry.is_layer() {
            "l."
        } else {
            ""
        };
        let count = counts.entry(kind).or_default();
        // The first of what is not counted from zero has no number.
        let number = if *count > 0 || !kind.starts_with('c') { count.to_string() } else { String::new() };
        labels.insert(format!("containerd.io/gc.ref.content.{kind}{number}"), entry.digest.clone());
        *count += 1;
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Platform;
    use crate::document::{DOCKER_CONFIG, DOCKER_LAYER_GZIP, OCI_INDEX, OCI_MANIFEST};

    fn entry(media_type: &str, digest: &str, architecture: Option<&str>) -> Descriptor {
        let platform = architecture.map(|architecture| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            ..Platform::default()
        });
        Descriptor { media_type: media_type.into(), digest: digest.into(), platform, ..Descriptor::default() }
    }

    #[test]
    fn references_of_documents() {
        let entries = [
            entry(DOCKER_CONFIG, "c", None),
            entry(DOCKER_LAYER_GZIP, "l0", None),
            entry("x/y", "o0", None),
            entry(DOCKER_LAYER_GZIP, "l1", None),
            entry(OCI_MANIFEST, "m0", None),
            entry(OCI_INDEX, "o1", None),
        ];
        let want = [("0", "o0"), ("1", "o1"), ("config", "c"), ("l.0", "l0"), ("l.1", "l1"), ("m.0", "m0")];
        let have = labels(&entries);
        let have: Vec<(&str, &str)> = have
            .iter()
            .map(|(key, value)| (key.strip_prefix("containerd.io/gc.ref.content.").unwrap(), value.as_str()))
            .collect();
        assert_eq!(have, want);
    }

    #[test]
    fn choices() {
        let index = entry(OCI_INDEX, "i", None);
        let all = ["amd64", "arm64", "386"].map(|name| entry(OCI_MANIFEST, name, Some(name)));
        let wanted = |names: &[&str]| names.iter().map(|name| entry("", "", Some(name)).platform.unwrap()).collect();
        for (platforms, all_metadata, limit, want) in [
            (vec![], false, 0, vec!["amd64", "arm64", "386", "?"]),
            (vec!["arm64"], false, 0, vec!["arm64", "?"]),
            (vec!["arm64"], false, 1, vec!["arm64"]),
            (vec!["386", "amd64"], false, 2, vec!["386", "amd64"]),
            (vec!["arm64"], true, 0, vec!["amd64", "arm64", "386", "?"]),
            (vec!["arm64"], true, 1, vec!["arm64"]),
            (vec!["s390x"], false, 0, vec!["?"]),
        ] {
            let platforms: Vec<Platform> = wanted(&platforms);
            let store = ImageStore { platforms, all_metadata, manifest_limit: limit, ..ImageStore::default() };
            let mut entries = all.to_vec();
            entries.push(entry(OCI_MANIFEST, "?", None));
            choose(&store, &Platforms(store.platforms.clone()), &index, &mut entries).unwrap();
            let have: Vec<&str> = entries.iter().map(|entry| entry.digest.as_str()).collect();
            assert_eq!(have, want, "{store:?}");
        }
        // Of a foreign manifest the configuration stays.
        let store = ImageStore { platforms: wanted(&["arm64"]), all_metadata: true, ..ImageStore::default() };
        let mut entries = vec![entry(DOCKER_CONFIG, "c", None), entry(DOCKER_LAYER_GZIP, "l", None)];
        choose(&store, &Platforms(store.platforms.clone()), &all[2], &mut entries).unwrap();
        assert_eq!(entries.len(), 1);
    }
}
