//! The door for shims that publish by themselves: `containerd.services.events.ttrpc.v1.Events` over ttrpc.
//!
//! What they tell of tasks goes to the supervisor, which makes the events of its tasks itself, so that there is one
//! order and each is told once; everything else goes to the journal as it is.
//!
//! **Invariant:** only a process with our own uid and gid is listened to, and only an envelope with a valid namespace
//! and topic reaches the journal.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use api_grpc::containerd::services::events::ttrpc::v1::ForwardRequest;
use api_grpc::decode;
use async_trait::async_trait;
use events::{Envelope, Journal};
use futures::stream;
use model::{Code, Coded as _};
use prost::Message as _;
use protobuf::EnumOrUnknown;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{MethodHandler, Server, Service, TtrpcContext};
use ttrpc::proto::{Request, Response, Status};

use crate::{Error, Supervisor};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// The ttrpc socket of the daemon.
pub struct EventServer {
    server: Server,
    path: PathBuf,
}

impl std::fmt::Debug for EventServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventServer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EventServer {
    /// Listens at `path` (mode 0660, of `uid` and `gid`), in place of a stale socket, and serves in the background.
    pub async fn start(
        path: &Path,
        uid: u32,
        gid: u32,
        journal: Journal,
        supervisor: Supervisor,
    ) -> Result<Self, Error> {
        let listener = bind(path, uid, gid)?;
        let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Forward { journal, supervisor });
        let service = Service { methods: HashMap::from([("Forward".to_owned(), method)]), streams: HashMap::new() };
        let mut server = Server::new()
            .add_listener(Listener::new(accept(listener)))
            .register_service(HashMap::from([(SERVICE.to_owned(), service)]));
        server.start().await.map_err(|error| Error::Socket {
            operation: "serve",
            path: path.to_owned(),
            source: io::Error::other(error),
        })?;
        Ok(Self { server, path: path.to_owned() })
    }

    /// Ends the connections and removes the socket.
    pub async fn stop(mut self) -> Result<(), Error> {
        let failed = |source| Error::Socket { operation: "stop", path: self.path.clone(), source };
        self.server.shutdown().await.map_err(|error| failed(io::Error::other(error)))?;
        fs::remove_file(&self.path).map_err(failed)
    }
}

/// Publishes an event at the daemon that listens at `address`, as a shim does. `event` is an encoded `Any`. Gives up after
/// five seconds.
pub async fn publish(address: &Path, namespace: String, topic: String, event: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Socket { operation: "publish at", path: address.to_owned(), source };
    let event = prost_types::Any::decode(event).map_err(|error| failed(io::Error::other(error)))?;
    let timestamp = api_grpc::encode::timestamp(model::Timestamp::now());
    let envelope = api_grpc::types::Envelope { timestamp, namespace, topic, event: Some(event), cursor: String::new() };
    let request = Request {
        service: SERVICE.to_owned(),
        method: "Forward".to_owned(),
        payload: ForwardRequest { envelope: Some(envelope) }.encode_to_vec(),
        ..Request::default()
    };
    let publishing = async {
        let stream = UnixStream::connect(address).await?;
        let client = ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::from(stream));
        match client.request(request).await {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(io::Error::other(status.message)),
            Err(error) => Err(io::Error::other(error)),
        }
    };
    let limit = std::time::Duration::from_secs(5);
    tokio::time::timeout(limit, publishing)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)
}

fn bind(path: &Path, uid: u32, gid: u32) -> Result<UnixListener, Error> {
    let failed = |operation| move |source| Error::Socket { operation, path: path.to_owned(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
        fs::DirBuilder::new().recursive(true).mode(0o770).create(parent).map_err(failed("make the directory of"))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the stale socket")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed("set the mode of"))?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed("set the owner of"))?;
    Ok(listener)
}

/// Accepted connections, without those of strangers.
fn accept(listener: UnixListener) -> impl stream::Stream<Item = io::Result<UnixStream>> + Send {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    stream::unfold(listener, move |listener| async move {
        loop {
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => return Some((Err(error), listener)),
            };
            match connection.peer_cred() {
                Ok(peer) if (peer.uid(), peer.gid()) == own => return Some((Ok(connection), listener)),
                Ok(peer) => tracing::warn!(
                    uid = peer.uid(),
                    gid = peer.gid(),
                    pid = peer.pid(),
                    "a stranger at the socket for shims is refused"
                ),
                Err(error) => tracing::warn!(%error, "a caller at the socket for shims cannot be identified"),
            }
        }
    })
}

struct Forward {
    journal: Journal,
    supervisor: Supervisor,
}

impl Forward {
    fn publish(&self, request: &Request) -> Result<(), (Code, String)> {
        let request = ForwardRequest::decode(request.payload.as_slice())
            .map_err(|error| (Code::InvalidArgument, error.to_string()))?;
        let envelope =
            request.envelope.ok_or((Code::InvalidArgument, "envelope required: invalid argument".to_owned()))?;
        let envelope = Envelope {
            timestamp: decode::timestamp(envelope.timestamp),
            namespace: envelope.namespace,
            topic: envelope.topic,
            event: envelope.event.map(decode::any).unwrap_or_default(),
        };
        if self.supervisor.hear(&envelope) {
            return Ok(());
        }
        self.journal.publish(envelope).map(drop).map_err(|error| (error.code(), model::render(&error)))
    }
}

#[async_trait]
impl MethodHandler for Forward {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::default();
        if let Err((code, message)) = self.publish(&request) {
            let status = Status { code: EnumOrUnknown::from_i32(code.grpc()), message, ..Status::default() };
            response.status = Some(status).into();
        }
        Ok(response)
    }
}
