//! One event as bytes: length, CRC-32, then the payload, all numbers little-endian.
//!
//! ```text
//! u32 length of payload │ u32 CRC-32 of payload │ u64 sequence, u64 origin, i64 seconds, i32 nanos,
//!                       │                       │ namespace, topic, type URL, value (each u32 length + bytes)
//! ```
//!
//! **Invariant:** a frame that was cut short or overwritten never decodes: its length runs over the end or its checksum
//! differs.

use model::{Any, Timestamp};

use crate::envelope::EVENT_BYTES_MAX;
use crate::{Entry, Envelope};

/// Bytes before the payload.
const HEAD: usize = 8;

/// A decoded frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) entry: Entry,
    /// Number that the outbox knew this event by; 0 for others.
    pub(crate) origin: u64,
}

/// The frame of an event.
pub(crate) fn encode(sequence: u64, origin: u64, envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + 64 + envelope.bytes());
    bytes.extend_from_slice(&[0; HEAD]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&origin.to_le_bytes());
    bytes.extend_from_slice(&envelope.timestamp.seconds.to_le_bytes());
    bytes.extend_from_slice(&envelope.timestamp.nanos.to_le_bytes());
    for part in [
        envelope.namespace.as_bytes(),
        envelope.topic.as_bytes(),
        envelope.event.type_url.as_bytes(),
        &envelope.event.value,
    ] {
        // `Envelope::check` bounds the whole far below 4 GiB.
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let length = u32::try_from(bytes.len() - HEAD).unwrap_or(u32::MAX);
    let checksum = crc32fast::hash(&bytes[HEAD..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..HEAD].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Decodes the frame at the start of `bytes`; returns it and its length, or `None` where no whole frame stands.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let mut head = Reader(bytes);
    let length = usize::try_from(head.u32()?).ok()?;
    let checksum = head.u32()?;
    if length > EVENT_BYTES_MAX + 128 {
        return None;
    }
    let payload = head.take(length)?;
    if crc32fast::hash(payload) != checksum {
        return None;
    }
    let mut reader = Reader(payload);
    let sequence = reader.u64()?;
    let origin = reader.u64()?;
    let seconds = i64::from_le_bytes(reader.array()?);
    let nanos = i32::from_le_bytes(reader.array()?);
    let namespace = reader.text()?;
    let topic = reader.text()?;
    let type_url = reader.text()?;
    let value = reader.part()?.to_vec();
    let envelope =
        Envelope { timestamp: Timestamp { seconds, nanos }, namespace, topic, event: Any { type_url, value } };
    Some((Frame { entry: Entry { sequence, envelope }, origin }, HEAD + length))
}

/// Takes values off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.part()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            timestamp: Timestamp { seconds: -5, nanos: 999 },
            namespace: "default".into(),
            topic: "/tasks/exit".into(),
            event: Any { type_url: "containerd.events.TaskExit".into(), value: vec![0, 255, 7] },
        }
    }

    #[test]
    fn round_trip() {
        let bytes = encode(7, 3, &envelope());
        let (frame, length) = decode(&bytes).unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(frame, Frame { entry: Entry { sequence: 7, envelope: envelope() }, origin: 3 });
    }

    #[test]
    fn no_prefix_and_no_flipped_byte_decodes() {
        let bytes = encode(7, 3, &envelope());
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_none(), "prefix of {end}");
        }
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 0x40;
            assert!(decode(&torn).is_none(), "byte {at}");
        }
        assert!(decode(&[0; 64]).is_none(), "zeros are no event");
    }
}
