//! Archives that nobody honest makes: each gets its class of error, and nothing stays.

use std::io::{self, Read};

use serde_json::json;

use super::archives::{Layout, layers, tar};
use super::*;

#[test]
fn refusals() {
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let digest_text = digest(b"x").to_string();
    let missing = json!({"manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_text, "size": 1}]});
    let escape = json!({"manifests": [{"mediaType": "x", "digest": "sha256:../../../../etc/passwd", "size": 1}]});
    let many = json!([{"Config": "c", "Layers": vec!["l"; 5000]}]);
    let bad_tag = json!([{"Config": "c", "RepoTags": ["../../x"], "Layers": []}]);
    let long_name = "n/".repeat(600);
    let cases: Vec<(Vec<u8>, Code)> = vec![
        (Vec::new(), Code::InvalidArgument),
        (vec![0; 1024], Code::InvalidArgument),
        (b"no tar at all, but long enough to be one".repeat(50), Code::InvalidArgument),
        (tar(&[("file", b"x")]), Code::InvalidArgument),
        (tar(&[("oci-layout", layout)]), Code::InvalidArgument),
        (tar(&[("oci-layout", br#"{"imageLayoutVersion":"9"}"#)]), Code::InvalidArgument),
        (tar(&[("oci-layout", layout), ("index.json", b"{")]), Code::InvalidArgument),
        (tar(&[("oci-layout", layout), ("index.json", b"{}")]), Code::NotFound),
        (tar(&[("oci-layout", layout), ("index.json", missing.to_string().as_bytes())]), Code::NotFound),
        (tar(&[("oci-layout", layout), ("index.json", escape.to_string().as_bytes())]), Code::InvalidArgument),
        (tar(&[("oci-layout", &vec![b' '; 9 << 20])]), Code::InvalidArgument),
        (tar(&[("oci-layout", layout), ("index.json", &vec![b' '; 9 << 20])]), Code::InvalidArgument),
        (tar(&[("manifest.json", "[".repeat(100_000).as_bytes())]), Code::InvalidArgument),
        (tar(&[("manifest.json", br#"[{"Config":"../../etc/passwd"}]"#)]), Code::InvalidArgument),
        (tar(&[("c", b"{}"), ("manifest.json", many.to_string().as_bytes())]), Code::InvalidArgument),
        (tar(&[("c", b"{}"), ("manifest.json", bad_tag.to_string().as_bytes())]), Code::InvalidArgument),
        (tar(&[(&long_name, b"x")]), Code::InvalidArgument),
    ];
    let world = World::new();
    for (archive, code) in cases {
        let error = world.import(&archive, &unpacked()).unwrap_err();
        assert_eq!(error.code(), code, "{} bytes: {}", archive.len(), model::render(&error));
        world.assert_clean();
    }
}

#[test]
fn a_stream_may_end_anywhere() {
    let world = World::new();
    let mut layout = Layout::default();
    layout.image("r.test/x:1", "amd64", &layers());
    let whole = layout.archive();
    let end = whole.len() - 1024;
    for at in (0..end).step_by(331).chain((0..=end).step_by(512)) {
        let error = world.import(&whole[..at], &unpacked()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{at}: {}", model::render(&error));
        world.assert_clean();
    }
    /// Gives some bytes, then an error.
    struct Dropped<'a>(&'a [u8]);
    impl Read for Dropped<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::ConnectionReset.into()) } else { self.0.read(buffer) }
        }
    }
    for at in (0..end).step_by(1009) {
        let stream = Dropped(&whole[..at]);
        world.run(|session| import(session, stream, ImportOptions::default(), &unpacked())).unwrap_err();
        world.assert_clean();
    }
}

#[test]
fn layers_that_are_not_what_they_should_be() {
    let world = World::new();
    for layer in [b"no tar".repeat(200), tar(&[("../../../escape", b"x")])] {
        let mut layout = Layout::default();
        layout.image(
            "r.test/x:1",
            crate::Platform::host().architecture.as_str(),
            &[layers()[0].clone(), layer.clone()],
        );
        match world.import(&layout.archive(), &unpacked()) {
            Ok(_) => assert_eq!(layer[0], b'.', "a path is cleaned, as containerd does"),
            Err(error) => assert_eq!(error.code(), Code::InvalidArgument, "{}", model::render(&error)),
        }
        for name in world.images() {
            world.metadata.images().delete(&Scope::new(ns()), &name, "").unwrap();
        }
        world.assert_clean();
    }
    // A configuration that lies about its layers.
    let mut layout = Layout::default();
    let mut lying = layers();
    layout.image("r.test/x:1", crate::Platform::host().architecture.as_str(), &lying);
    let honest = digest(&lying[1]).to_string();
    lying[1] = tar(&[("other", b"x")]);
    let other = digest(&lying[1]).to_string();
    let mut changed = Layout::default();
    for (_, bytes) in &layout.files {
        let text = String::from_utf8_lossy(bytes);
        if text.contains("diff_ids") {
            let old = digest(bytes);
            let config = text.replace(&honest, &other);
            changed.blob(config.as_bytes());
            let manifest =
                layout.files.iter().find(|(_, bytes)| String::from_utf8_lossy(bytes).contains("\"layers\":["));
            let manifest = String::from_utf8_lossy(&manifest.unwrap().1).into_owned();
            let manifest = manifest.replace(old.as_str(), digest(config.as_bytes()).as_str());
            let mut entry = changed.blob(manifest.as_bytes());
            entry["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
            changed.manifests.push(entry);
        } else {
            changed.blob(bytes);
        }
    }
    let error = world.import(&changed.archive(), &unpacked()).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{}", model::render(&error));
    world.assert_clean();
}

#[test]
fn documents_that_refer_to_each_other_often() {
    // Each index names the next one a thousand times: 1000^8 paths, nine documents.
    let mut layout = Layout::default();
    let mut entry = layout.image("", "amd64", &layers()[..1]);
    for _ in 0..8 {
        let index = json!({"schemaVersion": 2, "manifests": vec![entry.clone(); 1000]}).to_string();
        entry = layout.blob(index.as_bytes());
        entry["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    }
    layout.manifests = vec![entry];
    let world = World::new();
    let store = ImageStore { name: "i".into(), ..ImageStore::default() };
    world.import(&layout.archive(), &store).unwrap();
    world.export(&["i"], &ExportOptions { all_platforms: true, ..ExportOptions::default() }).unwrap();
    world.assert_clean();
}
