//! Layers become a chain of committed snapshots, each named by the chain id of the layers up to it (image-spec,
//! "Layer ChainID").

use api_grpc::services::diff::ApplyRequest;
use api_grpc::services::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::{Link, document, layout, manifest};
use crate::{Client, Error};

/// An image whose layers are snapshots.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Key of the top snapshot, the parent of a container's own; empty for an image without layers.
    pub chain_id: String,
    /// Layers that had to be unpacked; the others were there.
    pub applied: usize,
}

/// Unpacks an image with `snapshotter` where that has not happened yet.
pub async fn unpack(client: &Client, name: &str, snapshotter: &str) -> Result<Unpacked, Error> {
    let manifest = manifest(client, name).await?;
    let (config_digest, _, config) = document(client, manifest.config["digest"].as_str().unwrap_or_default()).await?;
    let mut done = Unpacked { chain_id: String::new(), applied: 0 };
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        let text = format!("{} layers, but {} diff ids", manifest.layers.len(), config.rootfs.diff_ids.len());
        return Err(tonic::Status::invalid_argument(text).into());
    }
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let parent = std::mem::take(&mut done.chain_id);
        done.chain_id = chain_id(&parent, diff_id);
        let stat = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: done.chain_id.clone() };
        match client.snapshots().stat(stat).await {
            Ok(_) => continue,
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
        extract(client, snapshotter, layer, diff_id, &parent, &done.chain_id).await?;
        done.applied += 1;
    }
    if !done.chain_id.is_empty() {
        let key = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        layout::ensure_label(client, config_digest.as_str(), &key, &done.chain_id).await?;
    }
    Ok(done)
}

fn chain_id(parent: &str, diff_id: &str) -> String {
    if parent.is_empty() {
        return diff_id.to_owned();
    }
    let hash = Sha256::digest(format!("{parent} {diff_id}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Applies one layer to a new snapshot and commits it; what fails is removed again.
async fn extract(
    client: &Client,
    snapshotter: &str,
    layer: &Link,
    diff_id: &str,
    parent: &str,
    chain_id: &str,
) -> Result<(), Error> {
    let now = model::Timestamp::now();
    let key = format!("extract-{}-{} {chain_id}", now.nanos, std::process::id());
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: [("containerd.io/snapshot.ref".to_owned(), chain_id.to_owned())].into_iter().collect(),
    };
    let mounts = match client.snapshots().prepare(prepare).await {
        Ok(reply) => reply.into_inner().mounts,
        // Somebody else unpacked the same layer meanwhile.
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let outcome = fill(client, snapshotter, layer, diff_id, chain_id, &key, mounts).await;
    if outcome.is_err() {
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        // The first error is the one to tell; what cannot be removed now is garbage.
        let _ = client.snapshots().remove(remove).await;
    }
    outcome
}

async fn fill(
    client: &Client,
    snapshotter: &str,
    layer: &Link,
    diff_id: &str,
    chain_id: &str,
    key: &str,
    mounts: Vec<api_grpc::types::Mount>,
) -> Result<(), Error> {
    let apply = ApplyRequest { diff: Some(layer.descriptor()), mounts, ..ApplyRequest::default() };
    let applied = client.diff().apply(apply).await?.into_inner().applied.unwrap_or_default();
    if applied.digest != diff_id {
        return Err(Error::DiffId { want: diff_id.to_owned(), have: applied.digest });
    }
    let commit = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: chain_id.to_owned(),
        key: key.to_owned(),
        ..CommitSnapshotRequest::default()
    };
    match client.snapshots().commit(commit).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            let remove = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
            client.snapshots().remove(remove).await?;
        }
        other => {
            other?;
        }
    }
    let label = ("containerd.io/uncompressed".to_owned(), diff_id.to_owned());
    layout::label(client, &layer.digest, [label].into_iter().collect()).await
}

#[cfg(test)]
mod tests {
    use super::chain_id;

    #[test]
    fn chain_ids_follow_image_spec() {
        assert_eq!(chain_id("", "sha256:aa"), "sha256:aa");
        // printf 'sha256:aa sha256:bb' | sha256sum
        let want = "sha256:b68ad689d6d1ec110ea1c13617437ad6f3766d4b3b309f6a603a222e07a0164f";
        assert_eq!(chain_id("sha256:aa", "sha256:bb"), want);
    }
}
