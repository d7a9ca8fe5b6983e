//! Sparse files: which pieces of a file an archive has, in the old GNU form and in the PAX forms 0.0, 0.1 and 1.0.
//!
//! **Invariant:** a [`Map`] is sorted, without overlaps, ends within the file, and its pieces sum up to the bytes that
//! the archive has for the file.

use tar::GnuSparseHeader;

use crate::Error;
use crate::pax::{Pax, decimal};

/// Most pieces of one file: bounds the memory that a map takes (1 MiB).
pub(crate) const MAX_PIECES: usize = 1 << 16;
/// Longest number in a map of format 1.0, with room for leading zeros.
const MAX_DIGITS: usize = 24;

/// A sparse file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Length of the file with its holes.
    pub(crate) size: u64,
    /// Offset and length of each piece.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Map {
    /// Checks a map against the bytes that the archive has.
    pub(crate) fn new(size: u64, pieces: Vec<(u64, u64)>, stored: u64) -> Result<Self, Error> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, length) in &pieces {
            if *offset < end {
                return Err(Error::Header("sparse map with overlapping pieces"));
            }
            end = offset.checked_add(*length).ok_or(Error::Header("sparse map overflows"))?;
            sum += length;
        }
        if end > size || sum != stored {
            return Err(Error::Header("sparse map does not fit its file"));
        }
        Ok(Self { size, pieces })
    }
}

/// Adds the pieces of one block of the old GNU form.
pub(crate) fn add_gnu(pieces: &mut Vec<(u64, u64)>, headers: &[GnuSparseHeader]) -> Result<(), Error> {
    for header in headers {
        if header.is_empty() {
            break;
        }
        let malformed = |_| Error::Header("malformed sparse header");
        push(pieces, (header.offset().map_err(malformed)?, header.length().map_err(malformed)?))?;
    }
    Ok(())
}

/// What PAX records say about a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PaxSparse {
    /// The file is none.
    No,
    /// Formats 0.0 and 0.1: here is the map.
    Pieces(u64, Vec<(u64, u64)>),
    /// Format 1.0: the map stands before the file's bytes.
    InData(u64),
}

pub(crate) fn of_pax(pax: &Pax) -> Result<PaxSparse, Error> {
    let record = |key: &str| pax.records.get(key.as_bytes()).map(Vec::as_slice);
    if let (Some(b"1"), Some(b"0")) = (record("GNU.sparse.major"), record("GNU.sparse.minor")) {
        let size = pax.number("GNU.sparse.realsize")?.ok_or(Error::Header("sparse file without a size"))?;
        return Ok(PaxSparse::InData(size));
    }
    let mut numbers = Vec::new();
    if let Some(map) = record("GNU.sparse.map") {
        for number in map.split(|byte| *byte == b',').take(2 * MAX_PIECES + 1) {
            numbers.push(decimal(number)?);
        }
    } else if record("GNU.sparse.numblocks").is_some() {
        for number in pax.sparse.iter().take(2 * MAX_PIECES + 1) {
            numbers.push(decimal(number)?);
        }
    } else {
        return Ok(PaxSparse::No);
    }
    let size = pax.number("GNU.sparse.size")?.ok_or(Error::Header("sparse file without a size"))?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::Header("sparse map with half a piece"));
    }
    let mut pieces = Vec::with_capacity(pairs.len());
    for [offset, length] in pairs {
        push(&mut pieces, (*offset, *length))?;
    }
    Ok(PaxSparse::Pieces(size, pieces))
}

/// Reads the map of format 1.0: the number of pieces, then offset and length of each, one decimal number per line.
/// `next_byte` gives the bytes of the entry.
pub(crate) fn read_map(mut next_byte: impl FnMut() -> Result<u8, Error>) -> Result<Vec<(u64, u64)>, Error> {
    let mut number = || {
        let mut digits = Vec::with_capacity(MAX_DIGITS);
        loop {
            match next_byte()? {
                b'\n' => return decimal(&digits),
                _ if digits.len() == MAX_DIGITS => return Err(Error::Header("malformed sparse map")),
                byte => digits.push(byte),
            }
        }
    };
    let count = number()?;
    let mut pieces = Vec::new();
    for _ in 0..count {
        let offset = number()?;
        push(&mut pieces, (offset, number()?))?;
    }
    Ok(pieces)
}

fn push(pieces: &mut Vec<(u64, u64)>, piece: (u64, u64)) -> Result<(), Error> {
    if pieces.len() == MAX_PIECES {
        return Err(Error::Limit { what: "pieces of a sparse file", limit: MAX_PIECES as u64 });
    }
    pieces.push(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        for (size, pieces, stored, good) in [
            (10, vec![], 0, true),
            (10, vec![(0, 10)], 10, true),
            (10, vec![(2, 3), (5, 0), (7, 3)], 6, true),
            (10, vec![(10, 0)], 0, true),
            (10, vec![(0, 11)], 11, false),
            (10, vec![(0, 4)], 5, false),
            (10, vec![(5, 1), (0, 1)], 2, false),
            (10, vec![(0, 5), (4, 1)], 6, false),
            (u64::MAX, vec![(u64::MAX, 2)], 2, false),
        ] {
            assert_eq!(Map::new(size, pieces.clone(), stored).is_ok(), good, "{size} {pieces:?} {stored}");
        }
    }

    #[test]
    fn a_map_in_data_is_bounded() {
        let mut claimed = b"18446744073709551615\n".to_vec();
        let mut bytes = claimed.drain(..).chain(std::iter::repeat_n([b'0', b'\n'], 1 << 20).flatten());
        let result = read_map(|| bytes.next().ok_or(Error::Truncated));
        assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
        let mut bytes = std::iter::repeat(b'1');
        assert!(read_map(|| bytes.next().ok_or(Error::Truncated)).is_err());
        let mut bytes = b"2\n0\n5\n9\n1\nrest".iter();
        assert_eq!(read_map(|| bytes.next().copied().ok_or(Error::Truncated)).expect("map"), [(0, 5), (9, 1)]);
    }
}
