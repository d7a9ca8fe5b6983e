use std::future::Future;
use std::pin::Pin;

use api_grpc::services;
use events::Journal;
use futures::Stream;
use metadata::Metadata;
use supervisor::Supervisor;
use tokio::sync::watch;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::containers::ContainersService;
use crate::content::ContentService;
use crate::diagnosis::DiagnosisService;
use crate::diff::DiffService;
use crate::events::EventsService;
use crate::images::ImagesService;
use crate::introspection::{IntrospectionService, Server};
use crate::leases::LeasesService;
use crate::mounts::MountsService;
use crate::namespaces::NamespacesService;
use crate::sandboxes::SandboxStoreService;
use crate::snapshots::SnapshotsService;
use crate::streaming::StreamingService;
use crate::streams::Streams;
use crate::tasks::TasksService;
use crate::transfer::TransferService;
use crate::version::VersionService;
use crate::{Blocking, Error};

/// The type of the streams that services answer with.
pub(crate) type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message has at most this many bytes in either direction, as with containerd.
pub const MESSAGE_MAX_BYTES: usize = 16 << 20;

/// What the services call. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Engines {
    /// Namespaces, containers, images, content, leases and snapshots.
    pub metadata: Metadata,
    /// Tasks.
    pub supervisor: Supervisor,
    /// Events.
    pub journal: Journal,
    /// The way to engines that block, for a moment.
    pub blocking: Blocking,
    /// The same for what may take seconds, so that it holds nobody else up.
    pub lengthy: Blocking,
    /// Mounts that are made on the host.
    pub mounts: mounts::Manager,
    /// Streams that requests refer to.
    pub streams: Streams,
    /// Who we are.
    pub server: Server,
    /// True when the daemon begins to stop.
    pub stopping: watch::Receiver<bool>,
}

impl Engines {
    /// Calls the metadata on a thread that may block.
    pub(crate) async fn metadata<T, F>(&self, operation: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Metadata) -> Result<T, metadata::Error> + Send + 'static,
    {
        let metadata = self.metadata.clone();
        self.blocking.run(move || operation(&metadata)).await
    }

    /// As [`Engines::metadata`], for what may take seconds.
    pub(crate) async fn lengthy<T, F>(&self, operation: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Metadata) -> Result<T, metadata::Error> + Send + 'static,
    {
        let metadata = self.metadata.clone();
        self.lengthy.run(move || operation(&metadata)).await
    }

    /// Awaits something that may take for ever, but ends with UNAVAILABLE as soon as the daemon begins to stop: clients
    /// then repeat the call to its successor.
    ///
    /// Cancel-safe if `future` is.
    pub async fn until_stopping<T>(&self, future: impl Future<Output = T>) -> Result<T, Status> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            biased;
            result = future => Ok(result),
            // A closed channel means that nobody is left who could stop us.
            Ok(_) = stopping.wait_for(|stopping| *stopping) => Err(Error::Stopping.into()),
        }
    }
}

/// Tells clients whether the daemon serves.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// From now on the health service says that the daemon does not serve.
    pub async fn stop(&self) {
        self.0.set_service_status("", ServingStatus::NotServing).await;
    }
}

/// How large messages may be, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Those of clients; larger ones are refused with OUT_OF_RANGE.
    pub receive: usize,
    /// Ours.
    pub send: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { receive: MESSAGE_MAX_BYTES, send: MESSAGE_MAX_BYTES }
    }
}

/// All services over `engines`. Whatever is not among them is answered UNIMPLEMENTED.
pub fn routes(engines: &Engines, limits: Limits) -> (Routes, Health) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::builder();
    routes.add_service(health);

    macro_rules! serve {
        ($($package:ident::$server:ident::$name:ident($service:expr);)*) => {
            $(routes.add_service(
                services::$package::$server::$name::new($service)
                    .max_decoding_message_size(limits.receive)
                    .max_encoding_message_size(limits.send),
            );)*
        };
    }
    let engines = engines.clone();
    let server = engines.server.clone();
    serve! {
        version::version_server::VersionServer(
            VersionService { version: server.version.clone(), revision: server.revision.clone() }
        );
        introspection::introspection_server::IntrospectionServer(
            IntrospectionService { server, supervisor: engines.supervisor.clone() }
        );
        mounts::mounts_server::MountsServer(MountsService { engines: engines.clone() });
        namespaces::namespaces_server::NamespacesServer(NamespacesService { engines: engines.clone() });
        containers::containers_server::ContainersServer(ContainersService { engines: engines.clone() });
        content::content_server::ContentServer(ContentService { engines: engines.clone() });
        images::images_server::ImagesServer(ImagesService { engines: engines.clone() });
        sandbox::store_server::StoreServer(SandboxStoreService { engines: engines.clone() });
        snapshots::snapshots_server::SnapshotsServer(SnapshotsService { engines: engines.clone() });
        diagnosis::diagnosis_server::DiagnosisServer(DiagnosisService { engines: engines.clone() });
        diff::diff_server::DiffServer(DiffService { engines: engines.clone() });
        leases::leases_server::LeasesServer(LeasesService { engines: engines.clone() });
        events::events_server::EventsServer(EventsService { engines: engines.clone() });
        streaming::streaming_server::StreamingServer(StreamingService { engines: engines.clone() });
        transfer::transfer_server::TransferServer(TransferService::new(engines.clone()));
        tasks::tasks_server::TasksServer(TasksService { engines });
    }
    (routes.routes().prepare(), Health(reporter))
}
