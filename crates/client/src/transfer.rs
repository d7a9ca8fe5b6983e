//! Archives in and out by the transfer service: the bytes go over streams that the request names.
//!
//! ```text
//! Stream (init, answered) ─► Transfer names it ─► bytes as the receiver grants them ─► Transfer is answered
//! ```
//!
//! A daemon without these services (containerd before 1.7) answers UNIMPLEMENTED when the first stream is opened.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api_grpc::services::streaming::StreamInit;
use api_grpc::services::transfer::{TransferOptions, TransferRequest};
use api_grpc::transfer_types::{
    Data, ImageExportStream, ImageImportStream, ImageReference, ImageStore, Progress, UnpackConfiguration, WindowUpdate,
};
use api_grpc::{decode, encode};
use prost::Name;
use prost_types::Any;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{Client, Error};

/// A message carries at most this many bytes.
const FRAME_BYTES: usize = 32 << 10;
/// What we grant at once as a receiver.
const WINDOW_BYTES: i32 = 64 << 10;
/// How long the rest of a stream may take once the daemon has answered.
const PATIENCE: Duration = Duration::from_secs(30);

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Our end of a stream that the daemon knows by `id`. Dropping it ends it.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub id: String,
    outbound: mpsc::Sender<Any>,
    inbound: Streaming<Any>,
    /// Bytes that the daemon has granted and not got.
    window: usize,
}

fn pack(message: &impl Name) -> Any {
    encode::any(encode::pack(message))
}

impl Stream {
    /// Opens a stream whose name begins with `prefix`. When this returns, other requests may name it.
    pub async fn open(client: &Client, prefix: &str) -> Result<Self, Error> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = model::Timestamp::now();
        let id = format!("{prefix}-{}-{}{:09}-{number}", std::process::id(), now.seconds, now.nanos);
        let (outbound, messages) = mpsc::channel(2);
        // There is room for it.
        let _ = outbound.try_send(pack(&StreamInit { id: id.clone() }));
        let mut inbound = client.streaming().stream(ReceiverStream::new(messages)).await?.into_inner();
        if inbound.message().await?.is_none() {
            return Err(Status::unavailable("the stream ended before it was registered").into());
        }
        Ok(Self { id, outbound, inbound, window: 0 })
    }

    /// Sends all that `reader` has, as the daemon grants it. It ends early, without an error, when the daemon ends the
    /// stream: the transfer says why. Returns when the daemon has read all it wants.
    pub async fn send(mut self, mut reader: impl AsyncRead + Unpin) -> std::io::Result<()> {
        let mut buffer = vec![0; FRAME_BYTES];
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                while self.window == 0 {
                    let Ok(Some(message)) = self.inbound.message().await else { return Ok(()) };
                    if let Ok(update) = decode::unpack::<WindowUpdate>(&decode::any(message)) {
                        self.window += usize::try_from(update.update).unwrap_or(0);
                    }
                }
                let (now, later) = rest.split_at(rest.len().min(self.window));
                self.window -= now.len();
                if self.outbound.send(pack(&Data { data: now.to_vec().into() })).await.is_err() {
                    return Ok(());
                }
                rest = later;
            }
        }
        // That was all; but whoever leaves before the daemon has read it takes it back.
        drop(self.outbound);
        while let Ok(Some(_)) = self.inbound.message().await {}
        Ok(())
    }

    /// Writes all that the daemon sends to `writer`. Fails with the daemon's error, if it ends the stream with one.
    pub async fn receive(mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), Received> {
        let mut window = 0;
        loop {
            if window < WINDOW_BYTES {
                // The daemon may have said all it has; then it takes nothing any more.
                let _ = self.outbound.send(pack(&WindowUpdate { update: WINDOW_BYTES })).await;
                window += WINDOW_BYTES;
            }
            let Some(message) = self.inbound.message().await.map_err(Received::Status)? else { break };
            if let Ok(data) = decode::unpack::<Data>(&decode::any(message)) {
                window = window.saturating_sub(i32::try_from(data.data.len()).unwrap_or(i32::MAX));
                writer.write_all(&data.data).await.map_err(Received::Write)?;
            }
        }
        writer.flush().await.map_err(Received::Write)
    }

    /// Names of the images that the daemon says it has saved.
    async fn saved(mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(Some(message)) = self.inbound.message().await {
            if let Ok(progress) = decode::unpack::<Progress>(&decode::any(message))
                && progress.event == "saved"
            {
                names.push(progress.name);
            }
        }
        names
    }
}

