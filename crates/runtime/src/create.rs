use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use model::record::ProcessIdentity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use sys::OwnProgram;
use sys::clone::Forked;
use sys::undefended::{Defence, left_out};

use crate::assemble::{Assembled, assemble};
use crate::child::{self, ENTRANCES_MAX, Kind, MESSAGE_BYTES, RECORD_BYTES, Record, Script};
use crate::container::{Remains, StartGate};
use crate::hooks::{HookRunner, HookState, state_around_pid};
use crate::netdev::Target;
use crate::seccomp::Offer;
use crate::{Container, Error, Gate, HostFeatures, Operation, Plan, ProcessIo, SharedRoot, describe, maps};

/// Where the root file system comes from.
#[derive(Debug)]
pub enum Rootfs {
    /// A directory of the host, whatever is mounted there.
    Path(PathBuf),
    /// A detached mount; it is attached in the container's mount namespace only.
    Detached(OwnedFd),
}

/// Ids to write for a process in a new user namespace, and the cgroup to put it into.
#[derive(Debug)]
struct Admission {
    uid_map: String,
    gid_map: String,
    /// Whether the process was born in its cgroup.
    born_in_cgroup: bool,
    /// Whether it waits to be told to go on.
    awaited: bool,
    /// The network namespace that devices move into, if it is one that exists already.
    network: Option<OwnedFd>,
}

/// A container in the making. Dropping it before it is finished kills and reaps what exists.
///
/// ```text
/// begin ──▶ [intermediate] ──▶ admission ──▶ (hooks due ──▶ hooks ended) ──▶ ready
///               └─────────────────┴───────────────┴─ failed, died ─▶ undone
/// ```
#[derive(Debug)]
pub struct Creating {
    process: Cloned,
    admission: Option<Admission>,
    plan: Option<Plan>,
    cgroup: Option<cgroups::Cgroup>,
    /// Keeps a scope from being empty until the container's process is in it.
    keeper: Option<Cloned>,
    hooks: Option<HookRunner>,
    /// Where hooks and the socket can both wake the caller.
    events: Option<OwnedFd>,
    hook_state: HookState,
    host: HostFeatures,
    gated: bool,
    /// The resctrl file system, if the specification needs it.
    resctrl: Option<PathBuf>,
    /// What was made there.
    resctrl_groups: Vec<PathBuf>,
    shared_root: Option<SharedRoot>,
    /// What is kept of the plan, worked out while the child is busy.
    prepared: Option<Prepared>,
}

/// What a container consists of besides its process and its cgroup.
#[derive(Debug)]
struct Prepared {
    remains: Remains,
    /// Those of the plan.
    warnings: Vec<String>,
    identity: ProcessIdentity,
}

/// A cloned process as its parent sees it while it sets itself up. Dropping it kills and reaps the process.
#[derive(Debug)]
pub(crate) struct Cloned {
    pub(crate) script: Script,
    pub(crate) sync: Option<OwnedFd>,
    /// The process of the container; the intermediate one before that is known.
    pub(crate) pid: u32,
    pub(crate) pidfd: Option<OwnedFd>,
    /// The intermediate process, to be reaped.
    intermediate: Option<OwnedFd>,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
}

/// What the child said.
pub(crate) enum Said {
    /// Nothing yet.
    Nothing,
    /// Its process exists now; only with an intermediate one.
    Forked,
    /// The hooks are due.
    HooksDue,
    /// Its filter has a listener, which it waits to get rid of.
    Listener(Offer),
    /// It is set up.
    Ready,
    /// It is gone or has become the program: the socket is closed.
    Closed,
}

/// Refuses to clone a process with several threads.
pub(crate) fn check_threads() -> Result<(), Error> {
    // The number of links of the task directory is that of the threads plus two: one call, nothing to parse.
    let found = rustix::fs::stat(c"/proc/self/task").map_err(|errno| Error::host("counting threads", errno))?;
    if found.st_nlink == 3 { Ok(()) } else { Err(Error::Threads) }
}

