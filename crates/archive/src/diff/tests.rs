use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::{ApplyOptions, TarReader, apply};

/// A directory with a fixed time for all that is in it, so that trees can be compared.
fn settle(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            settle(&path);
        }
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 },
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn layer(lower: Option<&Path>, upper: &Path, latest: Option<i64>) -> Result<Vec<u8>, Error> {
    let lower = lower.map(|path| fs::File::open(path).unwrap());
    let upper = fs::File::open(upper).unwrap();
    let mut tar = TarWriter::new(Vec::new());
    diff(lower.as_ref().map(|dir| dir.as_fd()), upper.as_fd(), latest, &mut tar)?;
    tar.finish()
}

/// Path, type and target of everything in a layer.
fn listed(layer: &[u8]) -> Vec<String> {
    let mut reader = TarReader::new(layer);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        found.push(if link.is_empty() { path } else { format!("{path} {:?} {link}", entry.kind) });
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    crate::copy_tree(fs::File::open(from).unwrap().as_fd(), fs::File::open(to).unwrap().as_fd()).unwrap();
}

/// A tree with one of everything.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("dir/deep")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for (name, text) in [("dir/a", "1"), ("dir/b", "2"), ("dir/deep/c", "3"), ("top", "4"), ("z", "5")] {
        fs::write(root.join(name), text).unwrap();
    }
    fs::hard_link(root.join("dir/a"), root.join("dir/deep/linked")).unwrap();
    symlink("../target", root.join("dir/symlink")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, root.join("null"), FileType::CharacterDevice, Mode::RUSR, device).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    fs::set_permissions(root.join("top"), Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::chownat(rustix::fs::CWD, root.join("z"), Some(rustix::fs::Uid::from_raw(7)), None, AtFlags::empty())
        .unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    settle(root);
}

#[test]
fn a_whole_tree_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    tree(&from);
    let whole = layer(None, &from, None).unwrap();
    assert_eq!(
        listed(&whole),
        [
            "dir/",
            "dir/a",
            "dir/b",
            "dir/deep/",
            "dir/deep/c",
            "dir/deep/linked Hardlink dir/a",
            "dir/symlink Symlink ../target",
            "empty/",
            "fifo",
            "null",
            "sparse",
            "top",
            "z"
        ]
    );
    apply(&whole[..], &to, ApplyOptions::in_place()).unwrap();
    let stat = |name: &str| to.join(name).symlink_metadata().unwrap();
    assert_eq!((stat("dir/a").ino(), stat("top").mode() & 0o7777), (stat("dir/deep/linked").ino(), 0o4755));
    assert!(stat("fifo").file_type().is_fifo() && stat("null").rdev() == rustix::fs::makedev(1, 3));
    assert_eq!((stat("sparse").len(), stat("z").uid(), stat("z").mtime()), (3 << 20, 7, 1_700_000_000));
    // What was applied is what was there: no difference, and the same layer again.
    fs::remove_file(from.join("socket")).unwrap();
    assert_eq!(listed(&layer(Some(&from), &to, None).unwrap()), Vec::<String>::new());
    assert_eq!(whole, layer(None, &to, None).unwrap());
}

