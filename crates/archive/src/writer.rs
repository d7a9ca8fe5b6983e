//! Writes a tar stream: ustar headers, and PAX records for what does not fit into them (POSIX.1-2008, pax).
//!
//! **Invariant:** the bytes depend on the entries alone, so the same tree has the same digest everywhere and always.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::Error;
use crate::reader::{Entry, Kind};

const BLOCK_BYTES: usize = 512;
const PAD: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A tar stream. [`TarWriter::append`] begins an entry; a regular file's bytes are then written, as many as its size says.
#[derive(Debug)]
pub struct TarWriter<W> {
    inner: W,
    /// Bytes of the current entry that are still due.
    due: u64,
    /// Bytes behind them up to the next block.
    padding: usize,
}

/// Records of an extended header, by key. Their order in the stream is that of the keys.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl<W: Write> TarWriter<W> {
    /// Begins a stream.
    pub fn new(inner: W) -> Self {
        Self { inner, due: 0, padding: 0 }
    }

    /// Begins an entry. Its pieces, if it has any, are not written as such: holes are bytes like others.
    pub fn append(&mut self, entry: &Entry) -> Result<(), Error> {
        self.end_entry()?;
        let mut records = Records::new();
        let header = header(entry, &mut records);
        if !records.is_empty() {
            let body = body(&records);
            let extended = Entry {
                path: b"PaxHeaders.0/".iter().copied().chain(base(&entry.path).iter().copied().take(80)).collect(),
                link: Vec::new(),
                kind: Kind::Regular,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                device: (0, 0),
                size: body.len() as u64,
                xattrs: Vec::new(),
                pieces: None,
            };
            // Its name means nothing; what does not fit is cut.
            let mut block = self::header(&Entry { path: ascii(&extended.path), ..extended }, &mut Records::new());
            block[156] = b'x';
            seal(&mut block);
            self.put(&block)?;
            self.put(&body)?;
            self.put(&PAD[..to_block_end(body.len() as u64)])?;
        }
        self.put(&header)?;
        if entry.kind == Kind::Regular {
            self.due = entry.size;
            self.padding = to_block_end(entry.size);
        }
        Ok(())
    }

    /// Ends the stream and gives back what it was written to.
    pub fn finish(mut self) -> Result<W, Error> {
        self.end_entry()?;
        self.put(&PAD)?;
        self.put(&PAD)?;
        self.inner.flush().map_err(Error::Write)?;
        Ok(self.inner)
    }

    fn end_entry(&mut self) -> Result<(), Error> {
        if self.due > 0 {
            return Err(Error::Short(self.due));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&PAD[..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.write_all(bytes).map_err(Error::Write)
    }
}

impl<W: Write> Write for TarWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = usize::try_from(self.due).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 && !bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "more bytes than the entry's size"));
        }
        let count = self.inner.write(&bytes[..most])?;
        self.due -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn to_block_end(length: u64) -> usize {
    usize::try_from(length.wrapping_neg() % BLOCK_BYTES as u64).unwrap_or(0)
}

fn base(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn ascii(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if byte.is_ascii() { *byte } else { b'_' }).collect()
}

/// The header block of an entry; what it cannot hold goes into `records`.
fn header(entry: &Entry, records: &mut Records) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    name(&mut block, &entry.path, records);
    octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
    for (range, key, value) in [
        (108..116, "uid", u64::from(entry.uid)),
        (116..124, "gid", u64::from(entry.gid)),
        (124..136, "size", if entry.kind == Kind::Regular { entry.size } else { 0 }),
    ] {
        if !octal(&mut block[range], value) {
            records.insert(key.into(), value.to_string().into_bytes());
        }
    }
    let (seconds, nanos) = entry.mtime;
    let fits = u64::try_from(seconds).is_ok_and(|seconds| octal(&mut block[136..148], seconds));
    if !fits || nanos != 0 {
        records.insert(b"mtime".to_vec(), time(seconds, nanos).into_bytes());
    }
    if !fits {
        octal(&mut block[136..148], 0);
    }
    block[156] = match entry.kind {
        Kind::Regular => b'0',
        Kind::Hardlink => b'1',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    if entry.link.len() <= 100 && entry.link.is_ascii() {
        block[157..157 + entry.link.len()].copy_from_slice(&entry.link);
    } else {
        records.insert(b"linkpath".to_vec(), entry.link.clone());
    }
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    for (key, value) in &entry.xattrs {
        records.insert([b"SCHILY.xattr.", &**key].concat(), value.clone());
    }
    seal(&mut block);
    block
}

