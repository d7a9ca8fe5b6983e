use std::path::PathBuf;

use model::{Code, Coded, Digest};

/// What a client's work can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody serves there.
    #[error("connect to {address}: is the daemon running?")]
    Connect {
        /// Path of the socket.
        address: PathBuf,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The daemon answered with an error; its text says all there is.
    #[error("{}", .0.message())]
    Status(Box<tonic::Status>),
    /// A header would not be valid.
    #[error("{what} {value:?} cannot be sent")]
    Header {
        /// Namespace or lease.
        what: &'static str,
        /// Its text.
        value: String,
    },
    /// A file of ours could not be read or made.
    #[error("{doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The archive is no image layout.
    #[error("{}: {reason}", path.display())]
    Layout {
        /// The archive.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// A document of an image does not say what it must.
    #[error("image document {digest}")]
    Document {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A blob is not what its digest promises.
    #[error("unpacked layer has the digest {have}, the image's configuration names {want}")]
    DiffId {
        /// What the configuration says.
        want: String,
        /// What came out.
        have: String,
    },
    /// The image is not made for this machine.
    #[error("image {name:?} has nothing for {platform}")]
    Platform {
        /// The image.
        name: String,
        /// Operating system and architecture of this machine.
        platform: String,
    },
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Connect { .. } => Code::Unavailable,
            Self::Status(status) => Code::from_grpc(status.code() as i32, status.message()),
            Self::Header { .. } | Self::Layout { .. } | Self::Document { .. } | Self::DiffId { .. } => {
                Code::InvalidArgument
            }
            Self::File { .. } => Code::Unknown,
            Self::Platform { .. } => Code::NotFound,
        }
    }
}
