//! The documents that images consist of (image-spec 1.1; docker's manifests have the same form).
//!
//! **Invariant:** a document is at most [`DOCUMENT_BYTES_MAX`] long and has at most [`CHILDREN_MAX`] entries, whatever an
//! archive or a blob says; digests of entries are checked where they are read.

use std::collections::BTreeMap;
use std::io::Read;

use model::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Platform};

/// Longest document.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Most entries of one document.
pub(crate) const CHILDREN_MAX: usize = 4096;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Annotation with the whole name of an image (containerd's).
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with a tag, or with a whole name where there is no tag (image-spec, annotations).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A blob with its type (image-spec, descriptor).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Media type.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Digest, unchecked.
    #[serde(default)]
    pub digest: String,
    /// Size in bytes.
    #[serde(default)]
    pub size: i64,
    /// Where else it is to be had; nobody looks there.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What an artifact is.
    #[serde(rename = "artifactType", default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

impl Descriptor {
    /// The digest. INVALID_ARGUMENT if it is none.
    pub(crate) fn checked(&self) -> Result<Digest, Error> {
        self.digest.parse().map_err(Error::Digest)
    }

    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }

    pub(crate) fn is_config(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
    }

    pub(crate) fn is_layer(&self) -> bool {
        let base = self.media_type.split('+').next().unwrap_or_default();
        self.media_type.starts_with("application/vnd.oci.image.layer.")
            || base.starts_with("application/vnd.docker.image.rootfs.diff.tar")
            || base.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
            || base == "application/vnd.erofs.layer.v1"
    }

    /// Whether it must not be passed on to others.
    pub(crate) fn is_non_distributable(&self) -> bool {
        self.media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || self.media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }
}

/// Go writes an empty list as null, and reads null as an empty one.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An index (image-spec, image index), or docker's manifest list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    #[serde(rename = "schemaVersion", default)]
    pub(crate) schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) manifests: Vec<Descriptor>,
}

/// A manifest (image-spec, image manifest), or docker's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest {
    #[serde(rename = "schemaVersion", default)]
    pub(crate) schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Descriptor>,
}

/// What we read of an image's configuration (image-spec, image configuration), besides its [`Platform`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<String>,
}

/// What tells an index from a manifest, whatever its media type says.
#[derive(Default, Deserialize)]
struct Shape {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a document from `reader`, which may be longer than it. INVALID_ARGUMENT if it is too long or not of its form.
pub(crate) fn read<T: DeserializeOwned>(what: &'static str, reader: impl Read) -> Result<T, Error> {
    let mut bytes = Vec::new();
    reader.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|source| {
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            archive::Error::Truncated.into()
        } else {
            Error::ReadDocument { what, source }
        }
    })?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::Limit { what: "bytes of a document", limit: DOCUMENT_BYTES_MAX });
    }
    parse(what, &bytes)
}

/// Parses a document.
pub(crate) fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document { what, source })
}

/// The entries of an index or a manifest: its manifests, or its configuration and its layers. A document that is the other
/// of the two, or an old one (schema 1), is refused: what one client takes for one image must not be another for the next.
pub(crate) fn children(parent: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    let shape: Shape = parse("manifest", bytes)?;
    let said = Descriptor { media_type: shape.media_type, ..Descriptor::default() };
    let refuse = |why| Err(Error::Confused { digest: parent.digest.clone(), why });
    if shape.fs_layers.is_some() {
        return refuse("schema 1 is not supported");
    }
    let children = if parent.is_index() {
        if shape.config.is_some() || shape.layers.is_some() || said.is_manifest() {
            return refuse("expected an index, but it is a manifest");
        }
        parse::<Index>("index", bytes)?.manifests
    } else {
        if shape.manifests.is_some() || said.is_index() {
            return refuse("expected a manifest, but it is an index");
        }
        let manifest: Manifest = parse("manifest", bytes)?;
        std::iter::once(manifest.config).chain(manifest.layers).collect()
    };
    if children.len() > CHILDREN_MAX {
        return Err(Error::Limit { what: "entries of a manifest", limit: CHILDREN_MAX as u64 });
    }
    for child in &children {
        child.checked()?;
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Code, Coded as _};

    fn of(media_type: &str) -> Descriptor {
        Descriptor { media_type: media_type.into(), ..Descriptor::default() }
    }

    #[test]
    fn children_of_either() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let entry = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1,"annotations":null}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{entry},"layers":[{entry},{entry}]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        let named = format!(r#"{{"mediaType":"{OCI_INDEX}","config":{entry}}}"#);
        let many = format!(r#"{{"manifests":[{}]}}"#, vec![entry.as_str(); CHILDREN_MAX + 1].join(","));
        let bad = r#"{"manifests":[{"digest":"../../etc"}]}"#.to_owned();
        for (media_type, text, count) in [
            (OCI_MANIFEST, &manifest, Some(3)),
            (DOCKER_MANIFEST, &manifest, Some(3)),
            (OCI_INDEX, &index, Some(1)),
            (DOCKER_LIST, &index, Some(1)),
            (OCI_INDEX, &r#"{"manifests":null}"#.to_owned(), Some(0)),
            (OCI_INDEX, &manifest, None),
            (OCI_MANIFEST, &index, None),
            (OCI_MANIFEST, &named, None),
            (OCI_MANIFEST, &r#"{"fsLayers":[]}"#.to_owned(), None),
            (OCI_INDEX, &many, None),
            (OCI_INDEX, &bad, None),
            (OCI_INDEX, &"[".repeat(10_000), None),
            (OCI_INDEX, &String::new(), None),
        ] {
            match (children(&of(media_type), text.as_bytes()), count) {
                (Ok(children), Some(count)) => assert_eq!(children.len(), count),
                (Err(error), None) => assert_eq!(error.code(), Code::InvalidArgument, "{error}"),
                (result, _) => panic!("{media_type} {:.100}: {result:?}", text),
            }
        }
    }

    #[test]
    fn types() {
        for (media_type, layer, barred) in [
            ("application/vnd.oci.image.layer.v1.tar+zstd", true, false),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true, true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", true, false),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true, true),
            (OCI_CONFIG, false, false),
            ("", false, false),
        ] {
            assert_eq!((of(media_type).is_layer(), of(media_type).is_non_distributable()), (layer, barred));
        }
    }

    #[test]
    fn documents_are_bounded() {
        let long = std::io::repeat(b' ');
        assert!(matches!(read::<Index>("index", long), Err(Error::Limit { .. })));
        let config = br#"{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{"diff_ids":null}}"#;
        assert_eq!(parse::<Platform>("config", config).unwrap().architecture, "arm64");
        assert_eq!(parse::<Config>("config", config).unwrap().rootfs.diff_ids.len(), 0);
    }
}
