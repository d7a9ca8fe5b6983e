use super::*;

#[test]
fn a_namespace_need_not_be_created() {
    let world = World::new();
    let namespaces = world.metadata.namespaces();
    assert!(namespaces.get(&ns("nobody")).unwrap().labels.is_empty());
    assert!(namespaces.list().unwrap().is_empty());
    world.metadata.containers().create(&scope("b"), container("c")).unwrap();
    world.lease("a", "l", &[]);
    namespaces.update(&ns("c"), &labels(&[("x", "1")]), &mask(&["labels.x"])).unwrap();
    let names: Vec<_> = namespaces.list().unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    refused(namespaces.create(&ns("a"), Labels::new()), Code::AlreadyExists, "namespace \"a\": already exists");
    let made = namespaces.create(&ns("d"), labels(&[("k", "v"), ("empty", "")])).unwrap();
    assert_eq!(made.labels, labels(&[("k", "v")]));
    assert_eq!(world.events(), ["b /containers/create", "c /namespaces/update", "d /namespaces/create"]);
}

#[test]
fn labels_follow_the_mask() {
    let world = World::new();
    let namespaces = world.metadata.namespaces();
    namespaces.create(&ns("n"), labels(&[("a", "1"), ("b", "2")])).unwrap();
    let wanted = labels(&[("a", "9"), ("c.d", "3")]);
    let update = |paths: &[&str]| namespaces.update(&ns("n"), &wanted, &mask(paths));
    assert_eq!(update(&["labels.a", "labels.b"]).unwrap().labels, labels(&[("a", "9")]));
    assert_eq!(update(&["labels.c.d"]).unwrap().labels, wanted);
    assert_eq!(update(&[]).unwrap().labels, wanted);
    assert_eq!(namespaces.get(&ns("n")).unwrap().labels, wanted);
    for path in ["labels", "name", ""] {
        let text = format!("cannot update {path:?} field on namespace \"n\": invalid argument");
        refused(update(&[path]), Code::InvalidArgument, &text);
    }
    let long = labels(&[("a", &"x".repeat(5000))]);
    assert_eq!(namespaces.update(&ns("n"), &long, &[]).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn delete_refuses_while_something_is_in_it() {
    let world = World::new();
    let namespaces = world.metadata.namespaces();
    refused(namespaces.delete(&ns("n")), Code::NotFound, "namespace \"n\": not found");
    let n = scope("n");
    let digest = world.blob(&n, "text", &[]);
    world.image(&n, "i", &digest);
    world.metadata.containers().create(&n, container("c")).unwrap();
    world.layer(&n, "s", "", &[("containerd.io/gc.root", "")]);
    world.lease("n", "l", &[]);
    // An ingest that was begun and a neighbour whose name starts alike do not count.
    let options = WriterOptions { reference: "r", expected: None, total: 0 };
    drop(world.metadata.content().open_writer(&n, &options).unwrap());
    world.lease("n2", "l", &[]);
    let refusal = |holds: &str| {
        let text = format!("namespace \"n\" must be empty, but it still has {holds}: failed precondition");
        refused(namespaces.delete(&ns("n")), Code::FailedPrecondition, &text);
    };
    refusal("images, blobs, containers, snapshots on \"native\" snapshotter");
    world.metadata.images().delete(&n, "i", "").unwrap();
    world.metadata.containers().delete(&n, "c").unwrap();
    world.metadata.snapshots().remove(&n, "native", "s").unwrap();
    world.collect();
    namespaces.delete(&ns("n")).unwrap();
    world.collect();
    assert!(world.content.statuses().unwrap().is_empty(), "its ingests went with it");
    assert_eq!(namespaces.list().unwrap().len(), 1);
    refused(world.metadata.leases().delete(&ns("n"), "l"), Code::NotFound, "lease \"l\": not found");
    world.metadata.leases().delete(&ns("n2"), "l").unwrap();
    assert_eq!(world.events().last().unwrap(), "n /namespaces/delete");
}
