//! From a plan to the script of the child: the host's files are opened here, by the parent, with the parent's rights.

mod bind_flags;
mod cgroup_mounts;
mod mounts;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use sys::clone::flags;
use sys::mount::{MountAttr, attr, copy_with, mount_setattr};

use crate::child::{Awaited, Console, Hook, HookKind, Process, RootTree, Script, Stdio, Step, StringArray};
use crate::plan::{MountKind, ProcessPlan};
use crate::{ConsoleSize, Error, Gate, HostFeatures, Plan, ProcessIo, Rootfs};

/// What the child gets and how it is cloned.
pub(crate) struct Assembled {
    pub(crate) script: Script,
    /// Flags of the first clone.
    pub(crate) clone_flags: u64,
    /// The network namespace that is joined, if devices move into it.
    pub(crate) network: Option<OwnedFd>,
    /// Whether the child waits to be told to go on.
    pub(crate) awaits_admission: bool,
}

fn c_string(bytes: impl Into<Vec<u8>>) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::invalid("path", "must not contain a NUL byte"))
}

fn path_string(path: &Path) -> Result<CString, Error> {
    c_string(path.as_os_str().as_bytes())
}

fn detached_mounts() -> bool {
    sys::features().new_mount_api && sys::features().mount_setattr
}

/// Works out the script, opening what it needs. `born`: whether the process is born in its cgroup.
pub(crate) fn assemble(
    plan: &Plan,
    host: &HostFeatures,
    rootfs: Rootfs,
    io: ProcessIo,
    gate: Option<Gate>,
    born: bool,
) -> Result<Assembled, Error> {
    let mut script = Script::only_program(plan.process.program_name());
    let mut admission = if born && !needs_parent(plan) { Admission::Needless } else { Admission::Open };
    let (clone_flags, network) = enter_spaces(plan, &mut script, &mut admission)?;
    let steps = &mut script.steps;
    root(plan, host, rootfs, steps)?;
    let new_cgroup = plan.spaces.new & flags::NEWCGROUP != 0;
    // The cgroup namespace shows what the process is in when it is made, so that comes after the admission.
    // And what is copied into a tmpfs is the container's memory.
    let needs_cgroup = |mount: &crate::plan::MountPlan| mount.kind == MountKind::Cgroup || mount.options.copy_up;
    if new_cgroup || plan.mounts.iter().any(needs_cgroup) {
        admission.wait(steps);
    }
    if new_cgroup {
        steps.push(Step::Unshare(flags::NEWCGROUP));
    }
    let late_read_only = mounts::mounts(plan, host, steps)?;
    mounts::devices(plan, host, plan.spaces.has(flags::NEWUSER), steps)?;
    let (stdio, console) = stdio(io, plan.process.console_size, true)?;
    steps.extend(console.map(Step::Console));
    steps.push(Step::WorkingDirectory { path: plan.process.working_directory.clone() });
    if !plan.spaces.joins(flags::NEWNS) {
        steps.extend(sysctls(plan));
    }
    if !plan.hooks.before.is_empty() {
        // Hooks find the process in its cgroup. And both its admission and the end of the hooks are told by a byte: the
        // one may not be taken for the other, or the process would run without its limits.
        admission.wait(steps);
        steps.push(Step::HooksDue);
    }
    let inside = |kind, list: &[oci::runtime::Hook]| {
        list.iter().enumerate().map(|(index, hook)| inside_hook(plan, kind, index, hook)).collect::<Result<Vec<_>, _>>()
    };
    if !plan.hooks.create_container.is_empty() {
        admission.wait(steps);
    }
    steps.extend(inside(HookKind::CreateContainer, &plan.hooks.create_container)?.into_iter().map(Step::Hook));
    steps.extend(late_read_only);
    close_root(plan, &mut admission, steps)?;
    let mut process = process(&plan.process, host, stdio)?;
    process.same_ids &= !plan.spaces.has(flags::NEWUSER);
    process.start_hooks = inside(HookKind::StartContainer, &plan.hooks.start_container)?;
    process.gate = gate.map(|gate| (gate.start, gate.report));
    steps.extend(plan.process.tuning.steps());
    steps.extend(limits(&plan.process, host));
    steps.push(Step::Process(Box::new(process)));
    script.few_descriptors = host.few_descriptors;
    if !plan.masked_paths.is_empty() && detached_mounts() && host.mounts {
        script.null = Some(null_device()?);
    }
    let awaits_admission = matches!(admission, Admission::Done);
    Ok(Assembled { script, clone_flags, network, awaits_admission })
}

