//! One container: its processes, and the rules that tie their ends together.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::record::Status;
use sys::crash::{point, shim as crash};
use sys::process::Exited;

use crate::engine::backend::Backend;
use crate::engine::create::Users;
use crate::engine::oom::Telling;
use crate::engine::process::{Exit, Process};
use crate::error::Error;
use crate::listing::Listing;
use crate::record::{Oom, Records};

/// A container that was created and not deleted.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) records: Records,
    pub(crate) runtime: Backend,
    pub(crate) init: Process,
    /// Additional processes by exec id, until they are deleted.
    pub(crate) execs: BTreeMap<String, Process>,
    /// Additional processes that run or are being started.
    pub(crate) running_execs: usize,
    /// Init was started.
    pub(crate) started: bool,
    /// Init has ended; told only when no additional process runs any more, because init's exit is the last one.
    pub(crate) init_gone: Option<Exit>,
    /// Where the client wants it to be found by runc's command line.
    pub(crate) listing: Option<Listing>,
    /// There is no pid namespace of its own, so the kernel kills nobody when init ends: we do.
    pub(crate) shares_pids: bool,
    /// Who its users are on the host.
    pub(crate) users: Users,
    /// The root file system is mounted in the bundle, visible to the host.
    pub(crate) rootfs_mounted: bool,
    /// Processes that the kernel killed for lack of memory, as far as told.
    pub(crate) oom_kills: u64,
    /// Tells of further ones while the container lives, if anybody is to be told.
    pub(crate) telling_ooms: Option<Telling>,
}

impl Container {
    /// The process with an exec id; init for the empty one.
    pub(crate) fn process(&mut self, exec_id: &str) -> Result<&mut Process, Error> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs.get_mut(exec_id).ok_or_else(|| Error::NoProcess(exec_id.to_owned()))
    }

    /// All processes that we have to reap.
    pub(crate) fn reapable(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.init).chain(self.execs.values()).filter(|process| process.is_ours_to_reap())
    }

    /// Writes where the task stands; an error is the caller's to log.
    pub(crate) fn write_task(&self) -> Result<(), Error> {
        match self.init.identity {
            Some(identity) => self.records.task(identity, self.init.status, self.started, &self.init.paths),
            None => Ok(()),
        }
    }

    /// How often the kernel killed a process for lack of memory, so far.
    pub(crate) fn count_oom_kills(&self) -> u64 {
        self.runtime.cgroup().and_then(|cgroup| cgroup.oom_kills().ok()).unwrap_or(self.oom_kills)
    }

    /// Writes the exit record of a process and reaps it, in this order.
    pub(crate) fn record_and_reap(
        &self,
        exec_id: &str,
        exited: &Exited,
        exit: Exit,
        host: &cgroups::Host,
    ) -> Result<(), Error> {
        let mut oom = Oom::default();
        if exec_id.is_empty() {
            oom.kills = self.count_oom_kills();
            let cgroup = self.runtime.cgroup().filter(|_| oom.kills > 0);
            oom.cgroup = cgroup.and_then(|cgroup| cgroup.oom_origin(host));
        }
        point(crash::EXIT_SEEN);
        let written = self.records.exit(exec_id, exited, exit.at, oom);
        point(crash::EXIT_RECORDED);
        // Reaped even if the disk is full: the status also lives in our memory, and a zombie would stop the cgroup and
        // the pid namespace from ending.
        let _ = sys::process::reap_pid(exited.pid);
        point(crash::EXIT_REAPED);
        written
    }

    /// Where the container stands as clients are told; that of additional processes follows a pause of the container.
    pub(crate) fn status_of(&self, process: &Process) -> Status {
        match (process.status, self.init.status) {
            (Status::Running, paused @ (Status::Paused | Status::Pausing)) => paused,
            (status, _) => status,
        }
    }
}
