//! The streams that clients have opened for other requests to use.
//!
//! ```text
//! Stream RPC ──register──▶ waiting ──take by a request──▶ in use ──dropped by the request──▶ RPC ends OK, name free
//!                             └── client gone, or collected with its lease ──▶ RPC ends, name free
//! ```
//!
//! **Invariant:** the name of a stream is taken exactly as long as its RPC can still be used. Nothing is read from a client
//! before a request wants it, so what waits is bounded by HTTP/2's flow control.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metadata::{Collectible, Member, Scope};
use model::Labels;
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use crate::Error;

/// Streams at the same time.
const STREAMS_MAX: usize = 4096;
/// Longest name of one, in bytes.
const ID_BYTES_MAX: usize = 1024;
/// Messages to a client that wait for it to read.
const OUTBOUND_MAX: usize = 8;

/// Namespace and id.
type Key = (String, String);

/// All streams of all namespaces. Cheap to clone; clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Registry>);

#[derive(Debug, Default)]
struct Registry {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Entry>,
    /// Tells entries of one name from each other.
    next_serial: u64,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    lease: Option<String>,
    /// Absent while a request uses it.
    stream: Option<Stream>,
    /// Tells whoever uses it that it is to end.
    end: watch::Sender<bool>,
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the name. What is dropped with the entry may want to do so itself, so the lock is not held then.
    fn remove(&self, key: &Key, serial: Option<u64>) {
        let mut state = self.state();
        let found = state.entries.get(key).is_some_and(|entry| serial.is_none_or(|serial| serial == entry.serial));
        let entry = if found { state.entries.remove(key) } else { None };
        drop(state);
        if let Some(entry) = entry {
            entry.end.send_replace(true);
        }
    }
}

/// Frees the name of one stream when dropped.
struct Registration {
    registry: Arc<Registry>,
    key: Key,
    serial: u64,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration").field(&self.key).field(&self.serial).finish()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(&self.key, Some(self.serial));
    }
}

/// Our end of a stream, for the one request that uses it. Dropping it ends the stream.
pub(crate) struct Stream {
    inbound: Streaming<Any>,
    outbound: mpsc::Sender<Result<Any, Status>>,
    end: watch::Receiver<bool>,
    /// Absent while it waits in the registry, whose entry is the registration then.
    registration: Option<Registration>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("registration", &self.registration).finish_non_exhaustive()
    }
}

impl Stream {
    /// The client's next message; `None` when it has said its last. Not cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<Option<Any>, Status> {
        tokio::select! {
            message = self.inbound.message() => message,
            // The sender is in the registry's entry, which only goes when the stream is to end.
            _ = self.end.wait_for(|end| *end) => Err(Error::StreamEnded.into()),
        }
    }

    /// Sends a message; waits while the client does not read.
    pub(crate) async fn send(&mut self, message: Any) -> Result<(), Status> {
        tokio::select! {
            sent = self.outbound.send(Ok(message)) => sent.map_err(|_| Error::StreamEnded.into()),
            _ = self.end.wait_for(|end| *end) => Err(Error::StreamEnded.into()),
        }
    }

    /// Ends the stream with an error, as far as the client still listens.
    pub(crate) fn fail(self, status: Status) {
        // A full queue means that the client does not read; it then sees an end without an error.
        let _ = self.outbound.try_send(Err(status));
    }
}

/// The client's end: what it is to be sent.
#[derive(Debug)]
pub(crate) struct Outbound {
    messages: mpsc::Receiver<Result<Any, Status>>,
    end: watch::Receiver<bool>,
    _registration: Registration,
}

impl Outbound {
    /// The next message for the client; `None` at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Any, Status>> {
        tokio::select! {
            biased;
            message = self.messages.recv() => message,
            _ = self.end.wait_for(|end| *end) => None,
        }
    }
}

impl Streams {
    /// Gives a stream a name. ALREADY_EXISTS if there is one of that name, RESOURCE_EXHAUSTED for too many.
    pub(crate) fn register(&self, scope: &Scope, id: &str, inbound: Streaming<Any>) -> Result<Outbound, Error> {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(Error::StreamId);
        }
        let key = (scope.namespace.as_str().to_owned(), id.to_owned());
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        let (end, ended) = watch::channel(false);
        let mut state = self.0.state();
        if state.entries.contains_key(&key) {
            return Err(Error::StreamExists(id.to_owned()));
        }
        if state.entries.len() >= STREAMS_MAX {
            return Err(Error::TooManyStreams(STREAMS_MAX));
        }
        let serial = state.next_serial;
        state.next_serial += 1;
        let stream = Some(Stream { inbound, outbound, end: ended.clone(), registration: None });
        state.entries.insert(key.clone(), Entry { serial, lease: scope.lease.clone(), stream, end });
        drop(state);
        let registration = Registration { registry: Arc::clone(&self.0), key, serial };
        Ok(Outbound { messages, end: ended, _registration: registration })
    }

    /// The stream of that name, for the caller alone. NOT_FOUND if there is none, FAILED_PRECONDITION if a request uses
    /// it already.
    pub(crate) fn take(&self, namespace: &str, id: &str) -> Result<Stream, Error> {
        let shown = || id.chars().take(128).collect::<String>();
        let key = (namespace.to_owned(), id.to_owned());
        let mut state = self.0.state();
        let entry = state.entries.get_mut(&key).ok_or_else(|| Error::NoStream(shown()))?;
        let mut stream = entry.stream.take().ok_or_else(|| Error::StreamInUse(shown()))?;
        stream.registration = Some(Registration { registry: Arc::clone(&self.0), key, serial: entry.serial });
        Ok(stream)
    }
}

impl Collectible for Streams {
    fn kind(&self) -> &'static str {
        "stream"
    }

    fn members(&self) -> Vec<Member> {
        let state = self.0.state();
        let members = state.entries.iter().map(|((namespace, id), entry)| Member {
            namespace: namespace.clone(),
            id: id.clone(),
            lease: entry.lease.clone(),
            labels: Labels::new(),
        });
        members.collect()
    }

    fn remove(&self, garbage: &[(String, String)]) {
        for key in garbage {
            self.0.remove(key, None);
        }
    }
}
