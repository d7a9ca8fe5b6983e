use model::{Code, Coded};

/// A document was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is larger than any real one.
    #[error("{document} of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Which kind of document.
        document: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest that is read.
        limit: usize,
    },
    /// It is no JSON, or not of the specified form.
    #[error("parsing {document}")]
    Malformed {
        /// Which kind of document.
        document: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A field breaks a rule of the specification.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, written as a path from the document's root.
        field: String,
        /// The rule that it breaks.
        problem: String,
    },
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } | Self::Malformed { .. } | Self::Invalid { .. } => Code::InvalidArgument,
        }
    }
}
