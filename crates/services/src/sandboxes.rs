use api_grpc::services::sandbox as api;
use api_grpc::services::sandbox::store_server::Store;
use api_grpc::{decode, encode, types};
use metadata::Sandbox;
use model::filter::Filters;
use tonic::{Request, Response, Status};

use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `sandbox.v1.Store`: records of sandboxes.
pub(crate) struct SandboxStoreService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Store for SandboxStoreService {
    async fn create(
        &self,
        request: Request<api::StoreCreateRequest>,
    ) -> Result<Response<api::StoreCreateResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let sandbox = decode_sandbox(request.sandbox.ok_or(Error::Required("sandbox"))?);
        let created = self.engines.metadata(move |metadata| metadata.sandboxes().create(&scope, sandbox)).await?;
        Ok(Response::new(api::StoreCreateResponse { sandbox: Some(encode_sandbox(created)) }))
    }

    async fn update(
        &self,
        request: Request<api::StoreUpdateRequest>,
    ) -> Result<Response<api::StoreUpdateResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let sandbox = decode_sandbox(request.sandbox.ok_or(Error::Required("sandbox"))?);
        let fields = request.fields;
        let updated =
            self.engines.metadata(move |metadata| metadata.sandboxes().update(&scope, &sandbox, &fields)).await?;
        Ok(Response::new(api::StoreUpdateResponse { sandbox: Some(encode_sandbox(updated)) }))
    }

    async fn delete(
        &self,
        request: Request<api::StoreDeleteRequest>,
    ) -> Result<Response<api::StoreDeleteResponse>, Status> {
        let (scope, request) = scoped(request)?;
        self.engines.metadata(move |metadata| metadata.sandboxes().delete(&scope, &request.sandbox_id)).await?;
        Ok(Response::new(api::StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<api::StoreListRequest>) -> Result<Response<api::StoreListResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.sandboxes().list(&namespace, &filters)).await?;
        Ok(Response::new(api::StoreListResponse { list: found.into_iter().map(encode_sandbox).collect() }))
    }

    async fn get(&self, request: Request<api::StoreGetRequest>) -> Result<Response<api::StoreGetResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found =
            self.engines.metadata(move |metadata| metadata.sandboxes().get(&namespace, &request.sandbox_id)).await?;
        Ok(Response::new(api::StoreGetResponse { sandbox: Some(encode_sandbox(found)) }))
    }
}

fn decode_sandbox(sandbox: types::Sandbox) -> Sandbox {
    let runtime = sandbox.runtime.unwrap_or_default();
    Sandbox {
        id: sandbox.sandbox_id,
        labels: sandbox.labels,
        runtime: runtime.name,
        runtime_options: runtime.options.map(decode::any),
        spec: sandbox.spec.map(decode::any),
        sandboxer: sandbox.sandboxer,
        extensions: sandbox.extensions.into_iter().map(|(name, any)| (name, decode::any(any))).collect(),
        // Timestamps of clients are ignored.
        ..Sandbox::default()
    }
}

fn encode_sandbox(sandbox: Sandbox) -> types::Sandbox {
    types::Sandbox {
        sandbox_id: sandbox.id,
        // Go clients read it without asking whether it is there.
        runtime: Some(types::sandbox::Runtime {
            name: sandbox.runtime,
            options: sandbox.runtime_options.map(encode::any),
        }),
        spec: sandbox.spec.map(encode::any),
        labels: sandbox.labels,
        created_at: encode::timestamp(sandbox.created_at),
        updated_at: encode::timestamp(sandbox.updated_at),
        extensions: sandbox.extensions.into_iter().map(|(name, any)| (name, encode::any(any))).collect(),
        sandboxer: sandbox.sandboxer,
    }
}
