//! Records of sandboxes, over the wire and over the death of the daemon.

use std::path::Path;

use api_grpc::services::sandbox::store_client::StoreClient;
use api_grpc::services::sandbox::{
    StoreCreateRequest, StoreDeleteRequest, StoreGetRequest, StoreListRequest, StoreUpdateRequest,
};
use api_grpc::types::{Sandbox, sandbox};
use testkit::Daemon;
use tonic::{Code, Request};

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
    request
}

fn sandbox(id: &str) -> Sandbox {
    let runtime = sandbox::Runtime { name: "io.containerd.gantry.v2".to_owned(), options: None };
    let labels = [("k".to_owned(), id.to_owned())].into();
    Sandbox { sandbox_id: id.to_owned(), runtime: Some(runtime), labels, ..Sandbox::default() }
}

async fn store(daemon: &Daemon) -> StoreClient<tonic::transport::Channel> {
    StoreClient::new(client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap().channel())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_outlive_the_daemon() {
    let mut daemon = Daemon::start("sandboxes");
    let mut client = store(&daemon).await;
    let mut made = Vec::new();
    for id in ["a", "b"] {
        let create = StoreCreateRequest { sandbox: Some(sandbox(id)) };
        made.extend(client.create(request(create)).await.unwrap().into_inner().sandbox);
    }
    assert!(made.iter().all(|made| made.created_at.is_some() && made.created_at == made.updated_at));
    let again = client.create(request(StoreCreateRequest { sandbox: Some(sandbox("a")) })).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::AlreadyExists, "sandbox \"a\": already exists"));
    daemon.kill();
    daemon.launch().unwrap();
    let mut client = store(&daemon).await;
    let found = client.get(request(StoreGetRequest { sandbox_id: "a".to_owned() })).await.unwrap().into_inner();
    assert_eq!(found.sandbox.as_ref(), made.first());
    let list = StoreListRequest { filters: vec!["labels.k==b".to_owned()] };
    assert_eq!(client.list(request(list)).await.unwrap().into_inner().list, [made.remove(1)]);

    let mut changed = sandbox("a");
    changed.labels.insert("k".to_owned(), "new".to_owned());
    let update = StoreUpdateRequest { sandbox: Some(changed), fields: vec!["labels.k".to_owned()] };
    let updated = client.update(request(update)).await.unwrap().into_inner().sandbox.unwrap();
    assert_eq!(updated.labels.get("k").map(String::as_str), Some("new"));
    for id in ["a", "b"] {
        client.delete(request(StoreDeleteRequest { sandbox_id: id.to_owned() })).await.unwrap();
    }
    let gone = client.get(request(StoreGetRequest { sandbox_id: "a".to_owned() })).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);

    let nameless = Sandbox { runtime: None, ..sandbox("c") };
    let large =
        Sandbox { spec: Some(prost_types::Any { value: vec![0; 2 << 20], ..Default::default() }), ..sandbox("c") };
    for wrong in [None, Some(sandbox("")), Some(sandbox("../x")), Some(nameless), Some(large)] {
        let refused = client.create(request(StoreCreateRequest { sandbox: wrong })).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}