impl Cloned {
    /// Clones a process that runs `script`.
    /// To be called in a process of one thread: [`check_threads`].
    pub(crate) fn start(mut script: Script, clone_flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Self, Error> {
        if !left_out(Defence::Program) {
            script.own_program = OwnProgram::open().ok();
        }
        // Theirs is the lower number, next to the other descriptors that only the child needs.
        let (theirs, ours) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| Error::host("making a socket pair", errno))?;
        // SAFETY: this process has one thread, as the caller has checked; the child runs nothing but the script, which ends in
        // an exec or _exit.
        #[expect(unsafe_code, reason = "the one place where a container's process comes to be")]
        let forked = unsafe { sys::clone::fork(clone_flags, cgroup) };
        match forked.map_err(|errno| Error::host("cloning the container's process", errno))? {
            Forked::Child => {
                // With our end open here too, the child would never learn that its parent has died.
                drop(ours);
                child::run(&script, theirs.as_fd())
            }
            Forked::Parent { pid, pidfd } => {
                let mut only_theirs = script.take_descriptors();
                only_theirs.push(theirs);
                sys::fs::close_all(only_theirs);
                let (pidfd, intermediate) =
                    if script.fork.is_some() { (None, Some(pidfd)) } else { (Some(pidfd), None) };
                Ok(Self { script, sync: Some(ours), pid, pidfd, intermediate, console: None, warnings: Vec::new() })
            }
        }
    }

