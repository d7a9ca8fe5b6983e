use model::{Code, Coded, IdentifierError};

/// Why a request was refused before it reached an engine, or how the way to it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request has no namespace header.
    #[error("namespace is required")]
    NamespaceRequired,
    /// The namespace in the header is none.
    #[error("namespace validation")]
    Namespace(#[source] IdentifierError),
    /// A header's value is not text.
    #[error("header {0} is not text")]
    Header(&'static str),
    /// A message lacks a field without which it means nothing.
    #[error("{0} must be set")]
    Required(&'static str),
    /// A filter does not parse.
    #[error(transparent)]
    Filter(#[from] model::filter::ParseError),
    /// A digest is none.
    #[error(transparent)]
    Digest(#[from] model::DigestError),
    /// So many requests wait for the engines already that one more would only wait longer.
    #[error("too many requests at once: {waiting} wait already; try again later")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The code that served the request panicked. The daemon's log says where.
    #[error("the request made the daemon panic; its log says where")]
    Panicked,
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
    /// A read begins behind the end.
    #[error("read past object length {length} bytes")]
    ReadPast {
        /// Length of the blob.
        length: u64,
    },
    /// Reading a blob failed.
    #[error("read content {digest}")]
    Read {
        /// The blob.
        digest: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The first message of a write stream lacks the ingest's name.
    #[error("first message must have a reference")]
    NoReference,
    /// A write stream tried to switch to another ingest.
    #[error("ref cannot be changed from {have:?} to {want:?}")]
    ReferenceChanged {
        /// The ingest that is open.
        have: String,
        /// The other one.
        want: String,
    },
    /// A write does not continue where the ingest ends.
    #[error("write @{offset} must occur at current offset {current}")]
    WriteOffset {
        /// Where the message wants to write.
        offset: i64,
        /// Where the ingest ends.
        current: u64,
    },
    /// A write stream's message has an action that does not exist.
    #[error("unknown write action {0}")]
    WriteAction(i32),
    /// A size is negative.
    #[error("{field} must not be negative: {value}")]
    Negative {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// No such plugin.
    #[error("plugin {kind}.{id} not found")]
    NoPlugin {
        /// Its type.
        kind: String,
        /// Its id.
        id: String,
    },
    /// An Any is not the message that was wanted.
    #[error(transparent)]
    Unpack(api_grpc::decode::UnpackError),
    /// A stream's id is empty or too long.
    #[error("stream id must not be empty or longer than 1024 bytes")]
    StreamId,
    /// A stream of that id is open.
    #[error("stream {0:?}")]
    StreamExists(String),
    /// There are too many streams.
    #[error("{0} streams are open already")]
    TooManyStreams(usize),
    /// No such stream.
    #[error("stream {0:?}")]
    NoStream(String),
    /// Another request uses the stream.
    #[error("stream {0:?} is in use")]
    StreamInUse(String),
    /// The client's end of a stream is gone, or its lease is.
    #[error("stream has ended")]
    StreamEnded,
    /// The client does not wait for the request any more.
    #[error("request was cancelled")]
    Cancelled,
    /// Nobody knows this type.
    #[error("type with url {0:?}")]
    UnknownType(String),
    /// There is no way from such a source to such a destination.
    #[error("method Transfer not implemented for {from} to {to}")]
    NoTransfer {
        /// Type of the source.
        from: String,
        /// Type of the destination.
        to: String,
    },
    /// A question to a plugin that could not be loaded.
    #[error("cannot get extra info, plugin not successfully loaded")]
    PluginFailed,
    /// A question that a plugin does not understand.
    #[error("plugin does not provided extra information")]
    NoAnswer,
    /// No service has this method.
    #[error("unknown method {0}")]
    UnknownMethod(String),
    /// We do not serve this.
    #[error("{0}")]
    Unimplemented(&'static str),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NamespaceRequired | Self::PluginFailed | Self::StreamInUse(_) => Code::FailedPrecondition,
            Self::Namespace(_)
            | Self::Header(_)
            | Self::Required(_)
            | Self::Filter(_)
            | Self::Digest(_)
            | Self::NoReference
            | Self::ReferenceChanged { .. }
            | Self::WriteAction(_)
            | Self::Unpack(_)
            | Self::StreamId
            | Self::Negative { .. } => Code::InvalidArgument,
            Self::Busy { .. } | Self::TooManyStreams(_) => Code::ResourceExhausted,
            Self::StreamExists(_) => Code::AlreadyExists,
            Self::StreamEnded => Code::Aborted,
            Self::Cancelled => Code::Cancelled,
            Self::Panicked => Code::Internal,
            Self::Stopping => Code::Unavailable,
            Self::ReadPast { .. } | Self::WriteOffset { .. } => Code::OutOfRange,
            Self::Read { .. } => Code::Unknown,
            Self::NoPlugin { .. } | Self::NoStream(_) | Self::UnknownType(_) => Code::NotFound,
            Self::NoAnswer | Self::UnknownMethod(_) | Self::Unimplemented(_) | Self::NoTransfer { .. } => {
                Code::Unimplemented
            }
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        api_grpc::status(&error)
    }
}
