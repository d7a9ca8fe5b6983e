use super::*;
use crate::Resource;

const ROOT: (&str, &str) = ("containerd.io/gc.root", "2026-01-01T00:00:00Z");
const PAST: (&str, &str) = ("containerd.io/gc.expire", "2001-01-01T00:00:00Z");
const FUTURE: (&str, &str) = ("containerd.io/gc.expire", "2999-01-01T00:00:00Z");

fn add(world: &World, lease: &str, kind: &str, id: &str) {
    let resource = Resource { kind: kind.into(), id: id.into() };
    world.metadata.leases().add_resource(&ns("n"), lease, &resource).unwrap();
}

fn image_with(world: &World, name: &str, target: &Digest, pairs: &[(&str, &str)]) {
    let image = Image { labels: labels(pairs), ..image(name, target.as_str()) };
    world.metadata.images().create(&scope("n"), image, None).unwrap();
}

#[test]
fn an_image_keeps_its_tree() {
    let world = World::new();
    world.lease("n", "pull", &[]);
    let pull = leased("n", "pull");
    let layer = world.blob(&pull, "layer", &[("containerd.io/gc.ref.snapshot.native", "chain-1")]);
    let config = world.blob(&pull, "config", &[("containerd.io/gc.ref.snapshot.native/x", "chain-2")]);
    let manifest = world.blob(
        &pull,
        "manifest",
        &[
            ("containerd.io/gc.ref.content.l.0", layer.as_str()),
            ("containerd.io/gc.ref.content.config", config.as_str()),
        ],
    );
    world.layer(&pull, "chain-1", "", &[]);
    world.layer(&pull, "chain-2", "chain-1", &[]);
    let stray = world.blob(&pull, "stray", &[("containerd.io/gc.ref.contentfoo", layer.as_str())]);
    world.image(&pull, "i", &manifest);
    world.collect();
    assert!(world.has_blob("n", &stray), "the lease keeps it");

    world.metadata.leases().delete(&ns("n"), "pull").unwrap();
    world.collect();
    for digest in [&layer, &config, &manifest] {
        assert!(world.has_blob("n", digest) && world.has_bytes(digest));
    }
    assert!(!world.has_blob("n", &stray) && !world.has_bytes(&stray));
    assert_eq!(world.snapshots("n"), ["chain-1", "chain-2"]);

    // A container keeps its snapshot and that one's parents, not the image.
    world.prepare(&scope("n"), "c", "chain-2");
    let used =
        Container { snapshotter: "native".into(), snapshot_key: "c".into(), image: "i".into(), ..container("c") };
    world.metadata.containers().create(&scope("n"), used).unwrap();
    world.metadata.images().delete(&scope("n"), "i", "").unwrap();
    world.collect();
    for digest in [&layer, &config, &manifest] {
        assert!(!world.has_blob("n", digest) && !world.has_bytes(digest));
    }
    assert_eq!(world.snapshots("n"), ["c", "chain-1", "chain-2"]);

    let before = world.events().len();
    world.metadata.containers().delete(&scope("n"), "c").unwrap();
    world.collect();
    assert!(world.snapshots("n").is_empty());
    assert_eq!(world.directories(), 0);
    let removed = world.events().split_off(before + 1);
    assert_eq!(removed, ["n /snapshot/remove"; 3], "children first, each told");
}