    pub(crate) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sync.as_ref().map(AsFd::as_fd)
    }

    /// Takes the next message, if there is one.
    pub(crate) fn listen(&mut self) -> Result<Said, Error> {
        loop {
            let Some(sync) = &self.sync else { return Ok(Said::Closed) };
            let mut bytes = [0; MESSAGE_BYTES];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let length = match rustix::net::recvmsg(sync, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(message) => message.bytes,
                Err(Errno::AGAIN) => return Ok(Said::Nothing),
                // A child that failed before it read our last byte: the kernel says so once, then gives what it sent.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(errno) => return Err(Error::Wait { source: errno.into() }),
            };
            if length == 0 {
                return Ok(Said::Closed);
            }
            let descriptor = control.drain().find_map(|message| {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
            });
            let message = bytes.get(..length).unwrap_or_default();
            let Some(record) = Record::from_bytes(message) else {
                return Err(Error::Wait { source: Errno::PROTO.into() });
            };
            match record.kind {
                Kind::Console => self.console = descriptor,
                Kind::Warning => {
                    let stage = describe::step(&self.script, record.step);
                    let errno = std::io::Error::from_raw_os_error(record.errno);
                    self.warnings.push(format!("{stage}: {errno}"));
                }
                Kind::Forked => return self.adopt(record.value.cast_unsigned()).map(|()| Said::Forked),
                Kind::HooksDue => return Ok(Said::HooksDue),
                Kind::Ready => return Ok(Said::Ready),
                Kind::Listener => return Ok(Said::Listener(Offer { number: record.value, descriptor })),
                Kind::Failed | Kind::Program | Kind::Exec | Kind::Hook | Kind::NoProcess => {
                    let text = message.get(RECORD_BYTES..).unwrap_or_default();
                    return Err(describe::failure(&self.script, record, text));
                }
            }
        }
    }

    /// The intermediate process has made the one that counts, which is our child, and ends.
    fn adopt(&mut self, pid: u32) -> Result<(), Error> {
        let pidfd = sys::process::pidfd_open(pid).map_err(|errno| Error::host("opening the new process", errno))?;
        self.pid = pid;
        self.pidfd = Some(pidfd);
        if let Some(intermediate) = self.intermediate.take() {
            // It exits right after its message: this does not wait for anybody else.
            match sys::process::wait(intermediate.as_fd()) {
                // Somebody who reaps any child was quicker.
                Ok(_) | Err(Errno::CHILD) => {}
                Err(errno) => return Err(Error::Wait { source: errno.into() }),
            }
        }
        Ok(())
    }

    /// Lets the child go on, into the cgroup unless it was born there.
    pub(crate) fn admit(&self, cgroup: Option<&cgroups::Cgroup>) -> Result<(), Error> {
        let failed = |source| Error::Cgroup { operation: "moving the process into its cgroup".to_owned(), source };
        let (Some(cgroup), Some(sync)) = (cgroup, &self.sync) else { return self.tell() };
        let entrances = cgroup.entrances().map_err(failed)?;
        if entrances.is_empty() || entrances.len() > ENTRANCES_MAX || sys::features().forced_fallbacks {
            cgroup.add_process(self.pid).map_err(failed)?;
            return self.tell();
        }
        let sent = Self::send_entrances(sync, &entrances);
        sys::fs::close_all(entrances);
        sent
    }

    fn send_entrances(sync: &OwnedFd, entrances: &[OwnedFd]) -> Result<(), Error> {
        let entrances: Vec<BorrowedFd<'_>> = entrances.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ENTRANCES_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&entrances)) {
            return Err(Error::Wait { source: Errno::NOBUFS.into() });
        }
        // ENTRANCES_MAX is far below 255; see `enter_cgroup` in the child for the number.
        let byte = [u8::try_from(entrances.len() + 1).unwrap_or(u8::MAX)];
        match rustix::net::sendmsg(sync, &[IoSlice::new(&byte)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(Error::Wait { source: errno.into() }),
        }
    }

    /// Passes the listener of the process's filter to the agent. `state` is the document of the container's state.
    pub(crate) fn hand_over(&self, offer: Offer, state: &[u8]) -> Result<(), Error> {
        let listener = self.script.filter().and_then(|filter| filter.listener.as_ref());
        let (Some(listener), Some(pidfd)) = (listener, &self.pidfd) else {
            return Err(Error::Wait { source: Errno::PROTO.into() });
        };
        let taken = match offer.descriptor {
            Some(descriptor) => Ok(descriptor),
            // It was sent, and lost on the way: no descriptor is free.
            None if listener.sendable() => Err(Errno::MFILE),
            None => sys::seccomp::take_descriptor(pidfd.as_fd(), offer.number),
        };
        let descriptor = taken.map_err(|errno| {
            let why = if listener.sendable() { "" } else { ", which its profile forbids to send by sendmsg" };
            Error::host(format!("taking the seccomp listener of the process{why}"), errno)
        })?;
        listener.pass(descriptor.as_fd(), self.pid, state)?;
        self.tell()
    }

    /// Tells the child to go on.
    pub(crate) fn tell(&self) -> Result<(), Error> {
        let Some(sync) = &self.sync else { return Ok(()) };
        match rustix::net::send(sync, &[1], SendFlags::NOSIGNAL) {
            // What the child says, or that it is gone, is read next.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(Error::Wait { source: errno.into() }),
        }
    }
}

impl Cloned {
    /// What is left of the script, for the errors of the exec. What it holds of others is of no use any more.
    fn take_script(&mut self) -> Script {
        let script = std::mem::replace(&mut self.script, Script::empty());
        if script.has_descriptors() { Script::only_program(script.program) } else { script }
    }
}

impl Drop for Cloned {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Creating {
    /// Makes the cgroup, clones the container's process and lets it set itself up.
    ///
    /// With a [`Gate`] the container is started through it, from any process; without, by [`Container::start`].
    pub fn begin(
        plan: Plan,
        host: &HostFeatures,
        rootfs: Rootfs,
        io: ProcessIo,
        gate: Option<Gate>,
    ) -> Result<Self, Error> {
        Self::begin_with(plan, host, rootfs, io, gate, false)
    }

