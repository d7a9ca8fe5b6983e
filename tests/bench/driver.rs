//! Daemons that serve the containerd API, and what is asked of them in turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api_grpc::runc_options;
use api_grpc::services::containers::container::Runtime;
use api_grpc::services::containers::{Container, CreateContainerRequest, DeleteContainerRequest};
use api_grpc::services::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use api_grpc::services::tasks::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, KillRequest, StartRequest,
    WaitRequest,
};
use bench_runtime::spec::{VARIANTS, Variant, document, seccomp};
use client::Client;
use prost::Message as _;
use prost_types::Any;
use testkit::{Containerd, Daemon, Leaks, Settings, busybox_image};

use crate::account::Account;
use crate::options::Options;

pub const IMAGE: &str = "docker.io/library/busybox:latest";
const SNAPSHOTTER: &str = "overlayfs";

/// The daemons under measurement and what they stand on.
pub struct Field {
    pub subjects: Vec<Subject>,
    peer_cgroup: String,
    directory: tempfile::TempDir,
    _theirs: Option<Containerd>,
    pub ours: Daemon,
}

impl Field {
    /// Starts gantryd and Debian's containerd, and connects to the others.
    pub async fn open(options: &Options) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let image = directory.path().join("busybox.tar");
        busybox_image(&image, IMAGE)?;
        let hosts = directory.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n")?;
        let peer_cgroup = format!("/gantry-bench-peer-{}", std::process::id());
        // As much as Debian's containerd logs by default.
        let ours = Daemon::start_with("bench", Settings { log_level: Some("info"), ..Settings::default() });
        let mut subjects = vec![Subject::prepare("gantryd", &ours.address(), ours.cgroup(), &image, &hosts).await?];
        subjects[0].follow(ours.pid(), Arc::new(Account::open(ours.cgroup(), ours.pid())?));
        let mut theirs = None;
        if !options.alone {
            let daemon = Containerd::start(&directory.path().join("containerd"), None)?;
            let account = Arc::new(Account::open(&peer_cgroup, daemon.pid())?);
            for binary in std::iter::once(None).chain(options.binaries.iter().map(Some)) {
                let program = binary.map_or("runc", |path| path.rsplit('/').next().unwrap_or(path));
                let name = format!("containerd+{program}");
                let cgroup = format!("{peer_cgroup}/{program}");
                let mut subject = Subject::prepare(&name, &daemon.address(), &cgroup, &image, &hosts).await?;
                subject.options = binary.map(|binary| binary_option(binary));
                subject.follow(daemon.pid(), Arc::clone(&account));
                subjects.push(subject);
            }
            theirs = Some(daemon);
        }
        for (name, socket) in &options.peers {
            let cgroup = format!("{peer_cgroup}/{name}");
            subjects.push(Subject::prepare(name, socket, &cgroup, &image, &hosts).await?);
        }
        Ok(Self { subjects, peer_cgroup, directory, _theirs: theirs, ours })
    }
}

impl Field {
    /// A directory for what a benchmark makes.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        for subject in &self.subjects {
            if let Some(account) = &subject.account {
                account.close();
            }
            // What containers of a peer left above themselves.
            Leaks::new(self.directory.path(), &subject.cgroup).remove_own_cgroup();
        }
        Leaks::new(self.directory.path(), &self.peer_cgroup).remove_own_cgroup();
    }
}

fn binary_option(binary: &str) -> Any {
    let options = runc_options::Options { binary_name: binary.to_owned(), ..runc_options::Options::default() };
    Any { type_url: api_grpc::type_url::RUNC_OPTIONS.into(), value: options.encode_to_vec() }
}

/// A daemon under measurement.
pub struct Subject {
    pub name: String,
    pub client: Client,
    pub cgroup: String,
    /// The processor time of its daemon and what that starts.
    pub account: Option<Arc<Account>>,
    pub daemon: Option<u32>,
    options: Option<Any>,
    parent: String,
    hosts: PathBuf,
}

