use std::time::Duration;

use api_grpc::services::transfer as api;
use api_grpc::services::transfer::transfer_server::Transfer;
use api_grpc::{decode, encode, transfer_types as types};
use bytes::Bytes;
use metadata::Scope;
use model::Any;
use prost::{Message, Name};
use tokio::runtime::Handle;
use tonic::{Request, Response, Status};
use transfer::{ExportOptions, ImageStore, ImportOptions, Platform, Progress, Reference, Session, Unpack};

use crate::byte_stream::{ByteReader, ByteWriter, Caller, Cancelled, Receiver, Sender};
use crate::request::scoped;
use crate::streams::Stream;
use crate::{Blocking, Engines, Error};

/// Transfers that run at the same time. Each waits for its client most of the time, so they have threads of their own.
const RUNNING_MAX: usize = 8;
/// Transfers that wait for a thread.
const WAITING_MAX: usize = 256;
/// A client that does not read how far its transfer is for this long is not told any more.
const PROGRESS_PATIENCE: Duration = Duration::from_secs(5);

/// The service `Transfer`: images from one place to another.
pub(crate) struct TransferService {
    engines: Engines,
    running: Blocking,
}

/// A source or a destination.
enum End {
    Store(ImageStore),
    Import(Stream, ImportOptions),
    Export(Stream, ExportOptions),
    /// A type that we know and do not serve.
    Other,
}

impl TransferService {
    pub(crate) fn new(engines: Engines) -> Self {
        Self { engines, running: Blocking::new(RUNNING_MAX, WAITING_MAX) }
    }

    /// Reads a source or a destination. NOT_FOUND for a type that nobody knows, and for a stream that is not there.
    fn end(&self, scope: &Scope, any: &Any) -> Result<End, Status> {
        let take = |id: &str| self.engines.streams.take(scope.namespace.as_str(), id);
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name == types::ImageStore::full_name() {
            Ok(End::Store(image_store(unpack(any)?)))
        } else if name == types::ImageImportStream::full_name() {
            let import: types::ImageImportStream = unpack(any)?;
            let options = ImportOptions { plain: !import.media_type.is_empty(), force_compress: import.force_compress };
            Ok(End::Import(take(&import.stream)?, options))
        } else if name == types::ImageExportStream::full_name() {
            let export: types::ImageExportStream = unpack(any)?;
            let options = ExportOptions {
                platforms: export.platforms.into_iter().map(platform).collect(),
                all_platforms: export.all_platforms,
                skip_compatibility_manifest: export.skip_compatibility_manifest,
                skip_non_distributable: export.skip_non_distributable,
            };
            Ok(End::Export(take(&export.stream)?, options))
        } else if name.strip_prefix("containerd.types.transfer.").is_some_and(|name| UNSERVED.contains(&name)) {
            Ok(End::Other)
        } else {
            Err(Error::UnknownType(name.chars().take(128).collect()).into())
        }
    }

    /// Runs a pipeline on a thread that may block; `caller` is held until it has ended or nobody waits for it any more.
    async fn run<F>(&self, scope: Scope, progress: Option<Stream>, caller: Work, work: F) -> Result<(), Status>
    where
        F: FnOnce(&mut Session) -> Result<(), transfer::Error> + Send + 'static,
    {
        let metadata = self.engines.metadata.clone();
        let Work { caller, handle, cancelled } = caller;
        let ended = self
            .running
            .run_plain(move || {
                let mut reporter = Reporter { stream: progress, handle, cancelled };
                Session::begin(&metadata, scope, move |step| reporter.tell(step))
                    .and_then(|mut session| work(&mut session))
            })
            .await;
        drop(caller);
        ended?.map_err(|error| stream_status(&error).unwrap_or_else(|| api_grpc::status(&error)))
    }
}

/// Types of the API that the daemon has no use for yet.
const UNSERVED: [&str; 4] = ["OCIRegistry", "ContainerPath", "ReadStream", "WriteStream"];

/// What a pipeline needs to wait for its client.
struct Work {
    caller: Caller,
    handle: Handle,
    cancelled: Cancelled,
}

impl Work {
    fn new() -> Self {
        let (caller, cancelled) = Caller::new();
        Self { caller, handle: Handle::current(), cancelled }
    }

    fn reader(&self, stream: Stream) -> ByteReader {
        ByteReader {
            receiver: Receiver::new(stream),
            handle: self.handle.clone(),
            cancelled: self.cancelled.clone(),
            chunk: Bytes::new(),
        }
    }

    fn writer(&self, stream: Stream) -> ByteWriter {
        ByteWriter { sender: Sender::new(stream), handle: self.handle.clone(), cancelled: self.cancelled.clone() }
    }
}

