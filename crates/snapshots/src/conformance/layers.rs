//! What the files of stacked snapshots look like.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use model::Labels;

use super::bench::{Op, describe, file, io};
use super::{Bench, Case, Failure, ensure, refused};
use crate::{GID_MAPPING_LABEL, Kind, UID_MAPPING_LABEL};

pub(super) const CASES: &[Case] = &[
    ("a file is updated in a layer", file_update),
    ("a removed directory comes back without its old files", remove_directory),
    ("owners change across layers", chown),
    ("directory permissions are committed", directory_permission),
    ("files deleted in a child stay in the parent", deleted_files),
    ("a file moves from a lower layer", move_file),
    ("files are renamed across layers", rename),
    ("a view cannot be written", view_read_only),
    ("an active snapshot without parents is writable", without_parents),
    ("the root is 0755, and like its parent's", root_permission),
    ("id mapping labels own the root", mapped_root),
    ("128 layers are mounted", many_layers),
    ("a snapshot is given a parent at commit", rebase),
    ("usage is measured", usage),
    ("an empty snapshot is committed", empty_commit),
];

fn file_update(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![Op::Dir("etc", 0o700), file("etc/hosts", "10.0.0.1"), file("etc/profile", "PATH=/usr/bin")],
        vec![
            file("etc/hosts", "10.0.0.2"),
            Op::File("etc/profile".to_owned(), "PATH=/usr/bin".to_owned(), 0o666),
            Op::Dir("root", 0o700),
            file("root/.bashrc", "PATH=/usr/sbin:/usr/bin"),
        ],
    ])
}

fn remove_directory(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![Op::Dir("lib", 0o700), file("lib/hidden", "")],
        vec![Op::Remove("lib"), Op::Dir("lib", 0o700), file("lib/not-hidden", "")],
        vec![file("lib/new", "")],
    ])
}

fn chown(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![Op::Dir("opt", 0o700), Op::Dir("opt/a", 0o700), Op::Dir("opt/a/b", 0o700), file("opt/a/b/file", "hello")],
        vec![Op::Chown("opt", 1), Op::Chown("opt/a", 1), Op::Chown("opt/a/b", 1), Op::Chown("opt/a/b/file", 1)],
    ])
}

fn directory_permission(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![
            Op::Dir("dir1", 0o700),
            Op::Dir("dir2", 0o700),
            Op::Dir("dir3", 0o700),
            Op::Dir("dir4", 0o700),
            file("dir4/f1", "..."),
            Op::Dir("dir5", 0o700),
            file("dir5/f1", "..."),
            Op::Chown("dir1", 1),
            Op::Chown("dir2", 1),
            Op::Chown("dir3", 1),
            Op::Chown("dir5", 1),
            Op::Chown("dir5/f1", 1),
        ],
        vec![Op::Chown("dir2", 0), Op::Remove("dir3"), Op::Chown("dir4", 1), Op::Chown("dir4/f1", 1)],
        vec![
            Op::Dir("dir3", 0o700),
            Op::Chown("dir3", 1),
            Op::Remove("dir5"),
            Op::Dir("dir5", 0o700),
            Op::Chown("dir5", 1),
        ],
    ])
}

fn deleted_files(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![file("foo", "foo\n"), file("foo_b", "foo\n")],
        vec![file("foobar", "foobar\n"), Op::Remove("foo_b")],
        vec![Op::Remove("foobar"), file("foo_b", "again\n")],
    ])?;
    bench.view("old", "layer 0")?;
    bench.mounted("old", |root| ensure(root.join("foo_b").exists(), "the parent still has the file"))
}

fn move_file(bench: &Bench) -> Result<(), Failure> {
    bench.same_as_flat(&[
        vec![Op::Dir("dir1", 0o700), file("dir1/f1", "Hello"), Op::Dir("dir2", 0o700), file("dir2/f2", "...")],
        vec![Op::Rename("dir1/f1", "dir2/f1"), Op::Remove("dir2/f2")],
    ])
}

fn rename(bench: &Bench) -> Result<(), Failure> {
    // A directory of a lower layer is not renamed: overlayfs without redirect_dir answers EXDEV, as for any program.
    bench.same_as_flat(&[
        vec![Op::Dir("files", 0o700), file("files/f1", "was here first!"), file("files/f2", "nothing interesting")],
        vec![
            file("files/f1-overwrite", "new content 1"),
            Op::Rename("files/f1-overwrite", "files/f1"),
            Op::Rename("files/f2", "files/f3"),
            Op::Dir("new", 0o755),
            Op::Rename("new", "renamed"),
        ],
    ])
}

fn view_read_only(bench: &Bench) -> Result<(), Failure> {
    bench.layer("one", "", &[file("foo", "1")])?;
    bench.layer("two", "one", &[file("bar", "2")])?;
    for (number, parent) in ["", "one", "two"].iter().enumerate() {
        let key = format!("view {number}");
        bench.view(&key, parent)?;
        bench.mounted(&key, |root| {
            let refused = fs::write(root.join("new"), "x").map_err(|error| error.kind());
            ensure(refused == Err(std::io::ErrorKind::ReadOnlyFilesystem), format!("a view of {parent:?} is read-only"))
        })?;
    }
    Ok(())
}

fn without_parents(bench: &Bench) -> Result<(), Failure> {
    bench.prepare("first", "")?;
    bench.mounted("first", |root| file("a", "1").apply(root))?;
    // Active contents stay from mount to mount.
    bench.mounted("first", |root| ensure(root.join("a").exists(), "written before"))
}

