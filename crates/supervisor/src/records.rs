//! The shim's records, read; and the one that is written for a shim that died without writing it.
//!
//! **Invariant:** a record that is missing, half written, of another boot or unreadable counts as absent: nothing is
//! concluded from it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use model::Timestamp;
use model::record::{EXECS_DIR, EXITS_DIR, ExitRecord, ProcessRecord, TASK_FILE, TaskRecord};
use serde::de::DeserializeOwned;

use crate::Error;
use crate::task::Exit;

/// What init was sent last.
const KILL_FILE: &str = "kill.json";
/// Its presence says that the shim was lost.
const LOST_FILE: &str = "shim-lost";

/// What a bundle says about its task.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    pub(crate) task: TaskRecord,
    pub(crate) execs: Vec<ProcessRecord>,
}

/// Whose bundle it is, by its task record.
#[derive(Debug)]
pub(crate) enum Found {
    /// A task of this boot.
    Task(Box<Records>),
    /// The record was written before the kernel was started.
    Stale,
    /// There is no task in it.
    Nothing,
}

/// Reads the records of a bundle.
pub(crate) fn read(bundle: &Path, boot_id: &str) -> Found {
    let Some(task) = parse::<TaskRecord>(&bundle.join(TASK_FILE)) else { return Found::Nothing };
    if task.boot_id != boot_id {
        return Found::Stale;
    }
    let mut execs: Vec<ProcessRecord> = fs::read_dir(bundle.join(EXECS_DIR))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .filter_map(|entry| parse::<ProcessRecord>(&entry.path()))
        .filter(|exec| exec.boot_id == boot_id)
        .collect();
    execs.sort_by(|a, b| a.exec_id.cmp(&b.exec_id));
    Found::Task(Box::new(Records { task, execs }))
}

/// When a file was changed last; zero where that is not known.
pub(crate) fn modified(path: &Path) -> Timestamp {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    let since = modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(Timestamp::ZERO, |since| Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(0),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    })
}

/// When the record of an additional process was written.
pub(crate) fn exec_modified(bundle: &Path, exec_id: &str) -> Timestamp {
    modified(&exec_path(bundle, exec_id))
}

/// The exit record of init, or of an additional process.
pub(crate) fn exit(bundle: &Path, exec_id: &str, boot_id: &str) -> Option<Exit> {
    let record = parse::<ExitRecord>(&exit_path(bundle, exec_id))?;
    (record.boot_id == boot_id).then_some(Exit {
        pid: record.pid,
        exit_status: record.exit_status,
        exited_at: record.exited_at,
    })
}

/// The whole exit record of init.
pub(crate) fn exit_record(bundle: &Path, boot_id: &str) -> Option<ExitRecord> {
    parse::<ExitRecord>(&exit_path(bundle, "")).filter(|record| record.boot_id == boot_id)
}

/// Notes for those who ask why: init was sent a signal on request.
pub(crate) fn note_kill(bundle: &Path, signal: u32) {
    // Nothing depends on it.
    let _ = serde_json::to_vec(&(signal, Timestamp::now())).map(|bytes| fs::write(bundle.join(KILL_FILE), bytes));
}

/// The last signal that init was sent on request, and when.
pub(crate) fn last_kill(bundle: &Path) -> Option<(i32, Timestamp)> {
    serde_json::from_slice(&fs::read(bundle.join(KILL_FILE)).ok()?).ok()
}

/// Notes for those who ask why: the shim has died before it could tell how init ended.
pub(crate) fn note_shim_lost(bundle: &Path) {
    let _ = fs::write(bundle.join(LOST_FILE), "");
}

/// Whether that was so.
pub(crate) fn is_shim_lost(bundle: &Path) -> bool {
    bundle.join(LOST_FILE).exists()
}

/// How many processes of the container the kernel had killed for lack of memory when init ended.
pub(crate) fn oom_kills(bundle: &Path, boot_id: &str) -> u64 {
    parse::<ExitRecord>(&exit_path(bundle, ""))
        .filter(|record| record.boot_id == boot_id)
        .map_or(0, |record| record.oom_kills)
}

/// The record of an additional process.
pub(crate) fn exec(bundle: &Path, exec_id: &str, boot_id: &str) -> Option<ProcessRecord> {
    let record = parse::<ProcessRecord>(&exec_path(bundle, exec_id))?;
    (record.boot_id == boot_id && record.exec_id == exec_id).then_some(record)
}

/// Removes the records of an additional process, which its dead shim cannot do.
pub(crate) fn forget_exec(bundle: &Path, exec_id: &str) {
    // One that stays goes with the bundle; meanwhile the process is seen as one that has ended.
    let _ = fs::remove_file(exec_path(bundle, exec_id));
    let _ = fs::remove_file(exit_path(bundle, exec_id));
}

/// Writes the exit record that a dead shim did not write, so that the next daemon knows the end too.
pub(crate) fn write_exit(bundle: &Path, exec_id: &str, boot_id: &str, exit: Exit) -> Result<(), Error> {
    let path = exit_path(bundle, exec_id);
    let failed = |source| Error::Bundle { operation: "write exit record", path: path.clone(), source };
    let record = ExitRecord {
        boot_id: boot_id.to_owned(),
        pid: exit.pid,
        exit_status: exit.exit_status,
        signal: i32::try_from(exit.exit_status.saturating_sub(128)).unwrap_or(0),
        exited_at: exit.exited_at,
        user_us: 0,
        system_us: 0,
        max_rss_kib: 0,
        oom_kills: 0,
        oom_cgroup: None,
    };
    let bytes = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
    let directory = bundle.join(EXITS_DIR);
    fs::create_dir_all(&directory).map_err(failed)?;
    let directory = File::open(&directory).map_err(failed)?;
    sys::fs::write_atomic(directory.as_fd(), exit_name(exec_id), &bytes, 0o600).map_err(|errno| failed(errno.into()))
}

fn exec_path(bundle: &Path, exec_id: &str) -> PathBuf {
    bundle.join(EXECS_DIR).join(format!("{exec_id}.json"))
}

fn exit_name(exec_id: &str) -> String {
    if exec_id.is_empty() { "init.json".to_owned() } else { format!("exec-{exec_id}.json") }
}

pub(crate) fn exit_path(bundle: &Path, exec_id: &str) -> PathBuf {
    bundle.join(EXITS_DIR).join(exit_name(exec_id))
}

fn parse<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record cannot be read");
            None
        }
    }
}
