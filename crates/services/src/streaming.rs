use api_grpc::services::streaming as api;
use api_grpc::services::streaming::streaming_server::Streaming as StreamingApi;
use api_grpc::{decode, encode};
use futures::{StreamExt as _, stream};
use prost_types::Any;
use tonic::{Request, Response, Status, Streaming};

use crate::engines::ReplyStream;
use crate::request::scope;
use crate::streams::Outbound;
use crate::{Engines, Error};

/// The service `Streaming`: streams for other requests.
pub(crate) struct StreamingService {
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl StreamingApi for StreamingService {
    type StreamStream = ReplyStream<Any>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let scope = scope(request.extensions())?;
        let mut inbound = request.into_inner();
        let first = self.engines.until_stopping(inbound.message()).await??;
        let first = decode::any(first.ok_or(Error::Required("StreamInit"))?);
        let init: api::StreamInit = decode::unpack(&first).map_err(Error::Unpack)?;
        let outbound = self.engines.streams.register(&scope, &init.id, inbound)?;
        // Only now: who has the answer may name the stream.
        let registered = encode::any(model::Any { type_url: "google.protobuf.Empty".to_owned(), value: Vec::new() });
        let rest = stream::unfold(Some((self.engines.clone(), outbound)), next);
        Ok(Response::new(Box::pin(stream::iter([Ok(registered)]).chain(rest))))
    }
}

type State = Option<(Engines, Outbound)>;

/// The next message for the client. When the daemon stops the stream ends at once.
async fn next(state: State) -> Option<(Result<Any, Status>, State)> {
    let (engines, mut outbound) = state?;
    match engines.until_stopping(outbound.next()).await {
        Ok(message) => message.map(|message| (message, Some((engines, outbound)))),
        Err(stopping) => Some((Err(stopping), None)),
    }
}
