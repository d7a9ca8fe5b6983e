//! Reads a tar stream: ustar, PAX, GNU and V7 headers, without trusting any of them.
//!
//! The entries are what Go's `archive/tar` sees, because that is what made the digests that we verify: a PAX size
//! overrides the header's, and links, devices, pipes and directories have no data whatever their size says.
//!
//! **Invariant:** memory is bounded by [`MAX_EXTENSION_BYTES`] per extended header, of which at most three are held.

use std::io::{self, BufRead as _, BufReader, Read};

use tar::{GnuExtSparseHeader, Header};

use crate::Error;
use crate::pax::Pax;
use crate::sparse::{self, Map, PaxSparse};

const BLOCK_BYTES: usize = 512;
/// Longest PAX header, GNU long name or GNU long link. Go's limit.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: usize = 128 << 10;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// One more name for a file of the same archive, or of a layer below.
    Hardlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// The header of one entry, as it stands in the archive: names are neither cleaned nor checked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds of the last modification.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Length of a regular file, holes included.
    pub size: u64,
    /// Extended attributes, in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of each piece of a sparse file; the data are the pieces one after the other.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// A tar stream. [`TarReader::next_entry`] moves on; reading gives the data of the current entry.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: BufReader<R>,
    /// Bytes of the current entry's data not yet read.
    data: u64,
    /// Bytes behind them up to the next block.
    padding: u64,
    /// The end mark has been read.
    marked: bool,
}

