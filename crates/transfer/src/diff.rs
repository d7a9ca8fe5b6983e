use std::io::BufWriter;
use std::os::fd::AsFd as _;

use archive::{Compression, Compressor, Digesting, TarWriter};
use model::{Labels, Mount, Timestamp};

use crate::import::Sink;
use crate::{Descriptor, Error, LAYER_MEDIA_TYPE, Session, UNCOMPRESSED_LABEL, tree};

/// Bytes that go to the compressor at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What a layer is to be.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Its media type; empty for a layer with gzip.
    pub media_type: String,
    /// Name of the ingest; empty for one of our own.
    pub reference: String,
    /// Labels of the blob, if it is new.
    pub labels: Labels,
    /// Latest time in it, seconds since 1970.
    pub latest: Option<i64>,
}

/// Makes a layer of what differs between the trees behind two sets of mounts, and stores it. The same trees give the same
/// digest. No mounts at all are an empty tree. Blocks.
///
/// UNIMPLEMENTED for media types and mounts that we do not know; UNAVAILABLE while somebody else uses the ingest.
pub fn diff(session: &Session, left: &[Mount], right: &[Mount], options: DiffOptions) -> Result<Descriptor, Error> {
    let media_type =
        if options.media_type.is_empty() { format!("{LAYER_MEDIA_TYPE}+gzip") } else { options.media_type };
    let compression = match media_type.strip_prefix(LAYER_MEDIA_TYPE) {
        Some("") => Compression::None,
        Some("+gzip") => Compression::Gzip,
        Some("+zstd") => Compression::Zstd,
        _ => return Err(archive::Error::MediaType(media_type.chars().take(256).collect()).into()),
    };
    let lower = tree::open(left)?;
    let upper = tree::open(right)?.ok_or(Error::NoMounts)?;
    let own_reference = options.reference.is_empty();
    let now = Timestamp::now();
    let reference = if own_reference {
        // Unique: the address of something that lives as long as this call tells calls of one moment apart.
        format!("diff-{}{:09}-{:p}", now.seconds, now.nanos, &raw const lower)
    } else {
        options.reference
    };
    let mut uncompressed = None;
    let (digest, size) = session.write_exactly(&reference, options.labels, |write| {
        let mut failed = None;
        let compressor = Compressor::new(Sink { write, failed: &mut failed }, compression)?;
        let mut tar = TarWriter::new(BufWriter::with_capacity(BUFFER_BYTES, Digesting::new(compressor)));
        let lower = lower.as_ref().map(|lower| lower.as_fd());
        let written = archive::diff(lower, upper.as_fd(), options.latest, &mut tar).and_then(|()| {
            let stream = tar.finish()?.into_inner().map_err(|error| archive::Error::Write(error.into_error()))?;
            let (compressor, digest, _) = stream.into_parts();
            compressor.finish()?;
            Ok(digest)
        });
        match (failed, written) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(digest)) => {
                uncompressed = Some(digest);
                Ok(())
            }
        }
    })?;
    if let Some(uncompressed) = uncompressed.filter(|_| compression != Compression::None) {
        // Also for a blob that was there without it.
        let labels = Labels::from([(UNCOMPRESSED_LABEL.to_owned(), uncompressed.as_str().to_owned())]);
        session.label(&digest, &labels)?;
    }
    Ok(Descriptor {
        media_type,
        digest: digest.as_str().to_owned(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    })
}
