//! Records of PAX extended headers: `<length> <key>=<value>\n`.

use std::collections::BTreeMap;

use crate::Error;

/// The records of one header that we heed; the last one of a key counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) records: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes` of format 0.0, in order: the only keys that repeat.
    pub(crate) sparse: Vec<Vec<u8>>,
}

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, Error> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes).ok_or(Error::Header("malformed PAX record"))?;
            bytes = rest;
            let equals =
                record.iter().position(|byte| *byte == b'=').ok_or(Error::Header("PAX record without a value"))?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() {
                return Err(Error::Header("PAX record without a key"));
            }
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            } else if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                pax.sparse.push(value.to_vec());
            } else {
                pax.records.insert(key.to_vec(), value.to_vec());
            }
        }
        Ok(pax)
    }

    /// A value as text without NUL bytes, which no name on Linux has.
    pub(crate) fn name(&self, key: &str) -> Result<Option<&[u8]>, Error> {
        match self.records.get(key.as_bytes()) {
            Some(value) if value.contains(&0) => Err(Error::Header("PAX record with a NUL byte in a name")),
            // An empty value takes an earlier record back (POSIX pax, "Extended Header Keyword Precedence").
            Some(value) if value.is_empty() => Ok(None),
            value => Ok(value.map(Vec::as_slice)),
        }
    }

    /// A value as a decimal number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.records.get(key.as_bytes()) {
            Some(value) if !value.is_empty() => decimal(value).map(Some),
            _ => Ok(None),
        }
    }

    /// A value as a time: seconds, and nanoseconds within the second.
    pub(crate) fn time(&self, key: &str) -> Result<Option<(i64, u32)>, Error> {
        match self.records.get(key.as_bytes()) {
            Some(value) if !value.is_empty() => time(value).map(Some),
            _ => Ok(None),
        }
    }
}

/// A decimal number without sign; ours is stricter than `str::parse`, which takes a plus.
pub(crate) fn decimal(text: &[u8]) -> Result<u64, Error> {
    let refuse = Error::Header("malformed number");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(refuse);
    }
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(refuse)
}

fn time(text: &[u8]) -> Result<(i64, u32), Error> {
    let refuse = || Error::Header("malformed time");
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| refuse())?;
    let mut nanos = 0_u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(refuse());
        }
        // Digits beyond nanoseconds are cut off.
        for place in 0..9 {
            nanos = nanos * 10 + fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
        }
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The record at the beginning of `bytes`, without its length and newline, and what follows it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space]).ok()?).ok()?;
    if length <= space + 1 || length > bytes.len() {
        return None;
    }
    let record = bytes[space + 1..length].strip_suffix(b"\n")?;
    Some((record, &bytes[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let pax = Pax::parse(b"12 path=a=b\n21 SCHILY.xattr.u=\0\n\n12 path=c\nd\n9 size=9\n").expect("well formed");
        assert_eq!(pax.name("path").expect("name"), Some(&b"c\nd"[..]));
        assert_eq!(pax.xattrs, [(b"u".to_vec(), b"\0\n".to_vec())]);
        assert_eq!(pax.number("size").expect("number"), Some(9));
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"0 a=b\n",
            b"99 a=b\n",
            b"6 ab\n",
            b"5 =b\n",
            b"+6 a=b\n",
            b"18446744073709551616 a=b\n",
            b" a=b\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("9223372036854775808", None),
            ("1.x", None),
            ("", None),
            ("--1", None),
        ] {
            assert_eq!(time(text.as_bytes()).ok(), want, "{text}");
        }
    }
}
