//! The files of the journal.
//!
//! ```text
//! <state>/io.gantry.events/<first sequence, 20 digits>.log
//!   gantry-events 1 <boot id> <journal uuid> <first sequence> <last origin before it>\n
//!   frame frame frame …
//! ```
//!
//! **Invariant:** frames are appended by one write each and never changed. What follows the last whole frame of the
//! newest segment is cut off at open: it was never shown to anybody.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::out_of_space;
use crate::frame::{self, Frame};
use crate::{Envelope, Error, Retention};

const MAGIC: &str = "gantry-events 1";

/// What the first line of a segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    boot_id: String,
    uuid: String,
    first: u64,
    origin: u64,
}

impl Header {
    fn line(&self) -> String {
        format!("{MAGIC} {} {} {} {}\n", self.boot_id, self.uuid, self.first, self.origin)
    }

    /// The header and its length in bytes.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut words = line.strip_prefix(MAGIC)?.split_ascii_whitespace();
        let header = Self {
            boot_id: words.next()?.to_owned(),
            uuid: words.next()?.to_owned(),
            first: words.next()?.parse().ok()?,
            origin: words.next()?.parse().ok()?,
        };
        Some((header, end + 1))
    }
}

/// One segment file.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    events: u64,
}

/// The segments and the open file that is appended to.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    boot_id: String,
    uuid: String,
    retention: Retention,
    /// Full ones, oldest first.
    sealed: VecDeque<Segment>,
    active: Segment,
    /// The active segment, open for appending.
    file: File,
    last_sequence: u64,
    last_origin: u64,
}