    /// `silent`: the child does not tell when it is set up, see [`Creating::launch`].
    fn begin_with(
        mut plan: Plan,
        host: &HostFeatures,
        rootfs: Rootfs,
        io: ProcessIo,
        gate: Option<Gate>,
        silent: bool,
    ) -> Result<Self, Error> {
        check_threads()?;
        crate::lsm::label_mounts(&mut plan);
        let shared_root = SharedRoot::before(&plan)?;
        // On version 1 a process is moved into its cgroup afterwards, so the groups can be made while the child is
        // already at work; unless the script binds them.
        let late = !host.cgroups.is_v2() && !plan.binds_cgroup() && plan.scope.is_none();
        let mut guard = if late { CgroupGuard::default() } else { CgroupGuard::make(&plan, host)? };
        if let Some(cgroup) = &guard.made {
            // A scope is where its systemd has put it.
            plan.cgroup = cgroup.path().clone();
        }
        let gated = gate.is_some();
        let resctrl = plan.resctrl.as_ref().map(crate::resctrl::Wanted::root).transpose()?;
        let born = sys::features().clone_into_cgroup && may_be_born_in_cgroup(&plan) && !left_out(Defence::Cgroup);
        let join = if born { guard.made.as_ref().and_then(cgroups::Cgroup::join_fd) } else { None };
        let born_in_cgroup = join.is_some();
        let Assembled { mut script, clone_flags, network, awaits_admission } =
            assemble(&plan, host, rootfs, io, gate, born_in_cgroup)?;
        script.silence(silent);
        let admission = Admission {
            uid_map: plan.spaces.uid_map.clone(),
            gid_map: plan.spaces.gid_map.clone(),
            born_in_cgroup,
            awaited: awaits_admission,
            network,
        };
        if !late && !born_in_cgroup {
            guard.limit(&plan)?;
        }
        let process = Cloned::start(script, clone_flags, join)?;
        if late {
            guard = CgroupGuard::create(&plan, host)?;
        } else if born_in_cgroup {
            // Meanwhile the child sets itself up. It is not told to go on, and not started, before its limits hold.
            guard.limit(&plan)?;
        }
        let hook_state = HookState { around_pid: state_around_pid(&plan, "creating"), bundle: plan.bundle.clone() };
        let host = if guard.refused { host.without_cgroups() } else { host.clone() };
        let (cgroup, keeper) = guard.into_inner();
        let mut creating = Self {
            events: None,
            admission: Some(admission),
            cgroup,
            keeper,
            plan: Some(plan),
            hooks: None,
            hook_state,
            host,
            gated,
            resctrl,
            resctrl_groups: Vec::new(),
            shared_root,
            prepared: None,
            process,
        };
        creating.watch_hooks()?;
        if creating.process.pidfd.is_some() {
            creating.admit()?;
            if creating.events.is_none() {
                creating.prepared = Some(creating.prepare()?);
            }
        }
        Ok(creating)
    }

    /// With hooks to come, both they and the socket must be able to wake the caller.
    fn watch_hooks(&mut self) -> Result<(), Error> {
        let hooks = self.plan.as_ref().is_some_and(|plan| !plan.hooks.before.is_empty());
        if let (true, Some(sync)) = (hooks, self.process.poll_fd()) {
            let failed = |errno| Error::host("making an event descriptor", errno);
            let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
            epoll::add(&events, sync, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed)?;
            self.events = Some(events);
        }
        Ok(())
    }

    /// Writes what only the parent may write for the new process, and lets it go on.
    fn admit(&mut self) -> Result<(), Error> {
        let Some(admission) = self.admission.take() else { return Ok(()) };
        maps::write(self.process.pid, &admission.uid_map, &admission.gid_map)?;
        if let Some(plan) = self.plan.as_ref().filter(|plan| plan.spaces.has(sys::clone::flags::NEWUSER)) {
            crate::limits::raise(self.process.pid, &plan.process.limits);
        }
        if let (Some(root), Some(plan)) = (&self.resctrl, &self.plan)
            && let Some(wanted) = &plan.resctrl
        {
            wanted.apply(root, &plan.id, self.process.pid, &mut self.resctrl_groups)?;
        }
        for device in self.plan.iter().flat_map(|plan| &plan.net_devices) {
            let target = admission
                .network
                .as_ref()
                .map_or(Target::Process(self.process.pid), |file| Target::Namespace(file.as_fd()));
            crate::netdev::move_to(device, target)?;
        }
        if !admission.awaited {
            return Ok(());
        }
        let outside = admission.born_in_cgroup || left_out(Defence::Cgroup);
        self.process.admit(self.cgroup.as_ref().filter(|_| !outside))
    }