/// Why a stream was not received whole.
#[derive(Debug)]
pub enum Received {
    /// The daemon says so.
    Status(Status),
    /// What came cannot be written.
    Write(std::io::Error),
}

/// The archive at `path`, an image layout or what `docker save` wrote, possibly compressed, becomes images under the names in
/// it, unpacked with `snapshotter`. Gives the names.
pub async fn import(client: &Client, path: &Path, snapshotter: &str) -> Result<Vec<String>, Error> {
    let failed = |doing| move |source| Error::File { doing, path: path.to_owned(), source };
    let file = File::open(path).await.map_err(failed("open"))?;
    let bytes = Stream::open(client, "import").await?;
    let progress = Stream::open(client, "progress").await?;
    let source = ImageImportStream { stream: bytes.id.clone(), ..ImageImportStream::default() };
    let prefix = ImageReference {
        name: "import".to_owned(),
        is_prefix: true,
        allow_overwrite: true,
        ..ImageReference::default()
    };
    let unpack = UnpackConfiguration { platform: None, snapshotter: snapshotter.to_owned() };
    let destination = ImageStore { extra_references: vec![prefix], unpacks: vec![unpack], ..ImageStore::default() };
    let options = TransferOptions { progress_stream: progress.id.clone() };
    let request =
        TransferRequest { source: Some(pack(&source)), destination: Some(pack(&destination)), options: Some(options) };
    let sending = tokio::spawn(bytes.send(file));
    let naming = tokio::spawn(progress.saved());
    let answer = client.transfer().transfer(request).await;
    // A file that we could not read is the reason for whatever the daemon says of its end.
    if sending.is_finished() {
        sending.await.unwrap_or(Ok(())).map_err(failed("read"))?;
    } else {
        sending.abort();
    }
    answer?;
    Ok(tokio::time::timeout(PATIENCE, naming).await.map(Result::unwrap_or_default).unwrap_or_default())
}

/// Writes the images of these names as one archive to the file at `path`, which is removed again if that fails.
pub async fn export(client: &Client, names: &[String], path: &Path, all_platforms: bool) -> Result<(), Error> {
    let failed = |doing| move |source| Error::File { doing, path: path.to_owned(), source };
    let stream = Stream::open(client, "export").await?;
    let mut file = File::create(path).await.map_err(failed("make"))?;
    let exported = export_to(client, stream, names, &mut file, all_platforms).await;
    let exported = exported.map_err(|error| match error {
        Received::Status(status) => Error::from(status),
        Received::Write(source) => failed("write")(source),
    });
    if exported.is_err() {
        // Half an archive is of no use to anybody.
        let _ = tokio::fs::remove_file(path).await;
    }
    exported
}

async fn export_to(
    client: &Client,
    stream: Stream,
    names: &[String],
    file: &mut File,
    all_platforms: bool,
) -> Result<(), Received> {
    let references = names.iter().map(|name| ImageReference { name: name.clone(), ..ImageReference::default() });
    let source = ImageStore { extra_references: references.collect(), ..ImageStore::default() };
    let destination = ImageExportStream { stream: stream.id.clone(), all_platforms, ..ImageExportStream::default() };
    let request = TransferRequest { source: Some(pack(&source)), destination: Some(pack(&destination)), options: None };
    let mut transfer = client.transfer();
    let receiving = stream.receive(file);
    tokio::pin!(receiving);
    let answer = transfer.transfer(request);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => {
            answer.map_err(Received::Status)?;
            let rest = tokio::time::timeout(PATIENCE, receiving).await;
            rest.map_err(|_| Received::Status(Status::deadline_exceeded("the end of the archive did not come")))?
        }
        received = &mut receiving => {
            let answer = answer.await.map_err(Received::Status).map(drop);
            // What the transfer says tells more than the end of the stream.
            answer.and(received)
        }
    }
}

/// Gives the image `name` one more name.
pub async fn tag(client: &Client, name: &str, new: &str) -> Result<(), Error> {
    let named = |name: &str| Some(pack(&ImageStore { name: name.to_owned(), ..ImageStore::default() }));
    let request = TransferRequest { source: named(name), destination: named(new), options: None };
    client.transfer().transfer(request).await?;
    Ok(())
}
