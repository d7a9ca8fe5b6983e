//! How a task ended, or where it is stuck: from records and from what the kernel says of its processes, in words.
//!
//! **Invariant:** no shim is asked, so the answer comes even where nothing else does.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use cgroups::{Cgroup, CgroupPath};
use model::record::{ExitRecord, Status};
use model::{Namespace, Timestamp};

use crate::failures::Failure;
use crate::manager::Context;
use crate::records::{self, Found};
use crate::task::Task;
use crate::{Error, Supervisor};

/// SIGSYS, by which a seccomp profile kills.
const SIGSYS: i32 = 31;

impl Supervisor {
    /// Lines that tell why a task is as it is, the first one a summary. NOT_FOUND where nothing is known of it. Blocks for
    /// reads of `/proc`.
    pub fn why(&self, namespace: &Namespace, id: &str) -> Result<Vec<String>, Error> {
        let context = self.context();
        let failure = context.failures.last(namespace.as_str(), id);
        let Ok(task) = context.registry.find(namespace.as_str(), id) else {
            let failure = failure.ok_or_else(|| Error::TaskNotFound(id.to_owned()))?;
            return Ok(vec![format!("{id} has no task"), failed(&failure)]);
        };
        let state = task.process("")?;
        let mut lines = vec![format!("{id} is {}", word(state.status))];
        lines.extend(failure.as_ref().map(failed));
        match state.status {
            Status::Stopped => {
                lines[0] = format!("{id} ended with the status {} at {}", state.exit_status, time(state.exited_at));
                ended(&task, context.boot_id, &mut lines);
            }
            Status::Created => {
                lines.push("it was created and waits for its start".to_owned());
                stuck(context, &task, state.pid, &mut lines);
            }
            Status::Running | Status::Pausing => stuck(context, &task, state.pid, &mut lines),
            Status::Paused => {
                lines.push("a Pause request has frozen it; Resume thaws it".to_owned());
                shim(&task, context.boot_id, &mut lines);
            }
        }
        Ok(lines)
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Created => "CREATED",
        Status::Running => "RUNNING",
        Status::Paused => "PAUSED",
        Status::Pausing => "PAUSING",
        Status::Stopped => "STOPPED",
    }
}

fn failed(failure: &Failure) -> String {
    format!("its {} failed at {}: {}", failure.operation, time(failure.at), failure.message)
}

/// Seconds since 1970, as everywhere in our output.
fn time(at: Timestamp) -> String {
    format!("{}.{:03}", at.seconds, at.nanos / 1_000_000)
}

fn ended(task: &Task, boot_id: &str, lines: &mut Vec<String>) {
    let record = records::exit_record(&task.bundle, boot_id);
    let lost = records::is_shim_lost(&task.bundle);
    let killed = records::last_kill(&task.bundle);
    let Some(record) = record else {
        lines.push("its shim has left no record of that".to_owned());
        return;
    };
    if record.oom_kills > 0 {
        lines.push(memory(&task.bundle, &record));
    }
    match record.signal {
        0 => lines.push("it exited by itself".to_owned()),
        SIGSYS => lines
            .push("signal 31 (SIGSYS) killed it: it made a system call that its seccomp profile forbids".to_owned()),
        _ if lost => {}
        signal => lines.push(format!("signal {signal} ({}) killed it", signal_name(signal))),
    }
    if lost {
        lines.push("its shim had died without a word, so gantryd killed what was left of it".to_owned());
    } else if let Some((signal, at)) = killed {
        let name = signal_name(signal);
        lines.push(format!("a Kill request had asked for signal {signal} ({name}) at {}", time(at)));
    }
}

fn memory(bundle: &Path, record: &ExitRecord) -> String {
    let own = fs::read_to_string(bundle.join("cgroup")).unwrap_or_default();
    let whose = match record.oom_cgroup.as_deref() {
        None => "a limit above or of its cgroup".to_owned(),
        Some("/") => "the host has no more".to_owned(),
        Some(path) if path.trim_matches('/') == own.trim_matches('/') => {
            format!("its own limit was reached, that of the cgroup {path}")
        }
        Some(path) => format!("the limit of a cgroup above it was reached, that of {path}"),
    };
    format!("the kernel killed {} of its processes for lack of memory: {whose}", record.oom_kills)
}

