//! A connection whose clients may send any `:authority`.
//!
//! Clients of a unix socket have no host to name. Most say `localhost`, but some, the kubelet among them, send the
//! socket's path, percent-encoded or as it is; gRPC servers in Go take it. hyper resets such requests, because no valid
//! URI has such an authority (RFC 9113, 8.3.1), and offers no way to be asked before. So the bytes are looked at before
//! hyper has them:
//!
//! ```text
//! preface ─► frames ─► first request's headers ─┬─ authority valid ──► transparent: the rest is not looked at
//!                                               └─ not valid ────────► rewriting: each header block is decoded and
//!                                                                      encoded again, with the authority "localhost"
//! ```
//!
//! **Invariant:** a connection that is not rewritten costs the decoding of one header block, and its bytes reach hyper
//! unchanged. In a rewritten one every block is encoded without compression state, so hyper's state stays empty and the
//! only state is the decoder's here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const TYPE_HEADERS: u8 = 0x1;
const TYPE_CONTINUATION: u8 = 0x9;
const FLAG_END_STREAM: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;

/// The largest frame that a peer may send while we have not allowed more (RFC 9113, 6.5.2), and we never do.
const FRAME_MAX_BYTES: usize = 16_384;

/// A header block may have this many bytes, as it comes and decoded. gRPC clients send a few hundred.
const BLOCK_MAX_BYTES: usize = 256 << 10;

/// A stream that makes `:authority` acceptable to hyper. See the module's documentation.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    inner: S,
    filter: Filter,
    /// Bytes for hyper, from `taken` on.
    output: Vec<u8>,
    taken: usize,
}

