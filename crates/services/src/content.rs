use api_grpc::encode;
use api_grpc::services::content as api;
use api_grpc::services::content::content_server::Content;
use bytes::Bytes;
use content::Blob;
use futures::stream;
use metadata::{BlobInfo, IngestStatus};
use model::Digest;
use model::filter::Filters;
use tonic::{Request, Response, Status, Streaming};

use crate::engines::ReplyStream;
use crate::request::{namespaced, scope, scoped};
use crate::write::{Step, WriteSession};
use crate::{Blocking, Engines, Error};

/// A message of `List` has this many entries.
const LIST_BATCH: usize = 100;

/// A message of `Read` has at most this many bytes of data.
const READ_CHUNK_BYTES: u64 = 1 << 20;

/// The service `Content`: blobs and ingests.
pub(crate) struct ContentService {
    pub(crate) engines: Engines,
}

fn digest(text: &str) -> Result<Digest, Error> {
    Ok(text.parse::<Digest>()?)
}

#[tonic::async_trait]
impl Content for ContentService {
    type ListStream = ReplyStream<api::ListContentResponse>;
    type ReadStream = ReplyStream<api::ReadContentResponse>;
    type WriteStream = ReplyStream<api::WriteContentResponse>;

    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let digest = digest(&request.digest)?;
        let info = self.engines.metadata(move |metadata| metadata.content().info(&namespace, &digest)).await?;
        Ok(Response::new(api::InfoResponse { info: Some(encode_info(info)) }))
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> Result<Response<api::UpdateResponse>, Status> {
        let (scope, request) = scoped(request)?;
        let info = request.info.ok_or(Error::Required("info"))?;
        let digest = digest(&info.digest)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let updated = self
            .engines
            .metadata(move |metadata| metadata.content().update(&scope, &digest, &info.labels, &mask))
            .await?;
        Ok(Response::new(api::UpdateResponse { info: Some(encode_info(updated)) }))
    }

    async fn list(&self, request: Request<api::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.content().list(&namespace, &filters)).await?;
        let mut infos = found.into_iter().map(encode_info);
        let messages = std::iter::from_fn(move || {
            let info: Vec<_> = infos.by_ref().take(LIST_BATCH).collect();
            (!info.is_empty()).then_some(Ok(api::ListContentResponse { info }))
        });
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn delete(&self, request: Request<api::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        let digest = digest(&request.digest)?;
        self.engines.metadata(move |metadata| metadata.content().delete(&scope, &digest)).await?;
        Ok(Response::new(()))
    }

