//! A subscriber that resumes: it sees every event once, whatever happens to the daemon.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use api_grpc::decode::{self, unpack};
use api_grpc::events as wire;
use api_grpc::services::events::SubscribeRequest;
use api_grpc::types::Envelope;
use client::Client;
use tonic::{Code, Request, Streaming};

use crate::ledger::Ledger;

/// An event as the checker reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) sequence: u64,
    pub(crate) topic: String,
    /// Container, or key of a snapshot.
    pub(crate) id: String,
    /// Additional process; empty for others.
    pub(crate) exec_id: String,
    /// Exit status.
    pub(crate) status: u32,
}

fn seen(envelope: &Envelope) -> Seen {
    let sequence = envelope.cursor.rsplit_once(':').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
    let event = decode::any(envelope.event.clone().unwrap_or_default());
    let field = |name: &str| api_grpc::event_field(&event, &[name]).unwrap_or_default();
    let mut seen = Seen {
        sequence,
        topic: envelope.topic.clone(),
        id: field("container_id"),
        exec_id: field("exec_id"),
        status: 0,
    };
    if seen.id.is_empty() {
        seen.id = if envelope.topic.starts_with("/snapshot/") { field("key") } else { field("id") };
    }
    if let Ok(exit) = unpack::<wire::TaskExit>(&event) {
        seen.status = exit.exit_status;
        if exit.id != exit.container_id {
            seen.exec_id = exit.id;
        }
    }
    seen
}

/// Subscribes behind a cursor; tells as well where the stream begins.
pub(crate) async fn subscribe(address: &Path, since: &str) -> Result<(Streaming<Envelope>, String)> {
    let client = Client::connect(address, "chaos").await?;
    let mut request = Request::new(SubscribeRequest::default());
    request.metadata_mut().insert("gantry-events-since", since.parse()?);
    let answer = client.events().subscribe(request).await?;
    let begin = answer.metadata().get("gantry-events-cursor").context("no cursor")?.to_str()?.to_owned();
    Ok((answer.into_inner(), begin))
}

/// What a resuming subscriber has seen.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) events: Arc<Mutex<Vec<Seen>>>,
    /// Where it began.
    pub(crate) begin: String,
    task: tokio::task::JoinHandle<()>,
}

impl Witness {
    pub(crate) async fn start(address: PathBuf, ledger: Arc<Ledger>) -> Result<Self> {
        let (stream, begin) = subscribe(&address, "now").await?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(follow(address, stream, begin.clone(), Arc::clone(&events), ledger));
        Ok(Self { events, begin, task })
    }

    pub(crate) fn events(&self) -> Vec<Seen> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until an event of this topic has come, and ends.
    pub(crate) async fn until(self, topic: &str) -> Result<(Vec<Seen>, String)> {
        for _ in 0..3000 {
            let events = self.events();
            if events.iter().any(|event| event.topic == topic) {
                self.task.abort();
                return Ok((events, self.begin));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the witness has not seen {topic} within 30 s; {} events in all", self.events().len())
    }
}

async fn follow(
    address: PathBuf,
    mut stream: Streaming<Envelope>,
    mut cursor: String,
    events: Arc<Mutex<Vec<Seen>>>,
    ledger: Arc<Ledger>,
) {
    loop {
        while let Ok(Some(envelope)) = stream.message().await {
            cursor.clone_from(&envelope.cursor);
            events.lock().unwrap_or_else(PoisonError::into_inner).push(seen(&envelope));
        }
        stream = loop {
            match subscribe(&address, &cursor).await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    if let Some(status) = error.downcast_ref::<tonic::Status>()
                        && !matches!(
                            status.code(),
                            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                        )
                    {
                        ledger.complain(format!("the witness cannot resume behind {cursor}: {status}"));
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
    }
}

/// Everything behind a cursor up to an event of this topic, read anew.
pub(crate) async fn read_again(address: &Path, since: &str, topic: &str) -> Result<Vec<Seen>> {
    let (mut stream, _) = subscribe(address, since).await?;
    let mut events = Vec::new();
    let reading = async {
        while let Some(envelope) = stream.message().await? {
            events.push(seen(&envelope));
            if envelope.topic == topic {
                return anyhow::Ok(());
            }
        }
        bail!("the stream ended")
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.context("read the journal again")??;
    Ok(events)
}
