//! An archive that becomes images: an OCI image layout, or what `docker save` writes, in a tar.
//!
//! ```text
//! tar ─► each file becomes a blob ─► index (the layout's, or one made of manifest.json) ─► walk ─► unpack ─► names
//! ```
//!
//! **Invariant:** a file of the archive is a blob by its own digest; a name in the archive is only ever a key in memory and
//! the name of an ingest. A failed import leaves no ingest and no lease.

use std::collections::BTreeMap;
use std::io::Read;

use archive::{Compression, Compressor, Kind, TarReader};
use model::filter::Filters;
use model::{Digest, Labels};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::document::{
    CHILDREN_MAX, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, DOCUMENT_BYTES_MAX, IMAGE_NAME,
    Index, Manifest, OCI_INDEX, REF_NAME, parse, read,
};
use crate::{Descriptor, Error, ImageStore, Platform, Session, UNCOMPRESSED_LABEL, reference, unpack, walk};

/// Most files of an archive, links included.
const FILES_MAX: usize = 1 << 16;
/// Longest name of one, in bytes.
const NAME_BYTES_MAX: usize = 1024;

/// What an archive is to become.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// The stream is a tar as it is; otherwise it may be compressed.
    pub plain: bool,
    /// Compress layers of a docker archive that are not.
    pub force_compress: bool,
}

/// Reads the archive, stores what counts of it, unpacks it and gives it names. Blocks.
///
/// INVALID_ARGUMENT for a stream that is no such archive; NOT_FOUND where a part of it is missing or nothing of it is for the
/// wanted platforms.
pub fn import(
    session: &mut Session,
    stream: impl Read + Send,
    options: ImportOptions,
    store: &ImageStore,
) -> Result<(), Error> {
    session.tell("Importing", "", None);
    let targets = unpack::targets(session, &store.unpacks)?;
    let root = if options.plain {
        archive_index(session, stream, options)?
    } else {
        archive_index(session, archive::decompress_any(stream)?, options)?
    };
    let walked = walk::walk(session, store, &root)?;
    for manifest in &walked.manifests {
        unpack::manifest(session, &targets, manifest)?;
    }
    for found in &walked.found {
        store.store(session, found)?;
    }
    session.tell("Completed import", "", None);
    Ok(())
}

/// The files of an archive.
#[derive(Debug, Default)]
struct Files {
    blobs: BTreeMap<String, Descriptor>,
    links: BTreeMap<String, String>,
    layout: Option<Layout>,
    images: Option<Vec<SavedImage>>,
}

/// The file `oci-layout` (image-spec, image layout).
#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion", default)]
    version: String,
}

/// An entry of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    #[serde(default)]
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Stores the files of an archive as blobs, and returns the index of its images.
fn archive_index(session: &Session, stream: impl Read, options: ImportOptions) -> Result<Descriptor, Error> {
    let files = files(session, stream)?;
    if let Some(layout) = &files.layout {
        if layout.version != "1.0.0" {
            return Err(Error::Layout(layout.version.chars().take(64).collect()));
        }
        let index = files.blobs.get("index.json").ok_or(Error::NoIndex)?;
        return Ok(Descriptor { media_type: OCI_INDEX.to_owned(), ..index.clone() });
    }
    docker_index(session, files, options.force_compress)
}

fn files(session: &Session, stream: impl Read) -> Result<Files, Error> {
    let mut tar = TarReader::new(stream);
    let mut files = Files::default();
    let mut count = 0;
    while let Some(entry) = tar.next_entry()? {
        count += 1;
        if count > FILES_MAX {
            return Err(Error::Limit { what: "files of an archive", limit: FILES_MAX as u64 });
        }
        if entry.path.len() > NAME_BYTES_MAX || entry.link.len() > NAME_BYTES_MAX {
            return Err(Error::Limit { what: "bytes of a name in an archive", limit: NAME_BYTES_MAX as u64 });
        }
        let path = clean(&String::from_utf8_lossy(&entry.path));
        match entry.kind {
            Kind::Regular => {}
            Kind::Symlink => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                let target = clean(&format!("{dir}/{}", String::from_utf8_lossy(&entry.link)));
                files.links.insert(path, target);
                continue;
            }
            Kind::Directory | Kind::Hardlink | Kind::Char | Kind::Block | Kind::Fifo => continue,
        }
        if entry.pieces.is_some() {
            return Err(Error::Sparse(path));
        }
        match path.as_str() {
            "oci-layout" => files.layout = Some(read("oci-layout", &mut tar)?),
            "manifest.json" => files.images = Some(saved_images(&mut tar)?),
            _ => {
                let (digest, size) = session.copy_blob(&format!("tar-{path}"), entry.size, Labels::new(), &mut tar)?;
                if size != entry.size {
                    return Err(archive::Error::Truncated.into());
                }
                files.blobs.insert(path, descriptor("", &digest, size));
            }
        }
    }
    if !tar.is_complete() {
        // A client that goes away looks like one that has sent all it has.
        return Err(archive::Error::Truncated.into());
    }
    // What stands behind the end belongs to the compression, whose checksum comes last.
    tar.drain()?;
    Ok(files)
}

fn saved_images(reader: impl Read) -> Result<Vec<SavedImage>, Error> {
    // In two steps, so that the number of entries is known to be bounded before they take memory.
    let raw: Vec<Box<RawValue>> = read("manifest.json", reader)?;
    if raw.len() > CHILDREN_MAX {
        return Err(Error::Limit { what: "images of an archive", limit: CHILDREN_MAX as u64 });
    }
    let images: Vec<SavedImage> =
        raw.iter().map(|raw| parse("manifest.json", raw.get().as_bytes())).collect::<Result<_, _>>()?;
    let names = |image: &SavedImage| {
        image.repo_tags.as_ref().map_or(0, Vec::len).max(image.layers.as_ref().map_or(0, Vec::len))
    };
    if images.iter().any(|image| names(image) > CHILDREN_MAX) {
        return Err(Error::Limit { what: "layers or names of an image", limit: CHILDREN_MAX as u64 });
    }
    Ok(images)
}

