use api_grpc::decode;
use api_grpc::services::diff as api;
use api_grpc::services::diff::diff_server::Diff;
use api_grpc::types::Descriptor;
use model::Digest;
use tonic::{Request, Response, Status};
use transfer::{LAYER_MEDIA_TYPE, Layer};

use crate::request::namespaced;
use crate::{Engines, Error};

/// The service `Diff`: layers to trees.
pub(crate) struct DiffService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Diff for DiffService {
    /// Payloads for stream processors are ignored: there are none. So is `sync_fs`: the commit of the snapshot flushes
    /// its files, and nothing else makes them last.
    async fn apply(&self, request: Request<api::ApplyRequest>) -> Result<Response<api::ApplyResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let descriptor = request.diff.ok_or(Error::Required("diff"))?;
        let digest = descriptor.digest.parse::<Digest>().map_err(Error::Digest)?;
        let mounts = decode::mounts(request.mounts);
        let blob = self.engines.metadata(move |metadata| metadata.content().reader(&namespace, &digest)).await?;
        let layer = self.engines.lengthy.run(move || transfer::apply(blob, &descriptor.media_type, &mounts)).await?;
        Ok(Response::new(api::ApplyResponse { applied: Some(encode_layer(&layer)) }))
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        namespaced(request)?;
        Err(Error::Unimplemented("layers cannot be made of trees yet").into())
    }
}

/// The layer as it would be without compression.
fn encode_layer(layer: &Layer) -> Descriptor {
    Descriptor {
        media_type: LAYER_MEDIA_TYPE.to_owned(),
        digest: layer.digest.as_str().to_owned(),
        size: i64::try_from(layer.size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}
