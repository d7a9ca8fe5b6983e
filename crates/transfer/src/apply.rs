use std::thread;

use archive::{Applied, Digesting};
use content::Blob;
use model::{Digest, Mount};
use rustix::fs::{Mode, OFlags};

use crate::queue::queue;
use crate::{Error, Target};

/// A layer that was applied, as it was without compression: its media type is [`crate::LAYER_MEDIA_TYPE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed stream, the "diff id".
    pub digest: Digest,
    /// Length of the uncompressed stream in bytes.
    pub size: u64,
    /// What was written.
    pub applied: Applied,
}

/// Writes the layer in `blob` into the directory behind `mounts`, the mounts of an active snapshot, which need not be
/// mounted anywhere; other file systems are mounted for this call, seen by nobody. Blocks, and uses a second thread to decompress.
///
/// Nothing of a snapshot is flushed: the commit of the snapshot does that, for all its files at once. UNIMPLEMENTED for a media type
/// or mounts that we do not know. After an error the snapshot holds part of the layer.
pub fn apply(blob: Blob, media_type: &str, mounts: &[Mount]) -> Result<Layer, Error> {
    let target = Target::of(mounts)?;
    let root = target.open()?;
    let mut tar = Digesting::new(archive::decompress(blob.into_reader(0), media_type)?);
    let (sender, reader) = queue();
    thread::scope(|scope| {
        let decompression = thread::Builder::new()
            .name("decompress".to_owned())
            .spawn_scoped(scope, move || {
                sender.send_all(&mut tar);
                tar.finish()
            })
            .map_err(Error::Thread)?;
        // It reads to the end of the stream, or drops the queue on an error: both end the other thread.
        let applied = archive::apply(reader, &root.path, target.options())?;
        let (digest, size) = decompression.join().map_err(|_| Error::Lost)?;
        if let Some(mount) = &root.mount {
            // Nobody else will: what is written to a mount that ends with this call is no snapshot.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(mount, ".", flags, Mode::empty());
            opened.and_then(rustix::fs::syncfs).map_err(|errno| Error::Flush(errno.into()))?;
        }
        Ok(Layer { digest, size, applied })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    use std::path::Path;

    use content::ContentStore;
    use model::{Code, Coded as _, Labels};
    use snapshots::{Driver, Kind, Native, Overlay, OverlayOptions};

    fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content.as_bytes()).expect("memory");
        }
        let mut tar = builder.into_inner().expect("memory");
        // Trailing bytes count, too.
        tar.extend_from_slice(&[0; 3000]);
        tar
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn blob(store: &ContentStore, bytes: &[u8]) -> Blob {
        let mut ingest = store.writer("layer", 0).expect("writer");
        ingest.write(bytes).expect("write");
        let digest = match ingest.commit(0, None) {
            Ok((digest, _)) | Err(content::Error::Exists(digest)) => digest,
            Err(error) => panic!("{error}"),
        };
        store.reader(&digest).expect("reader")
    }

    fn digest(bytes: &[u8]) -> Digest {
        let mut hasher = content::Hasher::new(content::Algorithm::Sha256);
        hasher.update(bytes);
        hasher.digest()
    }

    /// Applies two layers to two stacked snapshots; gives the directory of the second.
    fn two_layers(driver: &dyn Driver, store: &ContentStore) -> std::path::PathBuf {
        let big = "x".repeat(3 << 20);
        let base = tar(&[("dir/old", "1"), ("gone", "1"), ("big", &big)]);
        let change = tar(&[("dir/.wh.old", ""), ("dir/new", "2"), (".wh.gone", "")]);
        let mut parents = Vec::new();
        let mut dir = None;
        for (id, layer) in [(1, &base), (2, &change)] {
            driver.prepare(id, Kind::Active, &parents, &Labels::new()).expect("prepare");
            let mounts = driver.mounts(id, Kind::Active, &parents, &Labels::new()).expect("mounts");
            let media_type = format!("{}+gzip", crate::LAYER_MEDIA_TYPE);
            let done = apply(blob(store, &gzip(layer)), &media_type, &mounts).expect("apply");
            assert_eq!((done.digest, done.size), (digest(layer), layer.len() as u64));
            driver.commit(id).expect("commit");
            parents.insert(0, id);
            dir = Some(Target::of(&mounts).expect("target").open().expect("directory").path);
        }
        dir.expect("two rounds")
    }

    fn scratch() -> (tempfile::TempDir, ContentStore) {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let store = ContentStore::open(&scratch.path().join("content")).expect("store");
        (scratch, store)
    }

    #[test]
    fn overlay_layers() {
        let (scratch, store) = scratch();
        let driver = Overlay::open(&scratch.path().join("root"), OverlayOptions::default()).expect("driver");
        let dir = two_layers(&driver, &store);
        let whiteout =
            |path: &Path| path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0);
        assert!(whiteout(&dir.join("gone")) && whiteout(&dir.join("dir/old")));
        assert_eq!(fs::read_to_string(dir.join("dir/new")).expect("read"), "2");
        assert!(!dir.join("big").exists());
    }

    #[test]
    fn native_layers() {
        let (scratch, store) = scratch();
        let driver = Native::open(&scratch.path().join("root")).expect("driver");
        let dir = two_layers(&driver, &store);
        assert!(!dir.join("gone").exists() && !dir.join("dir/old").exists());
        assert_eq!(fs::read_to_string(dir.join("dir/new")).expect("read"), "2");
        assert_eq!(dir.join("big").metadata().expect("big").len(), 3 << 20);
    }

    #[test]
    fn refusals() {
        let (scratch, store) = scratch();
        let dir = scratch.path().join("dir");
        fs::create_dir(&dir).expect("directory");
        let mounts = [Mount {
            kind: "bind".to_owned(),
            source: dir.to_str().expect("text").to_owned(),
            target: String::new(),
            options: vec!["rw".to_owned(), "rbind".to_owned()],
        }];
        let good = tar(&[("x", "1")]);
        let oci = crate::LAYER_MEDIA_TYPE;
        let gone = [Mount { source: "/nonexistent/dir".to_owned(), ..mounts[0].clone() }];
        for (bytes, media_type, mounts, code) in [
            (&good[..], "application/x-unknown", &mounts[..], Code::Unimplemented),
            (&good, &format!("{oci}+gzip"), &mounts, Code::Unknown),
            (b"no tar at all", oci, &mounts, Code::InvalidArgument),
            (&gzip(&good)[..40], &format!("{oci}+gzip"), &mounts, Code::Unknown),
            (&good, oci, &[], Code::InvalidArgument),
            (&good, oci, &gone, Code::Unknown),
        ] {
            let error = apply(blob(&store, bytes), media_type, mounts).expect_err("refused");
            assert_eq!(error.code(), code, "{media_type}: {}", model::render(&error));
        }
        let error = apply(blob(&store, &good), "application/x-unknown", &mounts).expect_err("refused");
        assert!(error.to_string().len() < 100 && model::render(&error).contains("application/x-unknown"));
    }
}
