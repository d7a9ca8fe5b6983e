//! Bytes over a stream of messages: the receiver grants a window, the sender stays within it, and the end of the stream is
//! the end of the bytes (containerd.types.transfer).
//!
//! The reader and the writer are used from threads that may block; dropping the [`Caller`] of the request ends whatever they
//! wait for.

use std::io::{self, Read, Write};

use api_grpc::transfer_types::{Data, WindowUpdate};
use api_grpc::{decode, encode};
use bytes::Bytes;
use prost::Name as _;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::Status;

use crate::Error;
use crate::streams::Stream;

/// A message carries at most this many bytes.
const FRAME_BYTES: usize = 32 << 10;
/// What a receiver grants at once, and keeps granted at least.
const WINDOW_BYTES: i64 = 64 << 10;

/// Held by a request; when it is dropped the work for it ends.
#[derive(Debug)]
pub(crate) struct Caller {
    _alive: watch::Sender<()>,
}

/// Knows whether the request is still wanted.
#[derive(Clone, Debug)]
pub(crate) struct Cancelled(watch::Receiver<()>);

impl Caller {
    pub(crate) fn new() -> (Self, Cancelled) {
        let (sender, receiver) = watch::channel(());
        (Self { _alive: sender }, Cancelled(receiver))
    }
}

impl Cancelled {
    /// Blocks until `work` has ended or the request is not wanted any more.
    pub(crate) fn block_on<T>(
        &mut self,
        handle: &Handle,
        work: impl Future<Output = Result<T, Status>>,
    ) -> io::Result<T> {
        let ended = handle.block_on(async {
            tokio::select! {
                // Nothing is ever sent, so a change is the end.
                _ = self.0.changed() => Err(Error::Cancelled.into()),
                result = work => result,
            }
        });
        ended.map_err(|status: Status| io::Error::other(status))
    }
}

/// The bytes that a client sends.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: Stream,
    window: i64,
}

impl Receiver {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, window: 0 }
    }

    /// The next bytes, never empty; `None` at the end. A client that sends more than was granted is only slowed down, by
    /// HTTP/2.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let mut unsent = None;
            if self.window < WINDOW_BYTES {
                let update = WindowUpdate { update: i32::try_from(WINDOW_BYTES).unwrap_or(i32::MAX) };
                // A client that takes no more messages may have sent all it has.
                unsent = self.stream.send(encode::any(encode::pack(&update))).await.err();
                self.window += WINDOW_BYTES;
            }
            let Some(message) = self.stream.receive().await? else { return Ok(None) };
            if let Some(unsent) = unsent {
                return Err(unsent);
            }
            let message = decode::any(message);
            if message.type_url.rsplit('/').next() != Some(&Data::full_name()) {
                tracing::debug!(type_url = message.type_url, "unknown message on a stream of bytes is ignored");
                continue;
            }
            let data = decode::unpack::<Data>(&message).map_err(Error::Unpack)?.data;
            self.window = self.window.saturating_sub(i64::try_from(data.len()).unwrap_or(i64::MAX));
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// Bytes on their way to a client.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: Stream,
    window: i64,
}

impl Sender {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, window: 0 }
    }

    /// Sends bytes as the client grants it.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) -> Result<(), Status> {
        while !bytes.is_empty() {
            while self.window <= 0 {
                let message = self.stream.receive().await?.ok_or(Error::StreamEnded)?;
                let message = decode::any(message);
                if message.type_url.rsplit('/').next() == Some(&WindowUpdate::full_name()) {
                    let update = decode::unpack::<WindowUpdate>(&message).map_err(Error::Unpack)?;
                    self.window += i64::from(update.update.max(0));
                }
            }
            let granted = usize::try_from(self.window).unwrap_or(usize::MAX);
            let data = bytes.split_to(bytes.len().min(FRAME_BYTES).min(granted));
            self.window -= i64::try_from(data.len()).unwrap_or(i64::MAX);
            self.stream.send(encode::any(encode::pack(&Data { data }))).await?;
        }
        Ok(())
    }

    /// Ends the stream with an error, so that what was sent is not taken for all there is.
    pub(crate) fn fail(self, status: Status) {
        self.stream.fail(status);
    }
}

/// A [`Receiver`] for a thread that may block.
#[derive(Debug)]
pub(crate) struct ByteReader {
    pub(crate) receiver: Receiver,
    pub(crate) handle: Handle,
    pub(crate) cancelled: Cancelled,
    pub(crate) chunk: Bytes,
}

impl Read for ByteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.chunk.is_empty() {
            match self.cancelled.block_on(&self.handle, self.receiver.next())? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

/// A [`Sender`] for a thread that may block.
#[derive(Debug)]
pub(crate) struct ByteWriter {
    pub(crate) sender: Sender,
    pub(crate) handle: Handle,
    pub(crate) cancelled: Cancelled,
}

impl Write for ByteWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cancelled.block_on(&self.handle, self.sender.send(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
