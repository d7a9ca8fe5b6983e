//! Messages of the D-Bus protocol, as far as systemd's manager needs them (D-Bus specification 0.43, "Message
//! Protocol" and "Type System").
//!
//! Written and read in little endian, which is what the library of a little endian host sends, too; the other order is
//! refused. What is read comes from the bus and is bounded and checked like any input.

/// The largest message that is read. The protocol allows 128 MiB; what we ask for has a few hundred bytes.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Length of the part of a header that has the same form in all messages.
pub(super) const FIXED_HEADER_BYTES: usize = 16;

const LITTLE_ENDIAN: u8 = b'l';
const PROTOCOL_VERSION: u8 = 1;

/// A value, with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    I32(i32),
    U64(u64),
    Text(String),
    Texts(Vec<String>),
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
    /// Two strings each: a device and the access to it.
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::U32s(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// Marshals values. Alignment is relative to the beginning, so a body and a header have a writer each.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A string or an object path.
    pub(super) fn text(&mut self, text: &str) {
        // Callers bound their texts far below this, and a NUL byte is refused where the text comes from.
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text.as_bytes());
        self.byte(0);
    }

    fn signature(&mut self, signature: &str) {
        self.byte(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.bytes.extend(signature.as_bytes());
        self.byte(0);
    }

    /// An array whose elements begin at multiples of `alignment`; its length does not count the first padding.
    pub(super) fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let place = self.bytes.len() - 4;
        self.align(alignment);
        let begin = self.bytes.len();
        fill(self);
        let length = u32::try_from(self.bytes.len() - begin).unwrap_or(u32::MAX);
        self.bytes[place..place + 4].copy_from_slice(&length.to_le_bytes());
    }

    pub(super) fn structure(&mut self, fill: impl FnOnce(&mut Self)) {
        self.align(8);
        fill(self);
    }

    /// A variant: the type, then the value.
    pub(super) fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::I32(value) => self.u32(value.cast_unsigned()),
            Value::U64(value) => self.u64(*value),
            Value::Text(text) => self.text(text),
            Value::Texts(list) => self.array(4, |writer| list.iter().for_each(|text| writer.text(text))),
            Value::U32s(list) => self.array(4, |writer| list.iter().for_each(|value| writer.u32(*value))),
            Value::Bytes(list) => self.array(1, |writer| writer.bytes.extend(list)),
            Value::Pairs(list) => self.array(8, |writer| {
                for (first, second) in list {
                    writer.structure(|writer| {
                        writer.text(first);
                        writer.text(second);
                    });
                }
            }),
        }
    }
}

/// Where a method is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'text> {
    pub(super) destination: &'text str,
    pub(super) path: &'text str,
    pub(super) interface: &'text str,
}

/// A method call, whole.
pub(super) fn call(serial: u32, target: Target<'_>, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let mut header = Writer::default();
    for byte in [LITTLE_ENDIAN, METHOD_CALL, 0, PROTOCOL_VERSION] {
        header.byte(byte);
    }
    header.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    header.u32(serial);
    header.array(8, |header| {
        let mut field = |code: u8, kind: &str, text: &str| {
            header.structure(|header| {
                header.byte(code);
                header.signature(kind);
                if kind == "g" { header.signature(text) } else { header.text(text) }
            });
        };
        field(1, "o", target.path);
        field(2, "s", target.interface);
        field(3, "s", member);
        field(6, "s", target.destination);
        if !signature.is_empty() {
            field(8, "g", signature);
        }
    });
    header.align(8);
    header.bytes.extend(body);
    header.into_bytes()
}

/// What kind of message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Failure,
    Signal,
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Of the call that this answers.
    pub(super) reply_to: u32,
    pub(super) member: String,
    pub(super) error: String,
    body: Vec<u8>,
}

/// How long the message is that begins with these bytes. `None`: that is no message that we take.
pub(super) fn length(head: &[u8; FIXED_HEADER_BYTES]) -> Option<usize> {
    if head[0] != LITTLE_ENDIAN || head[3] != PROTOCOL_VERSION {
        return None;
    }
    let word = |at: usize| {
        let bytes = head.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let (body, fields) = (word(4)?, word(12)?);
    if body > MESSAGE_BYTES_MAX || fields > MESSAGE_BYTES_MAX {
        return None;
    }
    Some((FIXED_HEADER_BYTES + fields).next_multiple_of(8) + body).filter(|length| *length <= MESSAGE_BYTES_MAX)
}

impl Message {
    /// Parses a whole message.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; FIXED_HEADER_BYTES] = bytes.get(..FIXED_HEADER_BYTES)?.try_into().ok()?;
        if length(head)? != bytes.len() {
            return None;
        }
        let kind = match head[1] {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Failure,
            4 => Kind::Signal,
            _ => return None,
        };
        let mut reader = Reader { bytes, at: 12 };
        let end = usize::try_from(reader.u32()?).ok()?.checked_add(FIXED_HEADER_BYTES)?;
        let mut message = Self { kind, reply_to: 0, member: String::new(), error: String::new(), body: Vec::new() };
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match reader.signature()? {
                "s" | "o" => {
                    let text = reader.text()?;
                    match code {
                        3 => message.member = text.to_owned(),
                        4 => message.error = text.to_owned(),
                        _ => {}
                    }
                }
                "g" => drop(reader.signature()?),
                "u" => {
                    let value = reader.u32()?;
                    if code == 5 {
                        message.reply_to = value;
                    }
                }
                _ => return None,
            }
        }
        reader.align(8)?;
        message.body = bytes.get(reader.at..)?.to_vec();
        Some(message)
    }

    pub(super) fn body(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Reads a body, one value after the other. `None`: it is not what was expected.
#[derive(Debug)]
pub(super) struct Reader<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, count: usize) -> Option<&'bytes [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Option<&'bytes str> {
        let length = usize::try_from(self.u32()?).ok()?;
        let text = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }

    fn signature(&mut self) -> Option<&'bytes str> {
        let length = self.byte()?;
        let text = self.take(length.into())?;
        self.take(1)?;
        std::str::from_utf8(text).ok()
    }

    /// The string in a variant.
    pub(super) fn variant_text(&mut self) -> Option<&'bytes str> {
        if self.signature()? == "s" { self.text() } else { None }
    }
}