#[test]
fn changes_and_removals() {
    let scratch = tempfile::tempdir().unwrap();
    let (lower, upper) = (scratch.path().join("lower"), scratch.path().join("upper"));
    fs::create_dir(&lower).unwrap();
    tree(&lower);
    copy(&lower, &upper);
    fs::write(upper.join("dir/b"), "changed").unwrap();
    fs::remove_dir_all(upper.join("dir/deep")).unwrap();
    fs::remove_file(upper.join("top")).unwrap();
    fs::create_dir(upper.join("top")).unwrap();
    fs::write(upper.join("top/new"), "x").unwrap();
    fs::set_permissions(upper.join("empty"), Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(upper.join("fifo")).unwrap();
    rustix::fs::lsetxattr(upper.join("z"), "user.note", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    settle(&upper);
    let changes = layer(Some(&lower), &upper, None).unwrap();
    assert_eq!(listed(&changes), ["dir/", "dir/b", "dir/.wh.deep", "empty/", ".wh.fifo", "top/", "top/new", "z"]);

    let applied = scratch.path().join("applied");
    copy(&lower, &applied);
    apply(&changes[..], &applied, ApplyOptions::in_place()).unwrap();
    assert_eq!(layer(None, &applied, None).unwrap(), layer(None, &upper, None).unwrap());
}

#[test]
fn links_come_together() {
    let scratch = tempfile::tempdir().unwrap();
    let (lower, upper) = (scratch.path().join("lower"), scratch.path().join("upper"));
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join("a"), "1").unwrap();
    fs::hard_link(lower.join("a"), lower.join("c")).unwrap();
    settle(&lower);
    copy(&lower, &upper);
    fs::hard_link(upper.join("a"), upper.join("b")).unwrap();
    settle(&upper);
    let changes = layer(Some(&lower), &upper, None).unwrap();
    assert_eq!(listed(&changes), ["b", "a Hardlink b", "c Hardlink b"]);
    apply(&changes[..], &lower, ApplyOptions::in_place()).unwrap();
    let inode = |name: &str| lower.join(name).metadata().unwrap().ino();
    assert!(inode("a") == inode("b") && inode("b") == inode("c"));
}

#[test]
fn times_and_bytes_decide() {
    let scratch = tempfile::tempdir().unwrap();
    let (lower, upper) = (scratch.path().join("lower"), scratch.path().join("upper"));
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let exact = whole + Duration::from_nanos(5);
    for ((old, old_time), (new, new_time), changed) in [
        (("1", whole), ("1", whole), false),
        // The same time to the nanosecond is believed.
        (("1", exact), ("2", exact), false),
        (("1", whole), ("1", exact), false),
        (("1", whole), ("2", exact), true),
        (("1", exact), ("1", exact + Duration::from_nanos(1)), true),
        (("1", whole), ("12", whole), true),
        (("1", whole), ("1", whole + Duration::from_secs(1)), true),
    ] {
        for (dir, text, time) in [(&lower, old, old_time), (&upper, new, new_time)] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("f"), text).unwrap();
            fs::File::options().write(true).open(dir.join("f")).unwrap().set_modified(time).unwrap();
        }
        assert_eq!(!listed(&layer(Some(&lower), &upper, None).unwrap()).is_empty(), changed, "{old} {new}");
    }
    fs::remove_file(upper.join("f")).unwrap();
    fs::write(upper.join("g"), "x").unwrap();
    let mut reader_bytes = layer(Some(&lower), &upper, Some(1000)).unwrap();
    let mut reader = TarReader::new(&reader_bytes[..]);
    while let Some(entry) = reader.next_entry().unwrap() {
        assert_eq!(entry.mtime, (1000, 0));
    }
    reader_bytes.clear();
}

#[test]
fn trees_of_a_hostile_container() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    symlink("/", root.join("escape")).unwrap();
    symlink("/etc/passwd", root.join("file")).unwrap();
    assert_eq!(listed(&layer(None, &root, None).unwrap()), ["escape Symlink /", "file Symlink /etc/passwd"]);
    // The other side is a directory where this is a link, and must not be looked into through it.
    let lower = scratch.path().join("lower");
    fs::create_dir_all(lower.join("escape/etc")).unwrap();
    fs::create_dir(lower.join("file")).unwrap();
    assert_eq!(listed(&layer(Some(&lower), &root, None).unwrap()).len(), 2);
    fs::write(root.join(".wh.x"), "").unwrap();
    assert!(matches!(layer(None, &root, None), Err(Error::Refused { .. })));
    fs::remove_file(root.join(".wh.x")).unwrap();
    let mut deep = root.clone();
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(listed(&layer(None, &root, None).unwrap()).len(), 302);
}