/// What extended headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Begins at the first header.
    pub fn new(inner: R) -> Self {
        Self { inner: BufReader::with_capacity(BUFFER_BYTES, inner), data: 0, padding: 0, marked: false }
    }

    /// The next entry; `None` at the end mark, or at the end of the stream in its place.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.skip(self.data.saturating_add(self.padding))?;
            (self.data, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let stored = size(&header.as_old().size)?;
            match header.as_old().linkflag[0] {
                b'x' | b'X' => extensions.pax = Pax::parse(&self.extension(stored)?)?,
                // A global header says nothing that a layer needs; Go's tar keeps it from its entries as well.
                b'g' => self.begin_data(stored),
                b'L' => extensions.path = Some(c_string(self.extension(stored)?)),
                b'K' => extensions.link = Some(c_string(self.extension(stored)?)),
                flag => return self.entry(&header, flag, extensions).map(Some),
            }
        }
    }

    /// Whether the end mark has been seen: without one, the stream may have been cut between two entries.
    pub fn is_complete(&self) -> bool {
        self.marked
    }

    /// Reads everything behind the end mark, so that who hashes the stream sees all of it.
    pub fn drain(&mut self) -> Result<(), Error> {
        loop {
            let count = match self.inner.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Read(error)),
            };
            if count == 0 {
                return Ok(());
            }
            self.inner.consume(count);
        }
    }

    fn entry(&mut self, header: &Header, flag: u8, extensions: Extensions) -> Result<Entry, Error> {
        let Extensions { mut pax, path, link } = extensions;
        let old = header.as_old();
        let path = match (pax.name("path")?, path) {
            (Some(path), _) => path.to_vec(),
            (None, Some(path)) => path,
            (None, None) => header.path_bytes().into_owned(),
        };
        let link = match (pax.name("linkpath")?, link) {
            (Some(link), _) => link.to_vec(),
            (None, Some(link)) => link,
            (None, None) => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
        };
        let stored = match pax.number("size")? {
            Some(size) => size,
            None => size(&old.size)?,
        };
        let kind = match flag {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(Error::refused(&path, "unknown type of tar entry")),
        };
        let device = match kind {
            Kind::Char | Kind::Block => device(header)?,
            Kind::Regular | Kind::Directory | Kind::Symlink | Kind::Hardlink | Kind::Fifo => (0, 0),
        };
        let mut entry = Entry {
            link,
            kind,
            mode: u32::try_from(number(&old.mode)? & 0o7777).unwrap_or(0),
            uid: id(pax.number("uid")?, &old.uid, &path)?,
            gid: id(pax.number("gid")?, &old.gid, &path)?,
            mtime: match pax.time("mtime")? {
                Some(time) => time,
                None => (number(&old.mtime)?, 0),
            },
            device,
            size: 0,
            xattrs: std::mem::take(&mut pax.xattrs),
            pieces: None,
            path,
        };
        if kind == Kind::Regular {
            self.regular(&mut entry, header, flag, &pax, stored)?;
        }
        Ok(entry)
    }

    /// Size and pieces of a regular file; leaves the reader at its data.
    fn regular(&mut self, entry: &mut Entry, header: &Header, flag: u8, pax: &Pax, stored: u64) -> Result<(), Error> {
        entry.size = stored;
        let (size, pieces) = if flag == b'S' {
            let gnu = header.as_gnu().ok_or(Error::Header("sparse file in a header that is not GNU's"))?;
            let mut pieces = Vec::new();
            sparse::add_gnu(&mut pieces, &gnu.sparse)?;
            let mut extended = gnu.is_extended();
            while extended {
                let mut block = GnuExtSparseHeader::new();
                self.fill(block.as_mut_bytes())?;
                sparse::add_gnu(&mut pieces, block.sparse())?;
                extended = block.is_extended();
            }
            self.begin_data(stored);
            (size(&gnu.realsize)?, pieces)
        } else {
            self.begin_data(stored);
            match sparse::of_pax(pax)? {
                PaxSparse::No => return Ok(()),
                PaxSparse::Pieces(size, pieces) => (size, pieces),
                PaxSparse::InData(size) => {
                    let pieces = sparse::read_map(|| self.data_byte())?;
                    let rest = to_block_end(stored - self.data);
                    if rest > self.data {
                        return Err(Error::Header("sparse map without its padding"));
                    }
                    self.skip(rest)?;
                    self.data -= rest;
                    (size, pieces)
                }
            }
        };
        if let Some(name) = pax.name("GNU.sparse.name")? {
            entry.path = name.to_vec();
        }
        let map = Map::new(size, pieces, self.data)?;
        entry.size = map.size;
        entry.pieces = Some(map.pieces);
        Ok(())
    }

    fn begin_data(&mut self, bytes: u64) {
        self.data = bytes;
        self.padding = to_block_end(bytes);
    }

    /// The data of an extended header.
    fn extension(&mut self, bytes: u64) -> Result<Vec<u8>, Error> {
        if bytes > MAX_EXTENSION_BYTES {
            return Err(Error::Limit { what: "bytes of an extended header", limit: MAX_EXTENSION_BYTES });
        }
        self.begin_data(bytes);
        // The limit was checked; still nothing is allocated that the stream does not have.
        let mut value = Vec::new();
        self.by_ref().read_to_end(&mut value).map_err(Error::Read)?;
        if value.len() as u64 == bytes { Ok(value) } else { Err(Error::Truncated) }
    }

    fn data_byte(&mut self) -> Result<u8, Error> {
        let mut byte = [0];
        match self.read(&mut byte) {
            Ok(0) => Err(Error::Truncated),
            Ok(_) => Ok(byte[0]),
            Err(error) => Err(Error::Read(error)),
        }
    }

    /// The next header with a valid checksum; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut header = Header::new_old();
        if !self.fill_or_end(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(header.as_bytes()) {
            self.marked = true;
            // The end mark is two zero blocks; a stream that ends after one is tolerated.
            if !self.fill_or_end(header.as_mut_bytes())? || is_zero(header.as_bytes()) {
                return Ok(None);
            }
            return Err(Error::Header("data behind a zero block"));
        }
        let stored = number(&header.as_old().cksum)?;
        let bytes = header.as_bytes();
        let sum = |signed: bool| -> i64 {
            let value = |byte: u8| if signed { i64::from(byte.cast_signed()) } else { i64::from(byte) };
            bytes[..148].iter().chain(&bytes[156..]).map(|byte| value(*byte)).sum::<i64>() + 8 * i64::from(b' ')
        };
        if stored != sum(false) && stored != sum(true) {
            return Err(Error::Header("wrong checksum"));
        }
        Ok(Some(header))
    }

    fn fill(&mut self, block: &mut [u8]) -> Result<(), Error> {
        if self.fill_or_end(block)? { Ok(()) } else { Err(Error::Truncated) }
    }

    /// Reads a whole block; false if the stream has ended before it.
    fn fill_or_end(&mut self, block: &mut [u8]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(Error::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Error> {
        let skipped = io::copy(&mut self.inner.by_ref().take(bytes), &mut io::sink()).map_err(Error::Read)?;
        if skipped == bytes { Ok(()) } else { Err(Error::Truncated) }
    }
}

impl<R: Read> Read for TarReader<R> {
    /// Bytes of the current entry's data. An archive that ends within them is an error, not an end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= count as u64;
        Ok(count)
    }
}

