use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use api_grpc::services::containers::GetContainerRequest;
use api_grpc::services::tasks::GetRequest;
use api_grpc::task_types::Status;
use clap::Args;
use client::Client;

/// Label of a container whose output goes to a file: the URI that the task was created with.
pub(crate) const LABEL: &str = "gantry/log-uri";

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// Go on until the container ends.
    #[arg(long, short)]
    follow: bool,
    /// The container.
    id: String,
}

/// The URI of a detached container's output.
pub(crate) fn uri(directory: &Path, namespace: &str, id: &str) -> String {
    format!("file://{}/{namespace}/{id}.log", directory.display())
}

pub(crate) async fn logs(client: &Client, logs: Logs) -> Result<()> {
    let get = GetContainerRequest { id: logs.id.clone() };
    let record = client.containers().get(get).await?.into_inner().container.unwrap_or_default();
    let Some(path) = record.labels.get(LABEL).and_then(|uri| uri.strip_prefix("file://")) else {
        bail!("container {:?} does not write to a file: only `run -d` makes one do so", logs.id);
    };
    let mut file = std::fs::File::open(path).with_context(|| format!("open {path}"))?;
    loop {
        // Asked before reading: what a stopped task wrote is all there.
        let over = !logs.follow || stopped(client, &logs.id).await?;
        io::copy(&mut file, &mut io::stdout().lock()).context("print the log")?;
        io::stdout().flush()?;
        if over {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn stopped(client: &Client, id: &str) -> Result<bool> {
    match client.tasks().get(GetRequest { container_id: id.to_owned(), exec_id: String::new() }).await {
        Ok(reply) => Ok(reply.into_inner().process.unwrap_or_default().status() == Status::Stopped),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
        Err(status) => Err(status.into()),
    }
}
