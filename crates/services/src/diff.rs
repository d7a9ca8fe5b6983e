use api_grpc::decode;
use api_grpc::services::diff as api;
use api_grpc::services::diff::diff_server::Diff;
use api_grpc::types::Descriptor;
use model::Digest;
use tonic::{Request, Response, Status};
use transfer::{DiffOptions, LAYER_MEDIA_TYPE, Layer, Session};

use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// The service `Diff`: layers to trees and back.
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
        let (scope, request) = scoped(request)?;
        let (left, right) = (decode::mounts(request.left), decode::mounts(request.right));
        let options = DiffOptions {
            media_type: request.media_type,
            reference: request.r#ref,
            labels: request.labels,
            latest: request.source_date_epoch.map(|time| time.seconds),
        };
        let metadata = self.engines.metadata.clone();
        let work = move || transfer::diff(&Session::plain(&metadata, scope), &left, &right, options);
        let made = self.engines.lengthy.run(work).await?;
        let descriptor =
            Descriptor { media_type: made.media_type, digest: made.digest, size: made.size, ..Descriptor::default() };
        Ok(Response::new(api::DiffResponse { diff: Some(descriptor) }))
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
