//! Images that become an archive: an OCI image layout in a tar, which docker can load as well.
//!
//! **Invariant:** all of the archive is known to be there before its first byte is written, and every blob is held against its
//! digest on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use ::metadata::Image;
use archive::{Entry, Kind, TarWriter};
use content::Blob;
use model::Digest;
use serde::Serialize;

use crate::document::{CHILDREN_MAX, IMAGE_NAME, Index, Manifest, OCI_INDEX, REF_NAME, children, parse};
use crate::platform::Platforms;
use crate::{Descriptor, Error, ImageStore, Platform, Session, reference};

/// Label prefix of blobs that says where they came from; it becomes an annotation.
const SOURCE: &str = "containerd.io/distribution.source";
/// Most blobs of an archive.
const BLOBS_MAX: usize = 1 << 16;
const BUFFER_BYTES: usize = 256 << 10;

/// What goes into an archive.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Parts of an index to export, best first; this machine's, if there are none.
    pub platforms: Vec<Platform>,
    /// Export the other parts as well.
    pub all_platforms: bool,
    /// Leave `manifest.json` out, which docker reads.
    pub skip_compatibility_manifest: bool,
    /// Leave out layers that may not be passed on.
    pub skip_non_distributable: bool,
}

/// Writes the images that `store` names as one archive. Blocks.
///
/// NOT_FOUND if an image or a part of it is missing, or an index has nothing for the platforms; then nothing was written.
pub fn export(
    session: &mut Session,
    store: &ImageStore,
    options: &ExportOptions,
    stream: impl Write,
) -> Result<(), Error> {
    session.tell("Exporting", "", None);
    let images = store.lookup(session)?;
    let files = Plan::new(session, options).of(&images)?;
    write(session, files, stream)?;
    session.tell("Completed export", "", None);
    Ok(())
}

/// A file of the archive.
enum File {
    Directory,
    Blob(Digest, u64),
    Text(Vec<u8>),
}

/// An image as docker knows it: one manifest, and its names.
struct Saved {
    manifest: Descriptor,
    names: Vec<String>,
}

/// An entry of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// The file `oci-layout` (image-spec, image layout).
#[derive(Serialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: &'static str,
}

struct Plan<'a> {
    session: &'a Session,
    options: &'a ExportOptions,
    platforms: Platforms,
    roots: Vec<Descriptor>,
    files: BTreeMap<String, File>,
    /// By digest.
    saved: BTreeMap<String, Saved>,
    /// The manifest that stands for an index, by the digest of that.
    resolved: BTreeMap<String, Option<String>>,
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

impl<'a> Plan<'a> {
    fn new(session: &'a Session, options: &'a ExportOptions) -> Self {
        let platforms =
            Platforms(if options.platforms.is_empty() { vec![Platform::host()] } else { options.platforms.clone() });
        let (roots, files, saved, resolved) = Default::default();
        Self { session, options, platforms, roots, files, saved, resolved }
    }

    fn of(mut self, images: &[Image]) -> Result<BTreeMap<String, File>, Error> {
        for image in images {
            self.image(image)?;
        }
        self.finish()
    }

    fn image(&mut self, image: &Image) -> Result<(), Error> {
        let mut root = Descriptor {
            media_type: image.target.media_type.clone(),
            digest: image.target.digest.clone(),
            size: image.target.size,
            annotations: image.target.annotations.clone(),
            ..Descriptor::default()
        };
        root.annotations.insert(IMAGE_NAME.to_owned(), image.name.clone());
        root.annotations.insert(REF_NAME.to_owned(), reference::ref_name(&image.name).to_owned());
        let info = self.session.info(&root.checked()?)?;
        root.annotations.extend(info.labels.into_iter().filter(|(key, _)| key.starts_with(SOURCE)));
        let saved = if root.is_manifest() {
            if !self.saved.contains_key(&root.digest) {
                self.tree(&root)?;
                self.saved.insert(root.digest.clone(), Saved { manifest: root.clone(), names: Vec::new() });
            }
            Some(root.digest.clone())
        } else if root.is_index() {
            match self.resolved.get(&root.digest) {
                Some(known) => known.clone(),
                None => self.index(&root)?,
            }
        } else {
            return Err(Error::NotAnImage(root.media_type.chars().take(128).collect()));
        };
        if let Some(saved) = saved.and_then(|digest| self.saved.get_mut(&digest)) {
            saved.names.push(image.name.clone());
        }
        self.roots.push(root);
        Ok(())
    }

    /// Adds an index with the parts that are wanted of it, and says which is the best of them.
    fn index(&mut self, root: &Descriptor) -> Result<Option<String>, Error> {
        self.blob(root)?;
        let parts = children(root, &self.session.document(root)?)?;
        let mut fitting: Vec<(usize, &Descriptor)> = Vec::new();
        for part in &parts {
            match self.platforms.rank(part.platform.as_ref()) {
                Some(rank) => fitting.push((rank, part)),
                None if !self.options.all_platforms => continue,
                None => {}
            }
            self.tree(part)?;
        }
        fitting.sort_by_key(|(rank, _)| *rank);
        let best = fitting.first().map(|(_, part)| (*part).clone()).ok_or(Error::NoPlatform)?;
        let digest = best.is_manifest().then(|| best.digest.clone());
        if best.is_manifest() {
            let digest = best.digest.clone();
            self.saved.entry(digest).or_insert(Saved { manifest: best, names: Vec::new() });
        }
        self.resolved.insert(root.digest.clone(), digest.clone());
        Ok(digest)
    }