#[test]
fn roots_and_what_they_reach() {
    let world = World::new();
    let n = scope("n");
    world.lease("n", "all", &[]);
    let all = leased("n", "all");
    let blob = |text: &str, pairs: &[(&str, &str)]| world.blob(&all, text, pairs);
    let target = blob("target", &[]);
    let by_container = blob("by container", &[]);
    let kept = [
        blob("root", &[ROOT, ("containerd.io/gc.ref.content/x", target.as_str())]),
        target.clone(),
        by_container.clone(),
        blob("bref container", &[("containerd.io/gc.bref.container", "c")]),
        blob("bref image", &[("containerd.io/gc.bref.image.x", "stays")]),
        blob("bref content", &[("containerd.io/gc.bref.content", target.as_str())]),
        blob("bref snapshot", &[("containerd.io/gc.bref.snapshot.native/x", "s")]),
    ];
    let gone = [
        blob("nothing", &[]),
        blob("bref none", &[("containerd.io/gc.bref.container", "none")]),
        blob("bref gone", &[("containerd.io/gc.bref.image", "expired")]),
        blob("of expired image", &[]),
        blob("not even when expiring later", &[FUTURE]),
    ];
    image_with(&world, "stays", &target, &[]);
    image_with(&world, "later", &target, &[FUTURE]);
    image_with(&world, "odd", &target, &[("containerd.io/gc.expire", "tomorrow")]);
    image_with(&world, "expired", &gone[3], &[PAST]);
    image_with(&world, "held", &target, &[PAST, ("containerd.io/gc.ref.image.y", "chain")]);
    image_with(&world, "chain", &target, &[PAST]);
    world.lease("n", "images", &[FUTURE]);
    add(&world, "images", "images", "held");
    world.layer(&all, "s", "", &[ROOT]);
    let mut labelled = container("c");
    labelled.labels = labels(&[
        ("containerd.io/gc.ref.content.a", by_container.as_str()),
        ("containerd.io/gc.ref.snapshot.native", "by container"),
    ]);
    world.metadata.containers().create(&n, labelled).unwrap();
    world.layer(&all, "by container", "", &[]);
    world.layer(&all, "unused", "", &[]);

    world.metadata.leases().delete(&ns("n"), "all").unwrap();
    world.collect();
    for digest in &kept {
        assert!(world.has_blob("n", digest), "{digest}");
    }
    for digest in &gone {
        assert!(!world.has_blob("n", digest) && !world.has_bytes(digest), "{digest}");
    }
    assert_eq!(world.images("n"), ["chain", "held", "later", "odd", "stays"]);
    assert_eq!(world.snapshots("n"), ["by container", "s"]);
    assert_eq!(world.events().iter().filter(|event| *event == "n /images/delete").count(), 1);
}

#[test]
fn leases_end_and_may_be_flat() {
    let world = World::new();
    let all = leased("n", "all");
    world.lease("n", "all", &[]);
    world.lease("n", "flat", &[("containerd.io/gc.flat", "")]);
    world.lease("n", "flat2", &[("containerd.io/gc.flat", "x")]);
    world.lease("n", "expired", &[PAST]);
    let config = world.blob(&all, "config", &[]);
    let manifest = world.blob(&all, "manifest", &[("containerd.io/gc.ref.content", config.as_str())]);
    let short = world.blob(&leased("n", "expired"), "short", &[]);
    world.layer(&all, "one", "", &[]);
    world.layer(&all, "two", "one", &[("containerd.io/gc.ref.content", config.as_str())]);
    image_with(&world, "i", &manifest, &[PAST]);
    add(&world, "flat2", "images", "i");
    add(&world, "flat2", "snapshots/native", "two");
    world.metadata.leases().delete(&ns("n"), "all").unwrap();
    world.collect();
    assert!(world.has_blob("n", &manifest), "the image's target is part of it");
    assert!(!world.has_blob("n", &config), "labels are not followed");
    assert!(!world.has_blob("n", &short));
    assert_eq!(world.images("n"), ["i"]);
    assert_eq!(world.snapshots("n"), ["one", "two"], "a parent is part of its child");
    let leases = world.metadata.leases().list(&ns("n"), &Filters::default()).unwrap();
    // A label without a value does not exist, so the first of the two is not flat, only empty.
    assert_eq!(leases.iter().map(|lease| lease.id.as_str()).collect::<Vec<_>>(), ["flat", "flat2"]);
}