#[tonic::async_trait]
impl Transfer for TransferService {
    async fn transfer(&self, request: Request<api::TransferRequest>) -> Result<Response<()>, Status> {
        let (scope, request) = scoped(request)?;
        let source = decode::any(request.source.ok_or(Error::Required("source"))?);
        let destination = decode::any(request.destination.ok_or(Error::Required("destination"))?);
        let progress = match request.options.unwrap_or_default().progress_stream {
            id if id.is_empty() => None,
            id => Some(self.engines.streams.take(scope.namespace.as_str(), &id)?),
        };
        let ends = (self.end(&scope, &source)?, self.end(&scope, &destination)?);
        match ends {
            (End::Import(from, _), End::Export(to, _)) => self.engines.until_stopping(echo(from, to)).await??,
            (End::Import(from, options), End::Store(store)) => {
                let work = Work::new();
                let reader = work.reader(from);
                self.run(scope, progress, work, move |session| transfer::import(session, reader, options, &store))
                    .await?;
            }
            (End::Store(store), End::Export(to, options)) => {
                let work = Work::new();
                let mut writer = work.writer(to);
                let export = move |session: &mut Session| {
                    let exported = transfer::export(session, &store, &options, &mut writer);
                    if let Err(error) = &exported {
                        // What was sent must not look like all there is.
                        writer.sender.fail(api_grpc::status(error));
                    }
                    exported
                };
                self.run(scope, progress, work, export).await?;
            }
            (End::Store(from), End::Store(to)) => {
                self.run(scope, progress, Work::new(), move |session| transfer::tag(session, &from, &to)).await?;
            }
            _ => {
                let shown = |any: &Any| any.type_url.chars().take(128).collect();
                return Err(Error::NoTransfer { from: shown(&source), to: shown(&destination) }.into());
            }
        }
        Ok(Response::new(()))
    }
}

/// Sends a client's bytes back to it.
async fn echo(from: Stream, to: Stream) -> Result<(), Status> {
    let (mut receiver, mut sender) = (Receiver::new(from), Sender::new(to));
    let copied = async {
        while let Some(bytes) = receiver.next().await? {
            sender.send(bytes).await?;
        }
        Ok(())
    }
    .await;
    if let Err(status) = &copied {
        sender.fail(Status::clone(status));
    }
    copied
}

/// Tells a client how far its transfer is.
struct Reporter {
    /// Absent if nobody asked, or nobody listens any more.
    stream: Option<Stream>,
    handle: Handle,
    cancelled: Cancelled,
}

impl Reporter {
    fn tell(&mut self, step: Progress<'_>) {
        let Some(mut stream) = self.stream.take() else { return };
        let descriptor = step.descriptor.map(|descriptor| api_grpc::types::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            annotations: descriptor.annotations.clone(),
        });
        let message = types::Progress {
            event: step.event.to_owned(),
            name: step.name.to_owned(),
            desc: descriptor,
            ..types::Progress::default()
        };
        let message = encode::any(encode::pack(&message));
        let sent = self.cancelled.block_on(&self.handle, async {
            match tokio::time::timeout(PROGRESS_PATIENCE, stream.send(message)).await {
                Ok(sent) => sent,
                Err(_) => Err(Error::StreamEnded.into()),
            }
        });
        if sent.is_ok() {
            self.stream = Some(stream);
        }
    }
}

/// The status that a stream of the client ended a pipeline with, if it did.
fn stream_status(error: &transfer::Error) -> Option<Status> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if let Some(status) = inner.and_then(|inner| inner.downcast_ref::<Status>()) {
            return Some(status.clone());
        }
        next = error.source();
    }
    None
}

fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, Error> {
    decode::unpack(any).map_err(Error::Unpack)
}

fn platform(platform: api_grpc::types::Platform) -> Platform {
    Platform {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version,
        os_features: platform.os_features,
        variant: platform.variant,
    }
}

fn image_store(store: types::ImageStore) -> ImageStore {
    let reference = |reference: types::ImageReference| Reference {
        name: reference.name,
        is_prefix: reference.is_prefix,
        allow_overwrite: reference.allow_overwrite,
        add_digest: reference.add_digest,
        skip_named_digest: reference.skip_named_digest,
    };
    let unpack = |unpack: types::UnpackConfiguration| Unpack {
        platform: unpack.platform.map(platform).filter(|platform| !platform.os.is_empty()),
        snapshotter: unpack.snapshotter,
    };
    ImageStore {
        name: store.name,
        labels: store.labels,
        platforms: store.platforms.into_iter().map(platform).collect(),
        all_metadata: store.all_metadata,
        manifest_limit: usize::try_from(store.manifest_limit).unwrap_or(usize::MAX),
        references: store.extra_references.into_iter().map(reference).collect(),
        unpacks: store.unpacks.into_iter().map(unpack).collect(),
    }
}
