//! Containers without an image: one directory is the root of all of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use api_grpc::services::containers::container::Runtime;
use api_grpc::services::containers::{Container, CreateContainerRequest, DeleteContainerRequest};
use api_grpc::services::tasks::{CreateTaskRequest, DeleteTaskRequest, StartRequest};
use client::Client;
use serde_json::{Value, json};
use tonic::Status;

/// Makes a root with busybox in `directory`.
pub fn root(directory: &Path) -> PathBuf {
    let root = directory.join("rootfs");
    for name in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("bin/busybox"), testkit::requires_busybox().unwrap()).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in ["sh", "sleep", "mkdir", "dd", "yes"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    root
}

/// A specification on that root.
pub fn spec(root: &Path, cgroup: &str, command: &[&str]) -> Value {
    let mut spec = testkit::specification(command, cgroup);
    spec["root"]["path"] = json!(root);
    spec
}

/// The record of a container that any containerd-compatible daemon can run.
pub async fn record(client: &Client, id: &str, spec: &Value) -> Result<(), Status> {
    let spec = prost_types::Any { type_url: api_grpc::type_url::SPEC.into(), value: serde_json::to_vec(spec).unwrap() };
    let container = Container {
        id: id.to_owned(),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(spec),
        ..Container::default()
    };
    client.containers().create(CreateContainerRequest { container: Some(container) }).await.map(drop)
}

/// Creates and starts a container with its streams nowhere, or in a FIFO; gives its pid.
pub async fn run(client: &Client, id: &str, spec: &Value, stdout: &str) -> Result<u32, Status> {
    record(client, id, spec).await?;
    let create =
        CreateTaskRequest { container_id: id.to_owned(), stdout: stdout.into(), ..CreateTaskRequest::default() };
    client.tasks().create(create).await?;
    let start = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
    Ok(client.tasks().start(start).await?.into_inner().pid)
}

/// Removes what there is of a container that has ended.
pub async fn remove(client: &Client, id: &str) -> Result<(), Status> {
    let deleted = client.tasks().delete(DeleteTaskRequest { container_id: id.into() }).await;
    client.containers().delete(DeleteContainerRequest { id: id.into() }).await?;
    deleted.map(drop)
}