/// Whether a process that was born in its cgroup needs something else that only its parent can do: id maps, limits that
/// it may not raise itself, network devices, a group of resctrl, and the limits of its cgroup before it uses much or
/// runs anything.
fn needs_parent(plan: &Plan) -> bool {
    plan.spaces.has(flags::NEWUSER)
        || !plan.net_devices.is_empty()
        || plan.resctrl.is_some()
        || !plan.hooks.create_container.is_empty()
        || plan.mounts.iter().any(|mount| mount.options.copy_up)
}

/// Namespaces and what is set in them; returns the flags of the first clone.
fn enter_spaces(plan: &Plan, script: &mut Script, admission: &mut Admission) -> Result<(u64, Option<OwnedFd>), Error> {
    let steps = &mut script.steps;
    let in_user_space = plan.spaces.has(flags::NEWUSER);
    if plan.spaces.new & flags::NEWUSER != 0 {
        admission.wait(steps);
    }
    let joined = open_namespaces(plan)?;
    let network = joined.iter().find(|(_, kind, _)| *kind == flags::NEWNET && !plan.net_devices.is_empty());
    let network = network.map(|(file, ..)| rustix::io::fcntl_dupfd_cloexec(file, 3)).transpose();
    let network = network.map_err(|errno| Error::host("copying a namespace descriptor", errno))?;
    let mut new = plan.spaces.new & !flags::NEWCGROUP;
    let time = plan.spaces.new & flags::NEWTIME != 0;
    if time && !(sys::features().clone3 && plan.spaces.time_offsets.is_empty()) {
        new &= !flags::NEWTIME;
        steps.push(Step::TimeOffsets(plan.spaces.time_offsets.clone().into_bytes()));
    }
    if let Some(score) = plan.process.oom_score {
        // Before the change of ids, which takes the files below /proc/self away.
        steps.push(Step::OomScore(score.to_string().into_bytes()));
    }
    let (mounts, joined): (Vec<_>, Vec<_>) = joined.into_iter().partition(|(_, kind, _)| *kind == flags::NEWNS);
    let clone_flags = if plan.spaces.needs_intermediate() {
        let list = joined.into_iter().map(|(fd, kind, _)| (fd, kind)).collect();
        script.intermediate = vec![Step::Hide, Step::JoinDeferred(list)];
        script.fork = Some(new | flags::PARENT);
        0
    } else {
        steps.extend(joined.into_iter().map(|(namespace, kind, path)| Step::Join { namespace, kind, path }));
        new
    };
    if in_user_space {
        steps.push(Step::BecomeRoot);
    }
    steps.push(Step::NewSession);
    steps.extend(plan.hostname.clone().map(Step::Hostname));
    steps.extend(plan.domainname.clone().map(Step::Domainname));
    if plan.spaces.new & flags::NEWNET != 0 {
        steps.push(Step::Loopback);
    }
    if !plan.net_devices.is_empty() {
        // The parent moves them before it lets this process go on.
        admission.wait(steps);
        for wanted in &plan.net_devices {
            steps.push(Step::NetDevice { device: crate::netdev::describe(wanted)?, up: crate::netdev::up() });
        }
    }
    for (namespace, kind, path) in mounts {
        // From here on procfs is what others have mounted: what is written there comes before.
        steps.extend(sysctls(plan));
        steps.push(Step::Join { namespace, kind, path });
    }
    Ok((clone_flags, network))
}

/// The last changes below the root, and the change to it.
fn close_root(plan: &Plan, admission: &mut Admission, steps: &mut Vec<Step>) -> Result<(), Error> {
    if plan.root_read_only {
        steps.push(Step::RootReadOnly);
    }
    steps.extend(plan.read_only_paths.iter().map(|path| Step::ReadOnly { path: path.clone() }));
    steps.extend(plan.masked_paths.iter().map(|path| Step::Mask { path: path.clone() }));
    admission.wait(steps);
    steps.push(crate::plan::all_processors());
    // As late as there is a procfs of the host, and before the files of this process are taken from it.
    steps.extend(plan.process.labels.steps(plan.process.keyring.is_some())?);
    steps.push(Step::Hide);
    if plan.spaces.own_mounts() {
        let by_move = if plan.no_pivot { Some(revealing_mounts()?) } else { None };
        steps.push(Step::Pivot { by_move });
    } else {
        // The root of a namespace that others use stays theirs.
        steps.push(Step::Chroot);
    }
    if plan.root_propagation & (libc::MS_SHARED | libc::MS_UNBINDABLE) != 0 {
        // Only now: an earlier change would spread to the host (the root has no parent that is shared any more).
        steps.push(Step::RootPropagation(plan.root_propagation));
    }
    Ok(())
}

