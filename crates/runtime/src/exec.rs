use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use model::record::ProcessIdentity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use sys::clone::flags;
use sys::undefended::{Defence, left_out};

use crate::child::{Script, Step};
use crate::container::{ended, identity};
use crate::create::{Cloned, Said, check_threads};
use crate::operations::hear_exec;
use crate::plan::ProcessPlan;
use crate::{Container, Error, HostFeatures, Operation, ProcessIo, assemble};

/// What an exec needs besides the process document.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// How many descriptors from 3 on stay open in the process.
    pub preserve_fds: u32,
    /// Do not give the process a session keyring of its own.
    pub no_new_keyring: bool,
    /// Start it in a paused container too: it goes on when the container does.
    pub ignore_paused: bool,
    /// Groups below the container's cgroup that it joins instead of that.
    pub cgroups: Vec<SubCgroup>,
}

/// A group below a container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubCgroup {
    /// The controller of version 1 whose hierarchy is meant; empty: every one.
    pub controller: String,
    /// Relative to the container's cgroup; `/` is that itself.
    pub path: String,
}

/// Opens the groups that an exec joins in place of the container's.
fn open_below(container: &Container, wanted: &[SubCgroup]) -> Result<Option<cgroups::Cgroup>, Error> {
    if wanted.is_empty() {
        // A container that has a manager of its own moves its init into a group below: that is where others can go.
        let failed = |source| container.cgroup_error("leaving", source);
        let inner = container.cgroup.is_inner();
        return inner
            .then(|| cgroups::Cgroup::of_pid(&container.host.cgroups, container.pid()))
            .transpose()
            .map_err(failed);
    }
    let (host, top) = (&container.host.cgroups, container.cgroup.path());
    let failed = |path: &str| {
        let operation = format!("error adding pid to cgroup {path}");
        move |source| Error::Cgroup { operation, source }
    };
    for SubCgroup { controller, path } in wanted {
        let known = match host {
            cgroups::Host::V1 { controllers } => controllers.iter().any(|(name, _)| name == controller),
            cgroups::Host::V2 { .. } => false,
        };
        if !controller.is_empty() && !known {
            return Err(Error::invalid("cgroup", format!("unknown controller {controller}")));
        }
        if path.split('/').any(|name| name == "..") {
            return Err(Error::invalid("cgroup", format!("bad sub cgroup path: {path}")));
        }
    }
    let find = |controller: &str| {
        let found = wanted.iter().find(|sub| sub.controller.is_empty() || sub.controller == controller);
        found.filter(|sub| !sub.path.trim_matches('/').is_empty()).map(|sub| top.join(&sub.path)).transpose()
    };
    let shown = wanted.iter().map(|sub| sub.path.as_str()).collect::<Vec<_>>().join(", ");
    match cgroups::Cgroup::open_below(host, top, find) {
        Err(cgroups::Error::Gone { path }) => {
            Err(Error::host(format!("error adding pid to cgroup {path}"), Errno::NOENT))
        }
        other => other.map(Some).map_err(failed(&shown)),
    }
}

/// An exec under way. Finished when the program runs. Dropping it before kills what exists.
///
/// ```text
/// begin ──▶ intermediate enters the namespaces ──▶ process, put into the cgroup ──▶ ready ──▶ program runs
/// ```
#[derive(Debug)]
pub struct Execing {
    process: Cloned,
    /// Of the container, to tell its end from other failures.
    init: OwnedFd,
    cgroup: cgroups::CgroupPath,
    host: HostFeatures,
    /// Groups of its own, if it does not go into the container's.
    below: Option<cgroups::Cgroup>,
    /// To be raised from outside.
    limits: Vec<(Resource, Rlimit)>,
    /// The container's id and what it has of the resctrl file system.
    resctrl: Option<(String, crate::resctrl::Wanted)>,
    born_in_cgroup: bool,
    /// The container's state document, for the agent of the filter; empty without one.
    state: Vec<u8>,
    ready: bool,
}

/// An additional process of a container, a child of the caller, who reaps it.
#[derive(Debug)]
pub struct ExecProcess {
    /// Pid and start time, as the host sees them.
    pub identity: ProcessIdentity,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub console: Option<OwnedFd>,
    /// What was asked for but could not be done on this host, and is not fatal.
    pub warnings: Vec<String>,
}