    fn start_hooks(&mut self) -> Result<(), Error> {
        let hooks = self.plan.as_ref().map(|plan| plan.hooks.before.as_slice()).unwrap_or_default();
        let runner = HookRunner::new(hooks, &self.hook_state, self.process.pid)?;
        if let Some(events) = &self.events {
            epoll::add(events, runner.poll_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)
                .map_err(|errno| Error::host("watching the hooks", errno))?;
        }
        self.hooks = Some(runner);
        Ok(())
    }

    /// Why the child may have died without a word: it is small, but a memory limit can be smaller.
    fn died(&self) -> Error {
        let killed = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.oom_kills().is_ok_and(|count| count > 0));
        let during = if killed { "its set-up: out of memory (memory limit too low?)" } else { "its set-up" };
        Error::Died { during: during.to_owned() }
    }

    /// When neither hooks nor the child need the plan any more.
    fn prepare(&mut self) -> Result<Prepared, Error> {
        let plan = self.plan.take().ok_or_else(missing)?;
        let (remains, warnings) = Remains::of(plan);
        Ok(Prepared { remains, warnings, identity: crate::container::identity(self.process.pid)? })
    }

    /// The container as far as the parent knows it, and its process with the way to it.
    fn take(&mut self) -> Result<(Container, Cloned), Error> {
        self.keeper = None;
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare()?,
        };
        let Prepared { mut remains, mut warnings, identity } = prepared;
        let cgroup = self.cgroup.take().ok_or_else(missing)?;
        remains.resctrl_groups = std::mem::take(&mut self.resctrl_groups);
        remains.shared_root = self.shared_root.take();
        warnings.append(&mut self.process.warnings);
        let pidfd = self.process.pidfd.take().ok_or_else(missing)?;
        let console = self.process.console.take();
        let script = std::mem::replace(&mut self.process.script, Script::empty());
        let process = Cloned {
            script,
            sync: self.process.sync.take(),
            pid: self.process.pid,
            pidfd: None,
            intermediate: None,
            console: None,
            warnings: Vec::new(),
        };
        let host = self.host.clone();
        let container = Container::created(remains, cgroup, host, (identity, pidfd), console, warnings);
        Ok((container, process))
    }

    fn finish(&mut self) -> Result<Container, Error> {
        let (mut container, mut process) = self.take()?;
        let sync = process.sync.take().filter(|_| !self.gated);
        container.gate = sync.map(|sync| StartGate::socket(sync, process.take_script()));
        Ok(container)
    }

    /// Makes a container that is started by who makes it, in one go: the child waits for one word only, which
    /// [`Launching::release`] gives. For plans that say so ([`Plan::can_be_launched`]).
    ///
    /// What comes back is a container whose process sets itself up, and what hears of it.
    pub fn launch(
        plan: Plan,
        host: &HostFeatures,
        rootfs: Rootfs,
        io: ProcessIo,
    ) -> Result<(Container, Launching), Error> {
        if !plan.can_be_launched() {
            return Err(Error::State { operation: "launch", status: "needs to be created first" });
        }
        let mut creating = Self::begin_with(plan, host, rootfs, io, None, true)?;
        let (mut container, process) = creating.take()?;
        container.started = true;
        Ok((container, Launching { process }))
    }
}

/// A container on its way from the clone to its program. Finished when the program runs; gives what was asked for but
/// could not be done. Dropping it leaves the process to the container.
#[derive(Debug)]
pub struct Launching {
    process: Cloned,
}

