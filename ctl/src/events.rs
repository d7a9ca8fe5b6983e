use anyhow::{Result, bail};
use api_grpc::decode::unpack;
use api_grpc::events::TaskExit;
use api_grpc::services::events::SubscribeRequest;
use clap::Args;
use client::Client;

#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Only what matches, for instance 'topic~=|^/tasks/|' or namespace==default; several filters widen the choice.
    filters: Vec<String>,
}

pub(crate) async fn events(client: &Client, events: Events) -> Result<()> {
    let mut stream = client.events().subscribe(SubscribeRequest { filters: events.filters }).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        let time = envelope.timestamp.unwrap_or_default();
        let payload = envelope.event.unwrap_or_default();
        let detail = payload_text(&model::Any { type_url: payload.type_url, value: payload.value });
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
