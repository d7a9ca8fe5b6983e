//! From a plan to the script of the child: the host's files are opened here, by the parent, with the parent's rights.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use mount::{Attributes, Bind, ParsedOptions};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use sys::clone::flags;
use sys::mount::{MountAttr, attr, mount_setattr};

use crate::child::{
    Awaited, Console, Device, Filesystem, Hook, HookKind, Legacy, Link, MountStep, Process, RootTree, Script, Stdio,
    Step, StringArray, What,
};
use crate::plan::{DevicePlan, MountKind, MountPlan, ProcessPlan, is_namespaced};
use crate::{ConsoleSize, Error, Gate, HostFeatures, Plan, ProcessIo, Rootfs};

/// What the child gets and how it is cloned.
pub(crate) struct Assembled {
    pub(crate) script: Script,
    /// Flags of the first clone.
    pub(crate) clone_flags: u64,
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

pub(crate) fn assemble(
    plan: &Plan,
    host: &HostFeatures,
    rootfs: Rootfs,
    io: ProcessIo,
    gate: Option<Gate>,
) -> Result<Assembled, Error> {
    let mut script = Script::only_program(plan.process.program_name());
    let mut new = plan.spaces.new;
    let mut admission = Admission::Open;
    let mut list = Vec::new();
    let steps = &mut list;
    let in_user_space = plan.spaces.has(flags::NEWUSER);
    if plan.spaces.new & flags::NEWUSER != 0 {
        admission.wait(steps);
    }
    let joined = open_namespaces(plan)?;
    // The cgroup namespace shows what the process is in when it is made, so that comes after the admission.
    new &= !flags::NEWCGROUP;
    let time = plan.spaces.new & flags::NEWTIME != 0;
    if time && !(sys::features().clone3 && plan.spaces.time_offsets.is_empty()) {
        new &= !flags::NEWTIME;
        steps.push(Step::TimeOffsets(plan.spaces.time_offsets.clone().into_bytes()));
    }
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
    root(plan, rootfs, steps)?;
    if plan.spaces.new & flags::NEWCGROUP != 0 || plan.mounts.iter().any(|mount| mount.kind == MountKind::Cgroup) {
        admission.wait(steps);
    }
    if plan.spaces.new & flags::NEWCGROUP != 0 {
        steps.push(Step::Unshare(flags::NEWCGROUP));
    }
    let late_read_only = mounts(plan, host, steps)?;
    dev(plan, host, in_user_space, steps)?;
    let (stdio, console) = stdio(io, plan.process.console_size, true)?;
    steps.extend(console.map(Step::Console));
    steps.push(Step::WorkingDirectory { path: plan.process.working_directory.clone() });
    steps.extend(plan.sysctls.iter().map(|(path, value)| Step::Sysctl { path: path.clone(), value: value.clone() }));
    if let Some(score) = plan.process.oom_score {
        steps.push(Step::OomScore(score.to_string().into_bytes()));
    }
    if !plan.hooks.before.is_empty() {
        steps.push(Step::HooksDue);
    }
    let inside = |kind, list: &[oci::runtime::Hook]| {
        list.iter().enumerate().map(|(index, hook)| inside_hook(plan, kind, index, hook)).collect::<Result<Vec<_>, _>>()
    };
    steps.extend(inside(HookKind::CreateContainer, &plan.hooks.create_container)?.into_iter().map(Step::Hook));
    steps.extend(late_read_only);
    if plan.root_read_only {
        steps.push(Step::RootReadOnly);
    }
    steps.extend(plan.read_only_paths.iter().map(|path| Step::ReadOnly { path: path.clone() }));
    steps.extend(plan.masked_paths.iter().map(|path| Step::Mask { path: path.clone() }));
    admission.wait(steps);
    steps.push(Step::Hide);
    steps.push(Step::Pivot { by_move: plan.no_pivot });
    if plan.root_propagation & libc::MS_SHARED != 0 {
        // Only now: an earlier change would spread to the host (the root has no parent that is shared any more).
        steps.push(Step::RootPropagation(plan.root_propagation));
    }
    let mut process = process(&plan.process, host, stdio)?;
    process.start_hooks = inside(HookKind::StartContainer, &plan.hooks.start_container)?;
    process.gate = gate.map(|gate| (gate.start, gate.report));
    steps.push(Step::Process(Box::new(process)));
    script.steps = list;
    if !plan.masked_paths.is_empty() && detached_mounts() {
        script.null = Some(null_device()?);
    }
    Ok(Assembled { script, clone_flags })
}

/// Whether the child has been told to wait for the parent's part yet.
enum Admission {
    Open,
    Done,
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
        list.push((file, *kind, shown));
    }
    Ok(list)
}