impl Launching {
    /// Lets the program run as soon as the process is set up.
    pub fn release(&self) -> Result<(), Error> {
        self.process.tell()
    }
}

impl Operation for Launching {
    type Output = Vec<String>;

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.process.poll_fd().unwrap_or(rustix::fs::CWD)
    }

    fn waits(&self) -> bool {
        true
    }

    fn advance(&mut self) -> Result<Option<Vec<String>>, Error> {
        match self.process.listen()? {
            Said::Nothing => Ok(None),
            // Gone without a word: by the exec, or for good.
            Said::Closed => {
                let pid = self.process.pid;
                let ended = matches!(sys::process::peek_pid(pid), Ok(Some(_)));
                if ended && matches!(sys::process::has_executed(pid), Ok(false)) {
                    return Err(Error::Died { during: "its set-up".to_owned() });
                }
                Ok(Some(std::mem::take(&mut self.process.warnings)))
            }
            Said::Forked | Said::HooksDue | Said::Listener(_) | Said::Ready => {
                Err(Error::Wait { source: Errno::PROTO.into() })
            }
        }
    }
}

fn missing() -> Error {
    Error::Wait { source: Errno::INVAL.into() }
}

impl Operation for Creating {
    type Output = Container;

    fn poll_fd(&self) -> BorrowedFd<'_> {
        match (&self.events, self.process.poll_fd()) {
            (Some(events), _) => events.as_fd(),
            (None, Some(sync)) => sync,
            // Finished: nothing will happen any more.
            (None, None) => rustix::fs::CWD,
        }
    }

    fn waits(&self) -> bool {
        self.hooks.is_none() && self.process.sync.is_some()
    }

    fn advance(&mut self) -> Result<Option<Container>, Error> {
        loop {
            if let Some(hooks) = &mut self.hooks {
                if !hooks.advance()? {
                    return Ok(None);
                }
                self.hooks = None;
                self.process.tell()?;
            }
            match self.process.listen()? {
                Said::Nothing => return Ok(None),
                Said::Forked => self.admit()?,
                Said::HooksDue => self.start_hooks()?,
                Said::Listener(offer) => self.process.hand_over(offer, &self.hook_state.document(self.process.pid))?,
                Said::Ready => return self.finish().map(Some),
                Said::Closed => return Err(self.died()),
            }
        }
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        if self.cgroup.is_some() || self.shared_root.is_some() {
            // The processes first, then what they are in.
            self.process.kill();
            self.keeper = None;
        }
        if let Some(cgroup) = self.cgroup.take() {
            let _ = cgroup.delete();
        }
        let _ = crate::resctrl::remove(&self.resctrl_groups);
        if let Some(root) = self.shared_root.take() {
            root.unmount();
        }
    }
}

impl Cloned {
    fn kill(&mut self) {
        for pidfd in [self.pidfd.take(), self.intermediate.take()].into_iter().flatten() {
            let _ = sys::process::pidfd_send_signal(&pidfd, libc::SIGKILL);
            let _ = sys::process::wait(pidfd.as_fd());
        }
    }
}

/// A cgroup that others use is neither limited nor removed for a new container, and in a frozen one nothing would run.
fn refuse_in_use(cgroup: &cgroups::Cgroup) -> Result<(), Error> {
    let failed = |source| Error::Cgroup { operation: format!("looking at cgroup {}", cgroup.path()), source };
    let count = cgroup.processes().map_err(failed)?.len();
    if count != 0 {
        let problem = format!("container's cgroup is not empty: {count} process(es) found");
        return Err(Error::invalid("linux.cgroupsPath", problem));
    }
    if cgroup.is_frozen().map_err(failed)? {
        return Err(Error::invalid("linux.cgroupsPath", "container's cgroup unexpectedly frozen"));
    }
    Ok(())
}

/// Whether the user has no right to make a cgroup, or the host none to make it in.
fn is_refused(error: &cgroups::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Errno>());
    matches!(source, Some(&(Errno::ACCESS | Errno::PERM | Errno::ROFS)))
}

