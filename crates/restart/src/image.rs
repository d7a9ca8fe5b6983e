//! The labels that an image brings. Blocks on the disk.

use std::collections::BTreeMap;

use metadata::Metadata;
use model::{Digest, Namespace};
use serde_json::Value;

use crate::policy::PREFIX;

/// Larger documents are not looked into; neither are they by any client.
const DOCUMENT_MAX_BYTES: u64 = 4 << 20;
/// Manifests of one index that are looked into.
const MANIFESTS_MAX: usize = 64;

/// The labels of ours that any configuration of the image has; `None` where the image, or each of its configurations,
/// cannot be read, so that nobody can tell.
pub(crate) fn labels(metadata: &Metadata, namespace: &Namespace, image: &str) -> Option<BTreeMap<String, String>> {
    let target = metadata.images().get(namespace, image).ok()?.target.digest;
    let root = document(metadata, namespace, &target)?;
    let digest = |value: &Value| value["digest"].as_str().map(str::to_owned);
    let manifests: Vec<Value> = match root["manifests"].as_array() {
        Some(entries) => entries
            .iter()
            .take(MANIFESTS_MAX)
            .filter_map(digest)
            .filter_map(|digest| document(metadata, namespace, &digest))
            .collect(),
        None => vec![root],
    };
    let configs = manifests.iter().filter_map(|manifest| digest(&manifest["config"]));
    let configs: Vec<Value> = configs.filter_map(|digest| document(metadata, namespace, &digest)).collect();
    if configs.is_empty() {
        return None;
    }
    let labels = configs.iter().filter_map(|config| config["config"]["Labels"].as_object()).flatten();
    let ours = labels.filter(|(name, _)| name.starts_with(PREFIX));
    Some(ours.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect())
}

fn document(metadata: &Metadata, namespace: &Namespace, digest: &str) -> Option<Value> {
    let digest: Digest = digest.parse().ok()?;
    let blob = metadata.content().reader(namespace, &digest).ok()?;
    if blob.size() > DOCUMENT_MAX_BYTES {
        return None;
    }
    serde_json::from_reader(blob.into_reader(0)).ok()
}