    async fn read(&self, request: Request<api::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (namespace, request) = namespaced(request)?;
        let digest = digest(&request.digest)?;
        let wanted = digest.clone();
        let blob = self.engines.metadata(move |metadata| metadata.content().reader(&namespace, &wanted)).await?;
        let range = Range::of(request.offset, request.size, blob.size())?;
        let reading = Reading { blocking: self.engines.blocking.clone(), digest, blob, range };
        Ok(Response::new(Box::pin(stream::try_unfold(reading, Reading::next))))
    }

    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let found =
            self.engines.metadata(move |metadata| metadata.content().status(&namespace, &request.r#ref)).await?;
        Ok(Response::new(api::StatusResponse { status: Some(encode_status(found)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<api::ListStatusesRequest>,
    ) -> Result<Response<api::ListStatusesResponse>, Status> {
        let (namespace, request) = namespaced(request)?;
        let filters = Filters::parse(&request.filters).map_err(Error::Filter)?;
        let found = self.engines.metadata(move |metadata| metadata.content().statuses(&namespace, &filters)).await?;
        Ok(Response::new(api::ListStatusesResponse { statuses: found.into_iter().map(encode_status).collect() }))
    }

    async fn write(
        &self,
        request: Request<Streaming<api::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let scope = scope(request.extensions())?;
        let session = WriteSession::new(self.engines.metadata.clone(), scope);
        let open = OpenWrite { session, messages: request.into_inner(), blocking: self.engines.blocking.clone() };
        let writing = Writing::Open(Box::new(open));
        Ok(Response::new(Box::pin(stream::unfold(writing, Writing::next))))
    }

    async fn abort(&self, request: Request<api::AbortRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        self.engines.metadata(move |metadata| metadata.content().abort(&scope, &request.r#ref)).await?;
        Ok(Response::new(()))
    }
}

/// The part of a blob that a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    begin: u64,
    next: u64,
    end: u64,
}

impl Range {
    /// A negative offset is 0; a size that is not positive, or too large, means up to the end.
    fn of(offset: i64, size: i64, length: u64) -> Result<Self, Error> {
        let begin = u64::try_from(offset).unwrap_or(0);
        if begin > length {
            return Err(Error::ReadPast { length });
        }
        let end = match u64::try_from(size) {
            Ok(size @ 1..) => begin.saturating_add(size).min(length),
            _ => length,
        };
        Ok(Self { begin, next: begin, end })
    }
}

struct Reading {
    blocking: Blocking,
    digest: Digest,
    blob: Blob,
    range: Range,
}

impl Reading {
    /// The next message, whose offset counts from the beginning of this read.
    async fn next(self) -> Result<Option<(api::ReadContentResponse, Self)>, Status> {
        let Self { blocking, digest, blob, mut range } = self;
        let count = (range.end - range.next).min(READ_CHUNK_BYTES);
        if count == 0 {
            return Ok(None);
        }
        let at = range.next;
        let (blob, data) = blocking
            .run_plain(move || {
                let mut data = vec![0; usize::try_from(count).unwrap_or(0)];
                let read = blob.read_at(&mut data, at).map(|count| data.truncate(count));
                (blob, read.map(|()| data))
            })
            .await?;
        let data = data.map_err(|source| Error::Read { digest: digest.to_string(), source })?;
        if data.is_empty() {
            return Ok(None);
        }
        range.next += data.len() as u64;
        let offset = i64::try_from(at - range.begin).unwrap_or(i64::MAX);
        let message = api::ReadContentResponse { offset, data: Bytes::from(data) };
        Ok(Some((message, Self { blocking, digest, blob, range })))
    }
}

/// A write stream as a stream of its replies.
enum Writing {
    Open(Box<OpenWrite>),
    /// The last reply is told once more at the end, as containerd does.
    Ending(api::WriteContentResponse),
    Ended,
}

/// A write stream that takes messages.
struct OpenWrite {
    session: WriteSession,
    messages: Streaming<api::WriteContentRequest>,
    blocking: Blocking,
}

impl Writing {
    async fn next(self) -> Option<(Result<api::WriteContentResponse, Status>, Self)> {
        match self {
            Self::Open(open) => Some(open.next().await),
            Self::Ending(reply) => Some((Ok(reply), Self::Ended)),
            Self::Ended => None,
        }
    }
}

impl OpenWrite {
    async fn next(mut self: Box<Self>) -> (Result<api::WriteContentResponse, Status>, Writing) {
        let message = match self.messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return (last(self.session), Writing::Ended),
            Err(status) => return (Err(status), Writing::Ended),
        };
        let blocking = self.blocking.clone();
        let stepped = blocking
            .run_plain(move || {
                let step = self.session.step(message);
                (self, step)
            })
            .await;
        // Where the stream ends the session is dropped here, before the client is told.
        match stepped {
            Ok((open, Ok(Step::Open))) => (Ok(open.session.reply()), Writing::Open(open)),
            Ok((open, Ok(Step::Committed))) => (Ok(open.session.reply()), Writing::Ending(open.session.reply())),
            Ok((_, Err(status))) | Err(status) => (Err(status), Writing::Ended),
        }
    }
}

/// What a client that has said its last is told.
fn last(session: WriteSession) -> Result<api::WriteContentResponse, Status> {
    if session.is_open() { Ok(session.reply()) } else { Err(Error::NoReference.into()) }
}

fn encode_info(info: BlobInfo) -> api::Info {
    api::Info {
        digest: info.digest.as_str().to_owned(),
        size: i64::try_from(info.size).unwrap_or(i64::MAX),
        created_at: encode::timestamp(info.created_at),
        updated_at: encode::timestamp(info.updated_at),
        labels: info.labels,
    }
}

/// The expected digest is not told: containerd's store does not know it.
fn encode_status(status: IngestStatus) -> api::Status {
    api::Status {
        started_at: encode::timestamp(status.started_at),
        updated_at: encode::timestamp(status.updated_at),
        r#ref: status.reference,
        offset: i64::try_from(status.offset).unwrap_or(i64::MAX),
        total: i64::try_from(status.total).unwrap_or(i64::MAX),
        expected: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (offset, size, length, want) in [
            (0, 0, 10, Some((0, 10))),
            (-5, -5, 10, Some((0, 10))),
            (6, 0, 10, Some((6, 10))),
            (6, 2, 10, Some((6, 8))),
            (6, 100, 10, Some((6, 10))),
            (6, i64::MAX, 10, Some((6, 10))),
            (10, 0, 10, Some((10, 10))),
            (11, 0, 10, None),
            (i64::MAX, i64::MAX, 10, None),
            (i64::MIN, i64::MIN, 0, Some((0, 0))),
        ] {
            let range = Range::of(offset, size, length).ok().map(|range| (range.begin, range.end));
            assert_eq!(range, want, "{offset} {size} {length}");
        }
        let refused = api_grpc::status(&Range::of(11, 0, 10).unwrap_err());
        assert_eq!(refused.message(), "read past object length 10 bytes: out of range");
    }
}