impl Execing {
    pub(crate) fn begin(
        container: &Container,
        process: &oci::Process,
        io: ProcessIo,
        options: &ExecOptions,
    ) -> Result<Self, Error> {
        let remains = &container.remains;
        let host = &container.host;
        oci::validate_process("process", process).map_err(|error| Error::invalid("process", error.to_string()))?;
        let mut plan = ProcessPlan::new("process", process, host, remains.spaces & flags::NEWUSER != 0)?;
        plan.filter = remains.filter.clone();
        plan.capabilities = plan.capabilities.or(remains.capabilities);
        plan.no_new_privileges = plan.no_new_privileges.or(Some(remains.no_new_privileges));
        plan.umask = plan.umask.or(remains.umask);
        plan.oom_score = plan.oom_score.or(remains.oom_score);
        plan.tuning.inherit(&remains.tuning);
        plan.labels.inherit(&remains.labels);
        plan.preserve_fds = options.preserve_fds;
        plan.keyring = (!options.no_new_keyring).then(|| format!("_ses.{}", remains.id));
        if plan.limits.is_empty() {
            plan.limits.clone_from(&remains.limits);
        }
        let agent = plan.filter.as_ref().is_some_and(|filter| filter.listener.is_some());
        let state = if agent {
            remains.hook_state.with_status(container.status().as_str()).document(container.pid())
        } else {
            Vec::new()
        };
        let (stdio, console) = assemble::exec_stdio(io, plan.console_size)?;
        let mut program = assemble::process(&plan, host, stdio)?;
        program.at_once = true;
        program.same_ids &= remains.spaces & flags::NEWUSER == 0;
        let script = Self::script(container, &plan, console.map(Step::Console), program)?;
        let below = open_below(container, &options.cgroups)?;
        let group = below.as_ref().unwrap_or(&container.cgroup);
        // The first affinity is meant for the time before the process is in the cgroup.
        let born_inside =
            sys::features().clone_into_cgroup && !left_out(Defence::Cgroup) && plan.tuning.initial_affinity.is_none();
        let join = if born_inside { group.join_fd() } else { None };
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3)
            .map_err(|errno| Error::host("copying a pidfd", errno))?;
        check_threads()?;
        let mut process = Cloned::start(script, 0, join)?;
        process.warnings = plan.warnings;
        let limits = if remains.spaces & flags::NEWUSER != 0 { plan.limits } else { Vec::new() };
        Ok(Self {
            process,
            init: duplicate,
            cgroup: container.cgroup.path().clone(),
            host: host.clone(),
            limits,
            resctrl: remains.resctrl.clone().map(|wanted| (remains.id.clone(), wanted)),
            born_in_cgroup: join.is_some(),
            below,
            state,
            ready: false,
        })
    }

    fn script(
        container: &Container,
        plan: &ProcessPlan,
        console: Option<Step>,
        program: crate::child::Process,
    ) -> Result<Script, Error> {
        let kinds = container.remains.spaces;
        // Before the container's mounts are entered: procfs is still the host's.
        let mut intermediate = Vec::from_iter(plan.tuning.first_affinity());
        if let Some(score) = plan.oom_score {
            intermediate.push(Step::OomScore(score.to_string().into_bytes()));
        }
        // A label for the next exec goes over to a forked process (the modules copy it with the rest of a task).
        intermediate.extend(plan.labels.steps(plan.keyring.is_some())?);
        intermediate.push(Step::Hide);
        if sys::features().pidfd {
            let pidfd = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3)
                .map_err(|errno| Error::host("copying a pidfd", errno))?;
            intermediate.push(Step::JoinProcess { pidfd, kinds });
        } else {
            intermediate.push(Step::JoinDeferred(open_each(container, kinds)?));
        }
        let mut steps = vec![Step::Await(crate::child::Awaited::Admission)];
        steps.extend(plan.tuning.last_affinity());
        if kinds & flags::NEWUSER != 0 {
            steps.push(Step::BecomeRoot);
        }
        steps.push(Step::NewSession);
        steps.push(if container.remains.own_root { Step::EnterRoot(root_of(container)?) } else { Step::OwnRoot });
        steps.extend(console);
        steps.extend(plan.tuning.steps());
        steps.extend(assemble::limits(plan, &container.host));
        steps.push(Step::Process(Box::new(program)));
        Ok(Script { intermediate, fork: Some(flags::PARENT), steps, ..Script::only_program(plan.program_name()) })
    }

    /// Puts the new process into the container's cgroup and lets it go on.
    fn admit(&self) -> Result<(), Error> {
        crate::limits::raise(self.process.pid, &self.limits);
        if let Some((id, wanted)) = &self.resctrl {
            wanted.join(&wanted.root()?, id, self.process.pid)?;
        }
        if self.born_in_cgroup || !self.host.has_cgroups() {
            return self.process.tell();
        }
        if self.below.is_some() {
            return self.process.admit(self.below.as_ref());
        }
        let cgroup = cgroups::Cgroup::open(&self.host.cgroups, &self.cgroup)
            .map_err(|source| Error::Cgroup { operation: "opening the container's cgroup".to_owned(), source })?;
        self.process.admit(Some(&cgroup))
    }

    fn finish(&mut self) -> Result<ExecProcess, Error> {
        let pidfd = self.process.pidfd.take().ok_or(Error::Wait { source: Errno::INVAL.into() })?;
        Ok(ExecProcess {
            identity: identity(self.process.pid)?,
            pidfd,
            console: self.process.console.take(),
            warnings: std::mem::take(&mut self.process.warnings),
        })
    }

    /// An error that came because the container ended meanwhile is told as that.
    fn explain(&self, error: Error) -> Error {
        let program = matches!(error, Error::Program { .. } | Error::Exec { .. });
        if !program && ended(self.init.as_fd()) {
            return Error::State { operation: "exec in", status: "stopped" };
        }
        error
    }

    fn go_on(&mut self) -> Result<Option<ExecProcess>, Error> {
        loop {
            if self.ready {
                let Some(sync) = self.process.poll_fd() else { return self.finish().map(Some) };
                if !hear_exec(sync, true, &self.process.script)? {
                    return Ok(None);
                }
                return self.finish().map(Some);
            }
            match self.process.listen()? {
                Said::Nothing => return Ok(None),
                Said::Forked => self.admit()?,
                Said::Listener(offer) => self.process.hand_over(offer, &self.state)?,
                Said::Ready => self.ready = true,
                Said::HooksDue | Said::Closed => {
                    return Err(Error::Died { during: "its set-up".to_owned() });
                }
            }
        }
    }
}