impl Log {
    /// Opens the directory, sweeps other boots' segments, cuts a torn tail off, and starts a journal where there is
    /// none.
    pub(crate) fn open(dir: &Path, boot_id: &str, retention: Retention) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))?;
        let mut found = Vec::new();
        for path in segment_paths(dir)? {
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            match Header::parse(&bytes) {
                Some((header, start)) if header.boot_id == boot_id => found.push((path, header, start, bytes)),
                _ => fs::remove_file(&path).map_err(failed("remove", &path))?,
            }
        }
        let Some((_, newest, ..)) = found.last() else {
            return Self::start(dir, boot_id, retention);
        };
        let uuid = newest.uuid.clone();
        let (mut last_sequence, mut last_origin) = (0, 0);
        let mut segments = VecDeque::new();
        for (path, header, start, bytes) in found {
            if header.uuid != uuid {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                continue;
            }
            last_sequence = last_sequence.max(header.first.saturating_sub(1));
            last_origin = last_origin.max(header.origin);
            let (mut at, mut events) = (start, 0);
            while let Some((frame, length)) = frame::decode(&bytes[at..]) {
                last_sequence = frame.entry.sequence;
                last_origin = last_origin.max(frame.origin);
                at += length;
                events += 1;
            }
            segments.push_back(Segment { path, bytes: at as u64, events });
        }
        let Some(active) = segments.pop_back() else {
            return Self::start(dir, boot_id, retention);
        };
        let file = append_to(&active.path, false).map_err(failed("open", &active.path))?;
        file.set_len(active.bytes).map_err(failed("truncate", &active.path))?;
        Ok(Self {
            dir: dir.to_owned(),
            boot_id: boot_id.to_owned(),
            uuid,
            retention,
            sealed: segments,
            active,
            file,
            last_sequence,
            last_origin,
        })
    }

    /// A journal without events, under a new uuid.
    fn start(dir: &Path, boot_id: &str, retention: Retention) -> Result<Self, Error> {
        let source = Path::new("/proc/sys/kernel/random/uuid");
        let uuid = fs::read_to_string(source).map_err(failed("read", source))?.trim().to_owned();
        let header = Header { boot_id: boot_id.to_owned(), uuid: uuid.clone(), first: 1, origin: 0 };
        let (active, file) = create(dir, &header)?;
        Ok(Self {
            dir: dir.to_owned(),
            boot_id: boot_id.to_owned(),
            uuid,
            retention,
            sealed: VecDeque::new(),
            active,
            file,
            last_sequence: 0,
            last_origin: 0,
        })
    }

    pub(crate) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    pub(crate) fn last_origin(&self) -> u64 {
        self.last_origin
    }

    /// Appends an event and returns its sequence number. On error nothing of it is kept.
    pub(crate) fn append(&mut self, origin: u64, envelope: &Envelope) -> Result<u64, Error> {
        self.rotate_when_full();
        let sequence = self.last_sequence + 1;
        let bytes = frame::encode(sequence, origin, envelope);
        while let Err(source) = self.file.write_all(&bytes) {
            // A partial frame must not stay in front of the next one.
            let _ = self.file.set_len(self.active.bytes);
            // A full state directory must not lose the newest event: older ones give way.
            if out_of_space(&source) && self.drop_oldest() {
                continue;
            }
            return Err(Error::File { action: "append to", path: self.active.path.clone(), source });
        }
        self.active.bytes += bytes.len() as u64;
        self.active.events += 1;
        self.last_sequence = sequence;
        self.last_origin = self.last_origin.max(origin);
        Ok(sequence)
    }

    /// Paths of the segments, oldest first.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.sealed.iter().chain([&self.active]).map(|segment| segment.path.clone()).collect()
    }

    /// Starts a new segment when the active one has its share of what is retained, and drops what is beyond the
    /// retention. A segment that cannot be created is no reason to lose an event: the active one then grows on.
    fn rotate_when_full(&mut self) {
        const SEGMENTS: u64 = 8;
        let active = &self.active;
        if active.events == 0
            || (active.bytes < self.retention.bytes / SEGMENTS && active.events < self.retention.events / SEGMENTS)
        {
            return;
        }
        let header = Header {
            boot_id: self.boot_id.clone(),
            uuid: self.uuid.clone(),
            first: self.last_sequence + 1,
            origin: self.last_origin,
        };
        let Ok((segment, file)) = create(&self.dir, &header) else { return };
        self.sealed.push_back(std::mem::replace(&mut self.active, segment));
        self.file = file;
        let sum = |of: fn(&Segment) -> u64, sealed: &VecDeque<Segment>| sealed.iter().map(of).sum::<u64>();
        while sum(|segment| segment.bytes, &self.sealed) > self.retention.bytes
            || sum(|segment| segment.events, &self.sealed) > self.retention.events
        {
            self.drop_oldest();
        }
    }

    /// Drops the oldest full segment and tells whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.sealed.pop_front() else { return false };
        // One that stays behind is swept with its boot.
        let _ = fs::remove_file(oldest.path);
        true
    }
}

/// Calls `visit` with every event of these segments, oldest first. A segment that is gone by now has been dropped by
/// retention.
pub(crate) fn scan(paths: &[PathBuf], mut visit: impl FnMut(Frame)) -> Result<(), Error> {
    for path in paths {
        let mut bytes = Vec::new();
        match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::File { action: "read", path: path.clone(), source }),
        }
        let Some((_, mut at)) = Header::parse(&bytes) else { continue };
        while let Some((frame, length)) = frame::decode(&bytes[at..]) {
            visit(frame);
            at += length;
        }
    }
    Ok(())
}

fn segment_paths(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            paths.push(path);
        }
    }
    // Names are numbers of fixed width.
    paths.sort();
    Ok(paths)
}

fn create(dir: &Path, header: &Header) -> Result<(Segment, File), Error> {
    let path = dir.join(format!("{:020}.log", header.first));
    let line = header.line();
    let mut file = append_to(&path, true).map_err(failed("create", &path))?;
    if let Err(source) = file.write_all(line.as_bytes()) {
        let _ = fs::remove_file(&path);
        return Err(Error::File { action: "write", path, source });
    }
    Ok((Segment { path, bytes: line.len() as u64, events: 0 }, file))
}

fn append_to(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(new).mode(0o600).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
