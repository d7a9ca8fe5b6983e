//! The cgroup and what it allows.

use cgroups::{CgroupPath, Scope};
use oci::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxIdMapping};
use sys::clone::flags;
use sys::mount::attr;

use super::{MountKind, MountPlan, PlanOptions, Spaces};
use crate::Error;

/// Where the container's group goes, and the scope of systemd that it is then of.
pub(crate) fn cgroup_place(spec: &oci::Spec, options: &PlanOptions) -> Result<(CgroupPath, Option<Scope>), Error> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let given = given.map(|path| path.to_str().ok_or_else(|| Error::invalid("linux.cgroupsPath", "is not UTF-8")));
    let given = given.transpose()?.unwrap_or_default();
    let invalid = |source: cgroups::Error| Error::Cgroup { operation: "linux.cgroupsPath".to_owned(), source };
    if let Some(manager) = options.systemd {
        let annotations = spec.annotations().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
        let scope = Scope::new(given, &options.id, manager, annotations).map_err(|source| {
            let about_path = matches!(source, cgroups::Error::ScopePath { .. });
            let operation = if about_path { "linux.cgroupsPath" } else { "annotations" };
            Error::Cgroup { operation: operation.to_owned(), source }
        })?;
        return Ok((scope.path().map_err(invalid)?, Some(scope)));
    }
    let path = match given {
        "" if options.default_cgroup.is_empty() => format!("/gantry/{}", options.id),
        "" => options.default_cgroup.clone(),
        given => given.to_owned(),
    };
    let path = CgroupPath::new(&path).map_err(|error| Error::invalid("linux.cgroupsPath", error.to_string()))?;
    Ok((path, None))
}

/// Who shall own the group: the container's user as the host knows it, where there is a user namespace, and a cgroup
/// namespace whose file system the container can write.
pub(crate) fn cgroup_owner(
    linux: Option<&Linux>,
    spaces: &Spaces,
    mounts: &[MountPlan],
    container_uid: u32,
) -> Option<u32> {
    let writable = mounts.iter().any(|mount| {
        mount.kind == MountKind::Cgroup
            && mount.target.as_bytes() == b"sys/fs/cgroup"
            && mount.options.attributes.set & attr::RDONLY == 0
    });
    if !writable || spaces.new & flags::NEWCGROUP == 0 || !spaces.has(flags::NEWUSER) {
        return None;
    }
    let mapped = |map: &LinuxIdMapping| {
        let offset = container_uid.checked_sub(map.container_id()).filter(|offset| *offset < map.size())?;
        map.host_id().checked_add(offset)
    };
    linux?.uid_mappings().iter().flatten().find_map(mapped)
}

/// What the spec asks for and no kernel has any more: runc, too, only says so.
pub(crate) fn warnings(linux: Option<&Linux>) -> Vec<String> {
    let memory = linux.and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.memory().as_ref());
    let kernel = memory.is_some_and(|memory| memory.kernel().is_some_and(|limit| limit != 0));
    let text = "linux.resources.memory.kernel is ignored: Linux has no limit of kernel memory since 5.16";
    kernel.then(|| text.to_owned()).into_iter().collect()
}

/// Devices that every container may use: kind, major, minor (`None`: all), access. The nodes of the default devices,
/// terminals, and the right to make any node, which by itself opens nothing.
const ALWAYS: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// Nothing, then what the spec says, then what every container may use.
pub(crate) fn device_rules(given: &[LinuxDeviceCgroup]) -> Result<Vec<LinuxDeviceCgroup>, Error> {
    let rule = |allow, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        if let Some(major) = major {
            builder = builder.major(major);
        }
        if let Some(minor) = minor {
            builder = builder.minor(minor);
        }
        builder.build().map_err(|error| Error::invalid("linux.resources.devices", error.to_string()))
    };
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")?];
    rules.extend_from_slice(given);
    for (kind, major, minor, access) in ALWAYS {
        rules.push(rule(true, kind, major, minor, access)?);
    }
    Ok(rules)
}
