//! Layers of an image become a chain of committed snapshots, each named by its chain id (image-spec, layer chain id).
//!
//! ```text
//! for each layer: Prepare "extract-… <chain id>" ─► apply ─► digest is the diff id? ─► Commit <chain id>
//!                   └─ the chain id exists: next layer
//! ```
//!
//! **Invariant:** a snapshot is committed under a chain id only if its layers had the digests that the chain id is made of;
//! of a failed layer no snapshot stays.

use ::metadata::{NewSnapshot, SnapshotCommit};
use model::{Code, Coded as _, Digest, Labels, Timestamp};

use crate::document::{Config, parse};
use crate::image_store::Unpack;
use crate::{Descriptor, Error, Platform, Session, UNCOMPRESSED_LABEL};

/// Attempts to prepare a snapshot whose chain id comes and goes meanwhile.
const ATTEMPTS: usize = 3;
/// Labels with this prefix, of a layer's annotations, go to its snapshot.
const INHERITED: &str = "containerd.io/snapshot/";

/// A platform that is unpacked, and where to.
#[derive(Debug)]
pub(crate) struct Target {
    platform: Platform,
    snapshotter: String,
}

/// Resolves what a client wants unpacked. INVALID_ARGUMENT for a snapshotter that we do not have, or a platform whose files we
/// could not write.
pub(crate) fn targets(session: &Session, unpacks: &[Unpack]) -> Result<Vec<Target>, Error> {
    let known = session.metadata.snapshotters();
    let default = || {
        let best = known.iter().find(|name| *name == "overlayfs").or(known.first());
        best.cloned().ok_or_else(|| Error::Snapshotter("default".to_owned()))
    };
    unpacks
        .iter()
        .map(|unpack| {
            let platform = unpack.platform.clone().map_or_else(Platform::host, Platform::normalized);
            if platform.os != "linux" {
                return Err(Error::UnpackPlatform(platform.os.chars().take(64).collect()));
            }
            let snapshotter = match unpack.snapshotter.as_str() {
                "" => default()?,
                name if known.iter().any(|known| known == name) => name.to_owned(),
                name => return Err(Error::Snapshotter(name.chars().take(128).collect())),
            };
            Ok(Target { platform, snapshotter })
        })
        .collect()
}

/// Unpacks the layers of a manifest, if its image is for one of the targets. `entries` are its configuration and layers.
pub(crate) fn manifest(session: &Session, targets: &[Target], entries: &[Descriptor]) -> Result<(), Error> {
    let layers: Vec<&Descriptor> = entries.iter().filter(|entry| entry.is_layer()).collect();
    let Some(config) = entries.iter().find(|entry| entry.is_config()) else { return Ok(()) };
    if targets.is_empty() || layers.is_empty() {
        return Ok(());
    }
    let bytes = session.document(config)?;
    let platform: Platform = parse("image configuration", &bytes)?;
    let Some(target) = targets.iter().find(|target| target.platform.matches(&platform)) else { return Ok(()) };
    let root = parse::<Config>("image configuration", &bytes)?.rootfs;
    if !matches!(root.kind.as_str(), "" | "layers") {
        return Ok(());
    }
    if root.diff_ids.len() != layers.len() {
        return Err(Error::LayerCount { layers: layers.len(), diff_ids: root.diff_ids.len() });
    }
    let mut parent: Option<Digest> = None;
    for (layer, diff_id) in layers.into_iter().zip(&root.diff_ids) {
        let diff_id: Digest = diff_id.parse().map_err(Error::Digest)?;
        let chain = chain_id(parent.as_ref(), &diff_id);
        Step { session, snapshotter: &target.snapshotter, parent: parent.as_ref(), chain: &chain, diff_id: &diff_id }
            .unpack(layer)?;
        parent = Some(chain);
    }
    if let Some(chain) = parent {
        let key = format!("containerd.io/gc.ref.snapshot.{}", target.snapshotter);
        session.label(&config.checked()?, &Labels::from([(key, chain.as_str().to_owned())]))?;
    }
    Ok(())
}

