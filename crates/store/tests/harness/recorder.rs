//! Power cuts by record and replay: every change of the files below a directory, replayed with losses.
//!
//! The C functions that change files are defined here, so the standard library, sled and the store of this test's
//! process call these. They do the system call and note it. A cut at some moment keeps what was synced before; of every
//! other write it keeps all, nothing, or single sectors of 512 bytes, and of every other change of the directory all or
//! nothing, independently of order: worse than any file system.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_char, c_int, c_uint, c_void, mode_t, off_t, size_t, ssize_t};

use crate::harness::Random;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create(String),
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Rename(String, String),
    Unlink(String),
    SyncFile(String),
    SyncDirectory,
    /// Not a change: transaction `n` was acknowledged as durable.
    Acknowledged(u64),
}

/// A change, and when its call began and ended, on a clock that counts beginnings and ends.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    change: Change,
    begin: u64,
    end: u64,
}

struct Recording {
    root: PathBuf,
    clock: u64,
    events: Vec<Event>,
}

static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);

fn recording() -> MutexGuard<'static, Option<Recording>> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes changes of files directly in `root` from now on. One recording at a time.
pub(crate) fn start(root: &Path) {
    let before = recording().replace(Recording { root: root.to_owned(), clock: 0, events: Vec::new() });
    assert!(before.is_none(), "one recording at a time");
}

pub(crate) fn acknowledged(n: u64) {
    note(Change::Acknowledged(n), || 0);
}

pub(crate) fn stop() -> Vec<Event> {
    recording().take().unwrap().events
}

/// `path` as a name in the recorded directory; empty for the directory itself.
fn name_of(path: &Path) -> Option<String> {
    let recording = recording();
    let relative = path.strip_prefix(&recording.as_ref()?.root).ok()?;
    Some(relative.to_str()?.to_owned())
}

fn name_of_c(path: *const c_char) -> Option<String> {
    // SAFETY: callers pass what they were given as a path by a caller of a C function, which owes a C string.
    let path = unsafe { CStr::from_ptr(path) };
    name_of(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())))
}

fn name_of_fd(fd: c_int) -> Option<String> {
    if recording().is_none() {
        return None;
    }
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    name_of(&link)
}

fn note<R: PartialOrd + From<i8>>(change: Change, call: impl FnOnce() -> R) -> R {
    let tick = || {
        recording().as_mut().map(|recording| {
            recording.clock += 1;
            recording.clock
        })
    };
    let begin = tick();
    let result = call();
    if let (Some(begin), Some(end)) = (begin, tick())
        && result >= R::from(0)
        && let Some(recording) = recording().as_mut()
    {
        recording.events.push(Event { change, begin, end });
    }
    result
}