fn root(plan: &Plan, rootfs: Rootfs, steps: &mut Vec<Step>) -> Result<(), Error> {
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
        Rootfs::Detached(mount) => RootTree::Detached(mount),
        Rootfs::Path(path) if !detached_mounts() => RootTree::Path(path_string(&path)?),
        Rootfs::Path(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            let operation = || format!("opening the root file system {}", path.display());
            let tree = rustix::mount::open_tree(rustix::fs::CWD, &path, flags)
                .map_err(|errno| Error::host(operation(), errno))?;
            let change = MountAttr {
                propagation: if propagation & libc::MS_SLAVE != 0 { libc::MS_SLAVE } else { libc::MS_PRIVATE },
                ..MountAttr::default()
            };
            mount_setattr(&tree, c"", !shared, &change).map_err(|errno| Error::host(operation(), errno))?;
            RootTree::Detached(tree)
        }
    };
    steps.push(Step::Root(tree));
    Ok(())
}

/// Adds the mounts; returns what has to be made read-only at the end, because it must be filled first.
fn mounts(plan: &Plan, host: &HostFeatures, steps: &mut Vec<Step>) -> Result<Vec<Step>, Error> {
    let mut late = Vec::new();
    for mount in &plan.mounts {
        match &mount.kind {
            MountKind::Bind(source) => steps.push(bind(plan, mount, source)?),
            MountKind::Cgroup => cgroup_mounts(plan, mount, host, steps)?,
            MountKind::Filesystem(kind, source) => {
                let mut options = mount.options.clone();
                if options.attributes.set & attr::RDONLY != 0 && mount.target.as_bytes() == b"dev" {
                    options.attributes.set &= !attr::RDONLY;
                    late.push(Step::ReadOnlyMount { path: mount.target.clone() });
                }
                steps.push(filesystem(mount, kind, source, &options)?);
            }
        }
    }
    Ok(late)
}

fn propagation(options: &ParsedOptions) -> Vec<u64> {
    options.propagation.iter().map(|p| p.kind | if p.recursive { libc::MS_REC } else { 0 }).collect()
}

fn step(mount: &MountPlan, what: What, directory: bool) -> MountStep {
    MountStep {
        what,
        target: mount.target.clone(),
        shown: format!("{} to rootfs at {:?}", shown_source(mount), mount.destination.display().to_string()),
        directory,
        propagation: Vec::new(),
        instead: None,
    }
}

fn shown_source(mount: &MountPlan) -> String {
    match &mount.kind {
        MountKind::Bind(source) => format!("{:?}", source.display().to_string()),
        MountKind::Filesystem(_, source) => format!("{source:?}"),
        MountKind::Cgroup => "\"cgroup\"".to_owned(),
    }
}

