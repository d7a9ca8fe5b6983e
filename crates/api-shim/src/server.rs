use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use containerd_shim_protos::shim_async::{Task, create_task};
use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::r#async::transport::Listener;

const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// The server cannot be made or started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket handed to us is not usable.
    #[error("prepare the listening socket")]
    Listener(#[source] std::io::Error),
    /// ttrpc refused.
    #[error("start the ttrpc server")]
    Start(#[source] ttrpc::Error),
}

impl model::Coded for ServerError {
    fn code(&self) -> model::Code {
        match self {
            Self::Listener(_) | Self::Start(_) => model::Code::Internal,
        }
    }
}

/// A ttrpc server that serves one implementation of the task service under both of its names.
pub struct Server {
    inner: ttrpc::r#async::Server,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Accepts connections on a listening unix socket from now on. Must be called inside a tokio runtime with its I/O
    /// driver enabled; everything runs as tasks of that runtime.
    ///
    /// Only peers with our own user and group are served: the socket's mode keeps others out already, this keeps out
    /// whoever got hold of a descriptor of it.
    pub async fn start(listener: OwnedFd, service: Arc<dyn Task + Send + Sync>) -> Result<Self, ServerError> {
        let listener = StdUnixListener::from(listener);
        listener.set_nonblocking(true).map_err(ServerError::Listener)?;
        let listener = UnixListener::from_std(listener).map_err(ServerError::Listener)?;
        let mut services = create_task(Arc::clone(&service));
        let mut second: HashMap<_, _> = create_task(service);
        if let Some(methods) = second.remove(TASK_V3) {
            services.insert(TASK_V2.to_owned(), methods);
        }
        let mut inner = ttrpc::r#async::Server::new()
            .add_listener(Listener::new(SameUser { listener, own: credentials() }))
            .register_service(services);
        inner.start().await.map_err(ServerError::Start)?;
        Ok(Self { inner })
    }

    /// Stops accepting, lets requests in flight end (bounded by ttrpc, 10 s), and sends what they answered.
    pub async fn shutdown(&mut self) {
        // The only error is the elapsed bound, and then there is nobody left to answer to.
        let _ = self.inner.shutdown().await;
    }
}

/// User and group that a peer must have: our own.
fn credentials() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Connections of peers that run as the same user and group as we do.
struct SameUser {
    listener: UnixListener,
    own: (u32, u32),
}

impl Stream for SameUser {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.listener.poll_accept(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok((stream, _))) => {
                    let peer = stream.peer_cred().ok().map(|peer| (peer.uid(), peer.gid()));
                    if peer == Some(self.own) {
                        return Poll::Ready(Some(Ok(stream)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages;
    use async_trait::async_trait;
    use containerd_shim_protos::shim_async::TaskClient;
    use ttrpc::r#async::TtrpcContext;

    struct Echo;

    #[async_trait]
    impl Task for Echo {
        async fn connect(
            &self,
            _: &TtrpcContext,
            request: messages::ConnectRequest,
        ) -> ttrpc::Result<messages::ConnectResponse> {
            let mut response = messages::ConnectResponse::new();
            response.version = request.id;
            Ok(response)
        }
    }

    #[tokio::test]
    async fn both_names_are_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = StdUnixListener::bind(&path).unwrap();
        let mut server = Server::start(listener.into(), Arc::new(Echo)).await.unwrap();
        let client = ttrpc::r#async::Client::connect(&format!("unix://{}", path.display())).await.unwrap();

        let mut request = messages::ConnectRequest::new();
        request.id = "x".to_owned();
        let reply = TaskClient::new(client.clone()).connect(ttrpc::context::Context::default(), &request).await;
        assert_eq!(reply.unwrap().version, "x");

        let mut raw = ttrpc::proto::Request::new();
        raw.service = TASK_V2.to_owned();
        raw.method = "Connect".to_owned();
        raw.payload = protobuf::Message::write_to_bytes(&request).unwrap();
        assert!(client.request(raw).await.is_ok());
        server.shutdown().await;
    }
}
