use ::snapshots::Kind;

use super::*;

fn members(world: &World, lease: &str) -> Vec<String> {
    let found = world.metadata.leases().resources(&ns("n"), lease).unwrap();
    found.into_iter().map(|member| format!("{} {}", member.kind, member.id)).collect()
}

struct Request<'a> {
    world: &'a World,
    scope: Scope,
    labels: Labels,
}

impl<'a> Request<'a> {
    fn new(world: &'a World, scope: Scope, pairs: &[(&str, &str)]) -> Self {
        Self { world, scope, labels: labels(pairs) }
    }

    fn prepare(&self, key: &str, parent: &str) -> Result<(), Error> {
        let new = NewSnapshot { snapshotter: "native", key, parent, labels: &self.labels };
        self.world.metadata.snapshots().prepare(&self.scope, &new).map(|_| ())
    }

    fn view(&self, key: &str, parent: &str) -> Result<(), Error> {
        let new = NewSnapshot { snapshotter: "native", key, parent, labels: &self.labels };
        self.world.metadata.snapshots().view(&self.scope, &new).map(|_| ())
    }

    fn commit(&self, name: &str, key: &str) -> Result<(), Error> {
        let commit = SnapshotCommit { snapshotter: "native", name, key, labels: &self.labels, parent: "" };
        self.world.metadata.snapshots().commit(&self.scope, &commit)
    }
}

#[test]
fn a_life() {
    let world = World::new();
    world.lease("n", "l", &[]);
    let request = Request::new(&world, leased("n", "l"), &[("k", "v"), ("e", "")]);
    request.prepare("a key/1", "").unwrap();
    let snapshots = world.metadata.snapshots();
    let stat = |key: &str| snapshots.stat(&ns("n"), "native", key);
    let active = stat("a key/1").unwrap();
    assert_eq!((active.kind, active.labels), (Kind::Active, labels(&[("k", "v")])));
    let mounts = snapshots.mounts(&ns("n"), "native", "a key/1").unwrap();
    assert_eq!(mounts.len(), 1);
    std::fs::write(Path::new(&mounts[0].source).join("file"), "text").unwrap();
    assert_eq!(members(&world, "l"), ["snapshots/native a key/1"]);

    let relabelled = Request::new(&world, leased("n", "l"), &[("new", "1")]);
    relabelled.commit("layer", "a key/1").unwrap();
    let committed = stat("layer").unwrap();
    assert_eq!((committed.kind, committed.labels), (Kind::Committed, labels(&[("new", "1")])));
    assert_eq!(members(&world, "l"), ["snapshots/native layer"]);
    assert!(snapshots.usage(&ns("n"), "native", "layer").unwrap().inodes >= 2);
    refused(stat("a key/1").map(|_| ()), Code::NotFound, "snapshot a key/1 does not exist: not found");
    let mounts = snapshots.mounts(&ns("n"), "native", "layer");
    refused(mounts, Code::FailedPrecondition, "requested snapshot layer not active or view: failed precondition");

    request.view("v", "layer").unwrap();
    assert_eq!(snapshots.usage(&ns("n"), "native", "v").unwrap(), ::snapshots::Usage::default());
    let remove = |key: &str| snapshots.remove(&leased("n", "l"), "native", key);
    assert_eq!(remove("layer").unwrap_err().code(), Code::FailedPrecondition);
    remove("v").unwrap();
    remove("layer").unwrap();
    refused(remove("layer"), Code::NotFound, "snapshot layer does not exist: not found");
    assert!(members(&world, "l").is_empty());
    world.collect();
    assert_eq!(world.directories(), 0);
    let want = ["n /snapshot/prepare", "n /snapshot/commit", "n /snapshot/remove", "n /snapshot/remove"];
    assert_eq!(world.events(), want);
}

#[test]
fn what_exists_is_leased_and_refused() {
    let world = World::new();
    for lease in ["key", "target", "commit"] {
        world.lease("n", lease, &[]);
    }
    world.lease("n", "all", &[]);
    let all = Request::new(&world, leased("n", "all"), &[]);
    all.prepare("active", "").unwrap();
    all.prepare("other", "").unwrap();
    all.commit("layer", "other").unwrap();
    all.prepare("again", "layer").unwrap();
    let directories = world.directories();

    let key = Request::new(&world, leased("n", "key"), &[]);
    refused(key.prepare("active", ""), Code::AlreadyExists, "snapshot \"active\": already exists");
    refused(key.view("active", "none"), Code::AlreadyExists, "snapshot \"active\": already exists");
    assert_eq!(members(&world, "key"), ["snapshots/native active"]);

    let target = Request::new(&world, leased("n", "target"), &[("containerd.io/snapshot.ref", "layer")]);
    refused(target.prepare("extract", ""), Code::AlreadyExists, "target snapshot \"layer\": already exists");
    assert_eq!(members(&world, "target"), ["snapshots/native layer"]);

    let commit = Request::new(&world, leased("n", "commit"), &[("k", "v")]);
    refused(commit.commit("layer", "again"), Code::AlreadyExists, "snapshot \"layer\": already exists");
    assert_eq!(members(&world, "commit"), ["snapshots/native layer"]);
    let again = world.metadata.snapshots().stat(&ns("n"), "native", "again").unwrap();
    assert_eq!((again.kind, again.labels), (Kind::Active, Labels::new()), "left as it was");
    assert_eq!(world.directories(), directories);
}

