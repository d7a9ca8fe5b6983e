//! How keys and values lie in sled's tree.
//!
//! An entry is `k<key>` → a byte that says how the value is kept, and the value or its length. A value longer than a
//! chunk is cut up under `c<key><index>`, because sled writes a page that outgrows a quarter of a segment into a file of
//! its own, which it never syncs. **Invariant:** with the sizes of [`Limits`] no page can grow that large.

use crate::{MAX_VALUE_BYTES, Value};

/// What the store notes about itself lies under this prefix.
pub(crate) const OPENINGS: &[u8] = b"mopenings";

const ENTRY: u8 = b'k';
const CHUNK: u8 = b'c';
const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

/// The sizes at which a page of sled stays below a quarter of a segment: a leaf has 16 entries, and for a moment up to
/// 24; an index page has up to 257 keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    chunk_bytes: usize,
}

impl Limits {
    pub(crate) fn new(segment_bytes: usize) -> Self {
        Self {
            key_bytes: segment_bytes * 3 / 4096,
            value_bytes: MAX_VALUE_BYTES.min(segment_bytes),
            chunk_bytes: segment_bytes / 256,
        }
    }
}

pub(crate) fn entry_key(key: &[u8]) -> Vec<u8> {
    [&[ENTRY], key].concat()
}

/// The user's key of an entry's key.
pub(crate) fn user_key(entry: &[u8]) -> &[u8] {
    entry.get(1..).unwrap_or_default()
}

fn chunk_key(key: &[u8], index: u32) -> Vec<u8> {
    [&[CHUNK], key, &index.to_be_bytes()].concat()
}

/// The first key after all entries whose user key starts with `prefix`.
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = entry_key(prefix);
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

/// What an entry says about its value.
pub(crate) enum Stored {
    /// The value itself.
    Whole(Value),
    /// Its length; the bytes lie in chunks.
    Chunked(usize),
}

/// Reads an entry; `None` means that no version of this store wrote it.
pub(crate) fn decode(raw: &sled::IVec) -> Option<Stored> {
    match raw.split_first()? {
        (&WHOLE, value) => Some(Stored::Whole(Value(raw.subslice(1, value.len())))),
        (&CHUNKED, length) => {
            let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
            (length <= MAX_VALUE_BYTES).then_some(Stored::Chunked(length))
        }
        _ => None,
    }
}

/// Joins the chunks of a value of `length` bytes; `chunk` reads one. `None` when one of them is missing.
pub(crate) fn join<E>(
    key: &[u8],
    length: usize,
    mut chunk: impl FnMut(&[u8]) -> Result<Option<sled::IVec>, E>,
) -> Result<Option<Value>, E> {
    let mut value = Vec::with_capacity(length);
    for index in 0.. {
        if value.len() >= length {
            break;
        }
        match chunk(&chunk_key(key, index))? {
            Some(bytes) if !bytes.is_empty() => value.extend_from_slice(&bytes),
            _ => return Ok(None),
        }
    }
    Ok((value.len() == length).then(|| Value(value.into())))
}

/// Adds to `batch` what replaces `old` by `new` under `key`.
pub(crate) fn replace(batch: &mut sled::Batch, limits: Limits, key: &[u8], old: Option<&Value>, new: Option<&Value>) {
    let chunks_of = |value: Option<&Value>| match value {
        Some(value) if value.len() > limits.chunk_bytes => value.len().div_ceil(limits.chunk_bytes),
        _ => 0,
    };
    match new {
        None => batch.remove(entry_key(key)),
        Some(value) if value.len() <= limits.chunk_bytes => {
            batch.insert(entry_key(key), [&[WHOLE], &value[..]].concat());
        }
        Some(value) => {
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            batch.insert(entry_key(key), [&[CHUNKED], &length.to_be_bytes()[..]].concat());
            for (index, chunk) in (0..).zip(value.chunks(limits.chunk_bytes)) {
                batch.insert(chunk_key(key, index), chunk);
            }
        }
    }
    for index in (0..).take(chunks_of(old)).skip(chunks_of(new)) {
        batch.remove(chunk_key(key, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ends() {
        for (prefix, end) in [(&b"a"[..], &b"kb"[..]), (b"a\xff\xff", b"kb"), (b"", b"l"), (b"\xff", b"l")] {
            assert_eq!(end_of_prefix(prefix), end, "{prefix:?}");
        }
    }

    #[test]
    fn pages_stay_below_the_blob_threshold() {
        for segment_bytes in [64 << 10, 128 << 10, 1 << 20, 16 << 20] {
            let limits = Limits::new(segment_bytes);
            let threshold = segment_bytes / 4 - 20;
            let leaf = 24 * (limits.key_bytes + 5 + limits.chunk_bytes + 1 + 12);
            let index = 257 * (limits.key_bytes + 5 + 10);
            assert!(leaf < threshold, "{segment_bytes}: leaf {leaf} of {threshold}");
            assert!(index < threshold, "{segment_bytes}: index {index} of {threshold}");
        }
    }

    #[test]
    fn damaged_entries_are_not_decoded() {
        for raw in [&b""[..], b"\x02abc", b"\x01abc", b"\x01\xff\xff\xff\xff"] {
            assert!(decode(&raw.into()).is_none(), "{raw:?}");
        }
    }
}
