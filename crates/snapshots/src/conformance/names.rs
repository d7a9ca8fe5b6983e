//! The rules of keys, names, kinds and parents, and what crashes may leave.

use std::fs;

use model::{Code, Labels, Timestamp};

use super::bench::{file, io};
use super::{Bench, Case, Failure, ensure, refused};
use crate::{Error, Kind, records};

pub(super) const CASES: &[Case] = &[
    ("stat tells what a snapshot is", stat),
    ("a key is taken once", double_prepare),
    ("a name is taken once", commit_collision),
    ("a parent must be committed", parent_committed),
    ("only active snapshots are committed", commit_view),
    ("only active snapshots and views have mounts", mounts_of_committed),
    ("a parent is not removed before its children", remove_parent),
    ("a snapshot between others is not removed", remove_intermediate),
    ("a key can be used again", reuse),
    ("labels are updated, and replaced at commit", labels),
    ("list is sorted and filtered", list),
    ("keys may be anything", hostile_keys),
    ("namespaces do not see each other", namespaces),
    ("a parent is given at commit only once", one_parent),
    ("of many equal prepares one wins", race),
    ("directories without a record are collected", orphans),
    ("an active snapshot survives the loss of its directories", lost_directories),
    ("committed files that are lost are reported", lost_files),
];

fn stat(bench: &Bench) -> Result<(), Failure> {
    refused(bench.stat("nothing"), Code::NotFound, "stat of nothing")?;
    refused(bench.stat(""), Code::InvalidArgument, "stat without a key")?;
    let before = Timestamp::now();
    let active = bench.prepare("active", "")?;
    ensure(bench.stat("active")? == active, "stat after prepare")?;
    ensure(active.kind == Kind::Active && active.parent.is_empty(), "an active snapshot")?;
    ensure(active.created >= before && active.created == active.updated, "times")?;
    let committed = bench.commit("committed", "active")?;
    refused(bench.stat("active"), Code::NotFound, "stat of the key after commit")?;
    ensure(bench.stat("committed")? == committed && committed.kind == Kind::Committed, "stat after commit")?;
    ensure(committed.id == active.id && committed.created >= active.created, "the same directories")?;
    let view = bench.view("view", "committed")?;
    ensure(bench.stat("view")? == view && view.kind == Kind::View, "stat after view")?;
    ensure(view.parent == "committed" && view.parents == [committed.id], "parent of a view")
}

fn double_prepare(bench: &Bench) -> Result<(), Failure> {
    bench.prepare("key", "")?;
    refused(bench.prepare("key", ""), Code::AlreadyExists, "a second prepare")?;
    refused(bench.view("key", ""), Code::AlreadyExists, "a view of the same key")?;
    bench.commit("name", "key")?;
    refused(bench.prepare("name", ""), Code::AlreadyExists, "a prepare under a committed name")?;
    ensure(bench.driver().ids()?.len() == 1, "refused snapshots leave no directories")
}

fn commit_collision(bench: &Bench) -> Result<(), Failure> {
    bench.layer("name", "", &[])?;
    bench.prepare("key", "name")?;
    refused(bench.commit("name", "key"), Code::AlreadyExists, "a commit to a taken name")?;
    refused(bench.commit("key", "key"), Code::AlreadyExists, "a commit to the own key")?;
    ensure(bench.stat("key")?.kind == Kind::Active, "the active snapshot is untouched")?;
    refused(bench.commit("other", "missing"), Code::NotFound, "a commit of nothing")?;
    bench.commit("other", "key")?;
    Ok(())
}

fn parent_committed(bench: &Bench) -> Result<(), Failure> {
    bench.prepare("active", "")?;
    bench.layer("base", "", &[])?;
    bench.view("view", "base")?;
    for parent in ["active", "view"] {
        refused(bench.prepare("a", parent), Code::InvalidArgument, "prepare on what is not committed")?;
        refused(bench.view("b", parent), Code::InvalidArgument, "view of what is not committed")?;
    }
    refused(bench.prepare("a", "missing"), Code::NotFound, "prepare on nothing")?;
    refused(bench.view("b", "missing"), Code::NotFound, "view of nothing")
}

fn commit_view(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[])?;
    bench.view("view", "base")?;
    refused(bench.commit("name", "view"), Code::FailedPrecondition, "commit of a view")?;
    refused(bench.commit("name", "base"), Code::FailedPrecondition, "commit of a committed one")
}

fn mounts_of_committed(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[])?;
    refused(bench.mounts("base"), Code::FailedPrecondition, "mounts of a committed snapshot")?;
    refused(bench.mounts("missing"), Code::NotFound, "mounts of nothing")
}