/// Where the host shows procfs and sysfs, the last mount first. A move leaves the old root below the new one, and what
/// is visible there would let a container with a user namespace mount its own without the masks.
fn revealing_mounts() -> Result<Vec<CString>, Error> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|source| Error::host("reading the mounts of this process", source))?;
    let place = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let kind = filesystem.split(' ').next()?;
        let place = mount.split(' ').nth(4)?;
        matches!(kind, "proc" | "sysfs").then(|| c_string(place.replace("\\040", " ")))
    };
    table.lines().rev().filter_map(place).collect()
}

/// Whether the child has been told to wait for the parent's part yet.
enum Admission {
    Open,
    Done,
    /// It need not wait.
    Needless,
}

impl Admission {
    fn wait(&mut self, steps: &mut Vec<Step>) {
        if matches!(self, Self::Open) {
            steps.push(Step::Await(Awaited::Admission));
            *self = Self::Done;
        }
    }
}

fn open_namespaces(plan: &Plan) -> Result<Vec<(OwnedFd, u64, String)>, Error> {
    let mut list = Vec::new();
    for (kind, path) in &plan.spaces.joined {
        let shown = path.display().to_string();
        let operation = || format!("opening namespace {shown}");
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| Error::host(operation(), errno))?;
        // A path that is something else must not be given to setns, nor one of another kind be joined unnoticed.
        let kind_found = sys::clone::namespace_kind(file.as_fd()).map_err(|errno| Error::host(operation(), errno))?;
        if kind_found != *kind {
            return Err(Error::invalid("linux.namespaces", format!("{shown} is of another kind")));
        }
        if *kind == flags::NEWNET && crate::plan::of_network(&plan.sysctls) && is_own_network(&file)? {
            return Err(Error::invalid("linux.sysctl", "net.* is not allowed in host network namespace"));
        }
        list.push((file, *kind, shown));
    }
    Ok(list)
}

/// Whether the namespace is the caller's, whose parameters are the host's.
fn is_own_network(namespace: &OwnedFd) -> Result<bool, Error> {
    let failed = |errno| Error::host("comparing network namespaces", errno);
    let found = rustix::fs::fstat(namespace).map_err(failed)?;
    let own = rustix::fs::stat(c"/proc/self/ns/net").map_err(failed)?;
    Ok((found.st_dev, found.st_ino) == (own.st_dev, own.st_ino))
}

fn sysctls(plan: &Plan) -> impl Iterator<Item = Step> + '_ {
    plan.sysctls.iter().map(|(path, value)| Step::Sysctl { path: path.clone(), value: value.clone() })
}

fn root(plan: &Plan, host: &HostFeatures, rootfs: Rootfs, steps: &mut Vec<Step>) -> Result<(), Error> {
    if !plan.spaces.own_mounts() {
        let Rootfs::Path(path) = rootfs else {
            return Err(Error::unsupported("linux.namespaces", "a detached root needs a new mount namespace"));
        };
        let propagation = libc::MS_PRIVATE | libc::MS_REC;
        steps.push(Step::Root(RootTree::Path { directory: path_string(&path)?, propagation }));
        return Ok(());
    }
    // Mounts of the host reach the container's namespace, not the other way round; and nothing of ours gets out.
    let shared = plan.root_propagation & libc::MS_SHARED != 0;
    let propagation = if shared {
        libc::MS_PRIVATE
    } else if plan.root_propagation & libc::MS_PRIVATE != 0 {
        libc::MS_PRIVATE | libc::MS_REC
    } else {
        libc::MS_SLAVE | libc::MS_REC
    };
    steps.push(Step::Propagation(propagation));
    let tree = match rootfs {
        Rootfs::Detached(mount) => RootTree::Detached { mount, place: None },
        Rootfs::Path(path) if !(detached_mounts() && host.mounts) => {
            RootTree::Path { directory: path_string(&path)?, propagation: libc::MS_PRIVATE }
        }
        Rootfs::Path(path) => {
            let operation = || format!("opening the root file system {}", path.display());
            let failed = |errno| Error::host(operation(), errno);
            let change = MountAttr {
                propagation: if propagation & libc::MS_SLAVE != 0 { libc::MS_SLAVE } else { libc::MS_PRIVATE },
                ..MountAttr::default()
            };
            let name = path_string(&path)?;
            if shared {
                let flags =
                    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
                let tree = rustix::mount::open_tree(rustix::fs::CWD, &name, flags).map_err(failed)?;
                mount_setattr(&tree, c"", false, &change).map_err(failed)?;
                // A parent that is shared with the host would show it the container's root.
                RootTree::Detached { mount: tree, place: None }
            } else {
                let tree = copy_with(rustix::fs::CWD, &name, true, true, &change).map_err(failed)?;
                RootTree::Detached { mount: tree, place: Some(name) }
            }
        }
    };
    steps.push(Step::Root(tree));
    Ok(())
}

