use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use model::record::ProcessIdentity;
use oci::runtime::Hook;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::child::{Capabilities, Script};
use crate::hooks::{HookState, state_around_pid};
use crate::lsm::Labels;
use crate::plan::Tuning;
use crate::seccomp::Filter;
use crate::{
    Deleting, Error, ExecOptions, Execing, Gate, HostFeatures, Plan, PlanOptions, ProcessIo, SharedRoot, Starting,
};

/// Where a container stands (runtime-spec, runtime, "State"), with runc's `paused` added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Set up, waiting to be started.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Its program has ended.
    Stopped,
}

impl Status {
    /// The word of the specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What a container can be found again by: [`Container::state`], [`Container::open`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: ProcessIdentity,
    /// Whether it has been started.
    pub started: bool,
    /// Its cgroup, relative to the hierarchies; empty if it has none.
    pub cgroup: String,
    /// Groups of the resctrl file system that were made for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resctrl_groups: Vec<PathBuf>,
    /// Its root, where that is mounted for others to see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_root: Option<SharedRoot>,
    /// The scope of systemd that the cgroup is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeState>,
}

/// The unit of a container's cgroup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScopeState {
    /// The name of the unit.
    pub unit: String,
    /// Whether it is one of the user's systemd.
    pub user: bool,
}

impl ScopeState {
    fn of(unit: &cgroups::Unit) -> Self {
        Self { unit: unit.name().to_owned(), user: unit.manager() == cgroups::Manager::User }
    }

    fn unit(&self) -> cgroups::Result<cgroups::Unit> {
        cgroups::Unit::new(&self.unit, if self.user { cgroups::Manager::User } else { cgroups::Manager::System })
    }
}

/// What is kept of a plan once the container exists.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// `CLONE_NEW*` of the namespaces that an exec enters.
    pub(crate) spaces: u64,
    /// Whether it has a pid namespace that was made for it.
    pub(crate) own_pids: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) limits: Vec<(Resource, Rlimit)>,
    pub(crate) no_new_privileges: bool,
    pub(crate) umask: Option<u32>,
    pub(crate) oom_score: Option<i32>,
    pub(crate) tuning: Tuning,
    pub(crate) labels: Labels,
    pub(crate) resctrl: Option<crate::resctrl::Wanted>,
    /// Of the resctrl file system, made for the container.
    pub(crate) resctrl_groups: Vec<PathBuf>,
    pub(crate) poststart: Vec<(&'static str, Hook)>,
    pub(crate) poststop: Vec<(&'static str, Hook)>,
    pub(crate) hook_state: HookState,
    /// Whether its processes have another root than their mount namespace.
    pub(crate) own_root: bool,
    pub(crate) shared_root: Option<SharedRoot>,
}

impl Remains {
    /// What is kept, and the warnings of the plan.
    pub(crate) fn of(plan: Plan) -> (Self, Vec<String>) {
        let hook_state = HookState { around_pid: state_around_pid(&plan, "creating"), bundle: plan.bundle.clone() };
        let remains = Self {
            id: plan.id,
            bundle: plan.bundle,
            spaces: plan.spaces.kinds(),
            own_pids: plan.spaces.new & sys::clone::flags::NEWPID != 0,
            filter: plan.process.filter,
            capabilities: plan.process.capabilities,
            limits: plan.process.limits,
            no_new_privileges: plan.process.no_new_privileges.unwrap_or(false),
            umask: plan.process.umask,
            oom_score: plan.process.oom_score,
            tuning: plan.process.tuning,
            labels: plan.process.labels,
            resctrl: plan.resctrl,
            resctrl_groups: Vec::new(),
            poststart: plan.hooks.poststart,
            poststop: plan.hooks.poststop,
            hook_state,
            own_root: !plan.spaces.own_mounts(),
            shared_root: None,
        };
        (remains, plan.process.warnings)
    }
}

/// The way to start a created container.
#[derive(Debug)]
pub(crate) struct StartGate {
    /// `None`: the same as `report`.
    pub(crate) start: Option<OwnedFd>,
    pub(crate) report: OwnedFd,
    /// Of the process, as far as errors of the exec need it.
    pub(crate) script: Script,
}

impl StartGate {
    /// The socket that creator and container share.
    pub(crate) fn socket(sync: OwnedFd, script: Script) -> Self {
        Self { start: None, report: sync, script }
    }

    fn fifos(gate: Gate, program: String) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&gate.report, true).map_err(|errno| Error::Wait { source: errno.into() })?;
        Ok(Self { start: Some(gate.start), report: gate.report, script: Script::only_program(program) })
    }
}

