//! Records of tasks whose shim writes none.
//!
//! Our shim records in the bundle what a restarted daemon has to know. A foreign one does not, so the daemon that
//! drives it writes the same files, each before the event that tells the same. What happens while no daemon runs is
//! learned from the shim afterwards (see [`crate::survey`]).

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;

use model::record::{EXECS_DIR, ProcessIdentity, ProcessRecord, Status, StdioPaths, TASK_FILE, TaskRecord};

use crate::Error;
use crate::records;
use crate::task::Exit;

/// Writes the records of one task.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pub(crate) boot_id: &'static str,
    pub(crate) shim: ProcessIdentity,
}

impl Keeper {
    /// A keeper for the tasks of the shim `pid`.
    pub(crate) fn new(boot_id: &'static str, pid: u32) -> Self {
        Self { boot_id, shim: identity(pid) }
    }

    /// Writes where init (empty `exec_id`) or an additional process stands, and whether it was ever started.
    pub(crate) fn process(
        &self,
        bundle: &Path,
        exec_id: &str,
        pid: u32,
        (status, started): (Status, bool),
        stdio: &StdioPaths,
    ) -> Result<(), Error> {
        let (boot_id, stdio) = (self.boot_id.to_owned(), stdio.clone());
        if exec_id.is_empty() {
            let record = TaskRecord { boot_id, shim: self.shim, init: identity(pid), status, started, stdio };
            return write(bundle, TASK_FILE, &record);
        }
        let directory = bundle.join(EXECS_DIR);
        fs::create_dir_all(&directory).map_err(|source| Error::Bundle {
            operation: "make",
            path: directory.clone(),
            source,
        })?;
        let process = (pid != 0).then(|| identity(pid));
        let record = ProcessRecord { boot_id, exec_id: exec_id.to_owned(), process, status, stdio };
        write(&directory, &format!("{exec_id}.json"), &record)
    }

    /// Writes how a process ended.
    pub(crate) fn exit(&self, bundle: &Path, exec_id: &str, exit: Exit) -> Result<(), Error> {
        records::write_exit(bundle, exec_id, self.boot_id, exit)
    }
}

/// Who a process is. One that is gone already has a start time that no process has.
fn identity(pid: u32) -> ProcessIdentity {
    let start_time = sys::process::identity(pid).map_or(0, |identity| identity.start_time);
    ProcessIdentity { pid, start_time }
}

fn write(directory: &Path, name: &str, record: &impl serde::Serialize) -> Result<(), Error> {
    let failed = |source| Error::Bundle { operation: "write record", path: directory.join(name), source };
    let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    let directory = File::open(directory).map_err(failed)?;
    sys::fs::write_atomic(directory.as_fd(), name, &bytes, 0o600).map_err(|errno| failed(errno.into()))
}
