use api_grpc::services::containers as api;
use api_grpc::services::containers::containers_server::Containers;
use api_grpc::{decode, encode};
use futures::stream;
use metadata::Container;
use model::Namespace;
use model::filter::Filters;
use tonic::{Request, Response, Status};

use crate::engines::ReplyStream;
use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `Containers`: records of containers.
pub(crate) struct ContainersService {
    pub(crate) engines: Engines,
}

impl ContainersService {
    async fn listed(&self, namespace: Namespace, filters: &[String]) -> Result<Vec<api::Container>, Status> {
        let filters = Filters::parse(filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.containers().list(&namespace, &filters)).await?;
        Ok(found.into_iter().map(encode_container).collect())
    }
}

#[tonic::async_trait]
impl Containers for ContainersService {
    type ListStreamStream = ReplyStream<api::ListContainerMessage>;

    async fn get(
        &self,
        request: Request<api::GetContainerRequest>,
    ) -> Result<Response<api::GetContainerResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found = self.engines.metadata(move |metadata| metadata.containers().get(&namespace, &request.id)).await?;
        Ok(Response::new(api::GetContainerResponse { container: Some(encode_container(found)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<api::ListContainersResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let containers = self.listed(namespace, &request.filters).await?;
        Ok(Response::new(api::ListContainersResponse { containers }))
    }

    async fn list_stream(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let (namespace, request) = namespaced(request)?;
        let containers = self.listed(namespace, &request.filters).await?;
        let messages =
            containers.into_iter().map(|container| Ok(api::ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn create(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Result<Response<api::CreateContainerResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let container = decode_container(request.container.ok_or(Error::Required("container"))?);
        let created = self.engines.metadata(move |metadata| metadata.containers().create(&scope, container)).await?;
        Ok(Response::new(api::CreateContainerResponse { container: Some(encode_container(created)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Result<Response<api::UpdateContainerResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let container = decode_container(request.container.ok_or(Error::Required("container"))?);
        let mask = request.update_mask.unwrap_or_default().paths;
        let updated =
            self.engines.metadata(move |metadata| metadata.containers().update(&scope, &container, &mask)).await?;
        Ok(Response::new(api::UpdateContainerResponse { container: Some(encode_container(updated)) }))
    }

    async fn delete(&self, request: Request<api::DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        self.engines.metadata(move |metadata| metadata.containers().delete(&scope, &request.id)).await?;
        Ok(Response::new(()))
    }
}

fn decode_container(container: api::Container) -> Container {
    let runtime = container.runtime.unwrap_or_default();
    Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: runtime.name,
        runtime_options: runtime.options.map(decode::any),
        spec: container.spec.map(decode::any),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        extensions: container.extensions.into_iter().map(|(name, any)| (name, decode::any(any))).collect(),
        sandbox_id: container.sandbox,
        // Timestamps of clients are ignored.
        ..Container::default()
    }
}

fn encode_container(container: Container) -> api::Container {
    api::Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        // Go clients read it without asking whether it is there.
        runtime: Some(api::container::Runtime {
            name: container.runtime,
            options: container.runtime_options.map(encode::any),
        }),
        spec: container.spec.map(encode::any),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: encode::timestamp(container.created_at),
        updated_at: encode::timestamp(container.updated_at),
        extensions: container.extensions.into_iter().map(|(name, any)| (name, encode::any(any))).collect(),
        sandbox: container.sandbox_id,
    }
}