macro_rules! system_call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are those that a caller of the C function of this system call passed.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let call = || system_call!(SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int;
    match name_of_c(path).filter(|name| !name.is_empty() && flags & libc::O_CREAT != 0) {
        Some(name) => {
            let fresh = system_call!(SYS_faccessat, libc::AT_FDCWD, path, libc::F_OK) != 0;
            if fresh { note(Change::Create(name), call) } else { call() }
        }
        None => call(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    let call = || system_call!(SYS_write, fd, bytes, count) as ssize_t;
    match name_of_fd(fd) {
        Some(name) => {
            let at = system_call!(SYS_lseek, fd, 0, libc::SEEK_CUR);
            note(Change::Write(name, at as usize, copy(bytes, count)), call)
        }
        None => call(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, count: size_t, at: off_t) -> ssize_t {
    let call = || system_call!(SYS_pwrite64, fd, bytes, count, at) as ssize_t;
    match name_of_fd(fd) {
        Some(name) => note(Change::Write(name, at as usize, copy(bytes, count)), call),
        None => call(),
    }
}

fn copy(bytes: *const c_void, count: size_t) -> Vec<u8> {
    // SAFETY: a caller of write(2) owes `count` readable bytes.
    unsafe { std::slice::from_raw_parts(bytes.cast(), count) }.to_vec()
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    let call = || system_call!(SYS_ftruncate, fd, length) as c_int;
    match name_of_fd(fd) {
        Some(name) => note(Change::Truncate(name, length as usize), call),
        None => call(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, || system_call!(SYS_fsync, fd) as c_int)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, || system_call!(SYS_fdatasync, fd) as c_int)
}

fn sync(fd: c_int, call: impl FnOnce() -> c_int) -> c_int {
    match name_of_fd(fd) {
        Some(name) if name.is_empty() => note(Change::SyncDirectory, call),
        Some(name) => note(Change::SyncFile(name), call),
        None => call(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let call = || system_call!(SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0 as c_uint) as c_int;
    match (name_of_c(from), name_of_c(to)) {
        (Some(from), Some(to)) => note(Change::Rename(from, to), call),
        _ => call(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    let call = || system_call!(SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int;
    match name_of_c(path) {
        Some(name) => note(Change::Unlink(name), call),
        None => call(),
    }
}

/// A recording, ready to be cut anywhere.
pub(crate) struct Replay {
    events: Vec<Event>,
    /// The file that each event is about; a name can mean different files over time.
    files: Vec<usize>,
    /// When each event was certainly on disk.
    durable_at: Vec<u64>,
}

/// What a cut left: names of files, and what the files hold.
#[derive(Default)]
pub(crate) struct Disk {
    names: BTreeMap<String, usize>,
    files: HashMap<usize, Vec<u8>>,
}

impl Replay {
    pub(crate) fn new(mut events: Vec<Event>) -> Self {
        events.sort_by_key(|event| event.begin);
        let mut names: HashMap<String, usize> = HashMap::new();
        let mut files = Vec::new();
        for (at, event) in events.iter().enumerate() {
            let file = match &event.change {
                Change::Create(name) => {
                    names.insert(name.clone(), at);
                    at
                }
                Change::Rename(from, to) => {
                    let file = names.remove(from).unwrap();
                    names.insert(to.clone(), file);
                    file
                }
                Change::Unlink(name) => names.remove(name).unwrap(),
                Change::Write(name, ..) | Change::Truncate(name, _) => names[name],
                // A directory below this one is synced by name, too, but nothing is recorded of what is in it.
                Change::SyncFile(name) => names.get(name).copied().unwrap_or(usize::MAX),
                Change::SyncDirectory | Change::Acknowledged(_) => usize::MAX,
            };
            files.push(file);
        }
        let mut replay = Self { events, files, durable_at: Vec::new() };
        replay.durable_at = (0..replay.events.len()).map(|at| replay.durable(at)).collect();
        replay
    }

    /// When the first sync that began after event `at` was over came to its end.
    fn durable(&self, at: usize) -> u64 {
        let event = &self.events[at];
        let in_directory = matches!(event.change, Change::Create(_) | Change::Rename(..) | Change::Unlink(_));
        let syncs = self.events[at..].iter().zip(&self.files[at..]).filter(|(sync, file)| match sync.change {
            Change::SyncDirectory => in_directory,
            Change::SyncFile(_) => !in_directory && **file == self.files[at],
            Change::Create(_)
            | Change::Write(..)
            | Change::Truncate(..)
            | Change::Rename(..)
            | Change::Unlink(_)
            | Change::Acknowledged(_) => false,
        });
        syncs.filter(|(sync, _)| sync.begin > event.end).map(|(sync, _)| sync.end).next().unwrap_or(u64::MAX)
    }

    /// The moments at which a cut can be told from the one before.
    pub(crate) fn end(&self) -> u64 {
        self.events.iter().map(|event| event.end).max().unwrap_or(0)
    }

    /// The moment at which the recording `later` begins when it is appended, and both in one.
    pub(crate) fn followed_by(&self, moment: u64, later: Vec<Event>) -> Self {
        let shift = |event: Event| Event { begin: event.begin + moment, end: event.end + moment, ..event };
        let before = self.events.iter().filter(|event| event.end <= moment).cloned();
        Self::new(before.chain(later.into_iter().map(shift)).collect())
    }

    /// The last transaction acknowledged before `moment`.
    pub(crate) fn acknowledged(&self, moment: u64) -> u64 {
        let before = self.events.iter().filter(|event| event.end <= moment);
        let number = |event: &Event| if let Change::Acknowledged(n) = event.change { Some(n) } else { None };
        before.filter_map(number).max().unwrap_or(0)
    }

    /// What is on disk when the power goes at `moment`.
    pub(crate) fn cut(&self, moment: u64, random: &mut Random) -> Disk {
        // Some cuts lose everything that may be lost, some nearly nothing: both ends are where bugs are.
        let mercy = random.below(4) * 33;
        self.at(moment, |event, durable| match (durable, &event.change) {
            (true, _) => Kept::All,
            (false, Change::Write(..)) => match random.below(100) {
                luck if luck < mercy => Kept::All,
                luck if luck % 2 == 0 => Kept::Nothing,
                _ => Kept::Sectors(random.next()),
            },
            (false, _) if random.below(100) < mercy => Kept::All,
            (false, _) => Kept::Nothing,
        })
    }

    /// What the next process finds when this one is killed at `moment`.
    pub(crate) fn killed(&self, moment: u64) -> Disk {
        self.at(moment, |event, _| if event.end <= moment { Kept::All } else { Kept::Nothing })
    }

    fn at(&self, moment: u64, mut kept: impl FnMut(&Event, bool) -> Kept) -> Disk {
        let mut disk = Disk::default();
        for ((event, file), durable_at) in self.events.iter().zip(&self.files).zip(&self.durable_at) {
            if event.begin > moment {
                break;
            }
            let kept = kept(event, *durable_at <= moment);
            if matches!(kept, Kept::Nothing) {
                continue;
            }
            match &event.change {
                Change::Create(name) => drop(disk.names.insert(name.clone(), *file)),
                Change::Rename(from, to) => {
                    disk.names.remove(from);
                    disk.names.insert(to.clone(), *file);
                }
                Change::Unlink(name) => drop(disk.names.remove(name)),
                Change::Truncate(_, length) => disk.files.entry(*file).or_default().resize(*length, 0),
                Change::Write(_, at, bytes) => disk.write(*file, *at, bytes, &kept),
                Change::SyncFile(_) | Change::SyncDirectory | Change::Acknowledged(_) => {}
            }
        }
        disk
    }
}

enum Kept {
    All,
    /// Those sectors of a write whose bit, by their number modulo 64, is set.
    Sectors(u64),
    Nothing,
}

impl Disk {
    fn write(&mut self, file: usize, at: usize, bytes: &[u8], kept: &Kept) {
        let file = self.files.entry(file).or_default();
        let mut from = 0;
        while from < bytes.len() {
            let to = bytes.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
            let wanted = match kept {
                Kept::All => true,
                Kept::Sectors(bits) => bits >> ((at + from) / SECTOR % 64) & 1 == 1,
                Kept::Nothing => false,
            };
            if wanted {
                file.resize(file.len().max(at + to), 0);
                file[at + from..at + to].copy_from_slice(&bytes[from..to]);
            }
            from = to;
        }
    }

    /// Makes the files in an empty directory.
    pub(crate) fn lay_out(&self, dir: &Path) {
        std::fs::create_dir_all(dir.join("blobs")).unwrap();
        for (name, file) in &self.names {
            let bytes = self.files.get(file).map(Vec::as_slice).unwrap_or_default();
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// Proves that the functions above are the ones that are called.
pub(crate) fn assert_recording(dir: &Path) {
    start(dir);
    std::fs::write(dir.join("probe"), b"probe").unwrap();
    std::fs::rename(dir.join("probe"), dir.join("moved")).unwrap();
    let file = std::fs::File::options().write(true).open(dir.join("moved")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 3).unwrap();
    file.set_len(2).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    std::fs::File::open(dir).unwrap().sync_all().unwrap();
    std::fs::remove_file(dir.join("moved")).unwrap();
    let _ = CString::default();
    let seen: Vec<_> = stop().into_iter().map(|event| format!("{:?}", event.change)).collect();
    let expected = [
        r#"Create("probe")"#,
        r#"Write("probe", 0, [112, 114, 111, 98, 101])"#,
        r#"Rename("probe", "moved")"#,
        r#"Write("moved", 3, [120])"#,
        r#"Truncate("moved", 2)"#,
        r#"SyncFile("moved")"#,
        r#"SyncFile("moved")"#,
        "SyncDirectory",
        r#"Unlink("moved")"#,
    ];
    assert_eq!(seen, expected, "a change of a file went unseen: the C functions are bound elsewhere");
}
