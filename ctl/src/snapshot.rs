use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use api_grpc::services::content::ReadContentRequest;
use api_grpc::services::diff::DiffRequest;
use api_grpc::services::leases::{CreateRequest, DeleteRequest};
use api_grpc::services::snapshots::{
    ListSnapshotsRequest, MountsRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use api_grpc::types::Mount;
use clap::Subcommand;
use client::Client;
use tokio::io::AsyncWriteExt as _;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List snapshots.
    Ls {
        /// Whose.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
    },
    /// Write what a snapshot changes of its parent as a layer.
    Diff {
        /// Key of the snapshot; a container's has the container's id.
        key: String,
        /// The file to be written; standard output if there is none.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// What the layer is to be.
        #[arg(long, default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
        media_type: String,
        /// Whose snapshot it is.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
    },
}

pub(crate) async fn snapshot(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls { snapshotter } => list(client, &snapshotter).await,
        Command::Diff { key, output, media_type, snapshotter } => {
            let created = client.leases().create(CreateRequest::default()).await?.into_inner();
            let lease = created.lease.unwrap_or_default().id;
            let leased = client.with_lease(&lease)?;
            let written = diff(&leased, &snapshotter, &key, &media_type, output).await;
            // The layer and the view were for us alone, and go with it.
            client.leases().delete(DeleteRequest { id: lease, sync: false }).await?;
            written
        }
    }
}

async fn list(client: &Client, snapshotter: &str) -> Result<()> {
    let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters: Vec::new() };
    let mut messages = client.snapshots().list(request).await?.into_inner();
    println!("{:<72} {:<10} PARENT", "KEY", "KIND");
    while let Some(message) = messages.message().await? {
        for info in message.info {
            let kind = info.kind().as_str_name().to_lowercase();
            println!("{:<72} {kind:<10} {}", info.name, info.parent);
        }
    }
    Ok(())
}

async fn diff(client: &Client, snapshotter: &str, key: &str, media_type: &str, output: Option<PathBuf>) -> Result<()> {
    let stat = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let info = client.snapshots().stat(stat).await?.into_inner().info.unwrap_or_default();
    let view = format!("{key} diff view {}", std::process::id());
    let mut views = Vec::new();
    let left = match info.parent.as_str() {
        "" => Vec::new(),
        parent => mounts_of(client, snapshotter, parent, &format!("{view} below"), &mut views).await?,
    };
    let right = if info.kind() == api_grpc::services::snapshots::Kind::Committed {
        mounts_of(client, snapshotter, key, &view, &mut views).await?
    } else {
        let request = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        client.snapshots().mounts(request).await?.into_inner().mounts
    };
    let request = DiffRequest { left, right, media_type: media_type.to_owned(), ..DiffRequest::default() };
    let made = client.diff().diff(request).await;
    for key in views {
        client.snapshots().remove(RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key }).await?;
    }
    let layer = made?.into_inner().diff.unwrap_or_default();
    let read = ReadContentRequest { digest: layer.digest, offset: 0, size: 0 };
    let mut chunks = client.content().read(read).await?.into_inner();
    let mut bytes = 0;
    let mut target: Box<dyn tokio::io::AsyncWrite + Unpin> = match &output {
        Some(path) => {
            Box::new(tokio::fs::File::create(path).await.with_context(|| format!("make {}", path.display()))?)
        }
        None => Box::new(tokio::io::stdout()),
    };
    while let Some(chunk) = chunks.message().await? {
        target.write_all(&chunk.data).await.context("write the layer")?;
        bytes += chunk.data.len();
    }
    target.flush().await.context("write the layer")?;
    if usize::try_from(layer.size) != Ok(bytes) {
        bail!("the layer has {} bytes, but {bytes} came", layer.size);
    }
    Ok(())
}

/// The mounts of a committed snapshot, by a view that is to be removed afterwards.
async fn mounts_of(
    client: &Client,
    snapshotter: &str,
    parent: &str,
    view: &str,
    views: &mut Vec<String>,
) -> Result<Vec<Mount>> {
    let request = ViewSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: view.to_owned(),
        parent: parent.to_owned(),
        ..ViewSnapshotRequest::default()
    };
    let mounts = client.snapshots().view(request).await?.into_inner().mounts;
    views.push(view.to_owned());
    Ok(mounts)
}
