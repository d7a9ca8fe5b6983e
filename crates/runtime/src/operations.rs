//! Starting and deleting, the two operations on a container that wait for something.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::child::{MESSAGE_BYTES, RECORD_BYTES, Record, Script};
use crate::container::{StartGate, ended};
use crate::hooks::HookRunner;
use crate::{Container, Error, Operation, SharedRoot, describe};

/// Hears how an exec goes: the end of the file means that the program runs. A descriptor that is no socket must not
/// block.
pub(crate) fn hear_exec(report: BorrowedFd<'_>, is_socket: bool, script: &Script) -> Result<bool, Error> {
    let mut bytes = [0; MESSAGE_BYTES];
    loop {
        let heard = if is_socket {
            rustix::net::recv(report, &mut bytes, RecvFlags::DONTWAIT).map(|(length, _)| length)
        } else {
            rustix::io::read(report, &mut bytes)
        };
        return match heard {
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
    /// Whether that is the socket of the creator.
    is_socket: bool,
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
            is_socket: gate.start.is_none(),
            script: gate.script,
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

    fn waits(&self) -> bool {
        self.report.is_some()
    }

    fn advance(&mut self) -> Result<Option<()>, Error> {
        if let Some(report) = &self.report {
            if !hear_exec(report.as_fd(), self.is_socket, &self.script)? {
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
    /// Whose end is waited for.
    init: Option<OwnedFd>,
    shared_root: Option<SharedRoot>,
    hooks: Option<HookRunner>,
    /// `None`: there is nothing to wait for.
    events: Option<OwnedFd>,
}

impl Deleting {
    /// `cgroup_gone`: the container's cgroup was removed just now.
    pub(crate) fn new(container: &Container, cgroup_gone: bool) -> Result<Self, Error> {
        let remains = &container.remains;
        let cgroup = if cgroup_gone { None } else { open_cgroup(container)? };
        let mut deleting = Self {
            init: None,
            cgroup,
            resctrl_groups: remains.resctrl_groups.clone(),
            shared_root: remains.shared_root.clone(),
            hooks: None,
            events: None,
        };
        if deleting.cgroup.is_none() {
            // Nobody is left to wait for.
            deleting.clean_up()?;
        }
        let failed = |errno| Error::host("making an event descriptor", errno);
        if !remains.poststop.is_empty() {
            let state = remains.hook_state.with_status("stopped");
            deleting.hooks = Some(HookRunner::new(&remains.poststop, &state, container.pid())?);
        }
        if deleting.cgroup.is_none() && deleting.hooks.is_none() {
            return Ok(deleting);
        }
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        if let Some(hooks) = &deleting.hooks {
            epoll::add(&events, hooks.poll_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)
                .map_err(failed)?;
        }
        if deleting.cgroup.is_some() {
            let init = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3).map_err(failed)?;
            epoll::add(&events, &init, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
            deleting.init = Some(init);
        }
        deleting.events = Some(events);
        Ok(deleting)
    }

    /// What goes when the last process is gone.
    fn clean_up(&mut self) -> Result<(), Error> {
        if let Some(root) = self.shared_root.take() {
            root.unmount();
        }
        crate::resctrl::remove(&self.resctrl_groups)
    }
}

/// The cgroup to remove; nothing if it is gone.
fn open_cgroup(container: &Container) -> Result<Option<cgroups::Cgroup>, Error> {
    let Some(unit) = container.cgroup.unit() else { return Ok(Some(container.cgroup.by_path())) };
    match cgroups::Cgroup::open(&container.host.cgroups, container.cgroup.path()) {
        Ok(cgroup) => Ok(Some(cgroup.in_unit(Some(unit.clone())))),
        Err(cgroups::Error::Gone { .. }) => {
            // systemd removes the group at the end of the last process; the unit may be left as failed.
            unit.stop().map_err(|source| container.cgroup_error("removing the scope of", source))?;
            Ok(None)
        }
        Err(source) => Err(container.cgroup_error("opening", source)),
    }
}

impl Operation for Deleting {
    type Output = ();

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.events.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd)
    }

    fn advance(&mut self) -> Result<Option<()>, Error> {
        if let Some(cgroup) = &self.cgroup {
            if self.init.as_ref().is_some_and(|init| !ended(init.as_fd())) {
                return Ok(None);
            }
            cgroup
                .delete()
                .map_err(|source| Error::Cgroup { operation: format!("removing cgroup {}", cgroup.path()), source })?;
            self.cgroup = None;
            self.clean_up()?;
            if let (Some(events), Some(init)) = (&self.events, &self.init) {
                // Ended for good: it must not wake the caller any more.
                let _ = epoll::delete(events, init);
            }
        }
        let done = match &mut self.hooks {
            Some(hooks) => hooks.advance()?,
            None => true,
        };
        Ok(done.then_some(()))
    }
}
