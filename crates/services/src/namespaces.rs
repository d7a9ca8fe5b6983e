use std::str::FromStr;

use api_grpc::services::namespaces as api;
use api_grpc::services::namespaces::namespaces_server::Namespaces;
use metadata::NamespaceInfo;
use model::Namespace;
use tonic::{Request, Response, Status};

use crate::{Engines, Error};

/// The service `Namespaces`. Its requests name namespaces themselves, so they need no header.
pub(crate) struct NamespacesService {
    pub(crate) engines: Engines,
}

fn name(text: &str) -> Result<Namespace, Error> {
    Namespace::from_str(text).map_err(Error::Namespace)
}

fn encode_namespace(info: NamespaceInfo) -> api::Namespace {
    api::Namespace { name: info.name, labels: info.labels }
}

#[tonic::async_trait]
impl Namespaces for NamespacesService {
    async fn get(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::GetNamespaceResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let found = self.engines.metadata(move |metadata| metadata.namespaces().get(&name)).await?;
        Ok(Response::new(api::GetNamespaceResponse { namespace: Some(encode_namespace(found)) }))
    }

    /// The request's filter is ignored, as containerd does.
    async fn list(
        &self,
        _: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        let found = self.engines.metadata(|metadata| metadata.namespaces().list()).await?;
        let namespaces = found.into_iter().map(encode_namespace).collect();
        Ok(Response::new(api::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let namespace = request.into_inner().namespace.ok_or(Error::Required("namespace"))?;
        let name = name(&namespace.name)?;
        let created =
            self.engines.metadata(move |metadata| metadata.namespaces().create(&name, namespace.labels)).await?;
        Ok(Response::new(api::CreateNamespaceResponse { namespace: Some(encode_namespace(created)) }))
    }

    /// The reply is empty, as containerd's is.
    async fn update(
        &self,
        request: Request<api::UpdateNamespaceRequest>,
    ) -> Result<Response<api::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let namespace = request.namespace.ok_or(Error::Required("namespace"))?;
        let name = name(&namespace.name)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        self.engines.metadata(move |metadata| metadata.namespaces().update(&name, &namespace.labels, &mask)).await?;
        Ok(Response::new(api::UpdateNamespaceResponse { namespace: None }))
    }

    async fn delete(&self, request: Request<api::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let name = name(&request.into_inner().name)?;
        self.engines.metadata(move |metadata| metadata.namespaces().delete(&name)).await?;
        Ok(Response::new(()))
    }
}
