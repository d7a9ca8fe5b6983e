use anyhow::{Context as _, Result, bail};
use api_grpc::decode::unpack;
use api_grpc::events::TaskExit;
use api_grpc::services::events::SubscribeRequest;
use clap::Args;
use client::Client;

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Resume behind this cursor, or `now`; prints the cursor of each event in front of it. Needs gantryd.
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
    /// Only what matches, for instance 'topic~=|^/tasks/|' or namespace==default; several filters widen the choice.
    filters: Vec<String>,
}

pub(crate) async fn events(client: &Client, events: Events) -> Result<()> {
    let mut request = tonic::Request::new(SubscribeRequest { filters: events.filters });
    if let Some(since) = &events.since {
        let value = since.parse().with_context(|| format!("{since:?} is no cursor"))?;
        request.metadata_mut().insert("gantry-events-since", value);
    }
    let answer = client.events().subscribe(request).await?;
    if events.since.is_some() && answer.metadata().get("gantry-events-cursor").is_none() {
        bail!("this daemon knows no cursors: leave --since out");
    }
    let mut stream = answer.into_inner();
    while let Some(envelope) = stream.message().await? {
        let time = envelope.timestamp.unwrap_or_default();
        let payload = envelope.event.unwrap_or_default();
        let detail = payload_text(&model::Any { type_url: payload.type_url, value: payload.value });
        if events.since.is_some() {
            print!("{} ", envelope.cursor);
        }
        println!("{}.{:09} {} {} {detail}", time.seconds, time.nanos, envelope.namespace, envelope.topic);
    }
    bail!("the daemon closed the stream")
}

/// The fields that tell events of tasks, containers, images and snapshots apart, and how a process ended.
fn payload_text(payload: &model::Any) -> String {
    const FIELDS: &[&str] =
        &["container_id", "exec_id", "id", "name", "key", "parent", "snapshotter", "image", "digest"];
    let mut words = Vec::new();
    for field in FIELDS {
        if let Some(value) = api_grpc::event_field(payload, &[field]) {
            words.push(format!("{field}={value}"));
        }
    }
    if let Ok(exit) = unpack::<TaskExit>(payload) {
        words.push(format!("pid={} exit_status={}", exit.pid, exit.exit_status));
    }
    words.join(" ")
}