impl Subject {
    /// Connects, imports the image and unpacks it, so that only containers are measured.
    async fn prepare(name: &str, address: &str, cgroup: &str, image: &Path, hosts: &Path) -> Result<Self> {
        let client = Client::connect(Path::new(address), "bench").await?;
        client::image::import(&client, image, SNAPSHOTTER).await.with_context(|| format!("{name}: import"))?;
        let parent = client::image::unpack(&client, IMAGE, SNAPSHOTTER).await?.chain_id;
        Ok(Self {
            name: name.to_owned(),
            client,
            cgroup: cgroup.to_owned(),
            account: None,
            daemon: None,
            options: None,
            parent,
            hosts: hosts.to_owned(),
        })
    }

    fn follow(&mut self, daemon: u32, account: Arc<Account>) {
        self.daemon = Some(daemon);
        self.account = Some(account);
    }

    /// Snapshot, container record and task; the process waits to be started. Its streams go nowhere.
    pub async fn create(&self, id: &str, command: &[&str], variant: Variant) -> Result<()> {
        self.create_with(id, command, variant, "").await
    }

    /// As [`Subject::create`], with its output going to `stdout`: a FIFO or a URI.
    pub async fn create_with(&self, id: &str, command: &[&str], variant: Variant, stdout: &str) -> Result<()> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: id.into(),
            parent: self.parent.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into_iter().collect(),
        };
        let rootfs = self.client.snapshots().prepare(prepare).await?.into_inner().mounts;
        let document = document(variant, command, &self.hosts, &format!("{}/{id}", self.cgroup), &seccomp(None)?);
        let container = Container {
            id: id.into(),
            image: IMAGE.into(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: self.options.clone() }),
            spec: Some(Any { type_url: api_grpc::type_url::SPEC.into(), value: serde_json::to_vec(&document)? }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.into(),
            ..Container::default()
        };
        self.client.containers().create(CreateContainerRequest { container: Some(container) }).await?;
        let request = CreateTaskRequest {
            container_id: id.into(),
            rootfs,
            options: self.options.clone(),
            stdout: stdout.to_owned(),
            // Debian's shim wants both or none.
            stderr: stdout.to_owned(),
            ..CreateTaskRequest::default()
        };
        self.client.tasks().create(request).await?;
        Ok(())
    }

    /// Starts init or, with an exec id, an additional process; gives its pid.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = StartRequest { container_id: id.into(), exec_id: exec_id.into() };
        Ok(self.client.tasks().start(request).await?.into_inner().pid)
    }

    /// Waits for the end; gives the exit status.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = WaitRequest { container_id: id.into(), exec_id: exec_id.into() };
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
        self.wait(id, "").await?;
        self.remove(id).await
    }

    /// One whole life of `true`, prepare to remove.
    pub async fn life(&self, id: &str, variant: Variant) -> Result<Duration> {
        let began = Instant::now();
        self.create(id, &["true"], variant).await?;
        self.start(id, "").await?;
        let status = self.wait(id, "").await?;
        self.remove(id).await?;
        ensure!(status == 0, "{}: {id} ended with {status}", self.name);
        Ok(began.elapsed())
    }

    /// One additional `true` in a running container, exec to delete.
    pub async fn exec(&self, id: &str, exec_id: &str) -> Result<Duration> {
        let process =
            serde_json::json!({"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/", "env": ["PATH=/bin"]});
        let spec = Any { type_url: api_grpc::type_url::PROCESS.into(), value: serde_json::to_vec(&process)? };
        let began = Instant::now();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            spec: Some(spec),
            ..ExecProcessRequest::default()
        };
        self.client.tasks().exec(request).await?;
        self.start(id, exec_id).await?;
        let status = self.wait(id, exec_id).await?;
        let request = DeleteProcessRequest { container_id: id.into(), exec_id: exec_id.into() };
        self.client.tasks().delete_process(request).await?;
        ensure!(status == 0, "{}: exec {exec_id} ended with {status}", self.name);
        Ok(began.elapsed())
    }
}

/// The variant that the figures of a life are about: a network namespace and a profile like Docker's.
pub fn docker_like() -> Variant {
    VARIANTS[2]
}

/// The value below which `percent` of the sorted samples lie.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> T {
    sorted[(sorted.len() - 1) * percent / 100]
}