#[test]
fn refusals_leave_nothing() {
    let world = World::new();
    let request = Request::new(&world, scope("n"), &[]);
    request.prepare("active", "").unwrap();
    request.view("view", "").unwrap();
    let before = (world.directories(), world.events());
    refused(request.prepare("x", "none"), Code::NotFound, "parent snapshot none does not exist: not found");
    let text = "parent \"active\" is not committed snapshot: invalid argument";
    refused(request.prepare("x", "active"), Code::InvalidArgument, text);
    for bad in [String::new(), "x".repeat(5000)] {
        assert_eq!(request.prepare(&bad, "").unwrap_err().code(), Code::InvalidArgument);
    }
    refused(request.commit("x", "none"), Code::NotFound, "snapshot none does not exist: not found");
    refused(request.commit("x", "view"), Code::FailedPrecondition, "snapshot view is not active: failed precondition");
    let nobody = Request::new(&world, leased("n", "none"), &[]);
    refused(nobody.prepare("x", ""), Code::NotFound, "lease does not exist: not found");
    refused(nobody.commit("x", "active"), Code::NotFound, "lease does not exist: not found");
    let long = Request::new(&world, scope("n"), &[("k", &"v".repeat(5000))]);
    assert_eq!(long.prepare("x", "").unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(long.commit("x", "active").unwrap_err().code(), Code::InvalidArgument);
    assert_eq!((world.directories(), world.events()), before);

    let snapshots = world.metadata.snapshots();
    for (name, text) in [
        ("", "snapshotter argument missing: invalid argument"),
        ("zfs", "snapshotter not loaded: zfs: invalid argument"),
    ] {
        let new = NewSnapshot { snapshotter: name, key: "k", parent: "", labels: &Labels::new() };
        refused(snapshots.prepare(&scope("n"), &new), Code::InvalidArgument, text);
        refused(snapshots.mounts(&ns("n"), name, "k"), Code::InvalidArgument, text);
        refused(snapshots.stat(&ns("n"), name, "k"), Code::InvalidArgument, text);
        refused(snapshots.usage(&ns("n"), name, "k"), Code::InvalidArgument, text);
        refused(snapshots.list(&ns("n"), name, &Filters::default()), Code::InvalidArgument, text);
        refused(snapshots.remove(&scope("n"), name, "k"), Code::InvalidArgument, text);
        refused(snapshots.update(&scope("n"), name, "k", &Labels::new(), &[]), Code::InvalidArgument, text);
    }
}

#[test]
fn labels_and_filters() {
    let world = World::new();
    let n = scope("n");
    world.layer(&n, "b", "", &[("x.y", "1"), ("containerd.io/gc.root", "")]);
    world.layer(&n, "a", "b", &[("containerd.io/gc.root", "1")]);
    world.prepare(&n, "c", "a");
    let snapshots = world.metadata.snapshots();
    let update = |pairs: &[(&str, &str)], paths: &[&str]| {
        snapshots.update(&n, "native", "b", &labels(pairs), &mask(paths)).map(|record| record.labels)
    };
    assert_eq!(update(&[("z", "2")], &["labels.z"]).unwrap(), labels(&[("x.y", "1"), ("z", "2")]));
    assert_eq!(update(&[], &["labels.x.y"]).unwrap(), labels(&[("z", "2")]));
    assert_eq!(update(&[("w", "3"), ("e", "")], &[]).unwrap(), labels(&[("w", "3")]));
    refused(
        update(&[], &["kind"]),
        Code::InvalidArgument,
        "cannot update \"kind\" field on snapshot \"b\": invalid argument",
    );
    let list = |text: &str| -> Vec<String> {
        let found = snapshots.list(&ns("n"), "native", &filters(&[text])).unwrap();
        found.into_iter().map(|record| record.key).collect()
    };
    for (text, want) in [
        ("", &["a", "b", "c"][..]),
        ("kind==committed", &["a", "b"]),
        ("kind==active", &["c"]),
        ("parent==a", &["c"]),
        ("parent==\"\"", &["b"]),
        ("name==b", &["b"]),
        ("labels.w==3", &["b"]),
    ] {
        assert_eq!(list(text), want, "{text}");
    }
    assert!(snapshots.list(&ns("o"), "native", &Filters::default()).unwrap().is_empty());
}
