//! Images in and out by the transfer service, layers of what containers changed, and streams that end when they should not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use api_grpc::services::content::{ListContentRequest, ListStatusesRequest};
use api_grpc::services::leases::{CreateRequest, DeleteRequest, ListRequest};
use api_grpc::services::transfer::{TransferOptions, TransferRequest};
use api_grpc::transfer_types::{ImageExportStream, ImageImportStream, ImageReference, ImageStore};
use client::Client;
use client::transfer::Stream;
use prost::Name;
use prost_types::Any;
use testkit::{Daemon, Layer, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Status};

const IMAGE: &str = "docker.io/library/busybox:latest";

fn listed(archive: &Path) -> String {
    run("tar", &["tf", &archive.to_string_lossy()]).unwrap().ok().stdout
}

#[test]
fn images_go_in_and_out() {
    let (daemon, other) = (Daemon::start("transfer"), Daemon::start("transfer-other"));
    let file = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
    testkit::busybox_image(Path::new(&file("in.tar")), IMAGE).unwrap();
    assert_eq!(daemon.ctl(&["image", "import", &file("in.tar")]).ok().stdout.trim(), IMAGE);
    daemon.ctl(&["image", "tag", IMAGE, "example.test/other:1"]).ok();
    daemon.ctl(&["image", "export", &file("out.tar"), IMAGE, "example.test/other:1"]).ok();
    let files = listed(Path::new(&file("out.tar")));
    for name in ["oci-layout", "index.json", "manifest.json", "blobs/sha256/"] {
        assert!(files.lines().any(|line| line == name), "{files}");
    }
    // The same images make the same archive, and another daemon reads it.
    daemon.ctl(&["image", "export", &file("again.tar"), IMAGE, "example.test/other:1"]).ok();
    assert!(std::fs::read(file("out.tar")).unwrap() == std::fs::read(file("again.tar")).unwrap());
    let names = other.ctl(&["image", "import", "--snapshotter", "native", &file("out.tar")]).ok().stdout;
    assert_eq!(names.lines().collect::<Vec<_>>(), [IMAGE, "example.test/other:1"]);
    let unpacked = other.ctl(&["image", "unpack", IMAGE]).ok().stdout;
    assert!(other.ctl(&["snapshot", "ls"]).ok().stdout.contains(unpacked.trim()), "{unpacked}");
    for daemon in [&daemon, &other] {
        let missing = daemon.ctl(&["image", "export", &file("none.tar"), "no/such:image"]);
        assert!(missing.code != 0 && missing.stderr.contains("not found"), "{}", missing.text());
        assert!(!Path::new(&file("none.tar")).exists());
        daemon.ctl(&["image", "rm", IMAGE, "example.test/other:1"]).ok();
    }
}

#[test]
fn what_a_container_changed() {
    let daemon = Daemon::start("changed");
    let file = |name: &str| daemon.directory().join(name).to_string_lossy().into_owned();
    testkit::busybox_image(Path::new(&file("in.tar")), IMAGE).unwrap();
    daemon.ctl(&["image", "import", &file("in.tar")]).ok();
    let cgroup = format!("{}/c", daemon.cgroup());
    let script = "mkdir /made && echo x > /made/file && ln /made/file /linked && rm /etc/group";
    let words = ["run", "--cgroup", &cgroup, "--fifo-dir", &file("fifo"), "--log-dir", &file("log"), IMAGE, "c"];
    daemon.ctl(&[&words[..], &["sh", "-c", script]].concat()).ok();
    for name in ["a.tar.gz", "b.tar.gz"] {
        daemon.ctl(&["snapshot", "diff", "c", "-o", &file(name)]).ok();
    }
    assert!(std::fs::read(file("a.tar.gz")).unwrap() == std::fs::read(file("b.tar.gz")).unwrap());
    let files = listed(Path::new(&file("a.tar.gz")));
    for name in ["etc/.wh.group", "made/", "made/file", "linked"] {
        assert!(files.lines().any(|line| line == name), "{files}");
    }
    assert!(!files.contains("busybox"), "{files}");
    let mistaken = daemon.ctl(&["snapshot", "diff", "c", "--media-type", "text/plain"]);
    assert!(mistaken.code != 0 && mistaken.stderr.contains("not implemented"), "{}", mistaken.text());
    daemon.ctl(&["rm", "c"]).ok();
    assert!(!daemon.ctl(&["snapshot", "ls"]).ok().stdout.contains("diff view"));
    daemon.ctl(&["image", "rm", IMAGE]).ok();
}

