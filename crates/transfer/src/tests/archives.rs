use std::io::Read as _;

use serde_json::{Value, json};

use super::*;
use crate::Platform;
use crate::unpack::chain_id;

/// A tar of files.
pub(super) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = archive::TarWriter::new(Vec::new());
    for (path, bytes) in files {
        let entry = archive::Entry {
            path: path.as_bytes().to_vec(),
            link: Vec::new(),
            kind: archive::Kind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            size: bytes.len() as u64,
            xattrs: Vec::new(),
            pieces: None,
        };
        writer.append(&entry).unwrap();
        std::io::Write::write_all(&mut writer, bytes).unwrap();
    }
    writer.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressor = archive::Compressor::new(Vec::new(), archive::Compression::Gzip).unwrap();
    std::io::Write::write_all(&mut compressor, bytes).unwrap();
    compressor.finish().unwrap()
}

/// The files of an image layout, by name.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) manifests: Vec<Value>,
}

impl Layout {
    pub(super) fn blob(&mut self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.files.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({"digest": digest.as_str(), "size": bytes.len()})
    }

    fn typed(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let mut entry = self.blob(bytes);
        entry["mediaType"] = media_type.into();
        entry
    }

    /// Adds an image of one platform, with these layers.
    pub(super) fn image(&mut self, name: &str, architecture: &str, layers: &[Vec<u8>]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer).to_string()).collect();
        let config =
            json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.typed("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.typed("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let mut entry = self.typed("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        if !name.is_empty() {
            entry["annotations"] = json!({"io.containerd.image.name": name});
        }
        self.manifests.push(entry.clone());
        entry
    }

    pub(super) fn archive(&self) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests}).to_string();
        let mut files: Vec<(&str, &[u8])> =
            vec![("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", index.as_bytes())];
        files.extend(self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
        tar(&files)
    }
}

pub(super) fn layers() -> Vec<Vec<u8>> {
    vec![tar(&[("a", b"1"), ("b", b"2")]), tar(&[(".wh.a", b""), ("c", b"3")])]
}

fn file(archive: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut entry = archive.entries().unwrap().map(Result::unwrap).find(|e| e.path_bytes() == name.as_bytes())?;
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn a_layout_is_stored_unpacked_and_exported() {
    let world = World::new();
    let mut layout = Layout::default();
    layout.image("docker.io/library/a:1", Platform::host().architecture.as_str(), &layers());
    let archive = layout.archive();
    for round in 0..2 {
        let told = world.import(&gzip(&archive), &unpacked()).unwrap();
        assert_eq!(told, ["Importing", "saved docker.io/library/a:1", "Completed import"], "{round}");
        world.assert_clean();
    }
    // The layout's own index has no name, so nothing keeps it.
    assert_eq!(world.blobs().len(), 4);
    let ids: Vec<Digest> = layers().iter().map(|layer| digest(layer)).collect();
    let mut chain = vec![ids[0].to_string(), chain_id(Some(&ids[0]), &ids[1]).to_string()];
    chain.sort();
    assert_eq!(world.snapshots(), chain);
    let labels = |bytes: &[u8]| world.metadata.content().info(&ns(), &digest(bytes)).unwrap().labels;
    assert_eq!(labels(&gzip(&layers()[1]))[crate::UNCOMPRESSED_LABEL], ids[1].as_str());

    let exported = world.export(&["docker.io/library/a:1"], &ExportOptions::default()).unwrap();
    assert_eq!(exported, world.export(&["docker.io/library/a:1"], &ExportOptions::default()).unwrap());
    let saved: Value = serde_json::from_slice(&file(&exported, "manifest.json").unwrap()).unwrap();
    assert_eq!(saved[0]["RepoTags"], json!(["a:1"]));
    let index: Value = serde_json::from_slice(&file(&exported, "index.json").unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1");
    let plain = ExportOptions { skip_compatibility_manifest: true, ..ExportOptions::default() };
    assert!(file(&world.export(&["docker.io/library/a:1"], &plain).unwrap(), "manifest.json").is_none());

    let other = World::new();
    other.import(&exported, &annotated()).unwrap();
    assert_eq!(other.images(), ["docker.io/library/a:1"]);
    assert_eq!(other.blobs(), world.blobs());
    assert!(other.snapshots().is_empty());
}

#[test]
fn what_docker_saves() {
    let layers = layers();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [
        digest(&layers[0]).as_str(), digest(&layers[1]).as_str()]}})
    .to_string();
    let saved =
        json!([{"Config": "c.json", "RepoTags": ["a:1", "r.test/b"], "Layers": ["x/layer.tar", "y/layer.tar"]}]);
    // A link to a layer that comes later, in front of everything else.
    let mut linked = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    linked.append_link(&mut header, "y/layer.tar", "../z/layer.tar").unwrap();
    let files = tar(&[
        ("x/layer.tar", &layers[0]),
        ("c.json", config.as_bytes()),
        ("manifest.json", saved.to_string().as_bytes()),
        ("z/layer.tar", &layers[1]),
    ]);
    let archive = [linked.get_ref().as_slice(), &files].concat();
    for (force_compress, media_type) in [
        (false, "application/vnd.docker.image.rootfs.diff.tar"),
        (true, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let world = World::new();
        let options = ImportOptions { plain: true, force_compress };
        world.run(|session| import(session, &archive[..], options, &unpacked())).unwrap();
        assert_eq!(world.images(), ["docker.io/library/a:1", "r.test/b:latest"]);
        assert_eq!(world.snapshots().len(), if Platform::host().architecture == "amd64" { 2 } else { 0 });
        let image = world.metadata.images().get(&ns(), "r.test/b:latest").unwrap();
        let blob = world.metadata.content().reader(&ns(), &image.target.digest.parse().unwrap()).unwrap();
        let mut manifest = String::new();
        blob.into_reader(0).read_to_string(&mut manifest).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], media_type);
        }
        world.assert_clean();
    }
}

