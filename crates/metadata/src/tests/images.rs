use model::Timestamp;

use super::*;

#[test]
fn validation() {
    let world = World::new();
    let digest = some_digest('a');
    let create = |image: Image| world.metadata.images().create(&scope("n"), image, None);
    let code = Code::InvalidArgument;
    refused(create(Image::default()), code, "image name must be set: invalid argument");
    let long = "x".repeat(5000);
    refused(
        create(image(&long, digest.as_str())),
        code,
        "image name of 5000 bytes is longer than 480 bytes: invalid argument",
    );
    for bad in ["", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd"] {
        assert_eq!(create(image("i", bad)).unwrap_err().code(), code, "{bad}");
    }
    for size in [0, -1] {
        let mut image = image("i", digest.as_str());
        image.target.size = size;
        refused(create(image), code, "target.Size must be greater than zero: invalid argument");
    }
    let mut no_type = image("i", digest.as_str());
    no_type.target.media_type.clear();
    refused(create(no_type), code, "target.MediaType must be set: invalid argument");
    let mut good = image("docker.io/library/busybox:1.36@sha256:x y", digest.as_str());
    good.labels = labels(&[("a", "1"), ("b", "")]);
    good.target.annotations = labels(&[("c", "2"), ("d", "")]);
    let made = create(good.clone()).unwrap();
    assert_eq!((made.labels.len(), made.target.annotations.len()), (1, 1));
    assert_eq!(world.metadata.images().get(&ns("n"), &good.name).unwrap(), made);
    refused(create(good.clone()), Code::AlreadyExists, &format!("image {:?}: already exists", good.name));
    assert_eq!(world.events(), ["n /images/create"]);
}

#[test]
fn times_may_come_from_the_request() {
    let world = World::new();
    let images = world.metadata.images();
    let (first, second) = (Timestamp { seconds: 7, nanos: 0 }, Timestamp { seconds: 8, nanos: 0 });
    let image = image("i", some_digest('a').as_str());
    let made = images.create(&scope("n"), image.clone(), Some(first)).unwrap();
    assert_eq!((made.created_at, made.updated_at), (first, first));
    let updated = images.update(&scope("n"), &image, &[], Some(second)).unwrap();
    assert_eq!((updated.created_at, updated.updated_at), (first, second));
}

#[test]
fn update_follows_its_mask() {
    let wanted = || {
        let mut wanted = image("i", some_digest('b').as_str());
        wanted.labels = labels(&[("a", "9"), ("x.y", "3")]);
        wanted.target.annotations = labels(&[("n.m", "9")]);
        wanted
    };
    type Change = fn(&mut Image, &Image);
    let cases: [(&[&str], Change); 6] = [
        (&[], |image, wanted| (image.labels, image.target) = (wanted.labels.clone(), wanted.target.clone())),
        (&["target"], |image, wanted| image.target = wanted.target.clone()),
        (&["labels"], |image, wanted| image.labels = wanted.labels.clone()),
        (&["labels.a", "labels.b", "labels.x.y"], |image, wanted| image.labels = wanted.labels.clone()),
        (&["annotations"], |image, wanted| image.target.annotations = wanted.target.annotations.clone()),
        (&["annotations.n.m"], |image, _| drop(image.target.annotations.insert("n.m".into(), "9".into()))),
    ];
    for (paths, change) in cases {
        let world = World::new();
        let mut old = image("i", some_digest('a').as_str());
        old.labels = labels(&[("a", "1"), ("b", "2")]);
        old.target.annotations = labels(&[("n", "1")]);
        let mut want = world.metadata.images().create(&scope("n"), old, None).unwrap();
        let updated = world.metadata.images().update(&scope("n"), &wanted(), &mask(paths), None).unwrap();
        change(&mut want, &wanted());
        want.updated_at = updated.updated_at;
        assert_eq!(updated, want, "{paths:?}");
        assert_eq!(world.metadata.images().get(&ns("n"), "i").unwrap(), want);
        assert_eq!(world.events(), ["n /images/create", "n /images/update"]);
    }
    let world = World::new();
    let update = |paths: &[&str]| world.metadata.images().update(&scope("n"), &wanted(), &mask(paths), None);
    refused(update(&[]), Code::NotFound, "image \"i\": not found");
    world.image(&scope("n"), "i", &some_digest('a'));
    refused(update(&["name"]), Code::InvalidArgument, "cannot update \"name\" field on image \"i\": invalid argument");
}

#[test]
fn delete_checks_its_target() {
    let world = World::new();
    let images = world.metadata.images();
    let (a, b) = (some_digest('a'), some_digest('b'));
    world.image(&scope("n"), "i", &a);
    let text = format!("image \"i\" has target {a}, not {b}: not found");
    refused(images.delete(&scope("n"), "i", b.as_str()), Code::NotFound, &text);
    images.delete(&scope("n"), "i", a.as_str()).unwrap();
    refused(images.delete(&scope("n"), "i", ""), Code::NotFound, "image \"i\": not found");
    assert_eq!(world.events(), ["n /images/create", "n /images/delete"]);
}

#[test]
fn filters_know_target_and_annotations() {
    let world = World::new();
    let (a, b) = (some_digest('a'), some_digest('b'));
    for (name, digest) in [("x", &a), ("y", &b), ("z:1", &b)] {
        let mut image = image(name, digest.as_str());
        image.target.annotations = labels(&[("org.name", name)]);
        world.metadata.images().create(&scope("n"), image, None).unwrap();
    }
    for (text, want) in [
        (format!("target.digest=={b}"), &["y", "z:1"][..]),
        ("name~=^[xy]$".into(), &["x", "y"]),
        ("target.mediatype==m,name==x".into(), &["x"]),
        ("annotations.org.name==\"z:1\"".into(), &["z:1"]),
        ("target".into(), &[]),
    ] {
        let found = world.metadata.images().list(&ns("n"), &filters(&[text.as_str()])).unwrap();
        assert_eq!(found.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), want, "{text}");
    }
}

#[test]
fn an_image_that_expires_joins_the_lease() {
    let world = World::new();
    world.lease("n", "l", &[]);
    let with_lease = leased("n", "l");
    let members = || -> Vec<String> {
        let found = world.metadata.leases().resources(&ns("n"), "l").unwrap();
        found.into_iter().map(|member| format!("{} {}", member.kind, member.id)).collect()
    };
    world.image(&with_lease, "stays", &some_digest('a'));
    assert!(members().is_empty());
    let mut expiring = image("goes", some_digest('a').as_str());
    expiring.labels = labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    world.metadata.images().create(&with_lease, expiring.clone(), None).unwrap();
    assert_eq!(members(), ["images goes"]);
    let no_lease = world.metadata.images().update(&leased("n", "none"), &expiring, &[], None);
    refused(no_lease, Code::NotFound, "lease does not exist: not found");
}