    /// Adds a document and all that it refers to. Each only once, so the work is bounded by what is stored.
    fn tree(&mut self, root: &Descriptor) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![root.clone()];
        while let Some(next) = todo.pop() {
            if !seen.insert(next.digest.clone()) {
                continue;
            }
            self.blob(&next)?;
            if next.is_index() || next.is_manifest() {
                todo.extend(children(&next, &self.session.document(&next)?)?);
            }
        }
        Ok(())
    }

    fn blob(&mut self, descriptor: &Descriptor) -> Result<(), Error> {
        if self.options.skip_non_distributable && descriptor.is_non_distributable() {
            return Ok(());
        }
        let digest = descriptor.checked()?;
        let info = self.session.info(&digest)?;
        if u64::try_from(descriptor.size) != Ok(info.size) {
            return Err(Error::BlobSize { digest, have: info.size, want: descriptor.size });
        }
        for directory in ["blobs/".to_owned(), format!("blobs/{}/", digest.algorithm())] {
            self.files.insert(directory, File::Directory);
        }
        self.files.insert(path(&digest), File::Blob(digest, info.size));
        if self.files.len() > BLOBS_MAX {
            return Err(Error::Limit { what: "blobs of an archive", limit: BLOBS_MAX as u64 });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<BTreeMap<String, File>, Error> {
        if self.roots.len() > CHILDREN_MAX {
            return Err(Error::Limit { what: "images of an archive", limit: CHILDREN_MAX as u64 });
        }
        let text = |what, document: serde_json::Result<Vec<u8>>| {
            document.map(File::Text).map_err(|source| Error::Document { what, source })
        };
        if !self.options.skip_compatibility_manifest && !self.saved.is_empty() {
            let saved: Vec<SavedImage> =
                self.saved.values().map(|saved| self.saved_image(saved)).collect::<Result<_, _>>()?;
            self.files.insert("manifest.json".to_owned(), text("manifest.json", serde_json::to_vec(&saved))?);
        }
        let layout = serde_json::to_vec(&Layout { version: "1.0.0" });
        self.files.insert("oci-layout".to_owned(), text("oci-layout", layout)?);
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: self.roots };
        self.files.insert("index.json".to_owned(), text("index.json", serde_json::to_vec(&index))?);
        Ok(self.files)
    }

    fn saved_image(&self, saved: &Saved) -> Result<SavedImage, Error> {
        let manifest: Manifest = parse("manifest", &self.session.document(&saved.manifest)?)?;
        let layers = manifest.layers.iter().map(|layer| Ok(path(&layer.checked()?)));
        Ok(SavedImage {
            config: path(&manifest.config.checked()?),
            // Docker has no way to say other names than its own.
            repo_tags: saved.names.iter().filter_map(|name| reference::familiar(name)).collect(),
            layers: layers.collect::<Result<_, Error>>()?,
        })
    }
}

/// Writes the files in order of their names.
fn write(session: &Session, files: BTreeMap<String, File>, stream: impl Write) -> Result<(), Error> {
    let mut tar = TarWriter::new(std::io::BufWriter::with_capacity(BUFFER_BYTES, stream));
    for (name, file) in files {
        let (kind, mode, size) = match &file {
            File::Directory => (Kind::Directory, 0o755, 0),
            File::Blob(_, size) => (Kind::Regular, 0o444, *size),
            File::Text(text) => (Kind::Regular, 0o644, text.len() as u64),
        };
        tar.append(&Entry {
            path: name.into_bytes(),
            link: Vec::new(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            size,
            xattrs: Vec::new(),
            pieces: None,
        })?;
        match file {
            File::Directory => {}
            File::Blob(digest, _) => copy(&session.blob(&digest)?, &digest, &mut tar)?,
            File::Text(text) => tar.write_all(&text).map_err(Error::WriteStream)?,
        }
    }
    tar.finish()?;
    Ok(())
}

fn copy(blob: &Blob, digest: &Digest, tar: &mut impl Write) -> Result<(), Error> {
    let mut hasher = content::Hasher::new(content::Algorithm::of(digest));
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    loop {
        let read = blob.read_at(&mut buffer, offset);
        let count = read.map_err(|source| Error::ReadBlob { digest: digest.as_str().to_owned(), source })?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        tar.write_all(&buffer[..count]).map_err(Error::WriteStream)?;
        offset += count as u64;
    }
    let have = hasher.digest();
    if have == *digest { Ok(()) } else { Err(Error::Corrupt { want: digest.clone(), have }) }
}
