use model::{Code, Coded, render};
use protobuf::Enum as _;

/// The status that a client gets for an error: the class as `google.rpc.Code`, and the whole chain of causes as text
/// that ends with the words of the class.
pub fn status(error: &dyn Coded) -> ttrpc::Error {
    with_code(error.code(), render(error))
}

/// The status for a request that we do not serve; `what` names it.
pub fn unimplemented(what: &str) -> ttrpc::Error {
    with_code(Code::Unimplemented, format!("{what}: {}", Code::Unimplemented.text()))
}

fn with_code(code: Code, text: String) -> ttrpc::Error {
    let code = ttrpc::Code::from_i32(code.grpc()).unwrap_or(ttrpc::Code::UNKNOWN);
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("task {0:?}")]
    struct Missing(&'static str, #[source] std::io::Error);

    impl Coded for Missing {
        fn code(&self) -> Code {
            Code::NotFound
        }
    }

    #[test]
    fn text_ends_with_the_class() {
        let error = Missing("a", std::io::Error::other("gone"));
        let ttrpc::Error::RpcStatus(status) = status(&error) else { panic!("no status") };
        assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
        assert_eq!(status.message, "task \"a\": gone: not found");
        let ttrpc::Error::RpcStatus(status) = unimplemented("checkpoint") else { panic!("no status") };
        assert_eq!(status.code(), ttrpc::Code::UNIMPLEMENTED);
        assert_eq!(status.message, "checkpoint: not implemented");
    }
}
