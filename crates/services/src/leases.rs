use api_grpc::encode;
use api_grpc::services::leases as api;
use api_grpc::services::leases::leases_server::Leases;
use metadata::{Lease, Metadata, Resource};
use model::filter::Filters;
use tonic::{Request, Response, Status};

use crate::request::namespaced;
use crate::{Engines, Error};

/// The service `Leases`.
pub(crate) struct LeasesService {
    pub(crate) engines: Engines,
}

fn decode_resource(resource: Option<api::Resource>) -> Result<Resource, Error> {
    let resource = resource.ok_or(Error::Required("resource"))?;
    Ok(Resource { kind: resource.r#type, id: resource.id })
}

fn encode_resource(resource: Resource) -> api::Resource {
    api::Resource { id: resource.id, r#type: resource.kind }
}

fn encode_lease(lease: Lease) -> api::Lease {
    api::Lease { id: lease.id, created_at: encode::timestamp(lease.created_at), labels: lease.labels }
}

#[tonic::async_trait]
impl Leases for LeasesService {
    async fn create(&self, request: Request<api::CreateRequest>) -> Result<Response<api::CreateResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let created = self
            .engines
            .metadata(move |metadata| metadata.leases().create(&namespace, &request.id, request.labels))
            .await?;
        Ok(Response::new(api::CreateResponse { lease: Some(encode_lease(created)) }))
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        self.engines.metadata(move |metadata| metadata.leases().delete(&namespace, &request.id)).await?;
        if request.sync {
            self.engines.lengthy(Metadata::collect_and_wait).await?;
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.leases().list(&namespace, &filters)).await?;
        Ok(Response::new(api::ListResponse { leases: found.into_iter().map(encode_lease).collect() }))
    }

    async fn add_resource(&self, request: Request<api::AddResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let resource = decode_resource(request.resource)?;
        self.engines
            .metadata(move |metadata| metadata.leases().add_resource(&namespace, &request.id, &resource))
            .await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<api::DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        let resource = decode_resource(request.resource)?;
        self.engines
            .metadata(move |metadata| metadata.leases().delete_resource(&namespace, &request.id, &resource))
            .await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<api::ListResourcesRequest>,
    ) -> Result<Response<api::ListResourcesResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found = self.engines.metadata(move |metadata| metadata.leases().resources(&namespace, &request.id)).await?;
        let resources = found.into_iter().map(encode_resource).collect();
        Ok(Response::new(api::ListResourcesResponse { resources }))
    }
}
