use std::sync::Arc;

use api_grpc::services::events as api;
use api_grpc::services::events::events_server::Events;
use api_grpc::{decode, encode, types};
use events::{Entry, Envelope, Subscription};
use futures::stream;
use model::Timestamp;
use model::filter::Filters;
use tonic::{Request, Response, Status};

use crate::engines::ReplyStream;
use crate::request::namespaced;
use crate::{Engines, Error};

/// The service `Events`: publication, and the stream of everything that happens.
pub(crate) struct EventsService {
    pub(crate) engines: Engines,
}

impl EventsService {
    fn commit(&self, envelope: Envelope) -> Result<Response<()>, Status> {
        self.engines.journal.publish(envelope).map_err(|error| api_grpc::status(&error))?;
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    type SubscribeStream = ReplyStream<types::Envelope>;

    async fn publish(&self, request: Request<api::PublishRequest>) -> Result<Response<()>, Status> {
        let (namespace, request) = namespaced(request)?;
        self.commit(Envelope {
            timestamp: Timestamp::now(),
            namespace: namespace.as_str().to_owned(),
            topic: request.topic,
            event: request.event.map(decode::any).ok_or(Error::Required("event"))?,
        })
    }

    async fn forward(&self, request: Request<api::ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = request.into_inner().envelope.ok_or(Error::Required("envelope"))?;
        self.commit(Envelope {
            timestamp: decode::timestamp(envelope.timestamp),
            namespace: envelope.namespace,
            topic: envelope.topic,
            event: envelope.event.map(decode::any).ok_or(Error::Required("envelope.event"))?,
        })
    }

    /// Headers go out as soon as the subscription is registered: a client that has them misses nothing from then on.
    async fn subscribe(
        &self,
        request: Request<api::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(Error::Filter)?;
        let supervisor = self.engines.supervisor.clone();
        let subscription = self.engines.journal.subscribe(filters, move |_| supervisor.heal());
        let reader = Some((self.engines.clone(), subscription));
        Ok(Response::new(Box::pin(stream::unfold(reader, next))))
    }
}

/// The next message of a stream. After an error there is none: the client subscribes anew.
async fn next(
    reader: Option<(Engines, Subscription)>,
) -> Option<(Result<types::Envelope, Status>, Option<(Engines, Subscription)>)> {
    let (engines, mut subscription) = reader?;
    let result = engines.until_stopping(subscription.next()).await;
    match result {
        Ok(Ok(entry)) => Some((Ok(encode_entry(&entry)), Some((engines, subscription)))),
        Ok(Err(error)) => Some((Err(api_grpc::status(&error)), None)),
        Err(status) => Some((Err(status), None)),
    }
}

fn encode_entry(entry: &Arc<Entry>) -> types::Envelope {
    let envelope = &entry.envelope;
    types::Envelope {
        timestamp: encode::timestamp(envelope.timestamp),
        namespace: envelope.namespace.clone(),
        topic: envelope.topic.clone(),
        event: Some(encode::any(envelope.event.clone())),
    }
}