/// What keeps a living task from going on.
fn stuck(context: &Context, task: &Task, pid: u32, lines: &mut Vec<String>) {
    shim(task, context.boot_id, lines);
    let Some((_, state)) = stat(pid) else {
        lines.push(format!("its first process {pid} has ended; its shim has not said how"));
        return;
    };
    let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    if let Some(cgroup) = frozen_by(context, &task.bundle) {
        lines.push(format!("its processes are frozen by the cgroup {cgroup}, and no request of ours did that"));
    } else if let Some(blocked) = blocked_write(task, pid, &wchan) {
        lines.push(blocked);
    } else {
        let how = match state {
            'R' => "runs".to_owned(),
            'D' => format!("waits in the kernel, in {wchan}, and cannot be killed until that is over"),
            'T' | 't' => "is stopped by a signal; SIGCONT lets it go on".to_owned(),
            'Z' => "has ended and is not reaped".to_owned(),
            _ => format!("sleeps in {}", if wchan.is_empty() || wchan == "0" { "the kernel" } else { &wchan }),
        };
        lines.push(format!("its first process {pid} {how}"));
    }
}

fn shim(task: &Task, boot_id: &str, lines: &mut Vec<String>) {
    let Found::Task(records) = records::read(&task.bundle, boot_id) else { return };
    let pid = records.task.shim.pid;
    match stat(pid).map(|(_, state)| state) {
        Some('T' | 't') => lines.push(format!(
            "its shim {pid} is stopped by a signal and answers nothing: `kill -CONT {pid}` lets it go on"
        )),
        Some('D') => lines.push(format!("its shim {pid} waits in the kernel")),
        Some('Z') | None => lines.push(format!("its shim {pid} is dead")),
        Some(_) => {}
    }
}

/// Name and state letter of a process.
fn stat(pid: u32) -> Option<(String, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    Some((name, rest.trim_start().chars().next()?))
}

/// The container's cgroup, if that has frozen it.
fn frozen_by(context: &Context, bundle: &Path) -> Option<String> {
    let path = fs::read_to_string(bundle.join("cgroup")).ok()?;
    let cgroup = Cgroup::open(context.cgroups.as_ref()?, &CgroupPath::new(&path).ok()?).ok()?;
    cgroup.is_frozen().unwrap_or(false).then(|| format!("/{}", path.trim_matches('/')))
}

/// A process of the task that cannot write because nobody reads: which, where to, and who could read.
fn blocked_write(task: &Task, pid: u32, wchan: &str) -> Option<String> {
    if !wchan.contains("pipe_write") && !wchan.contains("wait_for_space") {
        return None;
    }
    // `<number> <arguments in hexadecimal>…`: the first argument of write(2) and its kin is the descriptor.
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let fd = u32::from_str_radix(call.split(' ').nth(1)?.trim_start_matches("0x"), 16).ok()?;
    let link = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
    let (name, file) = (fs::read_link(&link).ok()?, fs::metadata(&link).ok()?);
    let what = if file.file_type().is_fifo() && name.is_absolute() { "the FIFO" } else { "the pipe" };
    let readers = readers(task, pid, (file.dev(), file.ino()));
    let who = if readers.is_empty() {
        "nobody reads it".to_owned()
    } else {
        format!("{} could read it and does not", readers.join(", "))
    };
    Some(format!("its first process {pid} waits to write to {what} {}, which is full: {who}", name.display()))
}

/// Other processes that have a file open for reading.
fn readers(task: &Task, own: u32, file: (u64, u64)) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let holds = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten().any(|fd| {
            let same = fs::metadata(fd.path()).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file);
            same && readable(&entry.path(), &fd.file_name().to_string_lossy())
        });
        let shim = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == task.bundle);
        if holds && pid != own && !shim {
            let (name, state) = stat(pid).unwrap_or_default();
            let stopped = if matches!(state, 'T' | 't') { ", stopped" } else { "" };
            found.push(format!("{name} ({pid}{stopped})"));
        }
    }
    found
}

/// Whether a descriptor is open for reading, not only as a place.
fn readable(process: &Path, fd: &str) -> bool {
    const ACCESS: u32 = 0o3;
    const WRITE_ONLY: u32 = 0o1;
    const PATH: u32 = 0o10_000_000;
    let info = fs::read_to_string(process.join("fdinfo").join(fd)).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(PATH);
    flags & PATH == 0 && flags & ACCESS != WRITE_ONLY
}

fn signal_name(signal: i32) -> &'static str {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(signal - 1).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or("a real-time signal")
}
