//! Starting and deleting, the two operations on a container that wait for something.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::child::{MESSAGE_BYTES, RECORD_BYTES, Record, Script};
use crate::container::{StartGate, ended};
use crate::hooks::HookRunner;
use crate::{Container, Error, Operation, SharedRoot, describe};

/// Hears how an exec goes: the end of the file means that the program runs. The descriptor must not block.
pub(crate) fn hear_exec(report: BorrowedFd<'_>, script: &Script) -> Result<bool, Error> {
    let mut bytes = [0; MESSAGE_BYTES];
    loop {
        return match rustix::io::read(report, &mut bytes) {
            Ok(0) | Err(Errno::CONNRESET) => Ok(true),
            Ok(length) => match bytes.get(..length).and_then(Record::from_bytes) {
                Some(record) => {
                    Err(describe::failure(script, record, bytes.get(RECORD_BYTES..length).unwrap_or_default()))
                }
                None => Err(Error::Wait { source: Errno::PROTO.into() }),
            },
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(Error::Wait { source: errno.into() }),
        };
    }
}

/// A start under way; finished when the program runs and the poststart hooks have ended.
///
/// A poststart hook that fails ends the container, as it does with runc.
#[derive(Debug)]
pub struct Starting {
    /// Of the container; only with hooks.
    init: Option<OwnedFd>,
    report: Option<OwnedFd>,
    script: Script,
    hooks: Option<HookRunner>,
    events: Option<OwnedFd>,
}

impl Starting {
    pub(crate) fn new(gate: StartGate, container: &Container) -> Result<Self, Error> {
        let remains = &container.remains;
        let mut starting = Self {
            init: None,
            report: Some(gate.report),
            script: Script::only_program(gate.program),
            hooks: None,
            events: None,
        };
        let Some(report) = &starting.report else { return Ok(starting) };
        if !remains.poststart.is_empty() {
            let failed = |errno| Error::host("making an event descriptor", errno);
            let state = remains.hook_state.with_status("running");
            let hooks = HookRunner::new(&remains.poststart, &state, container.pid())?;
            let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
            epoll::add(&events, report, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
            epoll::add(&events, hooks.poll_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)
                .map_err(failed)?;
            let init = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3).map_err(failed)?;
            (starting.init, starting.hooks, starting.events) = (Some(init), Some(hooks), Some(events));
        }
        match rustix::io::write(gate.start.as_ref().unwrap_or(report), &[1]) {
            Ok(_) => Ok(starting),
            // What it died of is read from the report.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(starting),
            Err(errno) => Err(Error::Wait { source: errno.into() }),
        }
    }
}

impl Operation for Starting {
    type Output = ();

    fn poll_fd(&self) -> BorrowedFd<'_> {
        match (&self.events, &self.report) {
            (Some(events), _) => events.as_fd(),
            (None, Some(report)) => report.as_fd(),
            (None, None) => rustix::fs::CWD,
        }
    }

    fn advance(&mut self) -> Result<Option<()>, Error> {
        if let Some(report) = &self.report {
            if !hear_exec(report.as_fd(), &self.script)? {
                return Ok(None);
            }
            self.report = None;
        }
        let Some(hooks) = &mut self.hooks else { return Ok(Some(())) };
        match hooks.advance() {
            Ok(done) => Ok(done.then_some(())),
            Err(error) => {
                if let Some(init) = &self.init {
                    // It may have ended by itself.
                    let _ = sys::process::pidfd_send_signal(init, libc::SIGKILL);
                }
                Err(error)
            }
        }
    }
}

/// A removal under way.
#[derive(Debug)]
pub struct Deleting {
    cgroup: Option<cgroups::Cgroup>,
    resctrl_groups: Vec<std::path::PathBuf>,
    init: OwnedFd,
    shared_root: Option<SharedRoot>,
    hooks: Option<HookRunner>,
    events: OwnedFd,
}

impl Deleting {
    pub(crate) fn new(container: &Container) -> Result<Self, Error> {
        let failed = |errno| Error::host("making an event descriptor", errno);
        let remains = &container.remains;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let hooks = if remains.poststop.is_empty() {
            None
        } else {
            let state = remains.hook_state.with_status("stopped");
            let hooks = HookRunner::new(&remains.poststop, &state, container.pid())?;
            epoll::add(&events, hooks.poll_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)
                .map_err(failed)?;
            Some(hooks)
        };
        let init = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3).map_err(failed)?;
        epoll::add(&events, &init, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
        let cgroup = cgroups::Cgroup::open(&container.host.cgroups, container.cgroup.path());
        let unit = container.cgroup.unit().cloned();
        let cgroup = match cgroup {
            Ok(cgroup) => Some(cgroup.in_unit(unit)),
            Err(cgroups::Error::Gone { .. }) => {
                // systemd removes the group at the end of the last process; the unit may be left as failed.
                if let Some(unit) = unit {
                    unit.stop().map_err(|source| container.cgroup_error("removing the scope of", source))?;
                }
                None
            }
            Err(source) => return Err(container.cgroup_error("opening", source)),
        };
        let shared_root = remains.shared_root.clone();
        if let (None, Some(root)) = (&cgroup, &shared_root) {
            // Without a cgroup nobody is left to wait for.
            root.unmount();
        }
        Ok(Self { cgroup, resctrl_groups: remains.resctrl_groups.clone(), init, shared_root, hooks, events })
    }
}

impl Operation for Deleting {
    type Output = ();

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn advance(&mut self) -> Result<Option<()>, Error> {
        if let Some(cgroup) = &self.cgroup {
            if !ended(self.init.as_fd()) {
                return Ok(None);
            }
            cgroup
                .delete()
                .map_err(|source| Error::Cgroup { operation: format!("removing cgroup {}", cgroup.path()), source })?;
            self.cgroup = None;
            if let Some(root) = self.shared_root.take() {
                root.unmount();
            }
            crate::resctrl::remove(&self.resctrl_groups)?;
            // Ended for good: it must not wake the caller any more.
            let _ = epoll::delete(&self.events, &self.init);
        }
        let done = match &mut self.hooks {
            Some(hooks) => hooks.advance()?,
            None => true,
        };
        Ok(done.then_some(()))
    }
}
