use api_grpc::encode;
use api_grpc::services::snapshots as api;
use api_grpc::services::snapshots::snapshots_server::Snapshots;
use futures::stream;
use metadata::{NewSnapshot, SnapshotCommit};
use model::filter::Filters;
use snapshots::Kind;
use snapshots::records::Record;
use tonic::{Request, Response, Status};

use crate::engines::ReplyStream;
use crate::request::{namespaced, scoped};
use crate::{Engines, Error};

/// A message of `List` has this many entries.
const LIST_BATCH: usize = 100;

/// The service `Snapshots`: file system trees.
pub(crate) struct SnapshotsService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type ListStream = ReplyStream<api::ListSnapshotsResponse>;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let mounts = self
            .engines
            .metadata(move |metadata| {
                let api::PrepareSnapshotRequest { snapshotter, key, parent, labels } = &request;
                metadata.snapshots().prepare(&scope, &NewSnapshot { snapshotter, key, parent, labels })
            })
            .await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: encode::mounts(mounts) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let mounts = self
            .engines
            .metadata(move |metadata| {
                let api::ViewSnapshotRequest { snapshotter, key, parent, labels } = &request;
                metadata.snapshots().view(&scope, &NewSnapshot { snapshotter, key, parent, labels })
            })
            .await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: encode::mounts(mounts) }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Result<Response<api::MountsResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let mounts = self
            .engines
            .metadata(move |metadata| metadata.snapshots().mounts(&namespace, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(api::MountsResponse { mounts: encode::mounts(mounts) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        self.engines
            .lengthy(move |metadata| {
                let api::CommitSnapshotRequest { snapshotter, name, key, labels, parent } = &request;
                metadata.snapshots().commit(&scope, &SnapshotCommit { snapshotter, name, key, labels, parent })
            })
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        self.engines
            .metadata(move |metadata| metadata.snapshots().remove(&scope, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found = self
            .engines
            .metadata(move |metadata| metadata.snapshots().stat(&namespace, &request.snapshotter, &request.key))
            .await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(encode_record(found)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let info = request.info.ok_or(Error::Required("info"))?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let updated = self
            .engines
            .metadata(move |metadata| {
                metadata.snapshots().update(&scope, &request.snapshotter, &info.name, &info.labels, &mask)
            })
            .await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(encode_record(updated)) }))
    }

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self
            .engines
            .metadata(move |metadata| metadata.snapshots().list(&namespace, &request.snapshotter, &filters))
            .await?;
        let mut infos = found.into_iter().map(encode_record);
        let messages = std::iter::from_fn(move || {
            let info: Vec<_> = infos.by_ref().take(LIST_BATCH).collect();
            (!info.is_empty()).then_some(Ok(api::ListSnapshotsResponse { info }))
        });
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Result<Response<api::UsageResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let usage = self
            .engines
            .lengthy(move |metadata| metadata.snapshots().usage(&namespace, &request.snapshotter, &request.key))
            .await?;
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let (_, request) = namespaced(request)?;
        self.engines.lengthy(move |metadata| metadata.snapshots().cleanup(&request.snapshotter)).await?;
        Ok(Response::new(()))
    }
}

fn encode_record(record: Record) -> api::Info {
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: record.key,
        parent: record.parent,
        kind: kind.into(),
        created_at: encode::timestamp(record.created),
        updated_at: encode::timestamp(record.updated),
        labels: record.labels,
    }
}
