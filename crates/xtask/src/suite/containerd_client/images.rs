use std::path::Path;

use anyhow::Result;
use testkit::{Files, Platform};

/// Writes the layouts of the images that the suite pulls below `directory`, and gives their repositories and tags.
///
/// What is in them is what the tests look at: several platforms (they ask for missing ones), users of fixed numbers,
/// programs by their paths, layers that no other image shares.
pub(super) fn write(directory: &Path) -> Result<Vec<(String, String)>> {
    let images = [
        ("containerd/busybox", "1.36", linux("busybox", &["arm64", "s390x"], vec![base()?, busybox()])),
        ("containerd/volume-copy-up", "2.2", linux("copy-up", &["arm64"], copy_up()?)),
        ("containerd/volume-ownership", "2.1", linux("ownership", &["arm64"], vec![base()?, ownership()?])),
        ("containerd/whiteout-test", "1.0", linux("whiteout", &["arm64"], whiteouts()?)),
        ("pause", "3.10.2", linux("pause 3.10.2", &["arm64", "s390x"], vec![pause("3.10.2")])),
        ("pause", "3.6", linux("pause 3.6", &["arm64", "s390x"], vec![pause("3.6")])),
        ("e2e-test-images/busybox", "1.29-2", e2e_busybox()?),
        ("containerd/windows/nanoserver", "1809", vec![platform("windows", "amd64", "", vec![marker("nanoserver")])]),
    ];
    let mut names = Vec::new();
    for (repository, tag, platforms) in images {
        testkit::image_layout(&directory.join(repository).join(tag), tag, &platforms)?;
        names.push((repository.to_owned(), tag.to_owned()));
    }
    Ok(names)
}

fn platform<'a>(os: &'a str, architecture: &'a str, variant: &'a str, layers: Vec<Files>) -> Platform<'a> {
    Platform { os, architecture, variant, layers }
}

/// The layers on this kind of processor, and a file that only names the image on the `others`.
fn linux<'a>(name: &str, others: &[&'a str], layers: Vec<Files>) -> Vec<Platform<'a>> {
    let mut platforms = vec![platform("linux", "amd64", "", layers)];
    platforms.extend(others.iter().map(|other| {
        let variant = if *other == "arm64" { "v8" } else { "" };
        platform("linux", other, variant, vec![marker(&format!("{name} {other}"))])
    }));
    platforms
}

fn marker(text: &str) -> Files {
    Files::from([("marker".into(), (0o644, text.as_bytes().to_vec()))])
}

fn base() -> Result<Files> {
    let mut files = testkit::busybox_files()?;
    let users = "root:x:0:0:root:/root:/bin/sh\nsys:x:3:3:sys:/dev:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nbackup:x:34:34:backup:/:/bin/false\n";
    let groups = "root:x:0:\nsys:x:3:\nwww-data:x:33:\nbackup:x:34:\n";
    files.insert("etc/passwd".into(), (0o644, users.into()));
    files.insert("etc/group".into(), (0o644, groups.into()));
    Ok(files)
}

/// A listener that ends at SIGTERM, as the first process of a container too: busybox's own has no handler for it.
fn busybox() -> Files {
    let script = "#!/bin/sh\ntrap 'exit 143' TERM\n/bin/busybox nc \"$@\" &\nwait $!\n";
    Files::from([("bin/nc".into(), (0o755, script.into())), ("image".into(), (0o644, b"busybox".to_vec()))])
}

/// Four layers; the upper ones have names that are hard to put into options.
fn copy_up() -> Result<Vec<Files>> {
    let file = |path: &str, text: &str| Files::from([(path.to_owned(), (0o644, text.as_bytes().to_vec()))]);
    let mut lowest = base()?;
    lowest.insert("image".into(), (0o644, b"copy-up".to_vec()));
    Ok(vec![
        lowest,
        file("test_dir/test_file", "test_content\n"),
        file("C:/weird_test_dir/weird_test_file", "weird_test_content\n"),
        file(":colon_prefixed/colon_prefixed_file", "test_content\n"),
    ])
}

/// What the lowest layer has is removed by the highest.
fn whiteouts() -> Result<Vec<Files>> {
    let mut lowest = base()?;
    let file = |text: &str| (0o644, text.as_bytes().to_vec());
    lowest.insert("file-to-delete".into(), file("whiteout"));
    lowest.insert("dir-to-delete/file".into(), file("whiteout"));
    Ok(vec![
        lowest,
        Files::from([("kept".into(), file("whiteout"))]),
        Files::from([(".wh.file-to-delete".into(), file("")), (".wh.dir-to-delete".into(), file(""))]),
    ])
}

fn ownership() -> Result<Files> {
    let busybox = testkit::requires_busybox()?;
    Ok(Files::from([
        ("bin/bash".into(), (0o755, b"#!/bin/sh\nexec /bin/sh \"$@\"\n".to_vec())),
        ("usr/bin/passwd".into(), (0o4755, busybox)),
        ("test_dir/file".into(), (0o644, b"ownership".to_vec())),
    ]))
}

fn pause(version: &str) -> Files {
    Files::from([(
        "pause".into(),
        (0o755, format!("#!/bin/sh\n# {version}\nexec sleep inf\n").repeat(400).into_bytes()),
    )])
}

/// Each platform once, and no layer that another image has.
fn e2e_busybox() -> Result<Vec<Platform<'static>>> {
    let mut layer = base()?;
    layer.insert("image".into(), (0o644, b"e2e".to_vec()));
    let other =
        |architecture, variant| platform("linux", architecture, variant, vec![marker(&format!("e2e {architecture}"))]);
    Ok(vec![
        platform("linux", "amd64", "", vec![layer]),
        other("arm64", "v8"),
        other("s390x", ""),
        other("ppc64le", ""),
        other("arm", "v7"),
    ])
}