fn bind(plan: &Plan, mount: &MountPlan, source: &Path) -> Result<Step, Error> {
    let failed = |errno: Errno| {
        Error::host(
            format!(
                "error mounting {:?} to rootfs at {:?}: opening the source",
                source.display().to_string(),
                mount.destination.display().to_string()
            ),
            errno,
        )
    };
    let file = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(failed)?.st_mode);
    let directory = kind == FileType::Directory;
    let mut options = mount.options.clone();
    options.bind = Some(options.bind.unwrap_or(Bind::One));
    let shared = plan.root_propagation & libc::MS_SHARED != 0;
    if !shared {
        // As in a tree that was made slave before the bind: events of the host come in, none goes out, unless the
        // options say otherwise.
        let inherited = mount::Propagation { kind: libc::MS_SLAVE, recursive: true };
        options.propagation.insert(0, inherited);
    }
    if detached_mounts() {
        let tree = mount::detached_bind(file.as_fd(), &options)
            .map_err(|error| Error::host(format!("{}: {}", mount.field, model::render(&error)), Errno::INVAL))?;
        return Ok(Step::Mount(Box::new(step(mount, What::Detached(tree), directory))));
    }
    if options.recursive_attributes != Attributes::default() {
        return Err(Error::unsupported(format!("{}.options", mount.field), "recursive flags need Linux 5.12"));
    }
    let recursive = if options.bind == Some(Bind::Tree) { libc::MS_REC } else { 0 };
    let remount = legacy_flags(options.attributes);
    let changed = options.attributes != Attributes::default();
    let legacy = Legacy {
        kind: None,
        source: path_string(source)?,
        data: CString::default(),
        flags: libc::MS_BIND | recursive,
        remount: changed.then_some(libc::MS_REMOUNT | libc::MS_BIND | remount),
    };
    let mut step = step(mount, What::Legacy(legacy), directory);
    step.propagation = propagation(&options);
    Ok(Step::Mount(Box::new(step)))
}

/// `MS_*` of `MOUNT_ATTR_*`.
fn legacy_flags(attributes: Attributes) -> u64 {
    let mut flags = 0;
    for (bit, flag) in [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
        (attr::NOATIME, libc::MS_NOATIME),
        (attr::STRICTATIME, libc::MS_STRICTATIME),
        (attr::NODIRATIME, libc::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, 256),
    ] {
        if attributes.set & bit != 0 {
            flags |= flag;
        }
    }
    if attributes.clear & attr::ATIME != 0 && attributes.set & attr::ATIME == 0 {
        flags |= libc::MS_RELATIME;
    }
    flags
}

fn filesystem(mount: &MountPlan, kind: &str, source: &str, options: &ParsedOptions) -> Result<Step, Error> {
    if detached_mounts() && !is_namespaced(kind) {
        let tree = mount::detached_with(kind, source, options)
            .map_err(|error| Error::host(format!("{}: {}", mount.field, model::render(&error)), Errno::INVAL))?;
        return Ok(Step::Mount(Box::new(step(mount, What::Detached(tree), true))));
    }
    let what = filesystem_what(mount, kind, source, options)?;
    let mut step = step(mount, what, true);
    step.propagation = propagation(options);
    Ok(Step::Mount(Box::new(step)))
}

fn filesystem_what(mount: &MountPlan, kind: &str, source: &str, options: &ParsedOptions) -> Result<What, Error> {
    if options.recursive_attributes != Attributes::default() && !detached_mounts() {
        return Err(Error::unsupported(format!("{}.options", mount.field), "recursive flags need Linux 5.12"));
    }
    let set = options.attributes.set | options.recursive_attributes.set;
    if !detached_mounts() {
        let all = legacy_flags(options.attributes) | (options.superblock_flags & !libc::MS_RDONLY);
        // Read-only comes second: for the file system itself it might conflict with its other mounts.
        let read_only = all & libc::MS_RDONLY != 0;
        return Ok(What::Legacy(Legacy {
            kind: Some(c_string(kind)?),
            source: c_string(source)?,
            data: c_string(options.data.join(","))?,
            flags: all & !libc::MS_RDONLY,
            remount: read_only.then_some(all | libc::MS_REMOUNT | libc::MS_BIND),
        }));
    }
    let mut parameters = Vec::new();
    for (flag, key) in [
        (libc::MS_SYNCHRONOUS, c"sync"),
        (libc::MS_DIRSYNC, c"dirsync"),
        (libc::MS_MANDLOCK, c"mand"),
        (libc::MS_LAZYTIME, c"lazytime"),
    ] {
        if options.superblock_flags & flag != 0 {
            parameters.push((key.to_owned(), None));
        }
    }
    for entry in &options.data {
        parameters.push(match entry.split_once('=') {
            Some((key, value)) => (c_string(key)?, Some(c_string(value)?)),
            None => (c_string(entry.as_str())?, None),
        });
    }
    Ok(What::Filesystem(Filesystem {
        kind: c_string(kind)?,
        source: c_string(source)?,
        parameters,
        attributes: u32::try_from(set).unwrap_or(0),
    }))
}