fn stdio(io: ProcessIo, spec_size: Option<ConsoleSize>, device: bool) -> Result<(Stdio, Option<Console>), Error> {
    match io {
        ProcessIo::Inherited => Ok((Stdio::Inherited, None)),
        ProcessIo::Console { size } => {
            let size = size.or(spec_size).map(|size| (size.rows, size.columns));
            Ok((Stdio::Terminal, Some(Console { size, device })))
        }
        ProcessIo::Streams { stdin, stdout, stderr } => {
            // Above the numbers that they will be copied to, so that no copy overwrites a source.
            let above = |fd: OwnedFd| {
                use std::os::fd::AsRawFd as _;
                if fd.as_raw_fd() > 2 {
                    return Ok(fd);
                }
                rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(|errno| Error::host("copying a standard stream", errno))
            };
            Ok((Stdio::Streams([above(stdin)?, above(stdout)?, above(stderr)?]), None))
        }
    }
}

/// The limits: not being able to raise one is an error only where the host has the right to.
pub(crate) fn limits(plan: &ProcessPlan, host: &HostFeatures) -> Option<Step> {
    let vital = host.raises_limits();
    (!plan.limits.is_empty()).then(|| Step::Limits { limits: plan.limits.clone(), vital })
}

/// What the program runs as, without hooks and gate.
pub(crate) fn process(plan: &ProcessPlan, host: &HostFeatures, stdio: Stdio) -> Result<Process, Error> {
    crate::seccomp::check_host(plan.filter.as_ref())?;
    let (candidates, searched) = plan.candidates();
    let mut capabilities = plan.capabilities.unwrap_or_default();
    capabilities.known = host.capabilities_known;
    Ok(Process {
        stdio,
        working_directory: plan.working_directory.clone(),
        candidates,
        searched,
        arguments: StringArray::new(plan.arguments.clone()),
        find_home: !plan.environment.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")),
        environment: StringArray::new(plan.environment.clone()),
        uid: plan.uid,
        gid: plan.gid,
        groups: plan.groups.iter().copied().map(Gid::from_raw).collect(),
        same_ids: host.root_ids && plan.uid == 0 && plan.gid == 0,
        umask: plan.umask.unwrap_or(0o022),
        capabilities,
        no_new_privileges: plan.no_new_privileges.unwrap_or(false),
        filter: plan.filter.clone(),
        keyring: plan.keyring.as_ref().map(|name| c_string(name.as_str())).transpose()?,
        preserve_fds: plan.preserve_fds,
        descriptor_limit: host.descriptor_limit,
        own_program: host.own_program,
        gate: None,
        at_once: false,
        silent: false,
        start_hooks: Vec::new(),
    })
}

pub(crate) fn exec_stdio(io: ProcessIo, size: Option<ConsoleSize>) -> Result<(Stdio, Option<Console>), Error> {
    stdio(io, size, false)
}

/// The host's null device as a mount of its own, read-only so that nobody changes its mode through it.
fn null_device() -> Result<OwnedFd, Error> {
    let failed = |errno| Error::host("opening /dev/null to mask paths with", errno);
    let change = MountAttr {
        set: attr::RDONLY | attr::NOSUID | attr::NOEXEC,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    let tree = copy_with(rustix::fs::CWD, c"/dev/null", false, true, &change).map_err(failed)?;
    let found = rustix::fs::statat(&tree, c"", AtFlags::EMPTY_PATH).map_err(failed)?;
    let device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    if device && found.st_rdev == rustix::fs::makedev(1, 3) { Ok(tree) } else { Err(failed(Errno::NODEV)) }
}

fn inside_hook(plan: &Plan, kind: HookKind, index: usize, hook: &oci::runtime::Hook) -> Result<Hook, Error> {
    let strings = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| c_string(text.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let path = path_string(hook.path())?;
    let mut arguments = strings(hook.args())?;
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    let status = match kind {
        HookKind::CreateContainer => "creating",
        HookKind::StartContainer => "created",
    };
    Ok(Hook {
        kind,
        index,
        path,
        arguments: StringArray::new(arguments),
        environment: StringArray::new(strings(hook.env())?),
        timeout_ms: hook.timeout().map(|seconds| i32::try_from(seconds.saturating_mul(1000)).unwrap_or(i32::MAX)),
        state: crate::hooks::state_around_pid(plan, status),
    })
}
