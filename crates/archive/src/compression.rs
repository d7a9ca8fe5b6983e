use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use model::Digest;
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Compressed bytes are read in pieces of this size.
const BUFFER_BYTES: usize = 256 << 10;
/// Largest zstd window, as a power of two: what the format's own tools accept without being asked. It bounds the
/// decoder's memory, whatever a frame claims.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, any number of members.
    Gzip,
    /// Zstandard, any number of frames.
    Zstd,
    /// Whatever its first bytes say: docker's media types promise little.
    Detect,
}

impl Compression {
    /// The compression that a layer's media type stands for. UNIMPLEMENTED for one that is not a tar layer's.
    pub fn of(media_type: &str) -> Result<Self, Error> {
        Ok(match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
                Self::None
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => Self::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Self::Zstd,
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::Detect,
            other => return Err(Error::MediaType(other.chars().take(256).collect())),
        })
    }

    /// What the first bytes of a stream tell.
    pub fn of_magic(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, which zstd's seekable variants begin with.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The tar within a layer blob of `media_type`. Memory is bounded: at most 128 MiB of window for zstd, 32 KiB for gzip.
pub fn decompress<'a>(reader: impl Read + Send + 'a, media_type: &str) -> Result<Box<dyn Read + Send + 'a>, Error> {
    decompress_as(reader, Compression::of(media_type)?)
}

/// The bytes behind whatever compression the first of them tell of; as they are, if they tell of none. Memory is bounded as
/// for [`decompress`].
pub fn decompress_any<'a>(reader: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, Error> {
    decompress_as(reader, Compression::Detect)
}

fn decompress_as<'a>(
    reader: impl Read + Send + 'a,
    mut compression: Compression,
) -> Result<Box<dyn Read + Send + 'a>, Error> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    if compression == Compression::Detect {
        compression = Compression::of_magic(reader.fill_buf().map_err(Error::Read)?);
    }
    Ok(match compression {
        Compression::None | Compression::Detect => Box::new(reader),
        Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(Error::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(Error::Read)?;
            Box::new(decoder)
        }
    })
}

/// Compresses what is written to it. The same bytes become the same bytes, wherever and whenever.
#[derive(Debug)]
pub struct Compressor<W: Write>(Kind<W>);

enum Kind<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> fmt::Debug for Kind<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None(_) => "None",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> Compressor<W> {
    /// Begins. [`Compression::Detect`] is none.
    pub fn new(writer: W, compression: Compression) -> Result<Self, Error> {
        Ok(Self(match compression {
            Compression::None | Compression::Detect => Kind::None(writer),
            // The header has neither a time nor a name.
            Compression::Gzip => Kind::Gzip(GzEncoder::new(writer, flate2::Compression::default())),
            Compression::Zstd => Kind::Zstd(
                zstd::stream::write::Encoder::new(writer, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(Error::Write)?,
            ),
        }))
    }

    /// Ends the stream and gives back what it was written to.
    pub fn finish(self) -> Result<W, Error> {
        match self.0 {
            Kind::None(writer) => Ok(writer),
            Kind::Gzip(encoder) => encoder.finish().map_err(Error::Write),
            Kind::Zstd(encoder) => encoder.finish().map_err(Error::Write),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::None(writer) => writer.write(bytes),
            Kind::Gzip(encoder) => encoder.write(bytes),
            Kind::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::None(writer) => writer.flush(),
            Kind::Gzip(encoder) => encoder.flush(),
            Kind::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// A reader or writer that hashes what passes through it.
pub struct Digesting<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R> fmt::Debug for Digesting<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digesting").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<R> Digesting<R> {
    /// Nothing has passed yet.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// The sha256 digest and the number of the bytes that have passed. To cover a stream whole, read it to its end
    /// first: a tar ends before its stream does.
    pub fn finish(self) -> (Digest, u64) {
        (Digest::from_sha256(&self.hasher.finalize().into()), self.bytes)
    }

    /// As [`Digesting::finish`], with what the bytes came from or went to.
    pub fn into_parts(self) -> (R, Digest, u64) {
        (self.inner, Digest::from_sha256(&self.hasher.finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Coded as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("memory")
    }

    #[test]
    fn by_media_type_and_magic() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        let docker = "application/vnd.docker.image.rootfs.diff.tar";
        let plain = b"some bytes of a layer".to_vec();
        let twice = [gzip(b"some bytes "), gzip(b"of a layer")].concat();
        let two_frames = [zstd(b"some bytes "), zstd(b"of a layer")].concat();
        for (media_type, blob, good) in [
            (oci.to_owned(), plain.clone(), true),
            (format!("{oci}+gzip"), gzip(&plain), true),
            (format!("{oci}+gzip"), twice, true),
            (format!("{oci}+zstd"), zstd(&plain), true),
            (format!("{oci}+zstd"), two_frames, true),
            (docker.to_owned(), plain.clone(), true),
            (docker.to_owned(), gzip(&plain), true),
            (format!("{docker}.gzip"), gzip(&plain), true),
            (format!("{docker}.gzip"), zstd(&plain), true),
            (format!("{docker}.gzip"), plain.clone(), true),
            (format!("{oci}+gzip"), plain.clone(), false),
            (format!("{oci}+gzip"), gzip(&plain)[..20].to_vec(), false),
            (format!("{oci}+zstd"), zstd(&plain)[..15].to_vec(), false),
            (format!("{oci}+zstd"), gzip(&plain), false),
        ] {
            let mut out = Vec::new();
            let result = decompress(&blob[..], &media_type).expect("known").read_to_end(&mut out);
            assert_eq!(result.is_ok() && out == plain, good, "{media_type} {blob:02x?}");
        }
        for unknown in ["", "application/json", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"] {
            let error = decompress(&plain[..], unknown).err().expect("refused");
            assert_eq!(error.code(), model::Code::Unimplemented);
            assert!(error.to_string().contains(unknown), "{error}");
        }
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let plain = b"some bytes of a layer".repeat(1000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let compressed = || {
                let mut writer = Compressor::new(Vec::new(), compression).expect("writer");
                writer.write_all(&plain).expect("memory");
                writer.finish().expect("memory")
            };
            assert_eq!(Compression::of_magic(&compressed()), compression);
            assert_eq!(compressed(), compressed());
            let mut out = Vec::new();
            decompress_any(&compressed()[..]).expect("known").read_to_end(&mut out).expect("memory");
            assert!(out == plain);
        }
    }

    #[test]
    fn zstd_window_is_bounded() {
        // A frame header that asks for a window of 2^41 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
        let mut reader = decompress(&frame[..], "application/vnd.oci.image.layer.v1.tar+zstd").expect("known");
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn digest_covers_what_passed() {
        let mut reader = Digesting::new(&b"abc"[..]);
        assert_eq!(io::copy(&mut reader, &mut io::sink()).expect("memory"), 3);
        let (digest, bytes) = reader.finish();
        assert_eq!(bytes, 3);
        assert_eq!(digest.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