fn root_permission(bench: &Bench) -> Result<(), Failure> {
    let root_of = |key: &str| {
        bench.mounted(key, |root| {
            let metadata = io("examine the root", root.metadata())?;
            Ok((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
        })
    };
    bench.prepare("first", "")?;
    ensure(root_of("first")? == (0o755, 0, 0), "the root of a new snapshot")?;
    bench.mounted("first", |root| {
        io("chmod", fs::set_permissions(root, fs::Permissions::from_mode(0o1711)))?;
        Op::Chown("", 42).apply(root)
    })?;
    bench.commit("base", "first")?;
    bench.prepare("second", "base")?;
    ensure(root_of("second")? == (0o1711, 42, 42), "the root of a child is like its parent's")?;
    bench.commit("middle", "second")?;
    bench.view("third", "middle")?;
    ensure(root_of("third")? == (0o1711, 42, 42), "and that of a view of it")
}

fn mapped_root(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[file("foo", "1")])?;
    let labels = Labels::from([
        (UID_MAPPING_LABEL.to_owned(), "0:100000:65536".to_owned()),
        (GID_MAPPING_LABEL.to_owned(), "0:200000:65536".to_owned()),
    ]);
    for (key, parent) in [("alone", ""), ("stacked", "base")] {
        bench.make(Kind::Active, key, parent, &labels)?;
        bench.mounted(key, |root| {
            let metadata = io("examine the root", root.metadata())?;
            ensure((metadata.uid(), metadata.gid()) == (100_000, 200_000), "owner of the root")
        })?;
    }
    let bad = Labels::from([(UID_MAPPING_LABEL.to_owned(), "0:4294967295:2".to_owned())]);
    let result = bench.make(Kind::Active, "bad", "base", &bad);
    refused(result, model::Code::InvalidArgument, "a malformed mapping")?;
    ensure(bench.live()?.len() == bench.driver().ids()?.len(), "a refused snapshot leaves nothing")
}

fn many_layers(bench: &Bench) -> Result<(), Failure> {
    let mut layers = vec![vec![
        file("bottom", "way at the bottom\n"),
        file("overwriteme", "FIRST!\n"),
        Op::Dir("addhere", 0o755),
        Op::Dir("onlyme", 0o755),
        file("onlyme/bottom", "bye!\n"),
    ]];
    for number in 1..128 {
        layers.push(vec![
            file("overwriteme", &format!("{number} WAS HERE!\n")),
            file(&format!("addhere/file-{number}"), "same\n"),
            Op::Remove("onlyme"),
            Op::Dir("onlyme", 0o755),
            file(&format!("onlyme/file-{number}"), "only me!\n"),
        ]);
    }
    let (parent, flat) = ("top".to_owned(), bench.work.join("flat"));
    io("make a directory", fs::create_dir_all(&flat))?;
    let mut below = String::new();
    for (number, ops) in layers.iter().enumerate() {
        let name = if number + 1 == layers.len() { parent.clone() } else { format!("layer {number}") };
        bench.layer(&name, &below, ops)?;
        ops.iter().try_for_each(|op| op.apply(&flat))?;
        below = name;
    }
    bench.view("full", &parent)?;
    bench.prepare("writable", &parent)?;
    let want = describe(&flat)?;
    for key in ["full", "writable"] {
        ensure(bench.mounted(key, describe)? == want, format!("128 layers as {key}"))?;
    }
    Ok(())
}

fn rebase(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[file("below", "1")])?;
    bench.prepare("free", "")?;
    bench.mounted("free", |root| file("above", "2").apply(root))?;
    if !bench.driver().capabilities().contains(&"rebase") {
        // Whoever serves the request asks for the capability first: the directory holds all files.
        return Ok(());
    }
    bench.commit_onto("top", "free", "base")?;
    ensure(bench.stat("top")?.parent == "base", "the parent given at commit")?;
    bench.view("look", "top")?;
    bench.mounted("look", |root| {
        ensure(root.join("above").exists() && root.join("below").exists(), "files of both layers")
    })?;
    refused(bench.remove("base"), model::Code::FailedPrecondition, "removal of a parent given at commit")
}

fn usage(bench: &Bench) -> Result<(), Failure> {
    let content = "x".repeat(1 << 20);
    bench.layer("base", "", &[Op::Dir("dir", 0o755), file("dir/file", &content)])?;
    let committed = bench.stat("base")?.usage;
    ensure(committed.inodes == 3, format!("inodes of the base: {committed:?}"))?;
    ensure((1 << 20..2 << 20).contains(&committed.size), format!("size of the base: {committed:?}"))?;
    let active = bench.prepare("active", "base")?;
    bench.mounted("active", |root| file("new", &content).apply(root))?;
    let used = bench.driver().usage(active.id)?;
    let above = if bench.snapshotter.name() == "native" { 2 } else { 1 };
    ensure((above << 20..(above + 1) << 20).contains(&used.size), format!("size of the active: {used:?}"))?;
    let view = bench.view("view", "base")?;
    ensure(bench.driver().usage(view.id)? == crate::Usage::default(), "a view takes nothing")
}

fn empty_commit(bench: &Bench) -> Result<(), Failure> {
    bench.prepare("a", "")?;
    bench.commit("empty", "a")?;
    bench.layer("full", "empty", &[file("foo", "1")])?;
    bench.prepare("b", "full")?;
    bench.commit("empty again", "b")?;
    bench.view("view", "empty again")?;
    bench.mounted("view", |root| ensure(root.join("foo").exists(), "files show through"))
}
