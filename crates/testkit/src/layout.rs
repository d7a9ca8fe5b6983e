//! Images of several platforms, as OCI layouts in directories that other tools push to a registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::image::{Files, hex, layer_tar};

/// What an image is on one platform.
#[derive(Debug)]
pub struct Platform<'a> {
    /// `linux` or another name of Go's.
    pub os: &'a str,
    /// `amd64` or another name of Go's.
    pub architecture: &'a str,
    /// `v8` for instance; empty where there is none.
    pub variant: &'a str,
    /// Layers, lowest first. The lowest also gets the usual directories and the links to busybox's applets.
    pub layers: Vec<Files>,
}

/// Writes the layout of an image to `directory`, which is made: an index with one manifest per platform, tagged `tag`.
pub fn image_layout(directory: &Path, tag: &str, platforms: &[Platform<'_>]) -> Result<()> {
    let blobs = Blobs { directory: directory.join("blobs/sha256") };
    fs::create_dir_all(&blobs.directory).with_context(|| format!("make {}", blobs.directory.display()))?;
    let manifests = platforms.iter().map(|platform| blobs.manifest(platform)).collect::<Result<Vec<Value>>>()?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests
    });
    let mut descriptor = blobs.add("application/vnd.oci.image.index.v1+json", &serde_json::to_vec(&index)?)?;
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let top = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    fs::write(directory.join("index.json"), serde_json::to_vec(&top)?)?;
    fs::write(directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Writes a blob and gives its descriptor.
    fn add(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = hex(bytes);
        let path = self.directory.join(&digest);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
    }

    fn manifest(&self, platform: &Platform<'_>) -> Result<Value> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (number, files) in platform.layers.iter().enumerate() {
            let tar = layer_tar(number == 0, files)?;
            diff_ids.push(format!("sha256:{}", hex(&tar)));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar)?;
            layers.push(self.add("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish()?)?);
        }
        let mut name = BTreeMap::from([("os", platform.os), ("architecture", platform.architecture)]);
        if !platform.variant.is_empty() {
            name.insert("variant", platform.variant);
        }
        let mut config = json!(name);
        config["config"] = json!({ "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "Cmd": ["sh"] });
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        config["history"] = json!(vec![json!({ "created_by": "testkit" }); platform.layers.len()]);
        let config = self.add("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let mut descriptor = self.add(media_type, &serde_json::to_vec(&manifest)?)?;
        descriptor["platform"] = json!(name);
        Ok(descriptor)
    }
}
