use super::*;
use crate::Resource;

fn resource(kind: &str, id: &str) -> Resource {
    Resource { kind: kind.into(), id: id.into() }
}

#[test]
fn ids() {
    let world = World::new();
    let leases = world.metadata.leases();
    let (one, two) = (world.lease("n", "", &[]), world.lease("n", "", &[]));
    assert!(one.id != two.id && one.id.split_once('-').is_some_and(|(_, random)| random.len() == 4), "{}", one.id);
    let odd = world.lease("n", "a/b -_=", &[("k", "v"), ("e", ""), ("long", &"x".repeat(5000))]);
    assert_eq!(odd.labels.len(), 2, "labels of leases have no limit");
    let again = leases.create(&ns("n"), "a/b -_=", Labels::new());
    refused(again, Code::AlreadyExists, "lease \"a/b -_=\": already exists");
    let long = leases.create(&ns("n"), &"x".repeat(5000), Labels::new());
    assert_eq!(long.unwrap_err().code(), Code::InvalidArgument);
    let found = leases.list(&ns("n"), &filters(&["id==\"a/b -_=\"", "labels.k==none"])).unwrap();
    assert_eq!(found, [odd]);
    assert_eq!(leases.list(&ns("n"), &Filters::default()).unwrap().len(), 3);
    assert!(leases.list(&ns("o"), &Filters::default()).unwrap().is_empty());
    leases.delete(&ns("n"), &one.id).unwrap();
    refused(leases.delete(&ns("n"), &one.id), Code::NotFound, &format!("lease {:?}: not found", one.id));
    assert!(world.events().is_empty(), "leases have no events");
}

#[test]
fn members() {
    let world = World::new();
    let leases = world.metadata.leases();
    world.lease("n", "l", &[]);
    world.lease("n", "l2", &[]);
    let digest = some_digest('a');
    let add = |kind: &str, id: &str| leases.add_resource(&ns("n"), "l", &resource(kind, id));
    let good = [
        ("snapshots/native", "a key/with things"),
        ("images", "docker.io/library/busybox:latest"),
        ("ingests", "layer-sha256:x"),
        ("content", digest.as_str()),
    ];
    for (kind, id) in good {
        add(kind, id).unwrap();
        add(kind, id).unwrap();
    }
    let sorted = ["content", "images", "ingests", "snapshots/native"];
    let kinds =
        || -> Vec<String> { leases.resources(&ns("n"), "l").unwrap().into_iter().map(|found| found.kind).collect() };
    assert_eq!(kinds(), sorted);
    assert!(leases.resources(&ns("n"), "l2").unwrap().is_empty());
    for (kind, id, code) in [
        ("content", "no digest", Code::InvalidArgument),
        ("content/x", "x", Code::InvalidArgument),
        ("images/x", "x", Code::InvalidArgument),
        ("snapshots", "x", Code::InvalidArgument),
        ("snapshots/a/b", "x", Code::InvalidArgument),
        ("snapshots/\0", "x", Code::InvalidArgument),
        ("images", "", Code::InvalidArgument),
        ("streams", "x", Code::Unimplemented),
        ("", "", Code::Unimplemented),
        (&"x".repeat(5000), &"x".repeat(5000), Code::Unimplemented),
        ("images", &"x".repeat(5000), Code::InvalidArgument),
    ] {
        assert_eq!(add(kind, id).unwrap_err().code(), code, "{kind:?}");
        let deleted = leases.delete_resource(&ns("n"), "l", &resource(kind, id));
        assert_eq!(deleted.unwrap_err().code(), code, "{kind:?}");
    }
    refused(add("x", "y"), Code::Unimplemented, "resource type x not supported yet: not implemented");
    let nobody = leases.add_resource(&ns("n"), "none", &resource("images", "x"));
    refused(nobody, Code::NotFound, "lease \"none\": not found");
    for _ in 0..2 {
        leases.delete_resource(&ns("n"), "l", &resource("images", good[1].1)).unwrap();
    }
    assert_eq!(kinds().len(), 3);
    // A lease that comes again does not inherit.
    leases.delete(&ns("n"), "l").unwrap();
    world.lease("n", "l", &[]);
    assert!(kinds().is_empty());
}