/// A container that was set up.
///
/// ```text
/// created ──start──▶ running ◀──pause/resume──▶ paused
///    └────────────────┴─── init ends ───▶ stopped ──delete──▶ gone
/// ```
#[derive(Debug)]
pub struct Container {
    pub(crate) remains: Remains,
    pub(crate) cgroup: cgroups::Cgroup,
    pub(crate) host: HostFeatures,
    identity: ProcessIdentity,
    pub(crate) pidfd: OwnedFd,
    console: Option<OwnedFd>,
    warnings: Vec<String>,
    /// The way to start it; taken by the start.
    pub(crate) gate: Option<StartGate>,
    pub(crate) started: bool,
}

impl Container {
    pub(crate) fn created(
        remains: Remains,
        cgroup: cgroups::Cgroup,
        host: HostFeatures,
        (identity, pidfd): (ProcessIdentity, OwnedFd),
        console: Option<OwnedFd>,
        warnings: Vec<String>,
    ) -> Self {
        Self { remains, cgroup, host, identity, pidfd, console, warnings, gate: None, started: false }
    }

    /// A container that was restored: it runs.
    pub(crate) fn restored(
        remains: Remains,
        cgroup: cgroups::Cgroup,
        host: HostFeatures,
        (pid, pidfd): (u32, OwnedFd),
        console: Option<OwnedFd>,
        warnings: Vec<String>,
    ) -> Result<Self, Error> {
        let created = Self::created(remains, cgroup, host, (identity(pid)?, pidfd), console, warnings);
        Ok(Self { started: true, ..created })
    }

    /// A container that another process made, by its state and its specification. If its init is gone, it is
    /// stopped; whether it was reaped makes no difference.
    ///
    /// With `gate` a created container can be started: the writing end of the one FIFO, the reading end of the other.
    pub fn open(state: &State, spec: &oci::Spec, host: &HostFeatures, gate: Option<Gate>) -> Result<Self, Error> {
        let options = PlanOptions { id: state.id.clone(), bundle: state.bundle.clone(), ..PlanOptions::default() };
        let plan = Plan::new(spec, host, &options)?;
        let program = plan.process.program_name();
        let (cgroup, host) = open_cgroup(state, &plan, host)?;
        let (mut remains, warnings) = Remains::of(plan);
        remains.shared_root.clone_from(&state.shared_root);
        remains.resctrl_groups.clone_from(&state.resctrl_groups);
        let expected = sys::process::ProcessIdentity { pid: state.init.pid, start_time: state.init.start_time };
        let pidfd = match sys::process::pidfd_of(expected) {
            Ok(pidfd) => pidfd,
            // Something that is readable for ever, as the pidfd of an ended process is.
            Err(Errno::SRCH) => rustix::event::eventfd(1, EventfdFlags::CLOEXEC)
                .map_err(|errno| Error::host("making an event descriptor", errno))?,
            Err(errno) => return Err(Error::host(format!("looking for process {}", state.init.pid), errno)),
        };
        let unit = state.scope.as_ref().map(ScopeState::unit).transpose();
        let unit =
            unit.map_err(|source| Error::Cgroup { operation: format!("opening cgroup {}", state.cgroup), source })?;
        let gate = gate.map(|gate| StartGate::fifos(gate, program)).transpose()?;
        Ok(Self {
            remains,
            cgroup: cgroup.in_unit(unit),
            host,
            identity: state.init,
            pidfd,
            console: None,
            warnings,
            gate,
            started: state.started,
        })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.remains.id
    }

    /// Pid of init, as the host sees it.
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Pidfd of init: readable when it has ended. The caller reaps it (`sys::process`).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Pid and start time of init.
    pub fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// The master of the container's terminal, once.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// What was asked for but could not be done on this host, and is not fatal: for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where it stands, by a look at the process and its cgroup. A zombie that nobody has reaped is stopped.
    pub fn status(&self) -> Status {
        if ended(self.pidfd.as_fd()) {
            return Status::Stopped;
        }
        if self.cgroup.is_frozen().unwrap_or(false) {
            return Status::Paused;
        }
        if self.started { Status::Running } else { Status::Created }
    }