/// The name of what a layer makes of what the layers below it made.
pub(crate) fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    let Some(parent) = parent else { return diff_id.clone() };
    let mut hasher = content::Hasher::new(content::Algorithm::Sha256);
    hasher.update(format!("{parent} {diff_id}").as_bytes());
    hasher.digest()
}

/// One layer on its way into a snapshot.
struct Step<'a> {
    session: &'a Session,
    snapshotter: &'a str,
    parent: Option<&'a Digest>,
    chain: &'a Digest,
    diff_id: &'a Digest,
}

impl Step<'_> {
    fn unpack(&self, layer: &Descriptor) -> Result<(), Error> {
        let digest = layer.checked()?;
        let Some((key, mounts)) = self.prepare(layer)? else { return Ok(()) };
        let made = self.fill(layer, &digest, &mounts).and_then(|()| self.commit(&key));
        match made {
            Ok(true) => self
                .session
                .label(&digest, &Labels::from([(UNCOMPRESSED_LABEL.to_owned(), self.diff_id.as_str().to_owned())])),
            Ok(false) => self.remove(&key),
            Err(error) => {
                // The error that led here is the one to tell; what stays is in the lease and goes with it.
                let _ = self.remove(&key);
                Err(error)
            }
        }
    }

    /// An active snapshot for the layer; `None` if the committed one exists.
    fn prepare(&self, layer: &Descriptor) -> Result<Option<(String, Vec<model::Mount>)>, Error> {
        let mut labels: Labels = layer
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with(INHERITED))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        labels.insert("containerd.io/snapshot.ref".to_owned(), self.chain.as_str().to_owned());
        labels.insert(format!("{INHERITED}diff-id"), self.diff_id.as_str().to_owned());
        if let Some(parent) = self.parent {
            labels.insert(format!("{INHERITED}parent-chain-id"), parent.as_str().to_owned());
        }
        let snapshots = self.session.metadata.snapshots();
        let scope = &self.session.scope;
        let mut failed = None;
        for attempt in 0..ATTEMPTS {
            let lease = scope.lease.as_deref().unwrap_or_default();
            // Unique: the time differs between transfers, the lease besides, the attempt within one.
            let unique = format!("{}-{lease}{attempt}", Timestamp::now().nanos);
            let key = format!("extract-{unique} {}", self.chain);
            let parent = self.parent.map_or("", Digest::as_str);
            let new = NewSnapshot { snapshotter: self.snapshotter, key: &key, parent, labels: &labels };
            match snapshots.prepare(scope, &new) {
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(error) if error.code() == Code::AlreadyExists => failed = Some(error),
                Err(error) => return Err(error.into()),
            }
            match snapshots.stat(&scope.namespace, self.snapshotter, self.chain.as_str()) {
                Ok(_) => return Ok(None),
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        failed.map_or(Ok(None), |error| Err(error.into()))
    }

    fn fill(&self, layer: &Descriptor, digest: &Digest, mounts: &[model::Mount]) -> Result<(), Error> {
        let blob = self.session.blob(digest)?;
        let made = crate::apply(blob, &layer.media_type, mounts)?;
        if made.digest == *self.diff_id {
            return Ok(());
        }
        Err(Error::DiffId { layer: digest.clone(), have: made.digest, want: self.diff_id.clone() })
    }

    /// Whether the snapshot is ours; otherwise somebody else has committed the same meanwhile.
    fn commit(&self, key: &str) -> Result<bool, Error> {
        let labels = Labels::new();
        let name = self.chain.as_str();
        let commit = SnapshotCommit { snapshotter: self.snapshotter, name, key, labels: &labels, parent: "" };
        match self.session.metadata.snapshots().commit(&self.session.scope, &commit) {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Code::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, key: &str) -> Result<(), Error> {
        Ok(self.session.metadata.snapshots().remove(&self.session.scope, self.snapshotter, key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64)).parse::<Digest>().unwrap();
        assert_eq!(chain_id(None, &digest("a")), digest("a"));
        // printf 'sha256:aa… sha256:bb…' | sha256sum
        let text = format!("{} {}", digest("a"), digest("b"));
        let mut hasher = content::Hasher::new(content::Algorithm::Sha256);
        hasher.update(text.as_bytes());
        assert_eq!(chain_id(Some(&digest("a")), &digest("b")), hasher.digest());
    }
}
