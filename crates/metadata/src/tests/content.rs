use super::*;
use crate::Resource;

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn options(reference: &str) -> WriterOptions<'_> {
    WriterOptions { reference, expected: None, total: 0 }
}

fn members(world: &World, lease: &str) -> Vec<Resource> {
    world.metadata.leases().resources(&ns("n"), lease).unwrap()
}

fn content_member(digest: &Digest) -> Resource {
    Resource { kind: "content".into(), id: digest.as_str().into() }
}

#[test]
fn a_blob_is_written_and_read() {
    let world = World::new();
    let (n, content) = (scope("n"), world.metadata.content());
    let mut writer = content.open_writer(&n, &WriterOptions { total: 3, ..options("r") }).unwrap();
    assert_eq!((writer.offset(), writer.digest().as_str()), (0, EMPTY));
    writer.write(b"ab").unwrap();
    let status = content.status(&ns("n"), "r").unwrap();
    assert_eq!((status.reference.as_str(), status.offset, status.total), ("r", 2, 3));
    writer.truncate().unwrap();
    writer.write(b"abc").unwrap();
    let digest: Digest = ABC.parse().unwrap();
    assert_eq!((writer.digest(), writer.status().offset), (digest.clone(), 3));
    let committed = writer.commit(3, Some(&digest), labels(&[("k", "v"), ("e", "")])).unwrap();
    assert_eq!(committed, (digest.clone(), 3));
    let info = content.info(&ns("n"), &digest).unwrap();
    assert_eq!((info.size, info.labels.clone()), (3, labels(&[("k", "v")])));
    let mut buffer = [0; 8];
    assert_eq!(content.reader(&ns("n"), &digest).unwrap().read_at(&mut buffer, 1).unwrap(), 2);
    let text = "could not get status for ref \"r\": reference r: not found";
    refused(content.status(&ns("n"), "r"), Code::NotFound, text);
    // Another namespace does not see it.
    let text = format!("content digest {digest}: not found");
    refused(content.info(&ns("o"), &digest), Code::NotFound, &text);
    refused(content.reader(&ns("o"), &digest).map(|_| ()), Code::NotFound, &text);
    assert_eq!(world.events(), ["n /content/create"]);
}

#[test]
fn a_commit_that_contradicts_keeps_the_ingest() {
    let world = World::new();
    let (n, content) = (scope("n"), world.metadata.content());
    let open = || content.open_writer(&n, &options("r")).unwrap();
    let mut writer = open();
    writer.write(b"abc").unwrap();
    let text = "\"r\" failed size validation: 3 != 99: failed precondition";
    refused(writer.commit(99, None, Labels::new()), Code::FailedPrecondition, text);
    let wrong = some_digest('0');
    let text = format!("unexpected commit digest {ABC}, expected {wrong}: failed precondition");
    refused(open().commit(3, Some(&wrong), Labels::new()), Code::FailedPrecondition, &text);
    let long = labels(&[("k", &"v".repeat(5000))]);
    assert_eq!(open().commit(3, None, long).unwrap_err().code(), Code::InvalidArgument);
    let writer = open();
    assert_eq!((writer.offset(), writer.digest().as_str()), (3, ABC), "resumed");
    writer.commit(0, None, Labels::new()).unwrap();
}

