use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use api_grpc::containerd::services::events::ttrpc::v1::ForwardRequest;
use api_grpc::encode::pack;
use api_grpc::events::{TaskOom, TaskStart};

use super::*;
use crate::{CreateTask, Error, EventServer};

fn request(runtime: &str) -> CreateTask {
    CreateTask { id: "c".into(), runtime: runtime.into(), spec: b"{}".to_vec(), ..CreateTask::default() }
}

#[tokio::test]
async fn a_shim_that_dies_leaves_nothing_and_says_why() {
    let house = House::new("case $* in *serve) echo 'no cgroup for you' >&2; exit 1;; esac");
    let error = house.supervisor.create(&house.namespace, request("io.containerd.runc.v2")).await.unwrap_err();
    assert_eq!(model::render(&error), "failed to start shim: it ended before it answered: no cgroup for you");
    assert!(!house.bundle("c").exists() && !house.socket("c").exists());
    assert_eq!(house.topics(), [""; 0]);
    assert!(matches!(house.supervisor.get(&house.namespace, "c", ""), Err(Error::TaskNotFound(_))));
    // The name is free again.
    let error = house.supervisor.create(&house.namespace, request("io.containerd.foo.v1")).await.unwrap_err();
    assert_eq!(
        model::render(&error),
        "failed to start shim: failed to resolve runtime path: runtime \"io.containerd.foo.v1\" binary not installed \"containerd-shim-foo-v1\": file does not exist"
    );
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let mut house = House::new("exit 0");
    let (_fake, _shim, _init) = house.task("c", Status::Running).await;
    let error = house.supervisor.create(&house.namespace, request("io.containerd.runc.v2")).await.unwrap_err();
    assert_eq!(model::render(&error), "task c: already exists");
    for id in ["", "a/b", &"x".repeat(5000)] {
        let request = CreateTask { id: id.to_owned(), ..request("io.containerd.runc.v2") };
        let error = house.supervisor.create(&house.namespace, request).await.unwrap_err();
        assert_eq!(model::Coded::code(&error), model::Code::InvalidArgument, "{id}");
    }
}

#[test]
fn a_bundle_is_made_whole_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    // Longer than a socket address.
    let state = directory.path().join("s".repeat(90));
    let root = directory.path().join("root");
    let layout = crate::bundle::Layout::prepare(&state, &root).unwrap();
    let spec = br#"{"linux":{"gidMappings":[{"containerID":0,"hostID":4321,"size":1}]},"hooks":null}"#;
    for (spec, mode, gid) in [(&spec[..], 0o710, 4321), (b"no json", 0o700, 0)] {
        let bundle = layout.make("ns", "id", spec, std::path::Path::new("/shim")).unwrap();
        let metadata = bundle.metadata().unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (mode, gid));
        assert_eq!(std::fs::read(bundle.join("config.json")).unwrap(), spec);
        assert_eq!(std::fs::read(bundle.join("shim-binary-path")).unwrap(), b"/shim");
        assert_eq!(bundle.join("rootfs").metadata().unwrap().permissions().mode() & 0o777, 0o711);
        assert!(bundle.join("work").is_dir());
        let bootstrap: serde_json::Value =
            serde_json::from_slice(&std::fs::read(bundle.join("bootstrap.json")).unwrap()).unwrap();
        assert_eq!(bootstrap["address"], format!("unix://{}", layout.socket("ns", "id").display()));
        std::fs::create_dir_all(bundle.join("execs/a/b")).unwrap();
        // A second one takes the place of what nobody owns.
        layout.make("ns", "id", spec, std::path::Path::new("/shim")).unwrap();
        layout.remove("ns", "id").unwrap();
        layout.remove("ns", "id").unwrap();
        assert_eq!(layout.entries().unwrap(), []);
    }
}

#[tokio::test]
async fn shims_may_forward_events() {
    let mut house = House::new("exit 0");
    let (_fake, _shim, _init) = house.task("c", Status::Running).await;
    let path = house.directory.path().join("gantry.sock.ttrpc");
    std::fs::write(&path, "stale").unwrap();
    let server = EventServer::start(&path, 0, 0, house.journal.clone(), house.supervisor.clone()).await.unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let client = ttrpc::asynchronous::Client::connect(&format!("unix://{}", path.display())).await.unwrap();
    let envelope = |namespace: &str, topic: &str| {
        let (namespace, topic) = (namespace.to_owned(), topic.to_owned());
        Some(api_grpc::types::Envelope {
            timestamp: None,
            namespace,
            topic,
            event: Some(prost_types::Any::default()),
            cursor: String::new(),
        })
    };
    let task_event = |topic: &str, event| {
        let event = Some(api_grpc::encode::any(event));
        envelope("ns", topic).map(|envelope| api_grpc::types::Envelope { event, ..envelope })
    };
    for (envelope, want) in [
        (envelope("ns", "/sandboxes/exit"), None),
        // The supervisor makes these itself.
        (task_event("/tasks/start", pack(&TaskStart { container_id: "c".into(), pid: 1 })), None),
        (task_event("/tasks/oom", pack(&TaskOom { container_id: "nobody".into() })), None),
        (task_event("/tasks/oom", pack(&TaskOom { container_id: "c".into() })), None),
        (envelope("ns", "tasks/oom"), Some(ttrpc::Code::INVALID_ARGUMENT)),
        (envelope("n s", "/tasks/oom"), Some(ttrpc::Code::INVALID_ARGUMENT)),
        (envelope("", ""), Some(ttrpc::Code::INVALID_ARGUMENT)),
        (None, Some(ttrpc::Code::INVALID_ARGUMENT)),
    ] {
        let request = Request {
            service: "containerd.services.events.ttrpc.v1.Events".into(),
            method: "Forward".into(),
            payload: ForwardRequest { envelope }.encode_to_vec(),
            ..Request::default()
        };
        match (client.request(request).await, want) {
            (Ok(_), None) => {}
            (Err(ttrpc::Error::RpcStatus(status)), Some(code)) => assert_eq!(status.code.enum_value(), Ok(code)),
            (got, want) => panic!("{got:?}, want {want:?}"),
        }
    }
    // The lack of memory of our own shim's container is seen in its cgroup.
    assert_eq!(house.topics(), ["create", "start", "/sandboxes/exit"]);
    let any = pack(&TaskStart::default());
    let bytes = api_grpc::encode::any(any).encode_to_vec();
    crate::publish(&path, "ns".into(), "/mine".into(), &bytes).await.unwrap();
    assert_eq!(house.topics().last().unwrap(), "/mine");
    let refused = crate::publish(&path, "ns".into(), "mine".into(), &bytes).await.unwrap_err();
    assert!(model::render(&refused).contains("invalid argument"), "{}", model::render(&refused));
    server.stop().await.unwrap();
    assert!(!path.exists());
}