#[test]
fn parts_of_an_index() {
    let world = World::new();
    let mut layout = Layout::default();
    layout.image("", "amd64", &layers()[..1]);
    layout.image("", "arm64", &layers()[1..]);
    let platform =
        |architecture: &str| Platform { os: "linux".into(), architecture: architecture.into(), ..Platform::default() };
    let store = ImageStore { name: "i".into(), platforms: vec![platform("arm64")], ..ImageStore::default() };
    assert_eq!(world.import(&layout.archive(), &store).unwrap()[1], "saved i");
    let exporting = |platforms: Vec<Platform>, all_platforms| ExportOptions {
        platforms,
        all_platforms,
        ..ExportOptions::default()
    };
    let blobs = |bytes: &[u8]| {
        let mut archive = tar::Archive::new(bytes);
        let paths = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned());
        paths.filter(|path| path.starts_with(b"blobs/sha256/") && path.len() > 13).count()
    };
    let one = world.export(&["i"], &exporting(vec![platform("arm64")], false)).unwrap();
    assert_eq!(blobs(&one), 4);
    let error = world.export(&["i"], &exporting(vec![platform("s390x")], false)).unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Code::NotFound, "no manifest found for platform"));
    // Content of the other platform has been collected, as nothing labelled it.
    world.blobs();
    let error = world.export(&["i"], &exporting(vec![platform("arm64")], true)).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);

    let whole = World::new();
    let store = ImageStore { name: "i".into(), ..ImageStore::default() };
    whole.import(&layout.archive(), &store).unwrap();
    assert_eq!(blobs(&whole.export(&["i"], &exporting(vec![platform("arm64")], true)).unwrap()), 7);
    let nothing = ImageStore { platforms: vec![platform("riscv64")], name: "j".into(), ..ImageStore::default() };
    assert_eq!(whole.import(&layout.archive(), &nothing).unwrap_err().code(), Code::NotFound);
    assert_eq!(whole.images(), ["i"]);
    whole.assert_clean();
}

#[test]
fn further_names_go_with_the_first() {
    let world = World::new();
    let mut layout = Layout::default();
    layout.image("r.test/x:1", "amd64", &layers()[..1]);
    let by_digest = Reference { name: "r.test/x".into(), is_prefix: true, add_digest: true, ..Reference::default() };
    let store = ImageStore { name: "r.test/x:all".into(), references: vec![by_digest], ..ImageStore::default() };
    world.import(&layout.archive(), &store).unwrap();
    world.metadata.collect_and_wait().unwrap();
    assert_eq!(world.images().len(), 4, "{:?}", world.images());
    let scope = Scope::new(ns());
    world.metadata.images().delete(&scope, "r.test/x:all", "").unwrap();
    world.metadata.collect_and_wait().unwrap();
    assert_eq!(world.images(), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn tags() {
    let world = World::new();
    let mut layout = Layout::default();
    layout.image("r.test/x:1", "amd64", &layers()[..1]);
    world.import(&layout.archive(), &annotated()).unwrap();
    let named = |name: &str| ImageStore { name: name.into(), ..ImageStore::default() };
    for _ in 0..2 {
        world.run(|session| tag(session, &named("r.test/x:1"), &named("r.test/x:2"))).unwrap();
    }
    assert_eq!(world.images(), ["r.test/x:1", "r.test/x:2"]);
    for (from, to, code) in [("no", "x", Code::NotFound), ("r.test/x:1", "", Code::InvalidArgument)] {
        assert_eq!(world.run(|session| tag(session, &named(from), &named(to))).unwrap_err().code(), code);
    }
}
