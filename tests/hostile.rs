//! Empty and absurd requests to every RPC: each gets a status of the right kind, and the daemon goes on serving.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, MethodDescriptor, Value};
use testkit::Daemon;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

/// Messages as bytes that nobody looks into.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// A way to fill a request.
#[derive(Clone, Copy, Debug)]
enum Filling {
    /// No field is set.
    Empty,
    /// Every string has 5,000 characters.
    LongStrings,
    /// Names that look like names, numbers at their ends.
    Extremes,
    /// Paths that lead elsewhere, control characters.
    Paths,
}

impl Filling {
    fn string(self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::LongStrings => "x".repeat(5000),
            Self::Extremes => "name".to_owned(),
            Self::Paths => "../../../../etc/\u{0}\n%s".to_owned(),
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Empty => 0,
            Self::LongStrings => 1,
            Self::Extremes => i64::MIN,
            Self::Paths => i64::MAX,
        }
    }
}

fn value(kind: &Kind, filling: Filling, depth: usize) -> Value {
    let number = filling.number();
    match kind {
        Kind::String => Value::String(filling.string()),
        Kind::Bytes => Value::Bytes(vec![0xff; 5000].into()),
        Kind::Bool => Value::Bool(true),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::MAX),
        Kind::Float => Value::F32(f32::NAN),
        Kind::Double => Value::F64(f64::NAN),
        Kind::Enum(_) => Value::EnumNumber(number as i32),
        Kind::Message(message) => Value::Message(fill(message, filling, depth + 1)),
    }
}

fn fill(descriptor: &MessageDescriptor, filling: Filling, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    if depth > 4 || matches!(filling, Filling::Empty) {
        return message;
    }
    for field in descriptor.fields() {
        let one = if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message().expect("a map field is a message");
            let item = value(&entry.map_entry_value_field().kind(), filling, depth);
            Value::Map([(MapKey::String(filling.string()), item)].into_iter().collect())
        } else if field.is_list() {
            Value::List(vec![value(&field.kind(), filling, depth), value(&field.kind(), filling, depth)])
        } else {
            value(&field.kind(), filling, depth)
        };
        message.set_field(&field, one);
    }
    message
}

fn services() -> DescriptorPool {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut files = Vec::new();
    let mut open = vec![proto.clone()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    DescriptorPool::from_file_descriptor_set(protox::compile(files, [proto]).unwrap()).unwrap()
}

async fn call(
    client: &client::Client,
    method: &MethodDescriptor,
    body: Vec<u8>,
    namespace: Option<&str>,
) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path: http::uri::PathAndQuery = path.parse().unwrap();
    let mut grpc = tonic::client::Grpc::new(client.channel());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = tonic::Request::new(tokio_stream::once(body));
    if let Some(namespace) = namespace {
        request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    }
    let answer = async {
        let mut stream = grpc.streaming(request, path, Raw).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    // Streams without an end (Subscribe) are left after a while; that is an answer too.
    match tokio::time::timeout(Duration::from_secs(3), answer).await {
        Ok(outcome) => outcome,
        Err(_) if method.is_server_streaming() => Ok(()),
        Err(_) => Err(Status::deadline_exceeded("no answer within 3 s")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_requests_get_a_status() {
    let daemon = Daemon::start("hostile");
    let client = client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    let pool = services();
    let mut calls = 0;
    let mut wrong = Vec::new();
    for service in pool.services().filter(|service| service.full_name().starts_with("containerd.services.")) {
        if service.full_name().contains("ttrpc") {
            continue;
        }
        for method in service.methods() {
            for filling in [Filling::Empty, Filling::LongStrings, Filling::Extremes, Filling::Paths] {
                for namespace in [Some("default"), None, Some("..")] {
                    let body = prost::Message::encode_to_vec(&fill(&method.input(), filling, 0));
                    let outcome = call(&client, &method, body, namespace).await;
                    calls += 1;
                    if let Err(status) = outcome
                        && matches!(
                            status.code(),
                            Code::Internal | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                        )
                    {
                        wrong.push(format!("{} {filling:?} in {namespace:?}: {status}", method.full_name()));
                    }
                }
            }
            // Bytes that are no message at all, and text that is no UTF-8.
            for body in [vec![0xff; 64], vec![0x0a, 0x02, 0xc3, 0x28]] {
                let outcome = call(&client, &method, body, Some("default")).await;
                calls += 1;
                if let Err(status) = outcome
                    && matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
                {
                    wrong.push(format!("{} with bytes: {status}", method.full_name()));
                }
            }
        }
    }
    assert!(calls > 500, "only {calls} calls were made");
    assert!(!daemon.log().contains("panicked"), "a handler panicked:\n{}", daemon.log());
    assert!(wrong.is_empty(), "{} of {calls} answers are of the wrong kind:\n{}", wrong.len(), wrong.join("\n"));
    let version = client.version().version(()).await.unwrap().into_inner();
    assert!(!version.version.is_empty());
    println!("{calls} calls answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused() {
    let daemon = Daemon::start("oversized");
    let client = client::Client::connect(Path::new(&daemon.address()), "default").await.unwrap();
    let method = services()
        .get_service_by_name("containerd.services.containers.v1.Containers")
        .and_then(|service| service.methods().find(|method| method.name() == "Create"))
        .unwrap();
    let outcome = call(&client, &method, vec![0x0a; (16 << 20) + 100], Some("default")).await;
    let code = outcome.unwrap_err().code();
    assert!(matches!(code, Code::ResourceExhausted | Code::OutOfRange), "{code:?}");
    client.version().version(()).await.unwrap();
}