/// A message of the other side.
#[cfg(test)]
pub(super) fn answer(kind: Kind, reply_to: u32, name: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut header = Writer::default();
    let (number, code) = match kind {
        Kind::Call => (1, 3),
        Kind::Return => (2, 3),
        Kind::Failure => (3, 4),
        Kind::Signal => (4, 3),
    };
    for byte in [LITTLE_ENDIAN, number, 0, PROTOCOL_VERSION] {
        header.byte(byte);
    }
    header.u32(u32::try_from(body.len()).unwrap());
    header.u32(1);
    header.array(8, |header| {
        header.structure(|header| {
            header.byte(5);
            header.signature("u");
            header.u32(reply_to);
        });
        header.structure(|header| {
            header.byte(code);
            header.signature("s");
            header.text(name);
        });
        header.structure(|header| {
            header.byte(8);
            header.signature("g");
            header.signature(signature);
        });
    });
    header.align(8);
    header.bytes.extend(body);
    header.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target<'_> = Target { destination: "a.b", path: "/a", interface: "a.b.C" };

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let mut body = Writer::default();
        body.text("x");
        let bytes = call(7, TARGET, "Do", "s", &body.into_bytes());
        let mut expected = vec![b'l', 1, 0, 1, 6, 0, 0, 0, 7, 0, 0, 0, 71, 0, 0, 0];
        expected.extend(b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0\x05\0\0\0a.b.C\0\0\0");
        expected.extend(b"\x03\x01s\0\x02\0\0\0Do\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0");
        expected.extend(b"\x08\x01g\0\x01s\0\0");
        expected.extend(b"\x01\0\0\0x\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn variants_are_aligned() {
        for (value, expected) in [
            (Value::Bool(true), &b"\x01b\0\0\x01\0\0\0"[..]),
            (Value::U64(1), b"\x01t\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"),
            (Value::Text("ab".to_owned()), b"\x01s\0\0\x02\0\0\0ab\0"),
            (Value::U32s(vec![1, 2]), b"\x02au\0\x08\0\0\0\x01\0\0\0\x02\0\0\0"),
            (Value::Bytes(vec![1, 2]), b"\x02ay\0\x02\0\0\0\x01\x02"),
            (Value::Texts(vec!["a".to_owned()]), b"\x02as\0\x06\0\0\0\x01\0\0\0a\0"),
            (
                Value::Pairs(vec![("a".to_owned(), "b".to_owned())]),
                b"\x05a(ss)\0\0\x0e\0\0\0\0\0\0\0\x01\0\0\0a\0\0\0\x01\0\0\0b\0",
            ),
        ] {
            let mut writer = Writer::default();
            writer.variant(&value);
            // The padding in front of the elements of a(ss): from offset 12 to 16.
            assert_eq!(writer.into_bytes(), expected, "{value:?}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_every_cut_is_noticed() {
        let mut body = Writer::default();
        body.u32(5);
        body.text("/job");
        body.variant(&Value::Text("252".to_owned()));
        let bytes = call(7, TARGET, "Do", "uov", &body.into_bytes());
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str(), message.reply_to), (Kind::Call, "Do", 0));
        let mut reader = message.body();
        assert_eq!((reader.u32(), reader.text(), reader.variant_text()), (Some(5), Some("/job"), Some("252")));
        assert_eq!(reader.u32(), None);
        for length in 0..bytes.len() {
            assert!(Message::parse(&bytes[..length]).is_none(), "{length}");
        }
        // Any byte may be wrong without more than a refusal or another message.
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut wrong = bytes.clone();
                wrong[at] = value;
                if let Some(message) = Message::parse(&wrong) {
                    let mut reader = message.body();
                    while reader.text().is_some() {}
                }
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let head = |body: u32, fields: u32, order: u8| {
            let mut head = [order, 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            head[4..8].copy_from_slice(&body.to_le_bytes());
            head[12..].copy_from_slice(&fields.to_le_bytes());
            length(&head)
        };
        assert_eq!(head(4, 9, b'l'), Some(36));
        assert_eq!(head(u32::MAX, 0, b'l'), None);
        assert_eq!(head(0, u32::MAX, b'l'), None);
        assert_eq!(head(1 << 20, 8, b'l'), None);
        assert_eq!(head(0, 0, b'B'), None);
    }
}
