use std::error::Error;
use std::fmt::Write as _;

/// The class of an error, as containerd's clients tell them apart: by gRPC code, and for three of them by the text at
/// the very end of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller went away.
    Cancelled,
    /// No class fits; clients show the text.
    Unknown,
    /// The request can never succeed as it is.
    InvalidArgument,
    /// Another process did not answer in time.
    DeadlineExceeded,
    /// The named object does not exist.
    NotFound,
    /// The named object exists already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A limit of ours is reached; trying later may help.
    ResourceExhausted,
    /// The object is not in a state that allows this.
    FailedPrecondition,
    /// As `FailedPrecondition`, told apart by its text.
    Conflict,
    /// As `FailedPrecondition`, told apart by its text.
    NotModified,
    /// A concurrent change won.
    Aborted,
    /// An offset or cursor lies outside of what exists.
    OutOfRange,
    /// We do not serve this.
    Unimplemented,
    /// An invariant of ours is broken.
    Internal,
    /// Not now; the same request may succeed later.
    Unavailable,
    /// Stored data is damaged.
    DataLoss,
    /// The caller did not say who it is.
    Unauthenticated,
}

impl Code {
    /// The words a message of this class ends with. Go clients strip them to rebuild the class.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Cancelled => "context canceled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Conflict => "conflict",
            Self::NotModified => "not modified",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "not implemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// The number in `google.rpc.Status.code`.
    pub const fn grpc(self) -> i32 {
        match self {
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition | Self::Conflict | Self::NotModified => 9,
            Self::Aborted => 10,
            Self::OutOfRange => 11,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }

    /// The class of a `google.rpc.Status`; code 9 is split by the end of its message.
    pub fn from_grpc(code: i32, message: &str) -> Self {
        match code {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 if message.ends_with(": conflict") => Self::Conflict,
            9 if message.ends_with(": not modified") => Self::NotModified,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

/// An error that knows its class. Each crate has one error enum and an exhaustive `code()`.
pub trait Coded: Error {
    /// The class that this error has for a client.
    fn code(&self) -> Code;
}

/// Renders an error and its sources once, joined by `": "`, ending with the words of its class.
///
/// `Unknown` adds no words, as containerd does not.
pub fn render(error: &dyn Coded) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    let class = error.code();
    if class != Code::Unknown && !text.ends_with(class.text()) {
        let _ = write!(text, ": {}", class.text());
    }
    text
}
