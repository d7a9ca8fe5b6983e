//! Mounts and devices as steps of the child. Sources on the host are opened here.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use mount::{Attributes, Bind, ParsedOptions};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::clone::flags;
use sys::mount::attr;

use super::{c_string, detached_mounts, path_string};
use crate::child::{Device, Filesystem, Legacy, Link, MountStep, Step, What};
use crate::plan::{DevicePlan, MountKind, MountPlan, is_namespaced};
use crate::{Error, HostFeatures, Plan};

/// Adds the mounts; returns what has to be made read-only at the end, because it must be filled first.
pub(super) fn mounts(plan: &Plan, host: &HostFeatures, steps: &mut Vec<Step>) -> Result<Vec<Step>, Error> {
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

/// What cannot be set before a mount is attached.
fn late_propagation(options: &ParsedOptions) -> Vec<u64> {
    propagation(options).into_iter().filter(|flags| flags & libc::MS_UNBINDABLE != 0).collect()
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
        let mut step = step(mount, What::Detached(tree), directory);
        step.propagation = late_propagation(&options);
        return Ok(Step::Mount(Box::new(step)));
    }
    if options.id_map.is_some() {
        return Err(Error::unsupported(format!("{}.uidMappings", mount.field), "id-mapped mounts need Linux 5.12"));
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

/// A label has commas in it, which separate options: mount(2) takes it in quotes.
fn quoted(option: &str) -> std::borrow::Cow<'_, str> {
    match option.strip_prefix("context=") {
        Some(label) if label.contains(',') && !label.starts_with('"') => format!("context=\"{label}\"").into(),
        _ => option.into(),
    }
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
    for (controller, place) in controllers.iter().filter(|(controller, _)| !controller.is_empty()) {
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

pub(super) fn devices(
    plan: &Plan,
    host: &HostFeatures,
    in_user_space: bool,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
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