fn remove_parent(bench: &Bench) -> Result<(), Failure> {
    refused(bench.remove("missing"), Code::NotFound, "removal of nothing")?;
    bench.layer("base", "", &[file("foo", "1")])?;
    bench.prepare("child", "base")?;
    refused(bench.remove("base"), Code::FailedPrecondition, "removal of a parent")?;
    bench.mounted("child", |root| ensure(root.join("foo").exists(), "the parent is untouched"))?;
    bench.remove("child")?;
    bench.view("view", "base")?;
    refused(bench.remove("base"), Code::FailedPrecondition, "removal of a viewed parent")?;
    bench.remove("view")?;
    bench.remove("base")?;
    ensure(bench.driver().ids()?.is_empty(), "no directories are left")
}

fn remove_intermediate(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[file("base", "1")])?;
    bench.layer("middle", "base", &[file("middle", "2")])?;
    bench.layer("top", "middle", &[file("top", "3")])?;
    refused(bench.remove("middle"), Code::FailedPrecondition, "removal in the middle")?;
    bench.prepare("active", "top")?;
    bench.remove("active")?;
    for name in ["top", "middle", "base"] {
        bench.remove(name)?;
    }
    Ok(())
}

fn reuse(bench: &Bench) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for round in 0..3 {
        ids.push(bench.prepare("key", "")?.id);
        bench.mounted("key", |root| {
            ensure(io("list", fs::read_dir(root))?.next().is_none(), format!("round {round} begins empty"))?;
            file("foo", "1").apply(root)
        })?;
        bench.remove("key")?;
    }
    ids.dedup();
    ensure(ids.len() == 3, "ids are not used again")
}

fn labels(bench: &Bench) -> Result<(), Failure> {
    let pairs = [("a", "1"), ("b", "2"), ("empty", "")];
    let given: Labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let made = bench.make(Kind::Active, "key", "", &given)?;
    ensure(made.labels.len() == 2, "empty labels are not stored")?;
    let updated = bench.write(|tx| {
        bench.table().update(tx, "key", Timestamp::now(), |labels| {
            labels.remove("a");
            labels.insert("b".to_owned(), String::new());
            labels.insert("c".to_owned(), "3".to_owned());
        })
    })?;
    ensure(updated.labels.keys().eq(["c"]), format!("labels after an update: {:?}", updated.labels))?;
    ensure(bench.stat("key")? == updated && updated.updated >= made.updated, "the update is recorded")?;
    ensure(updated.created == made.created && updated.id == made.id, "an update changes nothing else")?;
    let result = bench.write(|tx| bench.table().update(tx, "missing", Timestamp::now(), |_| {}));
    refused(result, Code::NotFound, "an update of nothing")?;
    ensure(bench.commit("name", "key")?.labels.is_empty(), "labels of the active snapshot are dropped at commit")
}

fn list(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[])?;
    bench.prepare("zz", "base")?;
    bench.view("aa", "base")?;
    let all = bench.store.read(|view| bench.table().list(view))?;
    let keys: Vec<_> = all.iter().map(|record| record.key.as_str()).collect();
    ensure(keys == ["aa", "base", "zz"], format!("list: {keys:?}"))?;
    for (path, want) in [
        (&["kind"][..], [Some("view"), Some("committed"), Some("active")]),
        (&["name"], [Some("aa"), Some("base"), Some("zz")]),
        (&["parent"], [Some("base"), Some(""), Some("base")]),
        (&["labels", "x"], [None, None, None]),
        (&["id"], [None, None, None]),
    ] {
        let found: Vec<_> = all.iter().map(|record| record.field(path)).collect();
        ensure(found.iter().map(Option::as_deref).eq(want), format!("field {path:?}: {found:?}"))?;
    }
    // A read within a read, as a Stat in the callback of a Walk.
    let again = bench.store.read(|view| {
        let listed = bench.table().list(view)?;
        listed.iter().map(|record| bench.table().stat(view, &record.key)).collect::<Result<Vec<_>, Error>>()
    })?;
    ensure(again == all, "stat within a list")
}