/// A path without `.`, `..` and what is empty, in the form `a/b`; it never leads anywhere, it is a key.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.as_str().to_owned(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}

/// Makes manifests and an index of what `docker save` wrote.
fn docker_index(session: &Session, mut files: Files, force_compress: bool) -> Result<Descriptor, Error> {
    let images = files.images.take().ok_or(Error::NoArchive)?;
    for (link, target) in std::mem::take(&mut files.links) {
        let found = files.blobs.get(&target).cloned();
        files.blobs.insert(link.clone(), found.ok_or(Error::NoFile { what: "target of the link", name: link })?);
    }
    let mut index = Index { schema_version: 2, ..Index::default() };
    for image in images {
        let config = find(&files, "image configuration", &image.config)?;
        let config = Descriptor { media_type: DOCKER_CONFIG.to_owned(), ..config };
        let mut layers = Vec::new();
        for name in image.layers.unwrap_or_default() {
            layers.push(layer(session, find(&files, "layer", &name)?, force_compress)?);
        }
        let platform: Platform = parse("image configuration", &session.document(&config)?)?;
        let media_type = DOCKER_MANIFEST.to_owned();
        let manifest = Manifest { schema_version: 2, media_type: media_type.clone(), config, layers };
        let mut made = write_document(session, &media_type, &manifest)?;
        made.platform = (!platform.os.is_empty() && !platform.architecture.is_empty()).then(|| platform.normalized());
        let tags = image.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            index.manifests.push(made.clone());
        }
        for tag in tags {
            let short: String = tag.chars().take(256).collect();
            let whole = reference::normalized(&tag).ok_or(Error::Reference(short))?;
            let mut named = made.clone();
            named.annotations.insert(REF_NAME.to_owned(), reference::ref_name(&whole).to_owned());
            named.annotations.insert(IMAGE_NAME.to_owned(), whole);
            index.manifests.push(named);
        }
        if index.manifests.len() > CHILDREN_MAX {
            return Err(Error::Limit { what: "names of an archive", limit: CHILDREN_MAX as u64 });
        }
    }
    write_document(session, OCI_INDEX, &index)
}

fn find(files: &Files, what: &'static str, name: &str) -> Result<Descriptor, Error> {
    let found = files.blobs.get(&clean(name)).cloned();
    found.ok_or_else(|| Error::NoFile { what, name: name.chars().take(256).collect() })
}

fn write_document(session: &Session, media_type: &str, document: &impl serde::Serialize) -> Result<Descriptor, Error> {
    let bytes =
        serde_json::to_vec(document).map_err(|source| Error::Document { what: "manifest to be written", source })?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::Limit { what: "bytes of a document", limit: DOCUMENT_BYTES_MAX });
    }
    let mut hasher = content::Hasher::new(content::Algorithm::Sha256);
    hasher.update(&bytes);
    let reference = format!("manifest-{}", hasher.digest());
    let (digest, size) = session.copy_blob(&reference, bytes.len() as u64, Labels::new(), &bytes[..])?;
    Ok(descriptor(media_type, &digest, size))
}

/// The layer that a file is: a compressed one that is there already, the file, or the file compressed.
fn layer(session: &Session, file: Descriptor, force_compress: bool) -> Result<Descriptor, Error> {
    let filter = format!("labels.\"{UNCOMPRESSED_LABEL}\"=={}", file.digest);
    let filters = Filters::parse(&[filter]).map_err(Error::Filter)?;
    let known = session.metadata.content().list(&session.scope.namespace, &filters)?;
    let known = known.into_iter().find(|info| info.digest.as_str() != file.digest);
    let file = known.map_or(file, |info| descriptor("", &info.digest, info.size));
    let digest = file.checked()?;
    let blob = session.blob(&digest)?;
    let mut start = [0; 10];
    let read = blob.read_at(&mut start, 0);
    let count = read.map_err(|source| Error::ReadBlob { digest: file.digest.clone(), source })?;
    let compressed = Compression::of_magic(&start[..count]) != Compression::None;
    if compressed || !force_compress {
        let media_type = if compressed { DOCKER_LAYER_GZIP } else { DOCKER_LAYER };
        return Ok(Descriptor { media_type: media_type.to_owned(), ..file });
    }
    let labels = Labels::from([(UNCOMPRESSED_LABEL.to_owned(), file.digest.clone())]);
    let reference = format!("compress-blob-{}-{}", digest.algorithm(), digest.hex());
    let (digest, size) = session.write_blob(&reference, 0, labels, |write| {
        let mut failed = None;
        let sink = Sink { write, failed: &mut failed };
        let mut compressor = Compressor::new(sink, Compression::Gzip)?;
        let copied = std::io::copy(&mut blob.into_reader(0), &mut compressor)
            .map_err(Error::ReadStream)
            .and_then(|_| Ok(compressor.finish().map(drop)?));
        failed.map_or(copied, Err)
    })?;
    Ok(descriptor(DOCKER_LAYER_GZIP, &digest, size))
}

/// An ingest as a writer. Its error is kept aside, for a writer's errors have no class.
pub(crate) struct Sink<'a> {
    pub(crate) write: &'a mut dyn FnMut(&[u8]) -> Result<(), Error>,
    pub(crate) failed: &'a mut Option<Error>,
}

impl std::io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match (self.write)(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                *self.failed = Some(error);
                Err(std::io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
