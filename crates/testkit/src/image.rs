use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Plain tar.
    Tar,
    /// gzip.
    Gzip,
}

/// The files of a layer: path to mode and bytes.
pub type Files = BTreeMap<String, (u32, Vec<u8>)>;

const APPLETS: &[&str] = &[
    "sh", "true", "false", "echo", "cat", "sleep", "id", "ls", "env", "stty", "mount", "hostname", "ps", "kill", "seq",
    "head", "wc", "printf", "test", "pwd", "mkdir", "rm", "dd", "grep", "uname", "touch", "stat", "tty", "yes",
    "md5sum", "nc", "ip", "top", "date", "umount",
];

/// Why the image cannot be made here, if so: the host's busybox is missing or not static.
pub fn requires_busybox() -> Result<Vec<u8>> {
    let bytes = std::fs::read("/bin/busybox").context("read /bin/busybox (package busybox-static)")?;
    let interpreter = b"/lib64/ld-linux";
    ensure!(
        !bytes.windows(interpreter.len()).any(|window| window == interpreter),
        "/bin/busybox is not static: install busybox-static"
    );
    Ok(bytes)
}

/// Writes an OCI image layout as a tar to `path`: one layer with busybox and links for its applets, under `name`.
pub fn busybox_image(path: &Path, name: &str) -> Result<()> {
    let bytes = image_tar(name, &[(Layer::Gzip, busybox_files()?)])?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Writes the same root file system as a plain tar, for engines that import those.
pub fn rootfs_tar(path: &Path) -> Result<()> {
    let bytes = layer_tar(true, &busybox_files()?)?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// The files of the busybox image.
pub fn busybox_files() -> Result<Files> {
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n";
    Ok(Files::from([
        ("bin/busybox".into(), (0o755, requires_busybox()?)),
        ("etc/passwd".into(), (0o644, passwd.to_vec())),
        ("etc/group".into(), (0o644, b"root:x:0:\nwww-data:x:33:\n".to_vec())),
    ]))
}

/// An OCI image layout in a tar, with one layer per entry of `layers` (path to mode and bytes); the first layer also
/// gets the usual directories and the links to busybox's applets.
pub fn image_tar(name: &str, layers: &[(Layer, Files)]) -> Result<Vec<u8>> {
    labelled_image_tar(name, layers, &[])
}

/// As [`image_tar`], with labels in the image's configuration.
pub fn labelled_image_tar(name: &str, layers: &[(Layer, Files)], labels: &[(&str, &str)]) -> Result<Vec<u8>> {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut add = |bytes: Vec<u8>| -> (String, usize) {
        let digest = hex(&bytes);
        let size = bytes.len();
        blobs.insert(digest.clone(), bytes);
        (format!("sha256:{digest}"), size)
    };
    let mut descriptors: Vec<Value> = Vec::new();
    let mut diff_ids: Vec<String> = Vec::new();
    for (number, (packing, files)) in layers.iter().enumerate() {
        let tar = layer_tar(number == 0, files)?;
        diff_ids.push(format!("sha256:{}", hex(&tar)));
        let (media_type, bytes) = match packing {
            Layer::Tar => ("application/vnd.oci.image.layer.v1.tar", tar),
            Layer::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&tar)?;
                ("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish()?)
            }
        };
        let (digest, size) = add(bytes);
        descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin:/sbin:/usr/bin"], "Cmd": ["sh"], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "testkit"}]
    });
    let (config_digest, config_size) = add(serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": descriptors
    });
    let (manifest_digest, manifest_size) = add(serde_json::to_vec(&manifest)?);
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest, "size": manifest_size,
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"}
        }]
    });
    let mut layout = tar::Builder::new(Vec::new());
    append(&mut layout, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut layout, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    for (digest, bytes) in &blobs {
        append(&mut layout, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
    }
    Ok(layout.into_inner()?)
}

pub(crate) fn layer_tar(first: bool, files: &Files) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    if first {
        for (directory, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(mode);
            header.set_size(0);
            layer.append_data(&mut header, directory, std::io::empty())?;
        }
        for applet in APPLETS {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
    }
    for (path, (mode, bytes)) in files {
        append(&mut layer, path, *mode, bytes)?;
    }
    Ok(layer.into_inner()?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("append {path}"))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