/// The container's view of the cgroups: on version 2 one mount; on version 1 a directory with one per hierarchy.
fn cgroup_mounts(plan: &Plan, mount: &MountPlan, host: &HostFeatures, steps: &mut Vec<Step>) -> Result<(), Error> {
    let own_view = plan.spaces.has(flags::NEWCGROUP);
    match &host.cgroups {
        cgroups::Host::V2 { mount: place } => {
            let source = place.join(plan.cgroup.as_str());
            if !own_view {
                steps.push(bind(plan, mount, &source)?);
                return Ok(());
            }
            let what = filesystem_what(mount, "cgroup2", "cgroup", &mount.options)?;
            let mut made = step(mount, what, true);
            made.propagation = propagation(&mount.options);
            if detached_mounts()
                && let Step::Mount(instead) = bind(plan, mount, &source)?
                && let What::Detached(tree) = instead.what
            {
                made.instead = Some(tree);
            }
            steps.push(Step::Mount(Box::new(made)));
        }
        cgroups::Host::V1 { controllers } => cgroup_v1(plan, mount, controllers, own_view, steps)?,
    }
    Ok(())
}

fn cgroup_v1(
    plan: &Plan,
    mount: &MountPlan,
    controllers: &[(String, std::path::PathBuf)],
    own_view: bool,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
    let read_only = mount.options.attributes.set & attr::RDONLY != 0;
    let mut options = mount.options.clone();
    options.attributes.set &= !attr::RDONLY;
    options.data = vec!["mode=755".to_owned()];
    steps.push(filesystem(mount, "tmpfs", "tmpfs", &options)?);
    let below = |name: &str| {
        let target = c_string([mount.target.as_bytes(), b"/", name.as_bytes()].concat())?;
        Ok::<_, Error>(MountPlan { target, destination: mount.destination.join(name), ..mount.clone() })
    };
    let mut links = Vec::new();
    let mut places: Vec<&Path> = Vec::new();
    for (controller, place) in controllers {
        let directory = place.file_name().and_then(|name| name.to_str()).unwrap_or(controller);
        if controller != directory && !controller.starts_with("name=") {
            links.push(Link { name: c_string(controller.as_str())?, target: c_string(directory)? });
        }
        if places.contains(&place.as_path()) {
            continue;
        }
        places.push(place);
        let part = below(directory)?;
        if own_view {
            let together = controllers.iter().filter(|(_, other)| other == place).map(|(name, _)| name.clone());
            let mut options = part.options.clone();
            options.data = together.collect();
            // A named hierarchy has no controllers.
            if options.data.iter().any(|name| name.starts_with("name=")) {
                options.data.insert(0, "none".to_owned());
            }
            let what = filesystem_what(&part, "cgroup", "cgroup", &options)?;
            steps.push(Step::Mount(Box::new(step(&part, what, true))));
        } else {
            steps.push(bind(plan, &part, &place.join(plan.cgroup.as_str()))?);
        }
    }
    if !links.is_empty() {
        steps.push(Step::Links { parent: mount.target.clone(), links });
    }
    if read_only {
        steps.push(Step::ReadOnlyMount { path: mount.target.clone() });
    }
    Ok(())
}

