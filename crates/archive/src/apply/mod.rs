//! Writes a layer's changes into a directory.
//!
//! The rules are containerd's: an entry replaces what is at its name, except that a directory merges with a directory;
//! the root entry is ignored; missing parents are made like the layers below have them; links into nowhere fail.

mod directories;
mod whiteout;
mod write;

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags, Timestamps};

use crate::Error;
use crate::lower::Lowers;
use crate::reader::{Entry, TarReader};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// `PATH_MAX`: no program could open a longer one.
const MAX_PATH_BYTES: usize = 4096;
/// Directories held open; a layer's entries come directory by directory.
const CACHED_DIRS: usize = 64;
const BUFFER_BYTES: usize = 256 << 10;

/// What a layer's removals become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// Overlayfs's marks (a character device 0:0, `trusted.overlay.opaque`): the directory is an upper directory.
    Overlay,
    /// Removals: the directory holds the files of the layers below.
    Remove,
}

/// Bounds on what an archive may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of a sparse file, holes included.
    pub sparse_file_bytes: u64,
    /// Bytes of names that must be remembered until the end: of directories, whose times are set last, and with
    /// [`Whiteouts::Remove`] of all entries.
    pub remembered_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sparse_file_bytes: 1 << 40, remembered_bytes: 128 << 20 }
    }
}

/// How to apply a layer.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// What removals become.
    pub whiteouts: Whiteouts,
    /// The directories that the target will be stacked on, nearest first: missing parent directories get their
    /// attributes, and hard links may name their files.
    pub lowers: Vec<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

impl ApplyOptions {
    /// For a directory that holds all files itself.
    pub fn in_place() -> Self {
        Self { whiteouts: Whiteouts::Remove, lowers: Vec::new(), limits: Limits::default() }
    }

    /// For an overlay upper directory over `lowers`, nearest first.
    pub fn upper(lowers: Vec<PathBuf>) -> Self {
        Self { whiteouts: Whiteouts::Overlay, lowers, limits: Limits::default() }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of file data.
    pub bytes: u64,
    /// Inodes made.
    pub inodes: u64,
}

/// Applies the tar stream `tar` to the directory `root`, and reads the stream to its very end. Blocks.
///
/// After an error `root` holds part of the layer. The stream is untrusted: see the invariant of this crate.
pub fn apply(tar: impl Read, root: &Path, options: ApplyOptions) -> Result<Applied, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(Error::io("open", root))?;
    let mut reader = TarReader::new(tar);
    let mut applier = Applier {
        root,
        whiteouts: options.whiteouts,
        lowers: Lowers::new(options.lowers),
        limits: options.limits,
        dirs: HashMap::new(),
        times: Vec::new(),
        written: HashSet::new(),
        remembered: 0,
        applied: Applied::default(),
        buffer: vec![0; BUFFER_BYTES],
    };
    while let Some(entry) = reader.next_entry()? {
        applier.entry(&entry, &mut reader)?;
    }
    applier.finish()?;
    reader.drain()?;
    Ok(applier.applied)
}

struct Applier {
    root: OwnedFd,
    whiteouts: Whiteouts,
    lowers: Lowers,
    limits: Limits,
    /// Directories by cleaned path. An entry is valid as long as nothing on the way to it is replaced, so it is emptied
    /// whenever something is removed.
    dirs: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Times of directories, set when nothing is written into them any more.
    times: Vec<(Vec<u8>, Timestamps)>,
    /// With [`Whiteouts::Remove`]: the paths that this layer has written, and those above them.
    written: HashSet<Vec<u8>>,
    remembered: u64,
    applied: Applied,
    buffer: Vec<u8>,
}

impl Applier {
    fn entry(&mut self, entry: &Entry, reader: &mut TarReader<impl Read>) -> Result<(), Error> {
        let components = clean(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // The root directory is the snapshot's, not the layer's.
            return Ok(());
        };
        if components.iter().any(|component| component.starts_with(AUFS) && *component != OPAQUE_WHITEOUT) {
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(Error::refused(&entry.path, "a whiteout is no directory"));
        }
        if *name == OPAQUE_WHITEOUT {
            return self.opaque(parents);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::refused(&entry.path, "invalid whiteout name"));
            }
            return self.whiteout(parents, hidden);
        }
        let dir = self.directory(parents)?;
        self.write(entry, &components, dir.as_fd(), name, reader)?;
        self.remember_written(&components)
    }

    /// Notes that this layer wrote a path; everything above it counts as well, or an opaque mark would take it away.
    fn remember_written(&mut self, components: &[&[u8]]) -> Result<(), Error> {
        if self.whiteouts == Whiteouts::Overlay {
            return Ok(());
        }
        for end in (1..=components.len()).rev() {
            let path = components[..end].join(&b'/');
            let bytes = path.len();
            if !self.written.insert(path) {
                break;
            }
            self.remember(bytes)?;
        }
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), Error> {
        // A name costs its allocation and its place in the collection as well.
        self.remembered += bytes as u64 + 64;
        if self.remembered > self.limits.remembered_bytes {
            return Err(Error::Limit { what: "bytes of names", limit: self.limits.remembered_bytes });
        }
        Ok(())
    }
}

/// The components of a path without empty ones and `.`; `..` takes one back and stops at the root, as Go cleans the
/// absolute path.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::refused(path, "name too long"));
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    Ok(components)
}
