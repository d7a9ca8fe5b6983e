use std::path::PathBuf;

use anyhow::{Result, bail};
use api_grpc::services::containers::container::Runtime;
use api_grpc::services::containers::{Container, CreateContainerRequest};
use api_grpc::services::snapshots::PrepareSnapshotRequest;
use api_grpc::services::tasks::{CreateTaskRequest, StartRequest};
use api_grpc::type_url;
use clap::Args;
use client::Client;
use client::stdio::Fifos;
use prost_types::Any;

use crate::spec::{self, Wishes};
use crate::{container, log, task, terminal};

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Remove the container and its snapshot when it has ended.
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Leave it running in the background; its output goes to a file that `logs` shows.
    #[arg(long, short)]
    detach: bool,
    /// Give it a terminal, connected to this one.
    #[arg(long, short, conflicts_with = "detach")]
    tty: bool,
    /// Set a variable, NAME=VALUE; may be repeated.
    #[arg(long, short)]
    env: Vec<String>,
    /// Mount a directory or file of the host, SOURCE:TARGET or SOURCE:TARGET:ro; may be repeated.
    #[arg(long, short)]
    volume: Vec<String>,
    /// Working directory inside.
    #[arg(long)]
    cwd: Option<String>,
    /// UID or UID:GID in numbers.
    #[arg(long, short)]
    user: Option<String>,
    /// Host name inside.
    #[arg(long)]
    hostname: Option<String>,
    /// Limit of memory, for instance 64m.
    #[arg(long, value_parser = spec::bytes)]
    memory: Option<i64>,
    /// Limit of processor time, for instance 0.5.
    #[arg(long)]
    cpus: Option<f64>,
    /// Limit of processes and threads.
    #[arg(long)]
    pids: Option<i64>,
    /// Make the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Use the host's network instead of an empty one.
    #[arg(long)]
    net_host: bool,
    /// Cgroup below each hierarchy's root; /gantry/NAMESPACE/ID otherwise.
    #[arg(long)]
    cgroup: Option<String>,
    /// Where the file system comes from.
    #[arg(long, default_value = "overlayfs")]
    snapshotter: String,
    /// Directory of the FIFOs for standard streams.
    #[arg(long, default_value = "/run/gantry/fifo")]
    fifo_dir: PathBuf,
    /// Directory of the output files of detached containers.
    #[arg(long, default_value = "/var/log/gantry")]
    log_dir: PathBuf,
    /// Full name of an imported image.
    image: String,
    /// Name of the new container.
    id: String,
    /// What to run instead of the image's own command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(client: &Client, namespace: &str, mut run: Run) -> Result<u8> {
    let wishes = Wishes {
        command: std::mem::take(&mut run.command),
        environment: std::mem::take(&mut run.env),
        cwd: run.cwd.take(),
        user: run.user.take(),
        memory: run.memory,
        cpus: run.cpus,
        pids: run.pids,
        hostname: Some(run.hostname.take().unwrap_or_else(|| run.id.clone())),
        read_only: run.read_only,
        terminal: run.tty,
        cgroup: run.cgroup.take().unwrap_or_else(|| format!("/gantry/{namespace}/{}", run.id)),
        volumes: std::mem::take(&mut run.volume),
        host_network: run.net_host,
    };
    let (_, config) = client::image::config(client, &run.image).await?;
    let document = spec::spec(&config, &wishes)?;
    let mounts = create(client, namespace, &run, &document).await?;
    let outcome = start(client, namespace, &run, mounts).await;
    // A container that never ran is of no use to anybody; one that ran stays unless --rm.
    if run.rm || outcome.is_err() {
        let removed = container::remove(client, &run.id, true).await;
        let code = outcome?;
        removed?;
        return Ok(code);
    }
    outcome
}

/// Makes the snapshot and the container record; a failure in the middle leaves nothing.
async fn create(
    client: &Client,
    namespace: &str,
    run: &Run,
    document: &serde_json::Value,
) -> Result<Vec<api_grpc::types::Mount>> {
    let parent = client::image::unpack(client, &run.image, &run.snapshotter).await?.chain_id;
    let prepare = PrepareSnapshotRequest {
        snapshotter: run.snapshotter.clone(),
        key: run.id.clone(),
        parent,
        // The container record keeps the snapshot; until there is one, this label does.
        labels: [("containerd.io/gc.root".to_owned(), model::Timestamp::now().seconds.to_string())]
            .into_iter()
            .collect(),
    };
    let mounts = client.snapshots().prepare(prepare).await?.into_inner().mounts;
    let mut labels = std::collections::BTreeMap::new();
    if run.detach {
        labels.insert(log::LABEL.to_owned(), log::uri(&run.log_dir, namespace, &run.id));
    }
    let record = Container {
        id: run.id.clone(),
        labels,
        image: run.image.clone(),
        runtime: Some(Runtime { name: "io.containerd.gantry.v2".into(), options: None }),
        spec: Some(Any { type_url: type_url::SPEC.into(), value: serde_json::to_vec(document)? }),
        snapshotter: run.snapshotter.clone(),
        snapshot_key: run.id.clone(),
        ..Container::default()
    };
    let created = client.containers().create(CreateContainerRequest { container: Some(record) }).await;
    if let Err(status) = created {
        let _ = container::remove_snapshot(client, &run.snapshotter, &run.id).await;
        return Err(status.into());
    }
    Ok(mounts)
}

async fn start(client: &Client, namespace: &str, run: &Run, rootfs: Vec<api_grpc::types::Mount>) -> Result<u8> {
    let base =
        CreateTaskRequest { container_id: run.id.clone(), rootfs, terminal: run.tty, ..CreateTaskRequest::default() };
    if run.detach {
        let uri = log::uri(&run.log_dir, namespace, &run.id);
        let request = CreateTaskRequest { stdout: uri.clone(), stderr: uri, ..base };
        client.tasks().create(request).await?;
        client.tasks().start(StartRequest { container_id: run.id.clone(), exec_id: String::new() }).await?;
        println!("{}", run.id);
        return Ok(0);
    }
    let fifos = Fifos::create(&run.fifo_dir, &run.id, true, run.tty)?;
    let raw = run.tty.then(terminal::Raw::enter).transpose()?;
    let copying = fifos.copy(tokio::io::stdout(), tokio::io::stderr())?;
    let (stdin, stdout, stderr) = fifos.paths();
    client.tasks().create(CreateTaskRequest { stdin, stdout, stderr, ..base }).await?;
    let code = task::attach(client, &run.id, "", &fifos).await?;
    task::delete(client, &run.id).await?;
    copying.finish().await;
    drop(raw);
    u8::try_from(code).or_else(|_| bail!("the container ended with the status {code}"))
}
