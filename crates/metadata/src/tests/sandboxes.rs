use super::*;
use crate::Sandbox;

fn sandbox(id: &str) -> Sandbox {
    Sandbox { id: id.into(), runtime: "io.containerd.gantry.v2".into(), ..Sandbox::default() }
}

#[test]
fn life_of_a_record() {
    let world = World::new();
    let store = world.metadata.sandboxes();
    let mut wanted = sandbox("a");
    wanted.labels = labels(&[("k", "v"), ("empty", "")]);
    wanted.extensions = BTreeMap::from([("x".into(), any("1")), ("y".into(), any("2"))]);
    wanted.sandboxer = "shim".into();
    let made = store.create(&scope("n"), wanted.clone()).unwrap();
    assert_eq!(made.labels, labels(&[("k", "v")]));
    assert!(!made.created_at.is_zero() && made.created_at == made.updated_at);
    assert_eq!(store.get(&ns("n"), "a").unwrap(), made);
    refused(store.create(&scope("n"), wanted.clone()), Code::AlreadyExists, "sandbox \"a\": already exists");

    // One path each; a key without a value in the request goes.
    wanted.labels = labels(&[("new", "1")]);
    wanted.spec = Some(any("spec"));
    wanted.extensions.clear();
    let mask = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let updated = store.update(&scope("n"), &wanted, &mask(&["labels.new", "labels.k", "extensions.x"])).unwrap();
    assert_eq!((updated.labels, updated.spec), (labels(&[("new", "1")]), None));
    assert_eq!(updated.extensions.keys().collect::<Vec<_>>(), ["y"]);
    let updated = store.update(&scope("n"), &wanted, &[]).unwrap();
    assert_eq!((updated.spec.is_some(), updated.extensions.len(), updated.sandboxer.as_str()), (true, 0, "shim"));
    assert_eq!(updated.created_at, made.created_at);
    refused(
        store.update(&scope("n"), &wanted, &mask(&["id"])),
        Code::InvalidArgument,
        "cannot update \"id\" field on sandbox \"a\": invalid argument",
    );
    wanted.runtime = "other".into();
    assert_eq!(store.update(&scope("n"), &wanted, &[]).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(store.update(&scope("n"), &wanted, &mask(&["runtime"])).unwrap().runtime, "other");

    store.create(&scope("n"), sandbox("b")).unwrap();
    store.create(&scope("o"), sandbox("c")).unwrap();
    for (texts, want) in
        [(&[][..], &["a", "b"][..]), (&["id==b"], &["b"]), (&["labels.new"], &["a"]), (&["runtime.name"], &[])]
    {
        let found = store.list(&ns("n"), &filters(texts)).unwrap();
        assert_eq!(found.iter().map(|found| found.id.as_str()).collect::<Vec<_>>(), want, "{texts:?}");
    }
    store.delete(&scope("n"), "a").unwrap();
    for id in ["a", "", "../x", &"x".repeat(5000)] {
        assert_eq!(store.get(&ns("n"), id).unwrap_err().code(), Code::NotFound);
        assert_eq!(store.delete(&scope("n"), &id[..id.len().min(100)]).unwrap_err().code(), Code::NotFound);
    }
    for bad in [Sandbox { id: "a b".into(), ..sandbox("x") }, Sandbox { runtime: String::new(), ..sandbox("x") }] {
        assert_eq!(store.create(&scope("n"), bad).unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(world.events(), Vec::<String>::new());
    world.metadata.namespaces().delete(&ns("n")).unwrap();
    assert!(store.list(&ns("n"), &filters(&[])).unwrap().is_empty());
}

#[test]
fn what_a_sandbox_names_is_kept() {
    let world = World::new();
    let blob = world.blob(&scope("n"), "x", &[]);
    let mut wanted = sandbox("a");
    wanted.labels = labels(&[("containerd.io/gc.ref.content", blob.as_str())]);
    world.metadata.sandboxes().create(&scope("n"), wanted).unwrap();
    world.collect();
    assert!(world.metadata.content().info(&ns("n"), &blob).is_ok());
    world.metadata.sandboxes().delete(&scope("n"), "a").unwrap();
    world.collect();
    assert!(world.metadata.content().info(&ns("n"), &blob).is_err());
}