    /// Runs the program of the spec. The operation fails if it cannot be executed. Once only, and not for a container
    /// that was made with a [`crate::Gate`].
    pub fn start(&mut self) -> Result<Starting, Error> {
        let status = self.status();
        let gate = match (status, self.gate.take()) {
            (Status::Created, Some(gate)) => gate,
            (status, _) => return Err(Error::State { operation: "start", status: status.as_str() }),
        };
        let starting = Starting::new(gate, self)?;
        self.started = true;
        Ok(starting)
    }

    /// Whether the end of init ends all its processes: it has a pid namespace of its own. Without one, a SIGKILL that is
    /// meant for the container goes to [`Container::kill_all`].
    pub fn has_own_pids(&self) -> bool {
        self.remains.own_pids
    }

    /// Sends a signal to init. [`Error::Finished`] if it has ended. A paused container is thawed for SIGKILL, without
    /// which a frozen process of cgroup v1 does not die.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        if ended(self.pidfd.as_fd()) {
            return Err(Error::Finished);
        }
        match sys::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) => {
                if signal == libc::SIGKILL && self.cgroup.is_frozen().unwrap_or(false) {
                    let _ = self.cgroup.thaw();
                }
                Ok(())
            }
            Err(Errno::SRCH | Errno::BADF) => Err(Error::Finished),
            Err(errno) => Err(Error::host(format!("sending signal {signal}"), errno)),
        }
    }

    /// Sends a signal to every process in the container's cgroup. None is no error.
    pub fn kill_all(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            gone_is_fine(self.cgroup.kill_all()).map_err(|source| self.cgroup_error("killing", source))?;
            // Whoever has the right to may have moved it elsewhere.
            return match self.kill(signal) {
                Err(Error::Finished) => Ok(()),
                other => other,
            };
        }
        // A pid read from the cgroup may have been reused by now: the pidfds are opened first, then the cgroup is asked
        // again. What is in it both times is what the pidfd holds, or at least belongs to the container.
        let opened: Vec<_> =
            self.pids()?.into_iter().filter_map(|pid| Some((pid, sys::process::pidfd_open(pid).ok()?))).collect();
        let present = self.pids()?;
        for (pid, pidfd) in opened.iter().filter(|(pid, _)| present.binary_search(pid).is_ok()) {
            match sys::process::pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(Error::host(format!("sending signal {signal} to {pid}"), errno)),
            }
        }
        Ok(())
    }

    /// Starts another process in the container.
    ///
    /// Like init it is a child of the caller, who must reap it: the kernel does not let a container's init end (its
    /// pidfd does not become readable) before all others in its pid namespace are reaped.
    ///
    /// [`Error::State`] if it is stopped, or paused (the process could not get anywhere).
    pub fn exec(&self, process: &oci::Process, io: ProcessIo, options: &ExecOptions) -> Result<Execing, Error> {
        match self.status() {
            Status::Paused if options.ignore_paused => Execing::begin(self, process, io, options),
            status @ (Status::Stopped | Status::Paused) => {
                Err(Error::State { operation: "exec in", status: status.as_str() })
            }
            Status::Created | Status::Running => Execing::begin(self, process, io, options),
        }
    }

    /// Freezes all its processes.
    pub fn pause(&mut self) -> Result<(), Error> {
        match self.status() {
            Status::Running | Status::Created => {
                self.cgroup.freeze().map_err(|source| self.cgroup_error("freezing", source))
            }
            status @ (Status::Paused | Status::Stopped) => {
                Err(Error::State { operation: "pause", status: status.as_str() })
            }
        }
    }

    /// Thaws them.
    pub fn resume(&mut self) -> Result<(), Error> {
        match self.status() {
            Status::Paused => self.cgroup.thaw().map_err(|source| self.cgroup_error("thawing", source)),
            status @ (Status::Running | Status::Created | Status::Stopped) => {
                Err(Error::State { operation: "resume", status: status.as_str() })
            }
        }
    }

    /// Changes limits. Rules for devices replace those of the spec; what every container may use stays allowed.
    pub fn update(&mut self, resources: &oci::LinuxResources) -> Result<(), Error> {
        self.cgroup.apply(resources).map_err(|source| self.cgroup_error("setting the limits of", source))?;
        match resources.devices() {
            Some(given) if !given.is_empty() => {
                let rules = crate::plan::device_rules(given)?;
                self.cgroup.apply_devices(&rules).map_err(|source| self.cgroup_error("setting the devices of", source))
            }
            _ => Ok(()),
        }
    }

    /// Pids of all its processes, as the host sees them, ascending. None once its cgroup is gone.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        match self.cgroup.processes() {
            Ok(pids) => Ok(pids),
            Err(cgroups::Error::Gone { .. }) => Ok(Vec::new()),
            Err(source) => Err(self.cgroup_error("listing the processes of", source)),
        }
    }

    /// Its cgroup, for statistics and OOM counts.
    pub fn cgroup(&self) -> &cgroups::Cgroup {
        &self.cgroup
    }

    /// Removes what is left: remaining processes, then the cgroup, then poststop hooks run. With `force` a running
    /// init is killed first; without, that is an [`Error::State`]. Init is not reaped here.
    pub fn delete(&mut self, force: bool) -> Result<Deleting, Error> {
        let status = self.status();
        if status != Status::Stopped && !force {
            return Err(Error::State { operation: "delete", status: status.as_str() });
        }
        if status != Status::Stopped {
            let _ = self.kill(libc::SIGKILL);
        }
        // Mostly nobody is left.
        let failed = |source| self.cgroup_error("removing", source);
        if status == Status::Stopped && self.cgroup.delete_empty().map_err(failed)? {
            return Deleting::new(self, true);
        }
        // Processes that joined from outside of the pid namespace, or all of them where there is none.
        gone_is_fine(self.cgroup.kill_all()).map_err(|source| self.cgroup_error("killing", source))?;
        if status == Status::Paused {
            // cgroup v1: a frozen process dies when it is thawed.
            let _ = self.cgroup.thaw();
        }
        Deleting::new(self, false)
    }

    /// What [`Container::open`] needs.
    pub fn state(&self) -> State {
        State {
            id: self.remains.id.clone(),
            bundle: self.remains.bundle.clone(),
            init: self.identity,
            started: self.started,
            cgroup: if self.host.has_cgroups() { self.cgroup.path().to_string() } else { String::new() },
            shared_root: self.remains.shared_root.clone(),
            resctrl_groups: self.remains.resctrl_groups.clone(),
            scope: self.cgroup.unit().map(ScopeState::of),
        }
    }

    pub(crate) fn cgroup_error(&self, doing: &str, source: cgroups::Error) -> Error {
        Error::Cgroup { operation: format!("{doing} cgroup {}", self.cgroup.path()), source }
    }
}