#[test]
fn a_member_of_two_leases_is_kept_as_the_stronger_says() {
    let world = World::new();
    world.lease("n", "a flat", &[("containerd.io/gc.flat", "x")]);
    world.lease("n", "full", &[]);
    let config = world.blob(&leased("n", "full"), "config", &[]);
    let manifest = world.blob(&leased("n", "full"), "manifest", &[("containerd.io/gc.ref.content", config.as_str())]);
    add(&world, "a flat", "content", manifest.as_str());
    let resource = Resource { kind: "content".into(), id: config.as_str().into() };
    world.metadata.leases().delete_resource(&ns("n"), "full", &resource).unwrap();
    world.collect();
    assert!(world.has_blob("n", &config));
    world.metadata.leases().delete(&ns("n"), "full").unwrap();
    world.collect();
    assert!(!world.has_blob("n", &config) && world.has_blob("n", &manifest));
}

#[test]
fn bytes_go_when_no_namespace_has_them() {
    let world = World::new();
    let digest = world.blob(&scope("n"), "text", &[ROOT]);
    assert_eq!(world.blob(&scope("o"), "text", &[ROOT]), digest);
    let content = world.metadata.content();
    content.delete(&scope("n"), &digest).unwrap();
    world.collect();
    assert!(world.has_bytes(&digest) && world.has_blob("o", &digest));
    // A writer that only refers to them keeps them, and so does the record that it leaves.
    let options = WriterOptions { reference: "r", expected: Some(&digest), total: 0 };
    let writer = content.open_writer(&scope("n"), &options).unwrap();
    content.delete(&scope("o"), &digest).unwrap();
    world.collect();
    assert!(world.has_bytes(&digest));
    drop(writer);
    world.collect();
    assert!(world.has_bytes(&digest));
    content.abort(&scope("n"), "r").unwrap();
    world.collect();
    assert!(!world.has_bytes(&digest));
}

#[test]
fn ingests_live_as_long_as_their_lease_or_their_writer() {
    let world = World::new();
    world.lease("n", "l", &[]);
    let options = |reference| WriterOptions { reference, expected: None, total: 0 };
    let content = world.metadata.content();
    drop(content.open_writer(&leased("n", "l"), &options("leased")).unwrap());
    drop(content.open_writer(&scope("n"), &options("a day")).unwrap());
    let mut writer = content.open_writer(&leased("n", "l"), &options("open")).unwrap();
    world.metadata.leases().delete(&ns("n"), "l").unwrap();
    world.collect();
    let refs = || -> Vec<String> {
        let found = content.statuses(&ns("n"), &Filters::default()).unwrap();
        found.into_iter().map(|status| status.reference).collect()
    };
    assert_eq!(refs(), ["a day", "open"]);
    assert_eq!(world.content.statuses().unwrap().len(), 2);
    writer.write(b"text").unwrap();
    drop(writer);
    world.collect();
    assert_eq!(refs(), ["a day"]);
    assert_eq!(world.content.statuses().unwrap().len(), 1);
}

#[test]
fn what_a_dead_process_left_is_removed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, content, drivers, _journal) = parts(dir.path(), "boot");
        let mut ingest = content.writer("n/1/lost", 0).unwrap();
        ingest.write(b"lost").unwrap();
        ingest.commit(0, None).unwrap();
        drop(content.writer("n/1/open", 0).unwrap());
        drivers[0].prepare(7, ::snapshots::Kind::Active, &[], &Labels::new()).unwrap();
        drop(store);
    }
    let world = World::at(dir, "boot");
    assert!(world.content.list().unwrap().is_empty());
    assert!(world.content.statuses().unwrap().is_empty());
    assert_eq!(world.directories(), 0);
}

#[test]
fn deletions_are_collected_without_being_asked_for() {
    let world = World::new();
    let digest = world.blob(&scope("n"), "text", &[ROOT]);
    world.prepare(&scope("n"), "c", "");
    world.metadata.snapshots().remove(&scope("n"), "native", "c").unwrap();
    world.metadata.content().delete(&scope("n"), &digest).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while world.has_bytes(&digest) || world.directories() > 0 {
        assert!(std::time::Instant::now() < deadline, "still there");
        std::thread::yield_now();
    }
}

