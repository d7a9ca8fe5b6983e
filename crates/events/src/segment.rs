//! The files of the journal.
//!
//! ```text
//! <state>/io.gantry.events/<first sequence, 20 digits>.log
//!   gantry-events 1 <boot id> <journal uuid> <first sequence> <last origin before it> <made, seconds since 1970>\n
//!   frame frame frame …
//! ```
//!
//! **Invariant:** frames are appended by one write each and never changed. What follows the last whole frame of the
//! newest segment is cut off at open: it was never shown to anybody.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::Timestamp;

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
    made: u64,
}

impl Header {
    fn line(&self) -> String {
        format!("{MAGIC} {} {} {} {} {}\n", self.boot_id, self.uuid, self.first, self.origin, self.made)
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
            // A journal of an earlier version does not say; then the segment counts as old, and another one is begun.
            made: words.next().map_or(Some(0), |word| word.parse().ok())?,
        };
        Some((header, end + 1))
    }
}

/// One segment file.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    /// Sequence number of its first event.
    first: u64,
    bytes: u64,
    events: u64,
    /// When it was begun.
    made: SystemTime,
    /// When the last event was appended, of a full one.
    sealed: SystemTime,
}

/// How long ago; nothing where the clock was set back since.
fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

fn since_epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
    /// How far the file system has promised room for it.
    reserved: u64,
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
            let sealed = path.metadata().and_then(|metadata| metadata.modified()).map_err(failed("look at", &path))?;
            let made = SystemTime::UNIX_EPOCH + Duration::from_secs(header.made);
            segments.push_back(Segment { path, first: header.first, bytes: at as u64, events, made, sealed });
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
            reserved: 0,
            last_sequence,
            last_origin,
        })
    }

    /// A journal without events, under a new uuid.
    fn start(dir: &Path, boot_id: &str, retention: Retention) -> Result<Self, Error> {
        let source = Path::new("/proc/sys/kernel/random/uuid");
        let uuid = fs::read_to_string(source).map_err(failed("read", source))?.trim().to_owned();
        let header = Header {
            boot_id: boot_id.to_owned(),
            uuid: uuid.clone(),
            first: 1,
            origin: 0,
            made: since_epoch(SystemTime::now()),
        };
        let (active, file) = create(dir, &header)?;
        Ok(Self {
            dir: dir.to_owned(),
            boot_id: boot_id.to_owned(),
            uuid,
            retention,
            sealed: VecDeque::new(),
            active,
            file,
            reserved: 0,
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
        self.reserve(bytes.len() as u64);
        while let Err(source) = write_whole(&mut self.file, &bytes) {
            // A partial frame must not stay in front of the next one.
            let _ = self.file.set_len(self.active.bytes);
            self.reserved = 0;
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

    /// Keeps room for some hundred events, so that a file system that others have filled does not stop them. There may
    /// be none to be had.
    fn reserve(&mut self, bytes: u64) {
        const AHEAD: u64 = 256 << 10;
        if self.active.bytes + bytes + AHEAD / 2 <= self.reserved {
            return;
        }
        let from = self.reserved.max(self.active.bytes);
        if sys::fs::reserve(self.file.as_fd(), from, AHEAD).is_ok() {
            self.reserved = from + AHEAD;
        }
    }

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.sealed.iter().chain([&self.active])
    }

    /// Paths of the segments, oldest first.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.segments().map(|segment| segment.path.clone()).collect()
    }

    /// Paths of the segments that may have events behind `sequence`, oldest first.
    pub(crate) fn paths_after(&self, sequence: u64) -> Vec<PathBuf> {
        let behind = self.segments().filter(|segment| segment.first + segment.events > sequence + 1);
        behind.map(|segment| segment.path.clone()).collect()
    }

    /// Number of the oldest event that is kept, or of the next one where none is.
    pub(crate) fn oldest_sequence(&self) -> u64 {
        self.segments().next().map_or(1, |segment| segment.first)
    }

    /// Since when nothing is missing; `None` where nothing was ever dropped.
    pub(crate) fn complete_since(&self) -> Option<Timestamp> {
        let oldest = self.segments().next().filter(|segment| segment.first > 1)?;
        Some(Timestamp { seconds: i64::try_from(since_epoch(oldest.made)).unwrap_or(i64::MAX), nanos: 0 })
    }

    /// Starts a new segment when the active one has its share of what is retained, and drops what is beyond the
    /// retention. A segment that cannot be created is no reason to lose an event: the active one then grows on.
    fn rotate_when_full(&mut self) {
        const SEGMENTS: u64 = 8;
        const SEGMENTS_OF_TIME: u32 = 8;
        let active = &self.active;
        let full = active.bytes >= self.retention.bytes / SEGMENTS
            || active.events >= self.retention.events / SEGMENTS
            || age(active.made) >= self.retention.age / SEGMENTS_OF_TIME;
        if active.events == 0 || !full {
            return;
        }
        let header = Header {
            boot_id: self.boot_id.clone(),
            uuid: self.uuid.clone(),
            first: self.last_sequence + 1,
            origin: self.last_origin,
            made: since_epoch(SystemTime::now()),
        };
        let Ok((segment, file)) = create(&self.dir, &header) else { return };
        let sealed = std::mem::replace(&mut self.active, segment);
        self.sealed.push_back(Segment { sealed: SystemTime::now(), ..sealed });
        if let Some(unused) = self.reserved.checked_sub(sealed.bytes).filter(|unused| *unused > 0) {
            // What is not given back now goes with the segment.
            let _ = sys::fs::release(self.file.as_fd(), sealed.bytes, unused);
        }
        self.reserved = 0;
        self.file = file;
        let sum = |of: fn(&Segment) -> u64, sealed: &VecDeque<Segment>| sealed.iter().map(of).sum::<u64>();
        while sum(|segment| segment.bytes, &self.sealed) > self.retention.bytes
            || sum(|segment| segment.events, &self.sealed) > self.retention.events
            || self.sealed.front().is_some_and(|oldest| age(oldest.sealed) > self.retention.age)
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
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(header.made);
    Ok((Segment { path, first: header.first, bytes: line.len() as u64, events: 0, made, sealed: made }, file))
}

/// Appends a frame by one write. A build with crash points cuts it in two.
fn write_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    #[cfg(feature = "crash-points")]
    let bytes = {
        let (front, rest) = bytes.split_at(bytes.len() / 2);
        file.write_all(front)?;
        sys::crash::point(sys::crash::daemon::JOURNAL_TORN);
        rest
    };
    file.write_all(bytes)
}

fn append_to(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(new).mode(0o600).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
