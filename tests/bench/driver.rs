//! One container's life through gRPC, against any daemon that serves the containerd API.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api_grpc::services::containers::container::Runtime;
use api_grpc::services::containers::{Container, CreateContainerRequest, DeleteContainerRequest};
use api_grpc::services::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use api_grpc::services::tasks::{CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest};
use client::Client;

pub const IMAGE: &str = "docker.io/library/busybox:latest";
const SNAPSHOTTER: &str = "overlayfs";

/// A daemon under measurement.
pub struct Subject {
    pub name: &'static str,
    pub client: Client,
    pub cgroup: String,
    parent: String,
}

impl Subject {
    /// Connects, imports the image and unpacks it, so that only containers are measured.
    pub async fn prepare(name: &'static str, address: &str, cgroup: &str, image: &Path) -> Result<Self> {
        let client = Client::connect(Path::new(address), "bench").await?;
        client::image::import(&client, image, SNAPSHOTTER).await.with_context(|| format!("{name}: import"))?;
        let parent = client::image::unpack(&client, IMAGE, SNAPSHOTTER).await?.chain_id;
        Ok(Self { name, client, cgroup: cgroup.to_owned(), parent })
    }

    /// Snapshot, container record and task; the process waits to be started.
    pub async fn create(&self, id: &str, command: &[&str]) -> Result<()> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
            parent: self.parent.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into_iter().collect(),
        };
        let rootfs = self.client.snapshots().prepare(prepare).await?.into_inner().mounts;
        let document = testkit::specification(command, &format!("{}/{id}", self.cgroup));
        let container = Container {
            id: id.into(),
            image: IMAGE.into(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(prost_types::Any {
                type_url: api_grpc::type_url::SPEC.into(),
                value: serde_json::to_vec(&document)?,
            }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.into(),
            ..Container::default()
        };
        self.client.containers().create(CreateContainerRequest { container: Some(container) }).await?;
        self.client
            .tasks()
            .create(CreateTaskRequest { container_id: id.into(), rootfs, ..CreateTaskRequest::default() })
            .await?;
        Ok(())
    }

    /// Starts the process; gives its pid.
    pub async fn start(&self, id: &str) -> Result<u32> {
        let request = StartRequest { container_id: id.into(), exec_id: String::new() };
        Ok(self.client.tasks().start(request).await?.into_inner().pid)
    }

    /// Waits for the end; gives the exit status.
    pub async fn wait(&self, id: &str) -> Result<u32> {
        let request = WaitRequest { container_id: id.into(), exec_id: String::new() };
        Ok(self.client.tasks().wait(request).await?.into_inner().exit_status)
    }

    /// Removes task, record and snapshot.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.client.tasks().delete(DeleteTaskRequest { container_id: id.into() }).await?;
        self.client.containers().delete(DeleteContainerRequest { id: id.into() }).await?;
        self.client
            .snapshots()
            .remove(RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.into() })
            .await?;
        Ok(())
    }

    /// Kills, waits, removes.
    pub async fn end(&self, id: &str) -> Result<()> {
        let kill = KillRequest { container_id: id.into(), signal: 9, all: true, ..KillRequest::default() };
        self.client.tasks().kill(kill).await?;
        self.wait(id).await?;
        self.remove(id).await
    }

    /// One whole life of `true`, prepare to remove.
    pub async fn life(&self, id: &str) -> Result<Duration> {
        let began = Instant::now();
        self.create(id, &["true"]).await?;
        self.start(id).await?;
        let status = self.wait(id).await?;
        self.remove(id).await?;
        ensure!(status == 0, "{}: {id} ended with {status}", self.name);
        Ok(began.elapsed())
    }
}

/// The value below which `percent` of the sorted samples lie.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() - 1) * percent / 100]
}