fn pack(message: &impl Name) -> Option<Any> {
    Some(api_grpc::encode::any(api_grpc::encode::pack(message)))
}

fn into_store(stream: &str, progress: &str) -> TransferRequest {
    let any = ImageReference { name: "x".into(), is_prefix: true, allow_overwrite: true, ..ImageReference::default() };
    TransferRequest {
        source: pack(&ImageImportStream { stream: stream.into(), ..ImageImportStream::default() }),
        destination: pack(&ImageStore { extra_references: vec![any], ..ImageStore::default() }),
        options: Some(TransferOptions { progress_stream: progress.into() }),
    }
}

/// An archive that takes more than one window to send.
fn archive() -> Vec<u8> {
    let random: Vec<u8> = (0..2_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let files = BTreeMap::from([("file".to_owned(), (0o644, random))]);
    testkit::image_tar(IMAGE, &[(Layer::Tar, files)]).unwrap()
}

/// Nothing of a transfer is left: no ingest, no lease, no image, and after a collection no content.
async fn assert_nothing_left(daemon: &Daemon, client: &Client) {
    for _ in 0..200 {
        let ingests = client.content().list_statuses(ListStatusesRequest::default()).await.unwrap().into_inner();
        let leases = client.leases().list(ListRequest::default()).await.unwrap().into_inner();
        if ingests.statuses.is_empty() && leases.leases.is_empty() {
            let listed = daemon.ctl(&["image", "ls", "-q"]).ok().stdout;
            assert_eq!(listed, "");
            let lease = client.leases().create(CreateRequest::default()).await.unwrap().into_inner().lease.unwrap();
            client.leases().delete(DeleteRequest { id: lease.id, sync: true }).await.unwrap();
            let mut content = client.content().list(ListContentRequest::default()).await.unwrap().into_inner();
            assert!(content.message().await.unwrap().is_none());
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("something of a transfer is left:\n{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_in_the_middle() {
    let daemon = Daemon::start("cut");
    let client = Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    let archive = archive();
    for sent in [0, 1, 511, 40_000, 3_000_000, archive.len() - 2000] {
        // The client's stream ends, as if that were all; or its connection is gone.
        for abort in [false, true] {
            let stream = Stream::open(&client, "cut").await.unwrap();
            let id = stream.id.clone();
            let (mut writer, reader) = tokio::io::duplex(1 << 20);
            let sending = tokio::spawn(stream.send(reader));
            let transfer = tokio::spawn({
                let (mut service, request) = (client.transfer(), into_store(&id, ""));
                async move { service.transfer(request).await }
            });
            writer.write_all(&archive[..sent]).await.unwrap();
            if abort {
                sending.abort();
            }
            drop(writer);
            let answer = tokio::time::timeout(Duration::from_secs(20), transfer).await.expect("an answer").unwrap();
            let status = answer.expect_err("half an archive is none");
            assert!(!matches!(status.code(), Code::Internal | Code::Ok), "{sent}: {status}");
            assert_nothing_left(&daemon, &client).await;
        }
    }
    // A request that nobody waits for any more ends as well, whatever its stream does.
    let stream = Stream::open(&client, "cancelled").await.unwrap();
    let id = stream.id.clone();
    let (mut writer, reader) = tokio::io::duplex(1 << 20);
    let sending = tokio::spawn(stream.send(reader));
    let transfer = tokio::spawn({
        let (mut service, request) = (client.transfer(), into_store(&id, ""));
        async move { service.transfer(request).await }
    });
    // More than fits between here and the daemon: when this returns, the transfer is under way.
    writer.write_all(&archive[..3_000_000]).await.unwrap();
    transfer.abort();
    assert_nothing_left(&daemon, &client).await;
    drop(writer);
    let ended = tokio::time::timeout(Duration::from_secs(10), sending).await;
    ended.expect("the stream has ended").unwrap().unwrap();
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_streams() {
    let daemon = Daemon::start("streams");
    let client = Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    let transfer = |request: TransferRequest| {
        let mut service = client.transfer();
        async move { service.transfer(request).await.map(drop).map_err(|status: Status| status.code()) }
    };
    assert_eq!(transfer(into_store("nobody", "")).await, Err(Code::NotFound));
    assert_eq!(transfer(into_store("", "nobody")).await, Err(Code::NotFound));
    assert_eq!(transfer(TransferRequest::default()).await, Err(Code::InvalidArgument));
    let unknown = Some(Any { type_url: "example.Unknown".into(), value: Vec::new() });
    let registry = Some(Any { type_url: "containerd.types.transfer.OCIRegistry".into(), value: Vec::new() });
    let store = || pack(&ImageStore { name: "x".into(), ..ImageStore::default() });
    for (source, destination, code) in [
        (unknown.clone(), store(), Code::NotFound),
        (registry.clone(), store(), Code::Unimplemented),
        (store(), registry, Code::Unimplemented),
        (store(), store(), Code::NotFound),
    ] {
        assert_eq!(transfer(TransferRequest { source, destination, options: None }).await, Err(code));
    }
    // A stream is of its namespace.
    let stream = Stream::open(&client, "mine").await.unwrap();
    let other = client.with_namespace("other").unwrap();
    let refused = other.transfer().transfer(into_store(&stream.id, "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    // One stream cannot be two things at once.
    assert_eq!(transfer(into_store(&stream.id, &stream.id)).await, Err(Code::FailedPrecondition));
    drop(stream);

    // A stream lives no longer than its lease.
    let lease = client.leases().create(CreateRequest::default()).await.unwrap().into_inner().lease.unwrap();
    let leased = Stream::open(&client.with_lease(&lease.id).unwrap(), "leased").await.unwrap();
    let id = leased.id.clone();
    client.leases().delete(DeleteRequest { id: lease.id, sync: true }).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), leased.send(&[0; 10][..])).await;
    ended.expect("the stream has ended").unwrap();
    assert_eq!(transfer(into_store(&id, "")).await, Err(Code::NotFound));
    assert_nothing_left(&daemon, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back() {
    let daemon = Daemon::start("echo");
    let client = Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    for length in [0, 1, 32 << 10, 1_000_003] {
        let bytes: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[1] ^ at.to_le_bytes()[0]).collect();
        let (to, from) = (Stream::open(&client, "to").await.unwrap(), Stream::open(&client, "from").await.unwrap());
        let request = TransferRequest {
            source: pack(&ImageImportStream { stream: to.id.clone(), ..ImageImportStream::default() }),
            destination: pack(&ImageExportStream { stream: from.id.clone(), ..ImageExportStream::default() }),
            options: None,
        };
        let (mut back, mut read) = (tokio::io::duplex(4 << 20), Vec::new());
        let sent = bytes.clone();
        let sending = tokio::spawn(async move { to.send(&sent[..]).await });
        let receiving = tokio::spawn(async move { from.receive(&mut back.0).await.is_ok() });
        client.transfer().transfer(request).await.unwrap();
        sending.await.unwrap().unwrap();
        assert!(receiving.await.unwrap());
        back.1.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes, "{length}");
    }
    assert!(!daemon.log().contains("panicked"));
}
