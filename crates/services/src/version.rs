use api_grpc::services::version::VersionResponse;
use api_grpc::services::version::version_server::Version;
use tonic::{Request, Response, Status};

/// Who we are.
pub(crate) struct VersionService {
    pub(crate) version: String,
    pub(crate) revision: String,
}

#[tonic::async_trait]
impl Version for VersionService {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: self.version.clone(), revision: self.revision.clone() }))
    }
}
