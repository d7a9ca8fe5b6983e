//! The files a shim writes into its bundle so that gantryd can know a task's state without asking anybody.
//!
//! The shim is the only writer; for a shim that is not ours gantryd is. Each file is written beside its name and renamed over it, so a reader sees a whole
//! record or none. Records live in the state directory, which does not survive the kernel: each carries the boot id,
//! and another boot's records are swept at start.
//!
//! ```text
//! <bundle>/task.json            TaskRecord, rewritten at every transition of init
//! <bundle>/execs/<id>.json      ProcessRecord of each additional process
//! <bundle>/exits/init.json      ExitRecord of init, written before it is reaped
//! <bundle>/exits/exec-<id>.json ExitRecord of an additional process
//! ```

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Name of the [`TaskRecord`] in the bundle.
pub const TASK_FILE: &str = "task.json";
/// Directory of [`ProcessRecord`]s in the bundle.
pub const EXECS_DIR: &str = "execs";
/// Directory of [`ExitRecord`]s in the bundle.
pub const EXITS_DIR: &str = "exits";

/// Where a process stands. The names are those of containerd's task status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, waiting to be started.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Being frozen.
    Pausing,
    /// Ended; its exit record says how.
    Stopped,
}

/// A process that can be found again after a restart without being mistaken for another one: pids are reused, the pair
/// of pid and start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Pid in the host's pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    pub start_time: u64,
}

/// Where the standard streams of a process go, as the client named them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioPaths {
    /// FIFO that is read as standard input; empty for none.
    pub stdin: String,
    /// FIFO or URI that standard output goes to; empty for none.
    pub stdout: String,
    /// FIFO or URI that standard error goes to; empty for none.
    pub stderr: String,
    /// Whether the process has a pseudo terminal; then only `stdin` and `stdout` count.
    pub terminal: bool,
}

/// The task of a container: its first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// `/proc/sys/kernel/random/boot_id` of the boot that this record belongs to.
    pub boot_id: String,
    /// The shim that owns the task.
    pub shim: ProcessIdentity,
    /// The container's first process.
    pub init: ProcessIdentity,
    /// Where it stands.
    pub status: Status,
    /// Whether it was ever started: a stopped one may have been killed before.
    #[serde(default)]
    pub started: bool,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// An additional process of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Boot that this record belongs to.
    pub boot_id: String,
    /// The exec id.
    pub exec_id: String,
    /// The process; absent until it is started.
    pub process: Option<ProcessIdentity>,
    /// Where it stands.
    pub status: Status,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Boot that this record belongs to.
    pub boot_id: String,
    /// Pid that the process had.
    pub pid: u32,
    /// Exit code, or 128 plus the signal that ended it; 255 where it cannot be known.
    pub exit_status: u32,
    /// The signal that ended it; 0 where it exited by itself.
    pub signal: i32,
    /// When the shim learned of the end.
    pub exited_at: Timestamp,
    /// Processor time in user mode, microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub system_us: u64,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
    /// Processes that the kernel killed in the container's cgroup for lack of memory, while the container lived.
    pub oom_kills: u64,
    /// The cgroup whose limit was reached when that happened: the container's own, one above it, or `/` for the host.
    /// Absent without such a kill, and in records of older shims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_cgroup: Option<String>,
}