/// How many bytes are missing from `bytes` to the end of a block.
fn to_block_end(bytes: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - bytes % block) % block
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// A numeric field: octal text between spaces and NUL bytes, or two's complement in base 256 where the highest bit is
/// set. An empty field is 0.
fn number(field: &[u8]) -> Result<i64, Error> {
    let refuse = || Error::Header("malformed number");
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Bit 6 is the sign; the value is extended from the remaining bits.
        let start = if first & 0x40 != 0 { i64::from(first & 0x3f) - 0x40 } else { i64::from(first & 0x3f) };
        return rest
            .iter()
            .try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
            .ok_or_else(refuse);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8).and_then(|v| v.checked_add(i64::from(byte - b'0'))).ok_or_else(refuse),
        _ => Err(refuse()),
    })
}

fn size(field: &[u8]) -> Result<u64, Error> {
    u64::try_from(number(field)?).map_err(|_| Error::Header("negative size"))
}

/// An owner. What the kernel cannot have as an id is refused, not cut: a cut one could become root.
fn id(pax: Option<u64>, field: &[u8], path: &[u8]) -> Result<u32, Error> {
    let value = match pax {
        Some(value) => Some(value),
        None => u64::try_from(number(field)?).ok(),
    };
    match value.and_then(|value| u32::try_from(value).ok()) {
        Some(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::refused(path, "owner out of range")),
    }
}

fn device(header: &Header) -> Result<(u32, u32), Error> {
    let fields = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Err(Error::Header("device in a header without device numbers")),
    };
    let part = |field: &[u8]| {
        number(field).and_then(|value| u32::try_from(value).map_err(|_| Error::Header("device number out of range")))
    };
    Ok((part(fields.0)?, part(fields.1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"644", Some(0o644)),
            (b"\x80\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"888", None),
            (b"-12", None),
            (b"777777777777777777777777", None),
        ] {
            assert_eq!(number(field).ok(), want, "{field:?}");
        }
    }

    /// Any bytes end in an error or in an end, never in a panic or an endless loop.
    #[test]
    fn garbage_is_an_error() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(1000);
        header.set_mode(0o644);
        tar.append_data(&mut header, "x".repeat(300), &[7; 1000][..]).expect("memory");
        tar.append_link(&mut Header::new_gnu(), "y", "z".repeat(200)).expect("memory");
        let good = tar.into_inner().expect("memory");
        let walk = |bytes: &[u8]| -> Result<usize, Error> {
            let mut reader = TarReader::new(bytes);
            let mut entries = 0;
            while reader.next_entry()?.is_some() {
                io::copy(&mut reader, &mut io::sink()).map_err(Error::Read)?;
                entries += 1;
            }
            Ok(entries)
        };
        assert_eq!(walk(&good).expect("good"), 2);
        for cut in 1..good.len() - 1024 {
            // Cut at a header the archive just ends early.
            assert!(walk(&good[..cut]).is_err() || cut % 512 == 0, "cut at {cut}");
        }
        for at in 0..good.len() {
            for value in [0, 0x39, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = walk(&bad);
            }
        }
    }
}
