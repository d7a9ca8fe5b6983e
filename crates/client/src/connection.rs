use std::path::{Path, PathBuf};

use api_grpc::services::{
    containers::containers_client::ContainersClient, content::content_client::ContentClient,
    diagnosis::diagnosis_client::DiagnosisClient, diff::diff_client::DiffClient, events::events_client::EventsClient,
    images::images_client::ImagesClient, introspection::introspection_client::IntrospectionClient,
    leases::leases_client::LeasesClient, namespaces::namespaces_client::NamespacesClient,
    snapshots::snapshots_client::SnapshotsClient, streaming::streaming_client::StreamingClient,
    tasks::tasks_client::TasksClient, transfer::transfer_client::TransferClient,
    version::version_client::VersionClient,
};
use hyper_util::rt::TokioIo;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::Error;

/// The largest message either side sends, as containerd's clients and daemon have it.
const MESSAGE_MAX_BYTES: usize = 16 << 20;

/// The headers that every call of a [`Client`] carries.
#[derive(Clone, Debug)]
pub struct Scope {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Scope {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

type Scoped = InterceptedService<Channel, Scope>;

/// A connection to a daemon, with a namespace. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    scope: Scope,
}

macro_rules! service {
    ($(#[$doc:meta])* $name:ident, $client:ident) => {
        $(#[$doc])*
        pub fn $name(&self) -> $client<Scoped> {
            $client::with_interceptor(self.channel.clone(), self.scope.clone())
                .max_decoding_message_size(MESSAGE_MAX_BYTES)
                .max_encoding_message_size(MESSAGE_MAX_BYTES)
        }
    };
}

impl Client {
    /// Connects to the unix socket at `address` and uses `namespace` for every call.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, Error> {
        let path: PathBuf = address.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is not used; HTTP/2 wants an authority all the same.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .map_err(|source| Error::Connect { address: address.to_owned(), source })?;
        let namespace = header("namespace", namespace)?;
        Ok(Self { channel, scope: Scope { namespace, lease: None } })
    }

    /// The same connection with another namespace.
    pub fn with_namespace(&self, namespace: &str) -> Result<Self, Error> {
        let namespace = header("namespace", namespace)?;
        Ok(Self { channel: self.channel.clone(), scope: Scope { namespace, lease: None } })
    }

    /// The same connection; what its calls make is kept by the lease.
    pub fn with_lease(&self, lease: &str) -> Result<Self, Error> {
        let lease = Some(header("lease", lease)?);
        Ok(Self { channel: self.channel.clone(), scope: Scope { namespace: self.scope.namespace.clone(), lease } })
    }

    /// The connection without headers, for callers that bring their own codec.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    service!(
        /// Containers.
        containers, ContainersClient
    );
    service!(
        /// Content.
        content, ContentClient
    );
    service!(
        /// What gantryd alone can tell.
        diagnosis, DiagnosisClient
    );
    service!(
        /// Diff.
        diff, DiffClient
    );
    service!(
        /// Events.
        events, EventsClient
    );
    service!(
        /// Images.
        images, ImagesClient
    );
    service!(
        /// Introspection.
        introspection, IntrospectionClient
    );
    service!(
        /// Leases.
        leases, LeasesClient
    );
    service!(
        /// Namespaces.
        namespaces, NamespacesClient
    );
    service!(
        /// Snapshots.
        snapshots, SnapshotsClient
    );
    service!(
        /// Streams.
        streaming, StreamingClient
    );
    service!(
        /// Transfers.
        transfer, TransferClient
    );
    service!(
        /// Tasks.
        tasks, TasksClient
    );
    service!(
        /// Version.
        version, VersionClient
    );
}

fn header(what: &'static str, value: &str) -> Result<MetadataValue<Ascii>, Error> {
    value.parse().map_err(|_| Error::Header { what, value: value.to_owned() })
}
