use super::*;

#[test]
fn validation_has_an_order() {
    let world = World::new();
    let mut bad = Container {
        extensions: BTreeMap::from([(String::new(), any(""))]),
        labels: labels(&[("k", &"v".repeat(4096))]),
        snapshot_key: "key".into(),
        ..Container::default()
    };
    let create = |container: &Container| world.metadata.containers().create(&scope("default"), container.clone());
    let code = Code::InvalidArgument;
    refused(
        create(&bad),
        code,
        "create container failed validation: container.ID: identifier must not be empty: invalid argument",
    );
    bad.id = "a".into();
    refused(
        create(&bad),
        code,
        "create container failed validation: container.Extensions keys must be set: invalid argument",
    );
    bad.extensions.clear();
    refused(
        create(&bad),
        code,
        "create container failed validation: containers.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: k: \
         invalid argument",
    );
    bad.labels = labels(&[("k", "v"), ("empty", "")]);
    refused(
        create(&bad),
        code,
        "create container failed validation: container.Runtime.Name must be set: invalid argument",
    );
    bad.runtime = "r".into();
    refused(create(&bad), code, "create container failed validation: container.Spec must be set: invalid argument");
    bad.spec = Some(any("spec"));
    refused(
        create(&bad),
        code,
        "create container failed validation: container.Snapshotter must be set: invalid argument",
    );
    bad.snapshotter = "s".into();
    let made = create(&bad).unwrap();
    assert_eq!(made.labels, labels(&[("k", "v")]));
    assert!(!made.created_at.is_zero() && made.created_at == made.updated_at);
    refused(create(&bad), Code::AlreadyExists, "container \"a\": already exists");
    assert_eq!(world.metadata.containers().get(&ns("default"), "a").unwrap(), made);
    assert_eq!(world.events(), ["default /containers/create"]);
}

#[test]
fn list_is_sorted_filtered_and_of_one_namespace() {
    let world = World::new();
    for (namespace, id) in [("n", "c"), ("n", "a"), ("n", "b"), ("o", "d")] {
        let mut container = Container { image: format!("image-{id}"), ..container(id) };
        container.labels = labels(&[("x.y/z", id)]);
        world.metadata.containers().create(&scope(namespace), container).unwrap();
    }
    let list = |texts: &[&str]| -> Vec<String> {
        let found = world.metadata.containers().list(&ns("n"), &filters(texts)).unwrap();
        found.into_iter().map(|container| container.id).collect()
    };
    assert_eq!(list(&[]), ["a", "b", "c"]);
    for (texts, want) in [
        (&["id==a", "id==c"][..], &["a", "c"][..]),
        (&["labels.\"x.y/z\"==b"], &["b"]),
        (&["image==image-c"], &["c"]),
        (&["runtime.name==io.containerd.runc.v2,id!=a"], &["b", "c"]),
        (&["snapshotter"], &[]),
        (&["labels.none"], &[]),
        (&["spec"], &[]),
    ] {
        assert_eq!(list(texts), want, "{texts:?}");
    }
}

#[test]
fn update_follows_its_mask() {
    let stored = || Container {
        labels: labels(&[("a", "1"), ("b", "2")]),
        image: "old".into(),
        snapshotter: "native".into(),
        snapshot_key: "old".into(),
        extensions: BTreeMap::from([("e".to_owned(), any("1"))]),
        ..container("c")
    };
    let wanted = || Container {
        labels: labels(&[("a", "9"), ("x.y", "3")]),
        image: "new".into(),
        snapshot_key: "new".into(),
        spec: Some(any("new")),
        extensions: BTreeMap::from([("f".to_owned(), any("2"))]),
        ..stored()
    };
    type Change = fn(&mut Container);
    let cases: [(&[&str], Change); 8] = [
        (&["labels.a"], |c| drop(c.labels.insert("a".into(), "9".into()))),
        (&["labels.b"], |c| drop(c.labels.remove("b"))),
        (&["labels.x.y"], |c| drop(c.labels.insert("x.y".into(), "3".into()))),
        (&["labels"], |c| c.labels = labels(&[("a", "9"), ("x.y", "3")])),
        (&["image", "snapshotkey"], |c| (c.image, c.snapshot_key) = ("new".into(), "new".into())),
        (&["spec"], |c| c.spec = Some(any("new"))),
        (&["extensions"], |c| drop(c.extensions.insert("f".into(), any("2")))),
        (&["extensions.f", "extensions.e", "extensions.none"], |c| drop(c.extensions.insert("f".into(), any("2")))),
    ];
    for (paths, change) in cases {
        let world = World::new();
        let made = world.metadata.containers().create(&scope("n"), stored()).unwrap();
        let updated = world.metadata.containers().update(&scope("n"), &wanted(), &mask(paths)).unwrap();
        let mut want = made.clone();
        change(&mut want);
        want.updated_at = updated.updated_at;
        assert_eq!(updated, want, "{paths:?}");
        assert!(updated.updated_at > made.updated_at);
        assert_eq!(world.metadata.containers().get(&ns("n"), "c").unwrap(), updated);
        assert_eq!(world.events(), ["n /containers/create", "n /containers/update"]);
    }
}

#[test]
fn update_refuses() {
    let world = World::new();
    let containers = world.metadata.containers();
    containers.create(&scope("n"), Container { snapshotter: "native".into(), ..container("c") }).unwrap();
    let update = |container: &Container, paths: &[&str]| containers.update(&scope("n"), container, &mask(paths));
    let same = Container { snapshotter: "native".into(), ..container("c") };
    let code = Code::InvalidArgument;
    refused(update(&Container::default(), &[]), code, "Container.ID must be set: invalid argument");
    let other = Container { snapshotter: "other".into(), ..same.clone() };
    refused(update(&other, &[]), code, "container.Snapshotter field is immutable: invalid argument");
    let other = Container { runtime: "other".into(), ..same.clone() };
    refused(update(&other, &[]), code, "container.Runtime.Name field is immutable: invalid argument");
    for path in ["runtime", "Image", "labels.", "sandbox", "extensionsx", ""] {
        let result = update(&same, &[path]);
        if path == "labels." {
            assert!(result.is_ok(), "a label may have an empty key");
            continue;
        }
        refused(result, code, &format!("cannot update {path:?} field on \"c\": invalid argument"));
    }
    let other = Container { spec: None, ..same.clone() };
    refused(update(&other, &[]), code, "update failed validation: container.Spec must be set: invalid argument");
    let missing = Container { id: "x".into(), ..same };
    refused(update(&missing, &[]), Code::NotFound, "container \"x\" in namespace \"n\": not found");
}

#[test]
fn delete_says_not_found() {
    let world = World::new();
    let containers = world.metadata.containers();
    containers.create(&scope("n"), container("c")).unwrap();
    containers.delete(&scope("n"), "c").unwrap();
    for id in ["c", "", &"x".repeat(5000)] {
        let text = format!("container {id:?} in namespace \"n\": not found");
        refused(containers.delete(&scope("n"), id), Code::NotFound, &text);
        refused(containers.get(&ns("n"), id), Code::NotFound, &text);
    }
    assert_eq!(world.events(), ["n /containers/create", "n /containers/delete"]);
}