#[test]
fn requests_and_collections_do_not_disturb_each_other() {
    let world = World::new();
    let rounds = 30;
    std::thread::scope(|threads| {
        for thread in 0..3 {
            let world = &world;
            threads.spawn(move || {
                for round in 0..rounds {
                    // Everybody writes and deletes the same blob, so bytes come and go under each other's feet.
                    let namespace = format!("n{thread}");
                    world.lease(&namespace, "l", &[]);
                    let text = format!("text {}", round % 3);
                    let options = WriterOptions { reference: &text, expected: None, total: 0 };
                    let leased = leased(&namespace, "l");
                    let mut writer = world.metadata.content().open_writer(&leased, &options).unwrap();
                    writer.truncate().unwrap();
                    writer.write(text.as_bytes()).unwrap();
                    let digest = writer.digest();
                    match writer.commit(0, Some(&digest), Labels::new()) {
                        // From an earlier round, not collected yet: leased again.
                        Ok(_) | Err(Error::ContentExists(_)) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                    world.metadata.content().reader(&ns(&namespace), &digest).unwrap();
                    let key = format!("key {round}");
                    world.prepare(&leased, &key, "");
                    world.metadata.snapshots().mounts(&ns(&namespace), "native", &key).unwrap();
                    world.metadata.leases().delete(&ns(&namespace), "l").unwrap();
                }
            });
        }
        threads.spawn(|| (0..rounds).for_each(|_| world.collect()));
    });
    world.collect();
    assert!(world.content.list().unwrap().is_empty());
    assert_eq!(world.directories(), 0);
    for thread in 0..3 {
        assert!(world.snapshots(&format!("n{thread}")).is_empty());
    }
}

/// Things outside of the store, as their keeper has them.
#[derive(Debug, Default)]
struct Keeper(std::sync::Mutex<Vec<crate::Member>>);

impl crate::Collectible for Keeper {
    fn kind(&self) -> &'static str {
        "stream"
    }

    fn members(&self) -> Vec<crate::Member> {
        self.0.lock().unwrap().clone()
    }

    fn remove(&self, garbage: &[(String, String)]) {
        self.0
            .lock()
            .unwrap()
            .retain(|member| !garbage.iter().any(|(namespace, id)| *namespace == member.namespace && *id == member.id));
    }
}

#[test]
fn things_outside_live_as_long_as_what_keeps_them() {
    let world = World::new();
    let keeper = Arc::new(Keeper::default());
    world.metadata.keep(keeper.clone());
    let add = |namespace: &str, id: &str, lease: Option<&str>, pairs: &[(&str, &str)]| {
        let lease = lease.map(str::to_owned);
        let member = crate::Member { namespace: namespace.into(), id: id.into(), lease, labels: labels(pairs) };
        keeper.0.lock().unwrap().push(member);
    };
    let left = || {
        world.collect();
        keeper.0.lock().unwrap().iter().map(|member| member.id.clone()).collect::<Vec<_>>()
    };
    world.lease("n", "l", &[]);
    world.lease("n", "past", &[PAST]);
    add("n", "free", None, &[]);
    add("n", "leased", Some("l"), &[]);
    add("n", "expired", Some("past"), &[]);
    add("n", "named", Some("gone"), &[]);
    add("n", "naming", Some("gone"), &[("containerd.io/gc.bref.container", "c")]);
    add("n", "bound", None, &[("containerd.io/gc.bref.container", "c")]);
    add("nowhere", "lost", Some("l"), &[]);
    add("nowhere", "rootless", None, &[]);
    world.metadata.containers().create(&scope("n"), container("c")).unwrap();
    let blob = world.blob(&scope("n"), "x", &[ROOT, ("containerd.io/gc.ref.stream.a", "named")]);
    assert_eq!(left(), ["free", "leased", "named", "naming", "bound", "rootless"]);
    world.metadata.leases().delete(&ns("n"), "l").unwrap();
    world.metadata.containers().delete(&scope("n"), "c").unwrap();
    world.metadata.content().delete(&scope("n"), &blob).unwrap();
    assert_eq!(left(), ["free", "rootless"]);
}
