use std::sync::Arc;

use api_grpc::services::events as api;
use api_grpc::services::events::events_server::Events;
use api_grpc::{decode, encode, types};
use events::{Cursor, Entry, Envelope, Since, Subscription};
use futures::stream;
use model::Timestamp;
use model::filter::Filters;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use crate::engines::ReplyStream;
use crate::request::{CURSOR_HEADER, SINCE_HEADER, namespaced};
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

    /// Headers go out as soon as the subscription is registered: a client that has them misses nothing from then on. One
    /// that sent [`SINCE_HEADER`] finds there where its stream begins, and in each envelope where it stands.
    async fn subscribe(
        &self,
        request: Request<api::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let since = since(request.metadata())?;
        let filters = Filters::parse(&request.into_inner().filters).map_err(Error::Filter)?;
        let engines = self.engines.clone();
        let Some(since) = since else {
            let supervisor = engines.supervisor.clone();
            let subscription = engines.journal.subscribe(filters, move |_| supervisor.heal());
            let reader = Some(Reader { engines, subscription, journal: None });
            return Ok(Response::new(Box::pin(stream::unfold(reader, next))));
        };
        let (subscription, begin) =
            engines.journal.resume(filters, &since).map_err(|error| api_grpc::status(&error))?;
        let header = MetadataValue::try_from(begin.to_string()).map_err(|_| Error::Header(CURSOR_HEADER))?;
        let reader = Some(Reader { engines, subscription, journal: Some(begin.uuid) });
        let mut response: Response<Self::SubscribeStream> = Response::new(Box::pin(stream::unfold(reader, next)));
        response.metadata_mut().insert(CURSOR_HEADER, header);
        Ok(response)
    }
}

/// Where a subscriber wants to begin that keeps account of what it has seen; `None` for containerd's clients.
fn since(headers: &MetadataMap) -> Result<Option<Since>, Status> {
    let Some(value) = headers.get(SINCE_HEADER) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Error::Header(SINCE_HEADER))?;
    text.parse().map(Some).map_err(|error: events::Error| api_grpc::status(&error))
}

/// A stream of events.
struct Reader {
    engines: Engines,
    subscription: Subscription,
    /// Identity of the journal, for those who want cursors.
    journal: Option<String>,
}

/// The next message of a stream. After an error there is none: the client subscribes anew.
async fn next(reader: Option<Reader>) -> Option<(Result<types::Envelope, Status>, Option<Reader>)> {
    let Reader { engines, mut subscription, journal } = reader?;
    let result = engines.until_stopping(subscription.next()).await;
    match result {
        Ok(Ok(entry)) => {
            let envelope = encode_entry(&entry, journal.as_deref());
            Some((Ok(envelope), Some(Reader { engines, subscription, journal })))
        }
        Ok(Err(error)) => Some((Err(api_grpc::status(&error)), None)),
        Err(status) => Some((Err(status), None)),
    }
}

fn encode_entry(entry: &Arc<Entry>, journal: Option<&str>) -> types::Envelope {
    let envelope = &entry.envelope;
    let cursor = journal.map(|uuid| Cursor { uuid: uuid.to_owned(), sequence: entry.sequence }.to_string());
    types::Envelope {
        timestamp: encode::timestamp(envelope.timestamp),
        namespace: envelope.namespace.clone(),
        topic: envelope.topic.clone(),
        event: Some(encode::any(envelope.event.clone())),
        cursor: cursor.unwrap_or_default(),
    }
}
