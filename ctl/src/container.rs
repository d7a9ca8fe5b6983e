use anyhow::Result;
use api_grpc::services::containers::{DeleteContainerRequest, GetContainerRequest, ListContainersRequest};
use api_grpc::services::snapshots::RemoveSnapshotRequest;
use api_grpc::services::tasks::{GetRequest, KillRequest, ListTasksRequest, WaitRequest};
use api_grpc::task_types::Status;
use clap::Args;
use client::Client;
use tonic::Code;

use crate::task;

#[derive(Args, Debug)]
pub(crate) struct Ps {
    /// Print names only.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rm {
    /// Kill what still runs.
    #[arg(long, short)]
    force: bool,
    /// Containers.
    #[arg(required = true)]
    ids: Vec<String>,
}

pub(crate) async fn ps(client: &Client, ps: &Ps) -> Result<()> {
    let containers = client.containers().list(ListContainersRequest::default()).await?.into_inner().containers;
    let tasks = client.tasks().list(ListTasksRequest::default()).await?.into_inner().tasks;
    if !ps.quiet {
        println!("{:<30} {:<10} {:<10} IMAGE", "ID", "STATUS", "PID");
    }
    for container in containers {
        if ps.quiet {
            println!("{}", container.id);
            continue;
        }
        let task = tasks.iter().find(|task| task.id == container.id);
        let status = task.map_or("-".to_owned(), |task| match task.status() {
            Status::Stopped => format!("STOPPED({})", task.exit_status),
            Status::Unknown | Status::Created | Status::Running | Status::Paused | Status::Pausing => {
                task.status().as_str_name().to_owned()
            }
        });
        let pid = task.map_or("-".to_owned(), |task| task.pid.to_string());
        println!("{:<30} {status:<10} {pid:<10} {}", container.id, container.image);
    }
    Ok(())
}

pub(crate) async fn rm(client: &Client, rm: Rm) -> Result<()> {
    for id in rm.ids {
        remove(client, &id, rm.force).await?;
        println!("{id}");
    }
    Ok(())
}

/// Removes the task, the record and the snapshot of a container. Parts that are gone already are no error.
pub(crate) async fn remove(client: &Client, id: &str, force: bool) -> Result<()> {
    let get = GetContainerRequest { id: id.to_owned() };
    let record = client.containers().get(get).await?.into_inner().container.unwrap_or_default();
    match client.tasks().get(GetRequest { container_id: id.to_owned(), exec_id: String::new() }).await {
        Ok(reply) => {
            let status = reply.into_inner().process.unwrap_or_default().status();
            if force && status != Status::Stopped {
                end(client, id).await?;
            }
            task::delete(client, id).await?;
        }
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status.into()),
    }
    client.containers().delete(DeleteContainerRequest { id: id.to_owned() }).await?;
    if !record.snapshot_key.is_empty() {
        remove_snapshot(client, &record.snapshotter, &record.snapshot_key).await?;
    }
    Ok(())
}

/// Removes a snapshot unless it is gone.
pub(crate) async fn remove_snapshot(client: &Client, snapshotter: &str, key: &str) -> Result<()> {
    let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    match client.snapshots().remove(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

/// Kills the task and waits for its end.
async fn end(client: &Client, id: &str) -> Result<()> {
    let kill = KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal: 9, all: true };
    match client.tasks().kill(kill).await {
        // It ended by itself.
        Err(status) if status.code() == Code::NotFound => {}
        other => {
            other?;
        }
    }
    client.tasks().wait(WaitRequest { container_id: id.to_owned(), exec_id: String::new() }).await?;
    Ok(())
}