/// The cgroup of a saved container, and the host as that container sees it.
fn open_cgroup(state: &State, plan: &Plan, host: &HostFeatures) -> Result<(cgroups::Cgroup, HostFeatures), Error> {
    let failed = |source| Error::Cgroup { operation: format!("opening cgroup {}", state.cgroup), source };
    if state.cgroup.is_empty() {
        let host = host.without_cgroups();
        return Ok((cgroups::Cgroup::create(&host.cgroups, &plan.cgroup).map_err(failed)?, host));
    }
    let path = cgroups::CgroupPath::new(&state.cgroup).map_err(failed)?;
    let cgroup = match cgroups::Cgroup::open(&host.cgroups, &path) {
        // Somebody has removed it after the container's end; the delete will do so again.
        Err(cgroups::Error::Gone { .. }) => cgroups::Cgroup::create(&host.cgroups, &path),
        other => other,
    };
    Ok((cgroup.map_err(failed)?, host.clone()))
}

fn gone_is_fine(result: cgroups::Result<()>) -> cgroups::Result<()> {
    match result {
        Err(cgroups::Error::Gone { .. }) => Ok(()),
        other => other,
    }
}

/// Who a process is.
pub(crate) fn identity(pid: u32) -> Result<ProcessIdentity, Error> {
    let found = sys::process::identity(pid).map_err(|errno| Error::host(format!("looking at process {pid}"), errno))?;
    Ok(ProcessIdentity { pid: found.pid, start_time: found.start_time })
}

/// Whether the process of a pidfd has ended, reaped or not.
pub(crate) fn ended(pidfd: BorrowedFd<'_>) -> bool {
    sys::fs::poll_readable(pidfd, Some(std::time::Duration::ZERO)).unwrap_or(true)
}
