//! Mounts and devices.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use mount::{IdMap, IdRange, ParsedOptions};
use oci::runtime::{Linux, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType};
use sys::undefended::{Defence, left_out};

use crate::Error;
use crate::child::DeviceKind;

/// One mount of the specification.
#[derive(Clone, Debug)]
pub(crate) struct MountPlan {
    /// Its name in errors: `mounts[3]`.
    pub(crate) field: String,
    pub(crate) kind: MountKind,
    /// Below the root, without a leading slash.
    pub(crate) target: CString,
    /// The destination as the specification has it.
    pub(crate) destination: PathBuf,
    pub(crate) options: ParsedOptions,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A file or directory of the host.
    Bind(PathBuf),
    /// A file system: type and source.
    Filesystem(String, String),
    /// The container's view of the cgroups.
    Cgroup,
}

impl MountPlan {
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, MountKind::Bind(_))
    }
}

/// File systems that are made of the namespaces of whoever mounts them.
pub(crate) fn is_namespaced(kind: &str) -> bool {
    matches!(kind, "proc" | "sysfs" | "mqueue" | "devpts" | "tmpfs" | "cgroup2")
}

/// A path below the root: `.` and `..` resolved as text (runtime-spec allows them nowhere), no leading slash.
pub(crate) fn fold_path(path: &Path) -> Result<CString, Error> {
    let mut names: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let bytes: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    CString::new(bytes.join(&b'/')).map_err(|_| Error::invalid("path", "must not contain a NUL byte"))
}

pub(crate) fn plan(spec: &oci::Spec, bundle: &Path, root: &Path) -> Result<Vec<MountPlan>, Error> {
    let mut list = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        let options = mount::parse_options(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| Error::invalid(format!("{field}.options"), model::render(&error)))?;
        // Some documents name the place as the host has it, root and all; runc takes that, too.
        let given = mount.destination();
        let below = if root == Path::new("/") { None } else { given.strip_prefix(root).ok() };
        let target = fold_path(below.unwrap_or(given))?;
        if target.is_empty() {
            return Err(Error::invalid(format!("{field}.destination"), "must not be the root itself"));
        }
        let name = mount.typ().as_deref().unwrap_or_default();
        let source = mount.source().clone().unwrap_or_default();
        let kind = if options.bind.is_some() || name == "bind" {
            if source.as_os_str().is_empty() {
                return Err(Error::invalid(format!("{field}.source"), "a bind mount needs one"));
            }
            MountKind::Bind(bundle.join(source))
        } else if name == "cgroup" {
            MountKind::Cgroup
        } else if name.is_empty() || name == "none" {
            return Err(Error::invalid(format!("{field}.type"), "is needed for what is no bind mount"));
        } else {
            let source = source.to_str().ok_or_else(|| Error::invalid(format!("{field}.source"), "is not UTF-8"))?;
            MountKind::Filesystem(name.to_owned(), if source.is_empty() { name } else { source }.to_owned())
        };
        let mut plan = MountPlan { field, kind, target, destination: mount.destination().clone(), options };
        check_place_in_proc(&plan)?;
        refuse_unsupported(&plan)?;
        id_map(&mut plan, mount, spec.linux().as_ref())?;
        list.push(plan);
    }
    Ok(list)
}

/// The maps of an id-mapped mount: its own, or those of the container's user namespace.
fn id_map(plan: &mut MountPlan, mount: &oci::runtime::Mount, linux: Option<&Linux>) -> Result<(), Error> {
    let ranges = |list: &Option<Vec<LinuxIdMapping>>| {
        let range = |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), length: m.size() };
        list.iter().flatten().map(range).collect::<Vec<_>>()
    };
    let own = IdMap { users: ranges(mount.uid_mappings()), groups: ranges(mount.gid_mappings()) };
    let given = own != IdMap::default();
    if !given && plan.options.id_mapped.is_none() {
        return Ok(());
    }
    let field = format!("{}.uidMappings", plan.field);
    if !plan.is_bind() {
        return Err(Error::unsupported(field, "only bind mounts can be id-mapped"));
    }
    let joined = linux.into_iter().flat_map(|linux| linux.namespaces().iter().flatten()).any(|namespace| {
        namespace.typ() == LinuxNamespaceType::User
            && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    });
    if joined && !given {
        // The namespace itself carries the maps.
        return Ok(());
    }
    let map = match linux {
        Some(linux) if !given => IdMap { users: ranges(linux.uid_mappings()), groups: ranges(linux.gid_mappings()) },
        _ => own,
    };
    if map.users.is_empty() || map.groups.is_empty() {
        return Err(Error::invalid(field, "an id-mapped mount needs mappings for users and groups"));
    }
    plan.options.id_map = Some(map);
    Ok(())
}

/// Options of a bind that are for a file system: the kernel takes them nowhere, and runtimes have always let them pass.
pub(crate) fn warnings(mounts: &[MountPlan]) -> impl Iterator<Item = String> + '_ {
    mounts.iter().filter(|mount| mount.is_bind()).flat_map(|mount| {
        mount.options.data.iter().map(|option| format!("{}.options: {option:?} means nothing for a bind", mount.field))
    })
}

