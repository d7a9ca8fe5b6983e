//! Events for a daemon that is not ours. Under gantryd the shim makes none.
//!
//! **Invariant:** one queue, one sender: events arrive in the order in which they happened. An event that the daemon
//! does not take is tried again while the others wait behind it, which is what keeps the order; after five more tries
//! it is dropped, because a daemon that was away for that long asks for the state anyway.

use std::time::Duration;

use api_shim::messages::{self, events as payload};
use api_shim::{Forwarder, convert};
use model::Timestamp;
use protobuf::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that may wait for the daemon. More than this happen only while it is away for long.
const QUEUE_LENGTH: usize = 1024;
/// Pauses between the tries of one event.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(4),
    Duration::from_secs(5),
];

/// An event of a task.
#[derive(Debug)]
pub(crate) enum Event {
    Create(payload::TaskCreate),
    Start(payload::TaskStart),
    Exit(payload::TaskExit),
    Delete(payload::TaskDelete),
    ExecAdded(payload::TaskExecAdded),
    ExecStarted(payload::TaskExecStarted),
    Paused(payload::TaskPaused),
    Resumed(payload::TaskResumed),
    Oom(payload::TaskOOM),
}

impl Event {
    fn encode(&self) -> (&'static str, &'static str, protobuf::Result<Vec<u8>>) {
        match self {
            Self::Create(event) => ("/tasks/create", "containerd.events.TaskCreate", event.write_to_bytes()),
            Self::Start(event) => ("/tasks/start", "containerd.events.TaskStart", event.write_to_bytes()),
            Self::Exit(event) => ("/tasks/exit", "containerd.events.TaskExit", event.write_to_bytes()),
            Self::Delete(event) => ("/tasks/delete", "containerd.events.TaskDelete", event.write_to_bytes()),
            Self::ExecAdded(event) => ("/tasks/exec-added", "containerd.events.TaskExecAdded", event.write_to_bytes()),
            Self::ExecStarted(event) => {
                ("/tasks/exec-started", "containerd.events.TaskExecStarted", event.write_to_bytes())
            }
            Self::Paused(event) => ("/tasks/paused", "containerd.events.TaskPaused", event.write_to_bytes()),
            Self::Resumed(event) => ("/tasks/resumed", "containerd.events.TaskResumed", event.write_to_bytes()),
            Self::Oom(event) => ("/tasks/oom", "containerd.events.TaskOOM", event.write_to_bytes()),
        }
    }
}

/// Takes events and sends them in the background.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<messages::Envelope>,
}

impl Publisher {
    /// Starts sending to the daemon's ttrpc socket. The handle ends when the publisher is dropped and the queue is
    /// empty.
    pub(crate) fn start(namespace: &str, address: &str) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_LENGTH);
        let sender = tokio::spawn(send_all(Forwarder::new(address), waiting));
        (Self { namespace: namespace.to_owned(), queue }, sender)
    }

    /// Queues an event. Does not wait; an event that finds the queue full is lost.
    pub(crate) fn publish(&self, event: &Event) {
        let (topic, name, Ok(bytes)) = event.encode() else { return };
        let mut envelope = messages::Envelope::new();
        envelope.timestamp = convert::timestamp(Timestamp::now());
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic.to_owned();
        envelope.event = convert::any(name, bytes);
        let _ = self.queue.try_send(envelope);
    }
}

async fn send_all(mut forwarder: Forwarder, mut waiting: mpsc::Receiver<messages::Envelope>) {
    while let Some(envelope) = waiting.recv().await {
        for pause in PAUSES {
            if forwarder.forward(envelope.clone()).await.is_ok() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
    }
}