#[test]
fn one_writer_at_a_time() {
    let world = World::new();
    let (n, content) = (scope("n"), world.metadata.content());
    let writer = content.open_writer(&n, &options("r")).unwrap();
    let error = content.open_writer(&n, &options("r")).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let text = render(&error);
    assert!(text.starts_with("ref n/1/r locked for ") && text.ends_with("): unavailable"), "{text}");
    let other = content.open_writer(&scope("o"), &options("r")).unwrap();
    drop((writer, other));
    drop(content.open_writer(&n, &options("r")).unwrap());
    let refs = |texts: &[&str]| -> Vec<String> {
        let found = content.statuses(&ns("n"), &filters(texts)).unwrap();
        found.into_iter().map(|status| status.reference).collect()
    };
    drop(content.open_writer(&n, &options("a ref/with things")).unwrap());
    assert_eq!(refs(&[]), ["a ref/with things", "r"]);
    assert_eq!(refs(&["ref==r"]), ["r"]);
    for bad in [String::new(), "x".repeat(5000)] {
        assert_eq!(content.open_writer(&n, &options(&bad)).unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn abort_removes_record_and_bytes() {
    let world = World::new();
    let (n, content) = (scope("n"), world.metadata.content());
    let mut writer = content.open_writer(&n, &options("r")).unwrap();
    writer.write(b"abc").unwrap();
    content.abort(&n, "r").unwrap();
    refused(content.abort(&n, "r"), Code::NotFound, "reference r: not found");
    assert!(world.content.statuses().unwrap().is_empty());
    assert_eq!(writer.commit(0, None, Labels::new()).unwrap_err().code(), Code::NotFound);
    assert_eq!(content.open_writer(&n, &options("r")).unwrap().offset(), 0);
}

#[test]
fn what_exists_is_leased_and_refused() {
    let world = World::new();
    let content = world.metadata.content();
    let digest = world.blob(&scope("n"), "abc", &[("k", "v")]);
    let text = format!("content {digest}: already exists");
    for lease in ["open", "expect", "commit"] {
        world.lease("n", lease, &[]);
    }
    // At the opening.
    let expecting = WriterOptions { expected: Some(&digest), ..options("r") };
    let opened = content.open_writer(&leased("n", "open"), &expecting);
    refused(opened, Code::AlreadyExists, &text);
    // By a later message.
    let mut writer = content.open_writer(&leased("n", "expect"), &options("r")).unwrap();
    writer.expect(&some_digest('0')).unwrap();
    assert_eq!(members(&world, "expect").len(), 1, "the ingest");
    refused(writer.expect(&digest), Code::AlreadyExists, &text);
    drop(writer);
    // At the commit.
    let mut writer = content.open_writer(&leased("n", "commit"), &options("r")).unwrap();
    writer.write(b"abc").unwrap();
    refused(writer.commit(0, None, labels(&[("k", "new")])), Code::AlreadyExists, &text);
    for lease in ["open", "expect", "commit"] {
        assert_eq!(members(&world, lease), [content_member(&digest)], "{lease}");
    }
    assert_eq!(content.info(&ns("n"), &digest).unwrap().labels, labels(&[("k", "v")]));
    assert!(world.content.statuses().unwrap().is_empty());
    assert!(content.statuses(&ns("n"), &Filters::default()).unwrap().is_empty());
    assert_eq!(world.events(), ["n /content/create"]);
    // Without a lease it is refused as well, and with one that does not exist the lease is what is missing.
    let opened = content.open_writer(&scope("n"), &expecting);
    refused(opened, Code::AlreadyExists, &text);
    let opened = content.open_writer(&leased("n", "none"), &expecting);
    refused(opened, Code::NotFound, "lease does not exist: not found");
    let opened = content.open_writer(&leased("n", "none"), &options("r"));
    refused(opened, Code::NotFound, "lease does not exist: not found");
}

#[test]
fn bytes_of_another_namespace_are_shared() {
    let world = World::new();
    let content = world.metadata.content();
    let digest = world.blob(&scope("o"), "abc", &[("of", "o")]);
    let expecting = |total| WriterOptions { expected: Some(&digest), total, ..options("r") };
    // Of another size: not the same thing, whatever the client thinks.
    assert_eq!(content.open_writer(&scope("n"), &expecting(99)).unwrap().offset(), 0);
    content.abort(&scope("n"), "r").unwrap();
    for total in [0, 3] {
        let writer = content.open_writer(&scope("n"), &expecting(total)).unwrap();
        let status = writer.status();
        assert_eq!((status.offset, status.total, writer.digest()), (3, 3, digest.clone()));
    }
    let open = || content.open_writer(&scope("n"), &expecting(3)).unwrap();
    let text = "\"r\" failed size validation: 3 != 4: failed precondition";
    refused(open().commit(4, None, Labels::new()), Code::FailedPrecondition, text);
    let wrong = some_digest('0');
    let committed = open().commit(3, Some(&wrong), Labels::new());
    assert_eq!(committed.unwrap_err().code(), Code::FailedPrecondition);
    open().commit(3, Some(&digest), labels(&[("of", "n")])).unwrap();
    assert_eq!(content.info(&ns("n"), &digest).unwrap().labels, labels(&[("of", "n")]));
    assert_eq!(content.info(&ns("o"), &digest).unwrap().labels, labels(&[("of", "o")]));
    // Writing to such a writer continues from a copy; truncating begins anew.
    let mut writer = content.open_writer(&scope("m"), &expecting(0)).unwrap();
    writer.write(b"d").unwrap();
    assert_eq!(writer.offset(), 4);
    let (longer, _) = writer.commit(0, None, Labels::new()).unwrap();
    assert_ne!(longer, digest);
    let mut writer = content.open_writer(&scope("m"), &expecting(0)).unwrap();
    writer.truncate().unwrap();
    assert_eq!((writer.offset(), writer.digest().as_str()), (0, EMPTY));
    assert!(!world.has_blob("m", &digest));
}

#[test]
fn other_algorithms() {
    let world = World::new();
    let n = scope("n");
    let expected: Digest = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                            2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        .parse()
        .unwrap();
    let opened = WriterOptions { expected: Some(&expected), ..options("r") };
    let mut writer = world.metadata.content().open_writer(&n, &opened).unwrap();
    writer.write(b"abc").unwrap();
    assert_eq!(writer.digest(), expected);
    writer.commit(3, Some(&expected), Labels::new()).unwrap();
    assert!(world.has_blob("n", &expected));
}

#[test]
fn labels_list_and_delete() {
    let world = World::new();
    let (n, content) = (scope("n"), world.metadata.content());
    world.lease("n", "l", &[]);
    let mut digests: Vec<_> = ["a", "b", "c"].map(|text| world.blob(&leased("n", "l"), text, &[("t", text)])).into();
    let b = digests[1].clone();
    digests.sort();
    let list = |texts: &[&str]| -> Vec<Digest> {
        content.list(&ns("n"), &filters(texts)).unwrap().into_iter().map(|info| info.digest).collect()
    };
    assert_eq!(list(&[]), digests);
    assert_eq!(list(&["labels.t==b"]), std::slice::from_ref(&b));
    assert_eq!(list(&[&format!("digest=={b}")]), std::slice::from_ref(&b));
    assert!(list(&["size==1"]).is_empty());
    let update = |pairs: &[(&str, &str)], paths: &[&str]| content.update(&n, &b, &labels(pairs), &mask(paths));
    assert_eq!(update(&[("x.y", "1")], &["labels.x.y"]).unwrap().labels, labels(&[("t", "b"), ("x.y", "1")]));
    assert_eq!(update(&[], &["labels.t"]).unwrap().labels, labels(&[("x.y", "1")]));
    assert_eq!(update(&[("z", "2"), ("e", "")], &[]).unwrap().labels, labels(&[("z", "2")]));
    let text = format!("cannot update \"size\" field on content info {b}: invalid argument");
    refused(update(&[], &["size"]), Code::InvalidArgument, &text);
    let info = content.info(&ns("n"), &b).unwrap();
    assert!(info.updated_at > info.created_at);

    content.delete(&leased("n", "l"), &b).unwrap();
    let text = format!("content digest {b}: not found");
    refused(content.delete(&n, &b), Code::NotFound, &text);
    refused(update(&[], &[]), Code::NotFound, &text);
    assert_eq!(members(&world, "l").len(), 2);
    world.collect();
    assert!(!world.has_bytes(&b));
    assert_eq!(world.events().last().unwrap(), "n /content/delete");
}
