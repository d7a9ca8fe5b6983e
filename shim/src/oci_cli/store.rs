//! Containers between commands: `<root>/<id>/` with `state.json`, a copy of the specification, and two FIFOs by which
//! `start` in one process reaches the container that `create` in another one made.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use oci::Spec;
use runtime::{Container, Gate, HostFeatures};
use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use sys::undefended::{Defence, left_out};

use super::Error;
use super::args::Global;
use super::libcontainer::{self, SPEC, START, STATE, Saved};

/// In a directory of its own under the same name, by which runc's tests know the FIFOs that a container holds open.
const REPORT_DIRECTORY: &str = "report";
const REPORT: &str = "report/exec.fifo";

/// What we read of `state.json`.
#[derive(Deserialize)]
struct Document {
    gantry: Saved,
}

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
}

/// runc's rule: letters, digits and `_+-.`, not `.` or `..`.
fn check_id(id: &str) -> Result<(), Error> {
    let well_formed = !id.is_empty()
        && id.len() <= 255
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte))
        && !matches!(id, "." | "..");
    if well_formed || left_out(Defence::ContainerId) {
        Ok(())
    } else {
        Err(Error::Usage(format!("invalid container ID format: {id:?}")))
    }
}

impl Entry {
    /// Makes the directory of a new container.
    pub(crate) fn make(global: &Global, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let failed = |source| Error::io(format!("making {}", global.root.display()), source);
        // Nobody else may look: the specification has the environment, secrets in it (CVE-2024-25621 class).
        let private = if left_out(Defence::Modes) { 0o755 } else { 0o700 };
        let path = global.root.join(id);
        let make = || rustix::fs::mkdir(&path, Mode::from_raw_mode(private));
        let made = match make() {
            // The first container of this root.
            Err(rustix::io::Errno::NOENT) => {
                let mut builder = std::fs::DirBuilder::new();
                std::os::unix::fs::DirBuilderExt::mode(&mut builder, private)
                    .recursive(true)
                    .create(&global.root)
                    .map_err(failed)?;
                make()
            }
            other => other,
        };
        made.map_err(|errno| match errno {
            rustix::io::Errno::EXIST => Error::Exists,
            errno => failed(errno.into()),
        })?;
        Ok(Self { id: id.to_owned(), path })
    }

    /// The directory of an existing one.
    pub(crate) fn find(global: &Global, id: &str) -> Result<Self, Error> {
        check_id(id)?;
        let path = global.root.join(id);
        if path.is_dir() { Ok(Self { id: id.to_owned(), path }) } else { Err(Error::NoContainer) }
    }

    /// All containers, by id.
    pub(crate) fn all(global: &Global) -> Result<Vec<Self>, Error> {
        let failed = |source| Error::io(format!("reading {}", global.root.display()), source);
        let mut list = Vec::new();
        let directory = match std::fs::read_dir(&global.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !global.root_given => return Ok(list),
            other => other.map_err(failed)?,
        };
        for entry in directory {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            if let Ok(id) = entry.file_name().into_string() {
                list.push(Self { id, path: entry.path() });
            }
        }
        list.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(list)
    }

