use api_grpc::services::diagnosis as api;
use api_grpc::services::diagnosis::diagnosis_server::Diagnosis;
use tonic::{Request, Response, Status};

use crate::Engines;
use crate::request::namespaced;

/// The service `Diagnosis`, which containerd does not have.
pub(crate) struct DiagnosisService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Diagnosis for DiagnosisService {
    async fn why(&self, request: Request<api::WhyRequest>) -> Result<Response<api::WhyResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let supervisor = self.engines.supervisor.clone();
        let lines = self.engines.blocking.run(move || supervisor.why(&namespace, &request.container_id)).await?;
        Ok(Response::new(api::WhyResponse { lines }))
    }
}