/// How many processes a container's birth needs at most: the intermediate one, its own, and the keeper of a scope.
const BIRTH_PROCESSES: i64 = 3;

/// Whether the limit of processes leaves room for a birth in the cgroup. The kernel refuses a process that would be one
/// too many where it is born, but not where it is moved to.
fn may_be_born_in_cgroup(plan: &Plan) -> bool {
    let unified = plan.resources.unified().as_ref().and_then(|unified| unified.get("pids.max"));
    let limits = plan.resources.pids().map(|pids| pids.limit());
    let enough = |limit: i64| !(0..BIRTH_PROCESSES).contains(&limit);
    limits.is_none_or(enough) && unified.is_none_or(|limit| limit.trim().parse().map_or(true, enough))
}

/// Removes a new cgroup if what it is for fails.
#[derive(Default)]
pub(crate) struct CgroupGuard {
    made: Option<cgroups::Cgroup>,
    /// The user may make none, and there is nothing to limit.
    refused: bool,
    /// Keeps a scope from being empty until the container's process is in it.
    keeper: Option<Cloned>,
}

impl CgroupGuard {
    /// Makes the cgroup and sets its limits.
    pub(crate) fn create(plan: &Plan, host: &HostFeatures) -> Result<Self, Error> {
        let guard = Self::make(plan, host)?;
        guard.limit(plan)?;
        Ok(guard)
    }

    /// Makes the cgroup.
    fn make(plan: &Plan, host: &HostFeatures) -> Result<Self, Error> {
        let failed = |operation: &str| {
            let operation = format!("{operation} cgroup {}", plan.cgroup);
            move |source| Error::Cgroup { operation, source }
        };
        let mut guard = Self::default();
        let made = match &plan.scope {
            None => cgroups::Cgroup::create(&host.cgroups, &plan.cgroup),
            Some(scope) => {
                // A scope cannot be made empty, and the container's process is to be born into one that is ready.
                let keeper = guard.keeper.insert(Cloned::start(Script::waiting(), 0, None)?);
                cgroups::Cgroup::create_scope(&host.cgroups, scope, keeper.pid)
            }
        };
        let cgroup = match made {
            Err(error) if plan.scope.is_none() && host.rootless && is_refused(&error) => {
                let none =
                    cgroups::Cgroup::create(&HostFeatures::no_cgroups(), &plan.cgroup).map_err(failed("making"))?;
                // Without limits the container can do without; a limit that cannot be set is an error.
                none.apply(&plan.resources).map_err(failed("setting the limits of"))?;
                return Ok(Self { made: Some(none), refused: true, keeper: None });
            }
            other => other.map_err(failed("making"))?,
        };
        if plan.scope.is_none() && cgroup.existed() {
            refuse_in_use(&cgroup)?;
        }
        guard.made = Some(cgroup);
        Ok(guard)
    }

    /// Sets its limits.
    fn limit(&self, plan: &Plan) -> Result<(), Error> {
        let Some(cgroup) = self.made.as_ref().filter(|_| !self.refused) else { return Ok(()) };
        let failed = |operation: &str| {
            let operation = format!("{operation} cgroup {}", cgroup.path());
            move |source| Error::Cgroup { operation, source }
        };
        cgroup.apply(&plan.resources).map_err(failed("setting the limits of"))?;
        cgroup.apply_devices(&plan.device_rules).map_err(failed("setting the devices of"))?;
        if let Some(owner) = plan.cgroup_owner {
            cgroup.delegate(rustix::fs::Uid::from_raw(owner)).map_err(failed("delegating"))?;
        }
        Ok(())
    }

    pub(crate) fn into_inner(mut self) -> (Option<cgroups::Cgroup>, Option<Cloned>) {
        (self.made.take(), self.keeper.take())
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        self.keeper = None;
        if let Some(cgroup) = self.made.take() {
            let _ = cgroup.delete();
        }
    }
}