    /// Makes the FIFOs. The container holds both ends of both: it waits on the one until somebody writes, and the
    /// other is at its end when the container has executed its program.
    pub(crate) fn gate(&self) -> Result<Gate, Error> {
        let directory = self.path.join(REPORT_DIRECTORY);
        rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o700))
            .map_err(|errno| Error::io(format!("making {}", directory.display()), errno))?;
        let open = |name: &str| {
            let path = self.path.join(name);
            let failed = |errno| Error::io(format!("making {}", path.display()), errno);
            rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .map_err(failed)?;
            rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
        };
        Ok(Gate { start: open(START)?, report: open(REPORT)? })
    }

    /// The other ends, if the container waits to be started.
    fn open_gate(&self) -> Option<Gate> {
        let open = |name: &str, flags: OFlags| {
            let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(self.path.join(name), flags, Mode::empty()).ok()
        };
        // Without a reader, which the waiting container is, this gives ENXIO.
        Some(Gate { start: open(START, OFlags::WRONLY)?, report: open(REPORT, OFlags::RDONLY)? })
    }

    /// The container has been started: there is nothing to wait for any more.
    pub(crate) fn close_gate(&self) {
        let _ = std::fs::remove_file(self.path.join(START));
        let _ = std::fs::remove_dir_all(self.path.join(REPORT_DIRECTORY));
    }

    /// Writes the record of a container, whole or not at all.
    pub(crate) fn save(&self, saved: &Saved, spec: &Spec, container: &Container) -> Result<(), Error> {
        let refused = |source| Error::Record { id: self.id.clone(), source };
        let text = libcontainer::document(saved, spec, container).map_err(refused)?.to_string();
        let path = self.path.join(STATE);
        sys::fs::replace_file(&path, text.as_bytes(), 0o600)
            .map_err(|errno| Error::io(format!("writing {}", path.display()), errno))
    }

    /// Keeps a copy of the specification, in a directory that is new: nobody reads it before there is a record.
    pub(crate) fn save_spec(&self, json: &[u8]) -> Result<(), Error> {
        let path = self.path.join(SPEC);
        let mode = if left_out(Defence::Modes) { 0o644 } else { 0o600 };
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), mode)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, json))
            .map_err(|source| Error::io(format!("writing {}", path.display()), source))
    }

    pub(crate) fn saved(&self) -> Result<Saved, Error> {
        let path = self.path.join(STATE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoContainer),
            other => other.map_err(|source| Error::io(format!("reading {}", path.display()), source))?,
        };
        serde_json::from_slice::<Document>(&bytes)
            .map(|document| document.gantry)
            .map_err(|source| Error::Record { id: self.id.clone(), source })
    }

    pub(crate) fn spec(&self) -> Result<Spec, Error> {
        load_spec(&self.path.join(SPEC))
    }

    /// The container itself.
    pub(crate) fn open(&self) -> Result<(Container, Saved), Error> {
        self.open_with_spec().map(|(container, saved, _)| (container, saved))
    }

    /// The container itself and the document that it was made from.
    pub(crate) fn open_with_spec(&self) -> Result<(Container, Saved, Spec), Error> {
        let saved = self.saved()?;
        let host = HostFeatures::detect()?;
        let spec = self.spec()?;
        let container = Container::open(&saved.state, &spec, &host, self.open_gate())?;
        Ok((container, saved, spec))
    }

    /// Forgets the container.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        // What is always there first: mostly that is all, and nothing needs to be listed.
        for name in [STATE, SPEC] {
            let _ = rustix::fs::unlink(self.path.join(name));
        }
        if rustix::fs::rmdir(&self.path).is_ok() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", self.path.display()), error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a specification.
pub(crate) fn load_spec(path: &Path) -> Result<Spec, Error> {
    let bytes = read_document(path)?;
    oci::parse_spec(&bytes).map_err(|source| Error::Document { document: path.display().to_string(), source })
}

/// Reads a document that is not larger than one may be.
pub(crate) fn read_document(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::io(format!("reading {}", path.display()), source);
    let file = File::open(path).map_err(failed)?;
    // Room for a document of the usual size: one read, and one that finds the end.
    let mut bytes = Vec::with_capacity(24 << 10);
    loop {
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(bytes),
            // What is too long is refused by whoever parses it.
            Ok(_) if bytes.len() > most_bytes() => return Ok(bytes),
            Ok(_) | Err(rustix::io::Errno::INTR) => bytes.reserve(1 << 10),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn most_bytes() -> usize {
    if left_out(Defence::Documents) { 1 << 40 } else { oci::MAX_DOCUMENT_BYTES }
}

pub(crate) fn read_bounded(source: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(64 << 10);
    let limit = u64::try_from(most_bytes()).unwrap_or(u64::MAX - 1) + 1;
    io::Read::read_to_end(&mut source.take(limit), &mut bytes)?;
    Ok(bytes)
}
