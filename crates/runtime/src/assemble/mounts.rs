//! Mounts and devices as steps of the child. Sources on the host are opened here.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use mount::{Attributes, Bind, ParsedOptions};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::clone::flags;
use sys::mount::{MountAttr, attr, mount_setattr};

use super::{bind_flags, c_string, detached_mounts, path_string};
use crate::child::{Device, DeviceKind, Filesystem, Legacy, Link, MountStep, Step, What};
use crate::plan::{DevicePlan, MountKind, MountPlan, is_namespaced};
use crate::{Error, HostFeatures, Plan};

/// Adds the mounts; returns what has to be made read-only at the end, because it must be filled first.
pub(super) fn mounts(plan: &Plan, host: &HostFeatures, steps: &mut Vec<Step>) -> Result<Vec<Step>, Error> {
    let maker = Maker { plan, host };
    let mut late = Vec::new();
    for mount in &plan.mounts {
        match &mount.kind {
            MountKind::Bind(source) => steps.push(Step::Mount(Box::new(maker.bind(mount, source)?))),
            MountKind::Cgroup => maker.cgroups(mount, steps)?,
            MountKind::Filesystem(kind, source) => {
                let mut options = mount.options.clone();
                let filled = kind == "tmpfs" || mount.target.as_bytes() == b"dev";
                if options.attributes.set & attr::RDONLY != 0 && filled {
                    options.attributes.set &= !attr::RDONLY;
                    late.push(Step::ReadOnlyMount { path: mount.target.clone() });
                }
                steps.push(maker.filesystem(mount, kind, source, &options)?);
            }
        }
    }
    Ok(late)
}

pub(super) fn propagation(options: &ParsedOptions) -> Vec<u64> {
    options.propagation.iter().map(|p| p.kind | if p.recursive { libc::MS_REC } else { 0 }).collect()
}

/// What is set before a mount is attached, and what cannot be.
fn divided_propagation(options: &ParsedOptions) -> (Vec<u64>, Vec<u64>) {
    propagation(options).into_iter().partition(|flags| flags & libc::MS_UNBINDABLE == 0)
}

pub(super) fn step(mount: &MountPlan, what: What, directory: bool) -> MountStep {
    MountStep {
        what,
        target: mount.target.clone(),
        shown: format!("{} to rootfs at {:?}", shown_source(mount), mount.destination.display().to_string()),
        directory,
        propagation: Vec::new(),
        instead: None,
        ordinary: false,
        copy_up: false,
        copy_mode: false,
    }
}

fn shown_source(mount: &MountPlan) -> String {
    match &mount.kind {
        MountKind::Bind(source) => format!("{:?}", source.display().to_string()),
        MountKind::Filesystem(_, source) => format!("{source:?}"),
        MountKind::Cgroup => "\"cgroup\"".to_owned(),
    }
}

/// Makes steps of mounts.
pub(super) struct Maker<'a> {
    pub(super) plan: &'a Plan,
    pub(super) host: &'a HostFeatures,
}