fn dev(plan: &Plan, host: &HostFeatures, in_user_space: bool, steps: &mut Vec<Step>) -> Result<(), Error> {
    if !plan.fill_dev {
        return Ok(());
    }
    if host.device_nodes && !in_user_space {
        let mut rest: Vec<&DevicePlan> = plan.devices.iter().collect();
        while let Some(first) = rest.first() {
            let parent = first.parent.clone();
            let (these, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|device| device.parent == parent);
            rest = others;
            let devices = these
                .iter()
                .map(|d| Device {
                    name: d.name.clone(),
                    kind: d.kind,
                    number: d.number,
                    mode: d.mode,
                    uid: d.uid,
                    gid: d.gid,
                })
                .collect();
            steps.push(Step::Devices { parent, devices });
        }
    } else {
        for device in &plan.devices {
            steps.push(bind_device(plan, device)?);
        }
    }
    let mut links = vec![
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    if host.kcore {
        links.push(("core", "/proc/kcore"));
    }
    let links = links
        .into_iter()
        .map(|(name, target)| Ok(Link { name: c_string(name)?, target: c_string(target)? }))
        .collect::<Result<Vec<_>, Error>>()?;
    steps.push(Step::Links { parent: c"dev".to_owned(), links });
    Ok(())
}

/// Where nodes cannot be made, the host's are bound, if they are the same device.
fn bind_device(plan: &Plan, device: &DevicePlan) -> Result<Step, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |source| Error::host(format!("looking at device {}", device.path.display()), source);
    let found = std::fs::metadata(&device.path).map_err(failed)?;
    let kind = found.file_type();
    if !(kind.is_char_device() || kind.is_block_device()) || found.rdev() != device.number {
        return Err(failed(std::io::Error::from_raw_os_error(libc::ENODEV)));
    }
    let mut target = device.parent.as_bytes().to_vec();
    target.push(b'/');
    target.extend_from_slice(device.name.as_bytes());
    let mount = MountPlan {
        field: "linux.devices".to_owned(),
        kind: MountKind::Bind(device.path.clone()),
        target: c_string(target)?,
        destination: device.path.clone(),
        options: ParsedOptions::default(),
    };
    bind(plan, &mount, &device.path)
}

fn stdio(io: ProcessIo, spec_size: Option<ConsoleSize>, device: bool) -> Result<(Stdio, Option<Console>), Error> {
    match io {
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

/// What the program runs as, without hooks and gate.
pub(crate) fn process(plan: &ProcessPlan, host: &HostFeatures, stdio: Stdio) -> Result<Process, Error> {
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
        umask: plan.umask,
        limits: plan.limits.clone(),
        capabilities,
        no_new_privileges: plan.no_new_privileges,
        filter: plan.filter.clone(),
        keyring: plan.keyring.as_ref().map(|name| c_string(name.as_str())).transpose()?,
        preserve_fds: plan.preserve_fds,
        descriptor_limit: host.descriptor_limit,
        own_program: host.own_program,
        gate: None,
        at_once: false,
        start_hooks: Vec::new(),
    })
}

pub(crate) fn exec_stdio(io: ProcessIo, size: Option<ConsoleSize>) -> Result<(Stdio, Option<Console>), Error> {
    stdio(io, size, false)
}

/// The host's null device as a mount of its own, read-only so that nobody changes its mode through it.
fn null_device() -> Result<OwnedFd, Error> {
    let failed = |errno| Error::host("opening /dev/null to mask paths with", errno);
    let file = rustix::fs::open(c"/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let found = rustix::fs::statat(&file, c"", AtFlags::EMPTY_PATH).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice || found.st_rdev != rustix::fs::makedev(1, 3)
    {
        return Err(failed(Errno::NODEV));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&file, c"", flags).map_err(failed)?;
    let change = MountAttr {
        set: attr::RDONLY | attr::NOSUID | attr::NOEXEC,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    mount_setattr(&tree, c"", false, &change).map_err(failed)?;
    Ok(tree)
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
