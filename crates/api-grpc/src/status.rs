use model::{Code, Coded};

/// A status message has at most this many bytes. It travels in an HTTP/2 header, percent-encoded, and clients limit
/// the size of all headers together; hyper's limit is 16 KiB.
const MESSAGE_MAX_BYTES: usize = 4096;

/// The gRPC status of an error: the class as the code, and the whole chain as the text, ending with the words of the
/// class as [`model::render`] writes them.
pub fn status(error: &dyn Coded) -> tonic::Status {
    status_with(error.code(), model::render(error))
}

/// The gRPC status of a class and a finished text. An overlong text keeps its beginning and its end, because the end
/// is what clients rebuild the class from.
pub fn status_with(code: Code, text: String) -> tonic::Status {
    tonic::Status::new(tonic::Code::from_i32(code.grpc()), shorten(text))
}

fn shorten(text: String) -> String {
    const TAIL_BYTES: usize = 512;
    const ELLIPSIS: &str = " ... ";
    if text.len() <= MESSAGE_MAX_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(MESSAGE_MAX_BYTES - TAIL_BYTES - ELLIPSIS.len());
    let tail = text.ceil_char_boundary(text.len() - TAIL_BYTES);
    format!("{}{ELLIPSIS}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Sample {
        text: String,
        code: Code,
        #[source]
        source: Option<std::io::Error>,
    }

    impl Coded for Sample {
        fn code(&self) -> Code {
            self.code
        }
    }

    #[test]
    fn code_and_text() {
        let io = || Some(std::io::Error::other("disk on fire"));
        let cases = [
            ("namespace is required", Code::FailedPrecondition, None, 9, "namespace is required: failed precondition"),
            ("image \"a\": not found", Code::NotFound, None, 5, "image \"a\": not found"),
            ("changed", Code::Conflict, None, 9, "changed: conflict"),
            ("same", Code::NotModified, None, 9, "same: not modified"),
            ("sync", Code::DataLoss, io(), 15, "sync: disk on fire: data loss"),
            ("odd", Code::Unknown, io(), 2, "odd: disk on fire"),
            ("late", Code::DeadlineExceeded, None, 4, "late: context deadline exceeded"),
            ("gone", Code::Cancelled, None, 1, "gone: context canceled"),
        ];
        for (text, code, source, want_code, want_text) in cases {
            let status = status(&Sample { text: text.into(), code, source });
            assert_eq!((status.code() as i32, status.message()), (want_code, want_text));
        }
    }

    #[test]
    fn long_text_keeps_its_class() {
        let status = status(&Sample { text: "ä".repeat(5000), code: Code::NotFound, source: None });
        assert!(status.message().len() <= MESSAGE_MAX_BYTES);
        assert!(status.message().ends_with("ä: not found"));
    }
}