fn refuse_unsupported(plan: &MountPlan) -> Result<(), Error> {
    let tmpfs = matches!(&plan.kind, MountKind::Filesystem(kind, _) if kind == "tmpfs");
    if plan.options.copy_up && !tmpfs {
        return Err(Error::invalid(format!("{}.options", plan.field), "tmpcopyup is for a tmpfs"));
    }
    let of_links = |option: &&String| matches!(option.as_str(), "copy-symlink" | "src-nofollow" | "dest-nofollow");
    if let Some(option) = plan.options.data.iter().find(of_links) {
        return Err(Error::unsupported(format!("{}.options", plan.field), format!("{option} is not supported")));
    }
    if plan.options.remount {
        return Err(Error::unsupported(format!("{}.options", plan.field), "remount is not supported"));
    }
    if plan.options.loop_device.is_some() {
        return Err(Error::unsupported(format!("{}.options", plan.field), "loop devices are not supported"));
    }
    Ok(())
}

/// Nothing but a procfs belongs on `/proc`, and only a few files below it may be covered: whoever controls what
/// `/proc/self` says controls what later steps write to (CVE-2019-19921 class).
fn check_place_in_proc(plan: &MountPlan) -> Result<(), Error> {
    const COVERABLE: [&[u8]; 11] = [
        b"cpuinfo",
        b"diskstats",
        b"meminfo",
        b"stat",
        b"swaps",
        b"uptime",
        b"loadavg",
        b"slabinfo",
        b"net/dev",
        b"sys/kernel/ns_last_pid",
        b"sys/crypto/fips_enabled",
    ];
    let refuse = || {
        let shown = plan.destination.display();
        Err(Error::invalid(
            format!("{}.destination", plan.field),
            format!("{shown:?} cannot be mounted because it is inside /proc"),
        ))
    };
    if left_out(Defence::ProcPlace) {
        return Ok(());
    }
    let target = plan.target.as_bytes();
    if target == b"proc" {
        let procfs = match &plan.kind {
            MountKind::Filesystem(kind, _) => kind == "proc",
            MountKind::Bind(source) => source == Path::new("/proc"),
            MountKind::Cgroup => false,
        };
        return if procfs { Ok(()) } else { refuse() };
    }
    match target.strip_prefix(b"proc/") {
        Some(name) if !COVERABLE.contains(&name) => refuse(),
        _ => Ok(()),
    }
}

/// A device of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    /// Directory below the root.
    pub(crate) parent: CString,
    pub(crate) name: CString,
    /// Where the host has it, to bind it from.
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) number: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn device(
    path: &Path,
    kind: DeviceKind,
    number: (u32, u32),
    mode: u32,
    owner: (u32, u32),
) -> Result<DevicePlan, Error> {
    let folded = fold_path(path)?;
    let bytes = folded.as_bytes();
    let cut = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let part = |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::invalid("linux.devices", "NUL byte"));
    let name = bytes.get(cut..).unwrap_or_default();
    let name = part(name.strip_prefix(b"/").unwrap_or(name))?;
    if name.is_empty() {
        return Err(Error::invalid("linux.devices", format!("{} is no place for a device", path.display())));
    }
    Ok(DevicePlan {
        parent: part(bytes.get(..cut).unwrap_or_default())?,
        name,
        path: path.to_owned(),
        kind,
        number: rustix::fs::makedev(number.0, number.1),
        mode,
        uid: owner.0,
        gid: owner.1,
    })
}

/// The default devices (runtime-spec, config-linux, "Default Devices") and those of the specification, which win.
pub(crate) fn devices(linux: Option<&Linux>) -> Result<Vec<DevicePlan>, Error> {
    let mut list = Vec::new();
    for (path, major, minor) in DEFAULT_DEVICES {
        list.push(device(Path::new(path), DeviceKind::Character, (major, minor), 0o666, (0, 0))?);
    }
    for given in linux.into_iter().flat_map(|linux| linux.devices().iter().flatten()) {
        let kind = match given.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => {
                return Err(Error::invalid("linux.devices", "\"a\" is no type of a device node"));
            }
        };
        let number = |number: i64| {
            u32::try_from(number).map_err(|_| Error::invalid("linux.devices", format!("{number} is no device number")))
        };
        let number = if kind == DeviceKind::Fifo { (0, 0) } else { (number(given.major())?, number(given.minor())?) };
        let mode = given.file_mode().unwrap_or(0o666) & 0o7777;
        let owner = (given.uid().unwrap_or(0), given.gid().unwrap_or(0));
        let made = device(given.path(), kind, number, mode, owner)?;
        list.retain(|other: &DevicePlan| (&other.parent, &other.name) != (&made.parent, &made.name));
        list.push(made);
    }
    Ok(list)
}

pub(crate) fn root_propagation(text: Option<&str>) -> Result<u64, Error> {
    Ok(match text.unwrap_or_default() {
        "" => 0,
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        other => return Err(Error::invalid("linux.rootfsPropagation", format!("{other:?} is not known"))),
    })
}