impl<S> AnyAuthority<S> {
    /// Wraps a connection that nothing has been read from.
    pub fn new(inner: S) -> Self {
        Self { inner, filter: Filter::default(), output: Vec::new(), taken: 0 }
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.taken < this.output.len() {
                let count = buffer.remaining().min(this.output.len() - this.taken);
                buffer.put_slice(&this.output[this.taken..this.taken + count]);
                this.taken += count;
                if this.taken == this.output.len() {
                    // Not kept: most connections never need it again.
                    this.output = Vec::new();
                    this.taken = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if matches!(this.filter.state, State::Transparent) {
                return Pin::new(&mut this.inner).poll_read(context, buffer);
            }
            let mut bytes = [0; 4096];
            let mut chunk = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.feed(chunk.filled(), &mut this.output)?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// The machine in the module's drawing, without any input and output.
#[derive(Default)]
struct Filter {
    state: State,
    rewriting: bool,
    decoder: Decoder<'static>,
    /// The preface, a frame's head, or a collected frame's payload, as far as they have come.
    partial: Vec<u8>,
    head: Head,
    /// The header block that is being collected, and the frames it came in.
    block: Option<Block>,
    original: Vec<u8>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("state", &self.state).field("rewriting", &self.rewriting).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Preface,
    Head,
    /// In a frame that is passed on; so many bytes are left of it.
    Pass(usize),
    /// In a frame of a header block.
    Collect,
    Transparent,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

struct Block {
    stream: [u8; 4],
    end_stream: u8,
    fragment: Vec<u8>,
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Filter {
    /// Takes bytes of the client, and appends to `output` what hyper is to see.
    fn feed(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            match self.state {
                State::Transparent => {
                    output.extend_from_slice(input);
                    return Ok(());
                }
                State::Preface => {
                    if self.fill(&mut input, PREFACE.len()) {
                        output.append(&mut self.partial);
                        // Whatever else is spoken here, hyper answers it.
                        self.state = if output.ends_with(PREFACE) { State::Head } else { State::Transparent };
                    }
                }
                State::Head => {
                    if self.fill(&mut input, HEAD_BYTES) {
                        self.begin_frame(output)?;
                    }
                }
                State::Pass(left) => {
                    let count = left.min(input.len());
                    output.extend_from_slice(&input[..count]);
                    input = &input[count..];
                    self.state = if count == left { State::Head } else { State::Pass(left - count) };
                }
                State::Collect => {
                    if self.fill(&mut input, self.head.length) {
                        self.end_frame(output)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves bytes to `partial` until it has `want`.
    fn fill(&mut self, input: &mut &[u8], want: usize) -> bool {
        let count = (want - self.partial.len()).min(input.len());
        self.partial.extend_from_slice(&input[..count]);
        *input = &input[count..];
        self.partial.len() == want
    }

    fn begin_frame(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        let &[high, middle, low, kind, flags, a, b, c, d] = self.partial.as_slice() else {
            return Err(malformed("a frame's head has nine bytes"));
        };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.head = Head { length, kind, flags, stream: [a, b, c, d] };
        let ours = kind == TYPE_HEADERS || (kind == TYPE_CONTINUATION && self.block.is_some());
        if !ours {
            if self.block.is_some() {
                return Err(malformed("a frame stands in the middle of a header block"));
            }
            output.append(&mut self.partial);
            self.state = if length == 0 { State::Head } else { State::Pass(length) };
            return Ok(());
        }
        if length > FRAME_MAX_BYTES || self.original.len() + length > BLOCK_MAX_BYTES {
            return Err(malformed("a header block is too large"));
        }
        self.original.append(&mut self.partial);
        self.state = State::Collect;
        if length == 0 { self.end_frame(output) } else { Ok(()) }
    }

    fn end_frame(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        let payload = std::mem::take(&mut self.partial);
        self.original.extend_from_slice(&payload);
        self.state = State::Head;
        let Head { kind, flags, stream, .. } = self.head;
        let fragment = if kind == TYPE_HEADERS { unpadded(&payload, flags)? } else { &payload };
        match &mut self.block {
            None => {
                let end_stream = flags & FLAG_END_STREAM;
                self.block = Some(Block { stream, end_stream, fragment: fragment.to_vec() });
            }
            Some(block) if kind == TYPE_CONTINUATION && block.stream == stream => {
                block.fragment.extend_from_slice(fragment);
            }
            Some(_) => return Err(malformed("a header block is continued by another stream")),
        }
        if flags & FLAG_END_HEADERS != 0
            && let Some(block) = self.block.take()
        {
            self.end_block(&block, output)?;
        }
        Ok(())
    }

    fn end_block(&mut self, block: &Block, output: &mut Vec<u8>) -> io::Result<()> {
        let original = std::mem::take(&mut self.original);
        let mut encoded = Vec::with_capacity(block.fragment.len() * 2);
        let mut replaced = false;
        let mut bytes = 0;
        let decoded = self.decoder.decode_with_cb(&block.fragment, |name, value| {
            bytes += name.len() + value.len();
            if bytes > BLOCK_MAX_BYTES {
                return;
            }
            let bad = *name == *b":authority" && http::uri::Authority::try_from(&*value).is_err();
            replaced |= bad;
            literal(&name, if bad { b"localhost" } else { &value }, &mut encoded);
        });
        decoded.map_err(|_| malformed("a header block cannot be decoded"))?;
        if bytes > BLOCK_MAX_BYTES {
            return Err(malformed("a header block is too large"));
        }
        if !self.rewriting && !replaced {
            // A client has one authority for all its requests.
            output.extend_from_slice(&original);
            self.state = State::Transparent;
            self.decoder = Decoder::new();
            return Ok(());
        }
        self.rewriting = true;
        frames(block, &encoded, output);
        Ok(())
    }
}

/// The block's fragment in the payload of a HEADERS frame, without padding and priority.
fn unpadded(payload: &[u8], flags: u8) -> io::Result<&[u8]> {
    let mut range = 0..payload.len();
    if flags & FLAG_PADDED != 0 {
        let padding = usize::from(*payload.first().ok_or_else(|| malformed("padding without a length"))?);
        range = 1..payload.len().saturating_sub(padding);
    }
    if flags & FLAG_PRIORITY != 0 {
        range.start += 5;
    }
    payload.get(range).ok_or_else(|| malformed("more padding than payload"))
}

/// Encodes a field as a literal without indexing (RFC 7541, 6.2.2).
fn literal(name: &[u8], value: &[u8], output: &mut Vec<u8>) {
    output.push(0);
    for text in [name, value] {
        // The length is an integer with a prefix of seven bits (RFC 7541, 5.1); the eighth says "not Huffman".
        let mut length = text.len();
        if length < 127 {
            output.push(u8::try_from(length).unwrap_or(0));
        } else {
            output.push(127);
            length -= 127;
            while length >= 128 {
                output.push(u8::try_from(length % 128).unwrap_or(0) | 128);
                length /= 128;
            }
            output.push(u8::try_from(length).unwrap_or(0));
        }
        output.extend_from_slice(text);
    }
}

/// Writes a block as one HEADERS frame and as many CONTINUATION frames as it takes.
fn frames(block: &Block, encoded: &[u8], output: &mut Vec<u8>) {
    let mut fragments = encoded.chunks(FRAME_MAX_BYTES).peekable();
    let mut kind = TYPE_HEADERS;
    let mut flags = block.end_stream;
    loop {
        let fragment = fragments.next().unwrap_or_default();
        let last = fragments.peek().is_none();
        let length = u32::try_from(fragment.len()).unwrap_or(0).to_be_bytes();
        output.extend_from_slice(&length[1..]);
        output.push(kind);
        output.push(flags | if last { FLAG_END_HEADERS } else { 0 });
        output.extend_from_slice(&block.stream);
        output.extend_from_slice(fragment);
        if last {
            return;
        }
        kind = TYPE_CONTINUATION;
        flags = 0;
    }
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const PATH: &str = "/containerd.services.version.v1.Version/Version";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn request(encoder: &mut Encoder<'_>, authority: &str) -> Vec<u8> {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PATH),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        encoder.encode(fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn run(input: &[u8], chunk: usize) -> io::Result<Vec<u8>> {
        let mut filter = Filter::default();
        let mut output = Vec::new();
        for part in input.chunks(chunk) {
            filter.feed(part, &mut output)?;
        }
        Ok(output)
    }

    /// Two requests with shared compression state, the second split and padded, with data behind each.
    fn connection(authority: &str) -> Vec<u8> {
        let mut encoder = Encoder::new();
        let first = request(&mut encoder, authority);
        let second = request(&mut encoder, authority);
        assert!(second.len() < first.len(), "the second uses the dynamic table");
        let (begin, end) = second.split_at(3);
        let padded = [&[4][..], &[0; 5], begin, &[0; 4]].concat();
        [
            PREFACE.to_vec(),
            frame(4, 0, 0, &[]),
            frame(TYPE_HEADERS, FLAG_END_HEADERS, 1, &first),
            frame(0, FLAG_END_STREAM, 1, &[0; 5]),
            frame(TYPE_HEADERS, FLAG_PADDED | FLAG_PRIORITY, 3, &padded),
            frame(TYPE_CONTINUATION, FLAG_END_HEADERS, 3, end),
            frame(0, FLAG_END_STREAM, 3, &[0; 5]),
        ]
        .concat()
    }

    #[test]
    fn valid_authorities_pass_unchanged() {
        for authority in ["localhost", "a.b:80", "[::1]:80", "127.0.0.1"] {
            let input = connection(authority);
            for chunk in [1, 7, 4096] {
                assert_eq!(run(&input, chunk).unwrap(), input, "{authority} in chunks of {chunk}");
            }
        }
        for input in [&b"GET / HTTP/1.1\r\nHost: %\r\n\r\n"[..], b"PRI", b""] {
            let output = run(input, 5).unwrap();
            assert!(input.starts_with(&output));
        }
    }

    #[test]
    fn what_is_malformed_ends_the_connection() {
        let begin = |frames: &[Vec<u8>]| [PREFACE.to_vec(), frames.concat()].concat();
        for input in [
            begin(&[frame(TYPE_HEADERS, FLAG_END_HEADERS, 1, &[0xff; 9])]),
            begin(&[frame(TYPE_HEADERS, FLAG_END_HEADERS | FLAG_PADDED, 1, &[9, 0])]),
            begin(&[frame(TYPE_HEADERS, FLAG_END_HEADERS | FLAG_PADDED, 1, &[])]),
            begin(&[frame(TYPE_HEADERS, FLAG_END_HEADERS | FLAG_PRIORITY, 1, &[0])]),
            begin(&[frame(TYPE_HEADERS, 0, 1, &[]), frame(0, 0, 1, &[])]),
            begin(&[frame(TYPE_HEADERS, 0, 1, &[]), frame(TYPE_CONTINUATION, 0, 3, &[])]),
            begin(&[frame(TYPE_HEADERS, 0, 1, &[0; FRAME_MAX_BYTES + 1])]),
            begin(&vec![frame(TYPE_HEADERS, 0, 1, &[0; FRAME_MAX_BYTES]); 20]),
        ] {
            assert!(run(&input, 4096).is_err());
        }
    }

    #[test]
    fn long_fields_are_encoded() {
        for length in [0, 1, 126, 127, 128, 254, 255, 5000, 40_000] {
            let value = vec![b'x'; length];
            let mut encoded = Vec::new();
            literal(b"name", &value, &mut encoded);
            let decoded = Decoder::new().decode(&encoded).unwrap();
            assert_eq!(decoded, [(b"name".to_vec(), value)]);
        }
    }

    #[tokio::test]
    async fn a_server_answers_whatever_the_authority() {
        for authority in ["localhost", "%2Frun%2Fcontainerd%2Fcontainerd.sock", "/run/containerd.sock", "", "a b"] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let version = crate::version::VersionService { version: "1".to_owned(), revision: String::new() };
            let service = api_grpc::services::version::version_server::VersionServer::new(version);
            let incoming = futures::stream::iter([Ok::<_, io::Error>(AnyAuthority::new(Plain(server)))]);
            let serving =
                tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
            client.write_all(&connection(authority)).await.unwrap();
            let mut answered = Vec::new();
            while answered.len() < 2 {
                let mut head = [0; HEAD_BYTES];
                client.read_exact(&mut head).await.unwrap();
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut payload = vec![0; length];
                client.read_exact(&mut payload).await.unwrap();
                assert!(![3, 7].contains(&head[3]), "{authority}: reset or goaway");
                if head[3] == TYPE_HEADERS && head[4] & FLAG_END_STREAM != 0 {
                    answered.push(head[8]);
                }
            }
            assert_eq!(answered, [1, 3], "{authority}");
            drop(client);
            serving.abort();
        }
    }

    /// A pipe that can be asked who is at its other end.
    struct Plain(DuplexStream);

    impl Connected for Plain {
        type ConnectInfo = ();

        fn connect_info(&self) {}
    }

    impl AsyncRead for Plain {
        fn poll_read(mut self: Pin<&mut Self>, c: &mut Context<'_>, b: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(c, b)
        }
    }

    impl AsyncWrite for Plain {
        fn poll_write(mut self: Pin<&mut Self>, c: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(c, b)
        }

        fn poll_flush(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(c)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, c: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(c)
        }
    }
}