impl Maker<'_> {
    pub(super) fn in_user_space(&self) -> bool {
        self.plan.spaces.has(flags::NEWUSER)
    }

    /// The options of a bind, and the attributes that its options name.
    fn bind_options(&self, mount: &MountPlan) -> (ParsedOptions, Attributes) {
        let mut options = mount.options.clone();
        options.bind = Some(options.bind.unwrap_or(Bind::One));
        let asked = std::mem::take(&mut options.attributes);
        if detached_mounts() {
            options.attributes = bind_flags::changes(asked);
        } else {
            options.attributes = asked;
        }
        if self.plan.root_propagation & libc::MS_SHARED == 0 {
            // As in a tree that was made slave before the bind: events of the host come in, none goes out, unless the
            // options say otherwise.
            let inherited = mount::Propagation { kind: libc::MS_SLAVE, recursive: true };
            options.propagation.insert(0, inherited);
        }
        (options, asked)
    }

    /// What stands for a file system that the kernel may refuse: a bind of a directory of the host.
    pub(super) fn instead(&self, mount: &MountPlan, source: &Path) -> Result<What, Error> {
        if self.in_user_space() || self.is_inside(source) {
            return Ok(self.bind(mount, source)?.what);
        }
        let (options, asked) = self.bind_options(mount);
        Ok(own_bind(mount, source, &options, asked)?.0)
    }

    pub(super) fn bind(&self, mount: &MountPlan, source: &Path) -> Result<MountStep, Error> {
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
        let (mut options, asked) = self.bind_options(mount);
        // The parent's rights reach what a user namespace would keep from the child, and only it can make id maps.
        // Otherwise the child makes the mounts itself, so that the kernel lists them in their order.
        let by_parent =
            self.host.mounts && (self.in_user_space() || options.id_mapped.is_some() || options.id_map.is_some());
        let inside = self.is_inside(source);
        let (what, propagation, directory) = if inside {
            let map = options.id_map.take();
            let recursive = options.id_mapped.take() == Some(true);
            let namespace = map.map(|map| map.user_namespace()).transpose();
            let namespace = namespace
                .map_err(|error| Error::host(format!("{}: {}", mount.field, model::render(&error)), Errno::INVAL))?;
            let (mut what, propagation) = own_bind(mount, source, &options, asked)?;
            if let What::Bind(bind) = &mut what {
                bind.inside = true;
                bind.id_map = namespace.map(|namespace| crate::child::IdMap { namespace, recursive });
            }
            (what, propagation, true)
        } else if detached_mounts() && by_parent {
            let file = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(failed)?.st_mode);
            if self.in_user_space() {
                let changes = bind_flags::locked_changes(asked, &file).map_err(failed)?;
                options.attributes = match changes {
                    Some(changes) => changes,
                    None if mount.is_bind() => return Err(refused(source, &mount.destination)),
                    // The options were meant for the file system that this stands for.
                    None => Attributes { set: asked.set & !attr::ATIME, clear: 0 },
                };
            }
            let tree = mount::detached_bind(file.as_fd(), &options)
                .map_err(|error| Error::host(format!("{}: {}", mount.field, model::render(&error)), Errno::INVAL))?;
            self.map_by_joined(mount, &tree)?;
            (What::Detached(tree), divided_propagation(&options).1, kind == FileType::Directory)
        } else {
            let kind = FileType::from_raw_mode(rustix::fs::stat(source).map_err(failed)?.st_mode);
            let (what, propagation) = own_bind(mount, source, &options, asked)?;
            (what, propagation, kind == FileType::Directory)
        };
        let mut step = step(mount, what, directory);
        step.propagation = propagation;
        Ok(step)
    }

    /// Whether a source is below the root, as the host names it: what is mounted there before it shows through.
    fn is_inside(&self, source: &Path) -> bool {
        let root = self.plan.root_path();
        let attached = self.plan.spaces.own_mounts() && self.plan.root_propagation & libc::MS_SHARED == 0;
        detached_mounts() && attached && root != Path::new("/") && source.starts_with(root)
    }

    /// `idmap` without maps where the container joins a user namespace: that one has them.
    fn map_by_joined(&self, mount: &MountPlan, tree: &OwnedFd) -> Result<(), Error> {
        if mount.options.id_mapped.is_none() || mount.options.id_map.is_some() {
            return Ok(());
        }
        let Some((_, path)) = self.plan.spaces.joined.iter().find(|(kind, _)| *kind == flags::NEWUSER) else {
            return Ok(());
        };
        let failed = |errno| Error::host(format!("{}: mapping ids by {}", mount.field, path.display()), errno);
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let change = MountAttr { user_namespace: Some(namespace.as_fd()), ..MountAttr::default() };
        mount_setattr(tree, c"", mount.options.id_mapped == Some(true), &change).map_err(failed)
    }
}

/// The options name flags as cleared that the source has, and a user namespace must not take away.
fn refused(source: &Path, destination: &Path) -> Error {
    let (source, destination) = (source.display().to_string(), destination.display().to_string());
    let stage = format!(
        "unable to start container process: error during container init: error mounting {source:?} to rootfs at \
         {destination:?}: cannot clear locked flags"
    );
    Error::Child { stage, source: std::io::Error::other("operation not permitted") }
}

/// A bind that the child makes.
fn own_bind(
    mount: &MountPlan,
    source: &Path,
    options: &ParsedOptions,
    asked: Attributes,
) -> Result<(What, Vec<u64>), Error> {
    if options.id_map.is_some() || options.id_mapped.is_some() {
        let reason =
            if detached_mounts() { "id-mapped mounts need CAP_SYS_ADMIN" } else { "id-mapped mounts need Linux 5.12" };
        return Err(Error::unsupported(format!("{}.uidMappings", mount.field), reason));
    }
    let recursive = options.bind == Some(Bind::Tree);
    if detached_mounts() {
        let pair = |attributes: Attributes| (attributes.set, attributes.clear);
        let (early, late) = divided_propagation(options);
        let bind = crate::child::Bind {
            source: path_string(source)?,
            recursive,
            inside: false,
            id_map: None,
            refused: bind_flags::refused(asked),
            attributes: [pair(options.attributes), pair(options.recursive_attributes)],
            propagation: early,
        };
        return Ok((What::Bind(bind), late));
    }
    if options.recursive_attributes != Attributes::default() {
        return Err(Error::unsupported(format!("{}.options", mount.field), "recursive flags need Linux 5.12"));
    }
    let changed = options.attributes != Attributes::default();
    let legacy = Legacy {
        kind: None,
        source: path_string(source)?,
        data: CString::default(),
        flags: libc::MS_BIND | if recursive { libc::MS_REC } else { 0 },
        remount: changed.then_some(libc::MS_REMOUNT | libc::MS_BIND | legacy_flags(options.attributes)),
    };
    Ok((What::Legacy(legacy), propagation(options)))
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

impl Maker<'_> {
    pub(super) fn filesystem(
        &self,
        mount: &MountPlan,
        kind: &str,
        source: &str,
        options: &ParsedOptions,
    ) -> Result<Step, Error> {
        if detached_mounts() && self.host.mounts && !is_namespaced(kind) {
            let tree = mount::detached_with(kind, source, options)
                .map_err(|error| Error::host(format!("{}: {}", mount.field, model::render(&error)), Errno::INVAL))?;
            let mut step = step(mount, What::Detached(tree), true);
            step.propagation = divided_propagation(options).1;
            return Ok(Step::Mount(Box::new(step)));
        }
        let what = filesystem_what(mount, kind, source, options, is_base(mount))?;
        let mut step = step(mount, what, true);
        step.propagation = propagation(options);
        step.ordinary = matches!(kind, "proc" | "sysfs");
        step.copy_up = options.copy_up;
        step.copy_mode = kind == "tmpfs" && !options.data.iter().any(|option| option.starts_with("mode="));
        step.instead = self.view_of_host(mount, kind)?;
        Ok(Step::Mount(Box::new(step)))
    }

    /// A user namespace may only mount the procfs and sysfs of namespaces that it owns. Those that it does not own are
    /// the host's, whose own mounts show the same.
    fn view_of_host(&self, mount: &MountPlan, kind: &str) -> Result<Option<What>, Error> {
        let (owner, place) = match kind {
            "proc" => (flags::NEWPID, Path::new("/proc")),
            "sysfs" => (flags::NEWNET, Path::new("/sys")),
            _ => return Ok(None),
        };
        if !self.in_user_space() || self.plan.spaces.new & owner != 0 {
            return Ok(None);
        }
        let mut bind = mount.clone();
        bind.options.bind = Some(Bind::Tree);
        bind.options.data.clear();
        Ok(Some(self.bind(&bind, place)?.what))
    }
}

