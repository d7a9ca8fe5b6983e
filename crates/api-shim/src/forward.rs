use std::time::Duration;

use containerd_shim_protos::shim_async::EventsClient;
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use crate::messages;

/// How long a daemon may take to answer a Forward.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// An event could not be handed over. The caller keeps it and tries again.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nobody listens at the daemon's address.
    #[error("connect to {address}")]
    Connect {
        /// The socket.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The daemon refused or went away.
    #[error("forward an event")]
    Forward(#[source] ttrpc::Error),
}

impl model::Coded for ForwardError {
    fn code(&self) -> model::Code {
        match self {
            Self::Connect { .. } | Self::Forward(_) => model::Code::Unavailable,
        }
    }
}

/// Hands events to the daemon that listens at a ttrpc address. The connection is made with the first event and kept.
pub struct Forwarder {
    path: String,
    client: Option<EventsClient>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// A forwarder to `address`: a path, with or without `unix://` before it. Nothing is connected yet.
    pub fn new(address: &str) -> Self {
        Self { path: address.strip_prefix("unix://").unwrap_or(address).to_owned(), client: None }
    }

    /// Hands one event over and waits, at most 5 s, for the daemon to have taken it.
    ///
    /// A kept connection may have died with an earlier life of the daemon; then one new connection is tried at once.
    /// Not cancel-safe: a cancelled call may or may not have delivered.
    pub async fn forward(&mut self, envelope: messages::Envelope) -> Result<(), ForwardError> {
        let mut request = messages::ForwardRequest::new();
        request.envelope = protobuf::MessageField::some(envelope);
        if let Some(client) = &self.client {
            match send(client, &request).await {
                Ok(()) => return Ok(()),
                // The daemon answered: another connection would hear the same.
                Err(error @ ttrpc::Error::RpcStatus(_)) => return Err(ForwardError::Forward(error)),
                Err(_) => self.client = None,
            }
        }
        let client = self.connect().await?;
        let result = send(&client, &request).await.map_err(ForwardError::Forward);
        if result.is_ok() {
            self.client = Some(client);
        }
        result
    }

    async fn connect(&self) -> Result<EventsClient, ForwardError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ForwardError::Connect { address: self.path.clone(), source })?;
        Ok(EventsClient::new(Client::new(Socket::from(stream))))
    }
}

async fn send(client: &EventsClient, request: &messages::ForwardRequest) -> ttrpc::Result<()> {
    let context = ttrpc::context::with_duration(FORWARD_TIMEOUT);
    client.forward(context, request).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    struct Seen(Arc<Mutex<Vec<String>>>);

    #[async_trait]
    impl Events for Seen {
        async fn forward(&self, _: &TtrpcContext, request: messages::ForwardRequest) -> ttrpc::Result<messages::Empty> {
            self.0.lock().unwrap().push(request.envelope.topic.clone());
            Ok(messages::Empty::new())
        }
    }

    fn envelope(topic: &str) -> messages::Envelope {
        let mut envelope = messages::Envelope::new();
        envelope.topic = topic.to_owned();
        envelope
    }

    #[tokio::test]
    async fn reconnects_after_the_daemon_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let address = format!("unix://{}", path.display());
        let mut forwarder = Forwarder::new(&address);
        assert!(matches!(forwarder.forward(envelope("/0")).await, Err(ForwardError::Connect { .. })));
        let seen = Arc::new(Mutex::new(Vec::new()));
        for topic in ["/1", "/2"] {
            let _ = std::fs::remove_file(&path);
            let mut server = Server::new()
                .bind(&address)
                .unwrap()
                .register_service(create_events(Arc::new(Seen(Arc::clone(&seen)))));
            server.start().await.unwrap();
            forwarder.forward(envelope(topic)).await.unwrap();
            server.shutdown().await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), ["/1", "/2"]);
    }
}
