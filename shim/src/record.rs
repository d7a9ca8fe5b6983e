//! Writing the files of [`model::record`] into the bundle.
//!
//! **Invariant:** the shim is the only writer, and an exit record is on the file system before the process is reaped.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use model::Timestamp;
use model::record::{
    EXECS_DIR, EXITS_DIR, ExitRecord, ProcessIdentity, ProcessRecord, Status, StdioPaths, TASK_FILE, TaskRecord,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use sys::process::Exited;

use crate::error::Error;

/// Where the cgroup's path is kept for the `delete` command of a later process.
pub(crate) const CGROUP_FILE: &str = "cgroup";

/// The same before the container is made: there may be nothing yet, or the cgroup of somebody else.
pub(crate) const PLANNED_CGROUP_FILE: &str = "cgroup.planned";

/// Name of init's exit record; those of additional processes have a prefix, so that no exec id can collide.
fn exit_name(exec_id: &str) -> String {
    if exec_id.is_empty() { "init.json".to_owned() } else { format!("exec-{exec_id}.json") }
}

/// Lack of memory in a container.
#[derive(Debug, Default)]
pub(crate) struct Oom {
    /// Processes that the kernel killed for it.
    pub(crate) kills: u64,
    /// The cgroup whose limit was reached.
    pub(crate) cgroup: Option<String>,
}

/// The records of one container.
#[derive(Debug)]
pub(crate) struct Records {
    bundle: OwnedFd,
    exits: OwnedFd,
    boot_id: String,
    shim: ProcessIdentity,
}

impl Records {
    /// Opens the bundle and makes the directories of records in it.
    pub(crate) fn open(bundle: &Path) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::file("open the bundle", bundle, errno);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, bundle, flags, Mode::empty()).map_err(failed)?;
        // Made now rather than when a process has ended, which is no time to find the disk full.
        let exits = make_dir(&dir, EXITS_DIR).map_err(failed)?;
        let boot_id = sys::boot_id().map_err(|errno| Error::system("read the boot id", errno))?.to_owned();
        let shim = identity(std::process::id())?;
        Ok(Self { bundle: dir, exits, boot_id, shim })
    }

    /// Writes where the task stands.
    pub(crate) fn task(
        &self,
        init: ProcessIdentity,
        status: Status,
        started: bool,
        stdio: &StdioPaths,
    ) -> Result<(), Error> {
        let (boot_id, stdio) = (self.boot_id.clone(), stdio.clone());
        let record = TaskRecord { boot_id, shim: self.shim, init, status, started, stdio };
        write(&self.bundle, TASK_FILE, &record)
    }

    /// Writes where an additional process stands.
    pub(crate) fn exec(
        &self,
        exec_id: &str,
        process: Option<ProcessIdentity>,
        status: Status,
        stdio: &StdioPaths,
    ) -> Result<(), Error> {
        let record = ProcessRecord {
            boot_id: self.boot_id.clone(),
            exec_id: exec_id.to_owned(),
            process,
            status,
            stdio: stdio.clone(),
        };
        let execs = make_dir(&self.bundle, EXECS_DIR).map_err(|errno| Error::file("make", EXECS_DIR, errno))?;
        write(&execs, &format!("{exec_id}.json"), &record)
    }

    /// Writes how a process ended. `exec_id` is empty for init.
    pub(crate) fn exit(&self, exec_id: &str, exited: &Exited, at: Timestamp, oom: Oom) -> Result<(), Error> {
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let record = ExitRecord {
            boot_id: self.boot_id.clone(),
            pid: exited.pid,
            exit_status: exited.exit.status(),
            signal: i32::try_from(exited.exit.signal()).unwrap_or(0),
            exited_at: at,
            user_us: micros(exited.usage.user),
            system_us: micros(exited.usage.system),
            max_rss_kib: exited.usage.max_rss_kib,
            oom_kills: oom.kills,
            oom_cgroup: oom.cgroup,
        };
        write(&self.exits, &exit_name(exec_id), &record)
    }

    /// Keeps the path of the container's cgroup.
    pub(crate) fn cgroup(&self, path: &str) -> Result<(), Error> {
        self.cgroup_in(CGROUP_FILE, path)
    }

    /// Keeps where the container's cgroup will be.
    pub(crate) fn planned_cgroup(&self, path: &str) -> Result<(), Error> {
        self.cgroup_in(PLANNED_CGROUP_FILE, path)
    }

    fn cgroup_in(&self, name: &'static str, path: &str) -> Result<(), Error> {
        sys::fs::write_atomic(self.bundle.as_fd(), name, path.as_bytes(), 0o600)
            .map_err(|errno| Error::file("write record", name, errno))
    }

    /// Removes the records of an additional process that was deleted.
    pub(crate) fn forget_exec(&self, exec_id: &str) {
        // A record that is gone already is as good; one that stays is removed with the bundle.
        let _ = rustix::fs::unlinkat(&self.bundle, format!("{EXECS_DIR}/{exec_id}.json"), AtFlags::empty());
        let _ = rustix::fs::unlinkat(&self.exits, exit_name(exec_id), AtFlags::empty());
    }
}

fn make_dir(bundle: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(bundle, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(bundle, name, flags, Mode::empty())
}

/// Who a process is.
pub(crate) fn identity(pid: u32) -> Result<ProcessIdentity, Error> {
    let identity = sys::process::identity(pid).map_err(|errno| Error::system("read a process's start time", errno))?;
    Ok(ProcessIdentity { pid: identity.pid, start_time: identity.start_time })
}

fn write(dir: &OwnedFd, name: &str, record: &impl serde::Serialize) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::file("write record", name, source);
    let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    sys::fs::write_atomic(dir.as_fd(), name, &bytes, 0o600).map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use sys::process::{Exit, Usage};

    use super::*;

    fn read<T: DeserializeOwned>(path: std::path::PathBuf) -> T {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn records_are_what_a_restarted_daemon_reads() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let init = ProcessIdentity { pid: 7, start_time: 9 };
        records.task(init, Status::Running, true, &StdioPaths::default()).unwrap();
        let task: TaskRecord = read(dir.path().join(TASK_FILE));
        assert_eq!((task.init, task.status, task.shim.pid), (init, Status::Running, std::process::id()));
        assert_eq!(task.boot_id.len(), 36);

        records.exec("x1", None, Status::Created, &StdioPaths::default()).unwrap();
        let exec: ProcessRecord = read(dir.path().join("execs/x1.json"));
        assert_eq!((exec.exec_id.as_str(), exec.process, exec.status), ("x1", None, Status::Created));

        let usage = Usage { user: std::time::Duration::from_millis(3), ..Usage::default() };
        let at = Timestamp { seconds: 5, nanos: 6 };
        for (exec_id, exit, status, signal) in [("", Exit::Code(42), 42, 0), ("x1", Exit::Signal(9), 137, 9)] {
            let oom = Oom { kills: 1, cgroup: Some("/a".to_owned()) };
            records.exit(exec_id, &Exited { pid: 7, exit, usage }, at, oom).unwrap();
            let record: ExitRecord = read(dir.path().join("exits").join(exit_name(exec_id)));
            assert_eq!((record.exit_status, record.signal, record.user_us), (status, signal, 3000));
            assert_eq!((record.exited_at, record.oom_kills, record.oom_cgroup.as_deref()), (at, 1, Some("/a")));
        }
        records.forget_exec("x1");
        assert_eq!(std::fs::read_dir(dir.path().join("exits")).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path().join("execs")).unwrap().count(), 0);
    }
}