/// The root directory of init.
fn root_of(container: &Container) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/root", container.pid());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| Error::host(format!("opening {path}"), errno))?;
    // A pid that was reused meanwhile would have shown us somebody else's root.
    if ended(container.pidfd.as_fd()) {
        return Err(Error::State { operation: "exec in", status: "stopped" });
    }
    Ok(root)
}

/// The namespaces of init that differ from ours, one descriptor each.
fn open_each(container: &Container, kinds: u64) -> Result<Vec<(OwnedFd, u64)>, Error> {
    const NAMES: [(u64, &str); 8] = [
        (flags::NEWUSER, "user"),
        (flags::NEWCGROUP, "cgroup"),
        (flags::NEWIPC, "ipc"),
        (flags::NEWUTS, "uts"),
        (flags::NEWNET, "net"),
        (flags::NEWPID, "pid"),
        (flags::NEWTIME, "time"),
        (flags::NEWNS, "mnt"),
    ];
    let mut list = Vec::new();
    for (kind, name) in NAMES.into_iter().filter(|(kind, _)| kinds & kind != 0) {
        let path = format!("/proc/{}/ns/{name}", container.pid());
        let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        list.push((open.map_err(|errno| Error::host(format!("opening {path}"), errno))?, kind));
    }
    // A pid that was reused meanwhile would have shown us somebody else's namespaces.
    if ended(container.pidfd.as_fd()) {
        return Err(Error::State { operation: "exec in", status: "stopped" });
    }
    Ok(list)
}

impl Operation for Execing {
    type Output = ExecProcess;

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.process.poll_fd().unwrap_or(rustix::fs::CWD)
    }

    fn advance(&mut self) -> Result<Option<ExecProcess>, Error> {
        self.go_on().map_err(|error| self.explain(error))
    }
}
