//! What a step number of the child means to a person.

use std::io;

use crate::Error;
use crate::child::{Awaited, HookKind, Kind, Record, Script, Step};

/// What the step does, for an error that a cause is added to.
pub(crate) fn step(script: &Script, number: u32) -> String {
    match find(script, number) {
        Some(step) => text(step),
        None => "cloning the container's process".to_owned(),
    }
}

fn find(script: &Script, number: u32) -> Option<&Step> {
    let number = usize::try_from(number).ok()?;
    match number.checked_sub(script.intermediate.len()) {
        None => script.intermediate.get(number),
        Some(rest) => script.steps.get(rest),
    }
}

fn text(step: &Step) -> String {
    let path = |path: &std::ffi::CString| format!("{:?}", format!("/{}", path.to_string_lossy()));
    match step {
        Step::Await(Awaited::Admission) => "waiting to be admitted".to_owned(),
        Step::HooksDue => "waiting for hooks".to_owned(),
        Step::NewSession => "making a session".to_owned(),
        Step::Join { path, .. } => format!("joining namespace {path}"),
        Step::JoinDeferred(_) | Step::JoinProcess { .. } => "joining namespaces".to_owned(),
        Step::Unshare(_) => "making a namespace".to_owned(),
        Step::TimeOffsets(_) => "setting linux.timeOffsets".to_owned(),
        Step::BecomeRoot => "becoming root of the user namespace".to_owned(),
        Step::Hide => "becoming undumpable".to_owned(),
        Step::Hostname(_) => "setting hostname".to_owned(),
        Step::Domainname(_) => "setting domainname".to_owned(),
        Step::Loopback => "bringing up the loopback device".to_owned(),
        Step::Propagation(_) => "setting the propagation of the old root".to_owned(),
        Step::Root(_) | Step::OwnRoot => "attaching the root file system".to_owned(),
        Step::Mount(mount) => format!("error mounting {}", mount.shown),
        Step::ReadOnlyMount { path: at } => format!("making the mount at {} read-only", path(at)),
        Step::Seal { path: at, .. } => format!("setting the attributes of the mounts at {}", path(at)),
        Step::Devices { parent, .. } => format!("making devices in {}", path(parent)),
        Step::Links { parent, .. } => format!("making links in {}", path(parent)),
        Step::Console(_) => "making the console".to_owned(),
        Step::Hook(hook) => format!("running a hook: {}", hook.path.to_string_lossy()),
        Step::Sysctl { path, .. } => format!("setting linux.sysctl: writing /proc/{}", path.to_string_lossy()),
        Step::Label { field, .. } => format!("setting {field}"),
        Step::OomScore(_) => "setting process.oomScoreAdj".to_owned(),
        Step::WorkingDirectory { path: at } => format!("mkdir {}", path(at)),
        Step::Pivot { .. } | Step::Chroot | Step::EnterRoot(_) => "changing the root".to_owned(),
        Step::RootReadOnly => "making the root file system read-only".to_owned(),
        Step::RootPropagation(_) => "setting linux.rootfsPropagation".to_owned(),
        Step::Mask { path: at } => format!("masking {}", path(at)),
        Step::ReadOnly { path: at } => format!("making {} read-only", path(at)),
        Step::NetDevice { device, .. } => format!("linux.netDevices: setting up network device {}", device.name),
        Step::Limits { .. } => "setting process.rlimits".to_owned(),
        Step::Scheduler { .. } => "setting process.scheduler".to_owned(),
        Step::IoPriority(_) => "setting process.ioPriority".to_owned(),
        Step::Affinity { .. } => "setting process.execCPUAffinity".to_owned(),
        Step::Personality(_) => "setting linux.personality".to_owned(),
        Step::MemoryPolicy { .. } => "setting linux.memoryPolicy".to_owned(),
        Step::Process(_) => "setting up the process (ids, limits, capabilities, working directory, seccomp)".to_owned(),
    }
}

/// Whether the step sets a scheduling policy in a container that may not use all processors: the kernel refuses a
/// deadline there (sched_setattr(2), EPERM).
fn deadline_on_few(script: &Script, number: u32) -> bool {
    matches!(find(script, number), Some(Step::Scheduler { limited_processors: true, .. }))
}

/// The words of libc for an error number, in the form that Go prints them and clients look for.
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let bare = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = bare.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// The words of Go for a signal, which are those of libc.
fn signal_text(signal: i32) -> String {
    let text = match signal {
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        _ => return format!("signal {signal}"),
    };
    text.to_owned()
}

/// Why a step failed, where the error number alone would mislead.
fn cause(step: Option<&Step>, errno: i32) -> String {
    match step {
        Some(Step::Mount(mount)) if mount.ordinary && errno == libc::ELOOP => {
            "must be mounted on ordinary directory".to_owned()
        }
        Some(Step::Mount(_)) if errno == libc::EXDEV => "cannot be mounted because it is inside /proc".to_owned(),
        _ => errno_text(errno),
    }
}

/// The error that a message of failure means.
pub(crate) fn failure(script: &Script, record: Record, text: &[u8]) -> Error {
    match record.kind {
        Kind::Program => {
            let name = script.program.as_str();
            let problem = if record.errno == 0 {
                format!("exec: {name:?}: executable file not found in $PATH")
            } else if record.value != 0 {
                format!("exec: {name:?}: stat {name}: {}", errno_text(record.errno))
            } else {
                format!("exec: {name:?}: {}", errno_text(record.errno))
            };
            Error::Program { problem }
        }
        Kind::Exec => Error::Exec { program: script.program.clone(), problem: errno_text(record.errno) },
        Kind::Hook => {
            let found = find(script, record.step);
            let (kind, index) = match found {
                Some(Step::Hook(hook)) if hook.kind == HookKind::CreateContainer => ("createContainer", hook.index),
                _ => ("startContainer", usize::try_from(record.step).unwrap_or(0)),
            };
            let problem = match record.errno {
                0 if record.value < 0 => format!("signal: {}", signal_text(record.value.wrapping_neg())),
                0 => format!("exit status {}", record.value),
                libc::ETIMEDOUT => "did not end in time".to_owned(),
                errno => errno_text(errno),
            };
            Error::Hook { kind, index, problem: problem + &crate::hooks::shown(text) }
        }
        Kind::NoProcess => Error::NoProcess,
        Kind::Failed if record.errno == libc::EPERM && deadline_on_few(script, record.step) => Error::Child {
            stage: "unable to start container process: process.scheduler: process scheduler can't be used together \
                    with AllowedCPUs"
                .to_owned(),
            source: io::Error::other(errno_text(record.errno)),
        },
        Kind::Failed | Kind::Warning | Kind::Forked | Kind::HooksDue | Kind::Console | Kind::Listener | Kind::Ready => {
            Error::Child {
                stage: format!(
                    "unable to start container process: error during container init: {}",
                    step(script, record.step)
                ),
                source: io::Error::other(cause(find(script, record.step), record.errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_words() {
        for (errno, text) in [
            (libc::ENOENT, "no such file or directory"),
            (libc::EACCES, "permission denied"),
            (libc::EISDIR, "is a directory"),
            (libc::ENOEXEC, "exec format error"),
        ] {
            assert_eq!(errno_text(errno), text);
        }
    }
}