/// The name, divided between its two fields where it has to be (POSIX.1, ustar).
fn name(block: &mut [u8; BLOCK_BYTES], path: &[u8], records: &mut Records) {
    if path.is_ascii() && path.len() <= 100 {
        block[..path.len()].copy_from_slice(path);
        return;
    }
    let split = (path.is_ascii() && path.len() <= 256)
        .then(|| (0..path.len().min(156)).rev().find(|at| path[*at] == b'/' && path.len() - at - 1 <= 100))
        .flatten()
        .filter(|at| *at > 0 && at + 1 < path.len());
    match split {
        Some(at) => {
            block[345..345 + at].copy_from_slice(&path[..at]);
            block[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
        }
        None => {
            let cut: Vec<u8> = ascii(path).into_iter().take(100).collect();
            block[..cut.len()].copy_from_slice(&cut);
            records.insert(b"path".to_vec(), path.to_vec());
        }
    }
}

/// Writes a number with leading zeros and a NUL behind it; says whether it fits.
fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    let fits = text.len() == digits;
    let text = if fits { text } else { "0".repeat(digits) };
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
    fits
}

/// Writes the checksum, which counts its own field as spaces.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
    block[155] = b' ';
}

fn time(seconds: i64, nanos: u32) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    // The fraction counts towards later times, also before 1970.
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').to_owned()
}

/// Records as `<length> <key>=<value>\n`, where the length counts itself.
fn body(records: &Records) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(length.to_string().as_bytes());
        body.push(b' ');
        body.extend_from_slice(key);
        body.push(b'=');
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TarReader;
    use std::io::Read as _;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        Entry {
            path: path.to_vec(),
            link: Vec::new(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (1_700_000_000, 0),
            device: (0, 0),
            size: 0,
            xattrs: Vec::new(),
            pieces: None,
        }
    }

    fn cases() -> Vec<Entry> {
        let long = [b"a/".repeat(120), b"file".to_vec()].concat();
        let longest = vec![b'x'; 3000];
        vec![
            Entry { size: 700, mode: 0o4755, ..entry(b"dir/file", Kind::Regular) },
            entry(b"dir/", Kind::Directory),
            entry(&long, Kind::Fifo),
            Entry { link: longest.clone(), ..entry(b"link", Kind::Symlink) },
            Entry { link: b"dir/file".to_vec(), ..entry(&longest, Kind::Hardlink) },
            entry("ümlaut".as_bytes(), Kind::Fifo),
            entry(b"not \xff utf-8", Kind::Fifo),
            Entry { device: (10, 200), ..entry(b"tun", Kind::Char) },
            Entry { device: (8, 1), ..entry(b"sda1", Kind::Block) },
            Entry { uid: u32::MAX - 1, gid: 4_000_000, ..entry(b"high", Kind::Regular) },
            Entry { mtime: (-5, 250_000_000), ..entry(b"old", Kind::Regular) },
            Entry { mtime: (1_700_000_000, 5), ..entry(b"exact", Kind::Regular) },
            Entry { mtime: (1 << 40, 0), ..entry(b"late", Kind::Regular) },
            Entry {
                xattrs: vec![(b"security.capability".to_vec(), vec![1, 0, 0, 2]), (b"user.x=y".to_vec(), vec![b'\n'])],
                ..entry(b"capable", Kind::Regular)
            },
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        for entry in entries {
            writer.append(entry).unwrap();
            writer.write_all(&vec![7; usize::try_from(entry.size).unwrap()]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = written(&cases());
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        assert_eq!(bytes, written(&cases()));
        let mut reader = TarReader::new(&bytes[..]);
        for want in cases() {
            let have = reader.next_entry().unwrap().unwrap();
            assert_eq!((&have.path, &have.link, have.kind), (&want.path, &want.link, want.kind));
            assert_eq!((have.mode, have.uid, have.gid, have.size), (want.mode, want.uid, want.gid, want.size));
            assert_eq!((have.mtime, have.device), (want.mtime, want.device), "{}", want.path.escape_ascii());
            // A key with an equals sign cannot be told from its value; nobody writes one.
            assert_eq!(have.xattrs.len(), want.xattrs.len());
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            assert_eq!(data, vec![7; usize::try_from(want.size).unwrap()]);
        }
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn other_readers_agree() {
        let bytes = written(&cases());
        let mut archive = tar::Archive::new(&bytes[..]);
        let paths: Vec<Vec<u8>> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(paths, cases().into_iter().map(|entry| entry.path).collect::<Vec<_>>());
    }

    #[test]
    fn lengths_are_kept() {
        let mut writer = TarWriter::new(Vec::new());
        writer.append(&Entry { size: 3, ..entry(b"a", Kind::Regular) }).unwrap();
        writer.write_all(b"ab").unwrap();
        assert!(matches!(writer.append(&entry(b"b", Kind::Regular)), Err(Error::Short(1))));
        writer.write_all(b"c").unwrap();
        assert!(writer.write_all(b"d").is_err());
        assert_eq!(writer.finish().unwrap().len(), 4 * BLOCK_BYTES);
    }

    #[test]
    fn record_lengths_count_themselves() {
        for length in 80..120 {
            let records = Records::from([(b"k".to_vec(), vec![b'v'; length])]);
            let body = body(&records);
            let text = String::from_utf8(body.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(body.len()));
        }
    }
}