fn hostile_keys(bench: &Bench) -> Result<(), Failure> {
    let long = "x".repeat(records::MAX_KEY_BYTES);
    let keys = ["../../etc", "a/b c", "extract-1-ab sha256:0", "new\nline", "nul\0", ".", "ä", &long];
    for key in keys {
        bench.prepare(key, "")?;
        ensure(bench.stat(key)?.key == key, format!("key {key:?} is kept verbatim"))?;
        bench.mounted(key, |_| Ok(()))?;
    }
    let mut found: Vec<_> = bench.store.read(|view| bench.table().list(view))?;
    ensure(found.len() == keys.len(), "each key once")?;
    found.retain(|record| !keys.contains(&record.key.as_str()));
    ensure(found.is_empty(), "keys come back as they were")?;
    refused(bench.prepare(&format!("{long}x"), ""), Code::InvalidArgument, "an overlong key")?;
    refused(bench.prepare("", ""), Code::InvalidArgument, "an empty key")
}

fn namespaces(bench: &Bench) -> Result<(), Failure> {
    let record = bench.prepare("key", "")?;
    let name = bench.snapshotter.name();
    let other = records::Table::new("conformance2", name);
    bench.store.read(|view| {
        ensure(other.find(view, "key")?.is_none() && other.list(view)?.is_empty(), "another namespace is empty")?;
        ensure(records::namespace_is_empty(view, "conformance2")?, "and says so")?;
        ensure(!records::namespace_is_empty(view, "conformance")?, "this one is not")?;
        ensure(records::namespace_is_empty(view, "conform")?, "a prefix of a name is another name")?;
        ensure(records::snapshotters(view, "conformance")? == [name], "snapshotters in use")?;
        ensure(records::live_ids(view, name)?.contains(&record.id), "ids are of all namespaces")?;
        ensure(records::live_ids(view, "other")?.is_empty(), "and of one snapshotter")
    })
}

fn one_parent(bench: &Bench) -> Result<(), Failure> {
    bench.layer("one", "", &[])?;
    bench.layer("two", "", &[])?;
    bench.prepare("active", "one")?;
    refused(bench.commit_onto("name", "active", "two"), Code::InvalidArgument, "another parent at commit")?;
    bench.commit_onto("name", "active", "one")?;
    Ok(())
}

fn race(bench: &Bench) -> Result<(), Failure> {
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.prepare("key", ""))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut won = 0;
    for outcome in outcomes {
        match outcome {
            Ok(Ok(_)) => won += 1,
            Ok(result) => refused(result, Code::AlreadyExists, "an equal prepare")?,
            Err(_) => return Err(Failure::Wrong("a prepare panicked".to_owned())),
        }
    }
    ensure(won == 1 && bench.driver().ids()?.len() == 1, format!("{won} of 8 equal prepares won"))
}

fn orphans(bench: &Bench) -> Result<(), Failure> {
    let kept = bench.prepare("kept", "")?;
    let gone = bench.prepare("gone", "")?;
    // The record went, the process died before the directories did.
    bench.write(|tx| bench.table().remove(tx, "gone"))?;
    let pending = bench.snapshotter.prepare(Kind::Active, &[], &Labels::new())?;
    ensure(bench.snapshotter.collect(|| bench.live())? == 1, "one orphan")?;
    let mut ids = bench.driver().ids()?;
    ids.sort_unstable();
    ensure(ids == [kept.id, pending.id()] && !ids.contains(&gone.id), "pending directories are no orphans")?;
    drop(pending);
    ensure(bench.driver().ids()? == [kept.id], "a pending snapshot that is not kept is removed")?;
    // An orphan under an id that is given out again: what a power cut can leave.
    bench.driver().prepare(900, Kind::Active, &[], &Labels::new())?;
    bench.driver().prepare(900, Kind::Active, &[], &Labels::new())?;
    ensure(bench.snapshotter.collect(|| bench.live())? == 1, "the newer orphan")
}

fn lost_directories(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[file("foo", "1")])?;
    for (key, parent) in [("alone", ""), ("stacked", "base")] {
        let record = bench.prepare(key, parent)?;
        bench.driver().remove(record.id)?;
        bench.mounted(key, |root| {
            ensure(root.join("foo").exists() != parent.is_empty(), "the parent's files")?;
            file("new", "1").apply(root)
        })?;
        bench.commit(&format!("committed {key}"), key)?;
        bench.driver().remove(bench.prepare("again", parent)?.id)?;
        bench.remove("again")?;
    }
    Ok(())
}

fn lost_files(bench: &Bench) -> Result<(), Failure> {
    bench.layer("base", "", &[file("foo", "1")])?;
    bench.driver().remove(bench.stat("base")?.id)?;
    refused(bench.prepare("key", "base"), Code::DataLoss, "a snapshot on lost files")?;
    let record = bench.prepare("active", "")?;
    bench.driver().remove(record.id)?;
    refused(bench.driver().commit(record.id), Code::DataLoss, "a commit of lost files")
}