/// A label has commas in it, which separate options: mount(2) takes it in quotes.
fn quoted(option: &str) -> std::borrow::Cow<'_, str> {
    match option.strip_prefix("context=") {
        Some(label) if label.contains(',') && !label.starts_with('"') => format!("context=\"{label}\"").into(),
        _ => option.into(),
    }
}

/// Whether the child begins in the mount later, for which it needs a descriptor of it.
fn is_base(mount: &MountPlan) -> bool {
    matches!(mount.target.as_bytes(), b"proc" | b"sys" | b"dev")
}

/// The most that `mount(2)` takes of options, less what the child may add.
const DATA_BYTES: usize = 4000;

/// A new file system. With `kept` by descriptor, for the child to go on in it.
pub(super) fn filesystem_what(
    mount: &MountPlan,
    kind: &str,
    source: &str,
    options: &ParsedOptions,
    kept: bool,
) -> Result<What, Error> {
    if options.recursive_attributes != Attributes::default() && !detached_mounts() {
        return Err(Error::unsupported(format!("{}.options", mount.field), "recursive flags need Linux 5.12"));
    }
    let set = options.attributes.set | options.recursive_attributes.set;
    let simple = options.recursive_attributes == Attributes::default()
        && options.propagation.is_empty()
        && !options.copy_up
        // All mounts of a network namespace's sysfs would be read-only then.
        && (kind != "sysfs" || set & attr::RDONLY == 0);
    if detached_mounts() && simple && !kept {
        // One call, where a descriptor would take five and more.
        let data = options.data.iter().map(|option| quoted(option)).collect::<Vec<_>>().join(",");
        if data.len() < DATA_BYTES {
            return Ok(What::Legacy(Legacy {
                kind: Some(c_string(kind)?),
                source: c_string(source)?,
                data: c_string(data)?,
                flags: legacy_flags(options.attributes) | options.superblock_flags,
                remount: None,
            }));
        }
    }
    if !detached_mounts() {
        let all = legacy_flags(options.attributes) | (options.superblock_flags & !libc::MS_RDONLY);
        // Read-only comes second: for the file system itself it might conflict with its other mounts.
        let read_only = all & libc::MS_RDONLY != 0;
        return Ok(What::Legacy(Legacy {
            kind: Some(c_string(kind)?),
            source: c_string(source)?,
            data: c_string(options.data.iter().map(|option| quoted(option)).collect::<Vec<_>>().join(","))?,
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

pub(super) fn devices(
    plan: &Plan,
    host: &HostFeatures,
    in_user_space: bool,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
    if !plan.fill_dev {
        return Ok(());
    }
    let nodes = host.device_nodes && !in_user_space;
    // A FIFO is no device: anybody may make one.
    let (made, bound): (Vec<_>, Vec<_>) =
        plan.devices.iter().partition(|device| nodes || device.kind == DeviceKind::Fifo);
    {
        let mut rest: Vec<&DevicePlan> = made;
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
    }
    let maker = Maker { plan, host };
    for device in bound {
        steps.push(maker.bind_device(device)?);
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

impl Maker<'_> {
    /// Where nodes cannot be made, the host's are bound, if they are the same device.
    fn bind_device(&self, device: &DevicePlan) -> Result<Step, Error> {
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
        Ok(Step::Mount(Box::new(self.bind(&mount, &device.path)?)))
    }
}
