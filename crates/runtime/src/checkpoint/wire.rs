//! The part of protocol buffers that CRIU's messages need: varints and length-delimited fields, written and read.
//!
//! A few dozen lines here instead of a crate with a generator: the requests are flat, and what comes back is six
//! numbers and a string.

/// A message being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Writer(Vec<u8>);

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Writer {
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            // The mask leaves seven bits.
            self.0.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }

    /// An unsigned number or an enumeration's value.
    pub(super) fn number(&mut self, field: u64, value: u64) {
        self.raw(field << 3 | VARINT);
        self.raw(value);
    }

    /// A signed number of 32 bits: a negative one is written as one of 64 bits.
    pub(super) fn signed(&mut self, field: u64, value: i32) {
        self.number(field, i64::from(value).cast_unsigned());
    }

    /// A truth; `false` is what a missing field means too, and is left out.
    pub(super) fn flag(&mut self, field: u64, value: bool) {
        if value {
            self.number(field, 1);
        }
    }

    /// A text or bytes.
    pub(super) fn bytes(&mut self, field: u64, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.raw(field << 3 | BYTES);
        self.raw(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A message within this one.
    pub(super) fn message(&mut self, field: u64, inner: &Self) {
        self.bytes(field, &inner.0);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// As a signed number of 32 bits, cut as protocol buffers demand.
    pub(super) fn signed(self) -> i32 {
        match self {
            Self::Number(value) => i32::from_le_bytes({
                let [a, b, c, d, ..] = value.to_le_bytes();
                [a, b, c, d]
            }),
            Self::Bytes(_) => 0,
        }
    }

    pub(super) fn flag(self) -> bool {
        matches!(self, Self::Number(value) if value != 0)
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => &[],
        }
    }

    pub(super) fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// Reads the fields of a message in their order. An error ends it: the message is broken.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn raw(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(Broken)?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Broken> {
        let length = usize::try_from(length).map_err(|_| Broken)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Broken> {
        let tag = self.raw()?;
        let value = match tag & 7 {
            VARINT => Value::Number(self.raw()?),
            BYTES => {
                let length = self.raw()?;
                Value::Bytes(self.take(length)?)
            }
            FIXED_64 => Value::Bytes(self.take(8)?),
            FIXED_32 => Value::Bytes(self.take(4)?),
            _ => return Err(Broken),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u64, Value<'a>), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_texts_and_messages_as_the_format_has_them() {
        let mut inner = Writer::default();
        inner.bytes(1, "testing");
        let mut writer = Writer::default();
        writer.number(1, 150);
        writer.bytes(2, "testing");
        writer.message(3, &inner);
        writer.flag(4, true);
        writer.flag(5, false);
        writer.signed(6, -2);
        writer.number(68, 1);
        let mut expected = vec![0x08, 0x96, 0x01, 0x12, 7];
        expected.extend_from_slice(b"testing");
        expected.extend_from_slice(&[0x1a, 9, 0x0a, 7]);
        expected.extend_from_slice(b"testing");
        expected.extend_from_slice(&[0x20, 1, 0x30]);
        expected.extend_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        expected.extend_from_slice(&[0xa0, 0x04, 1]);
        assert_eq!(writer.as_bytes(), expected);

        let fields: Vec<_> = Reader::new(writer.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(fields[0], (1, Value::Number(150)));
        assert_eq!(fields[1].1.text(), "testing");
        assert_eq!(Reader::new(fields[2].1.bytes()).next(), Some(Ok((1, Value::Bytes(b"testing")))));
        assert!(fields[3].1.flag());
        assert_eq!((fields[4].0, fields[4].1.signed()), (6, -2));
        assert_eq!(fields[5].0, 68);
    }

    #[test]
    fn broken_messages_end_with_an_error() {
        for bytes in [
            &[0x08][..],
            &[0x08, 0xff],
            &[0x12, 5, b'a'],
            &[0x0b],
            &[0x09, 1, 2],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            let read: Vec<_> = Reader::new(bytes).collect();
            assert_eq!(read.last(), Some(&Err(Broken)), "{bytes:?}");
        }
    }
}
