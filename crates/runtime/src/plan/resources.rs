//! The cgroup and what it allows.

use cgroups::CgroupPath;
use oci::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::PlanOptions;
use crate::Error;

pub(crate) fn cgroup_path(linux: Option<&Linux>, options: &PlanOptions) -> Result<CgroupPath, Error> {
    let given = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let path = match given {
        Some(path) if !path.as_os_str().is_empty() => {
            path.to_str().ok_or_else(|| Error::invalid("linux.cgroupsPath", "is not UTF-8"))?.to_owned()
        }
        _ if options.default_cgroup.is_empty() => format!("/gantry/{}", options.id),
        _ => options.default_cgroup.clone(),
    };
    CgroupPath::new(&path).map_err(|error| Error::invalid("linux.cgroupsPath", error.to_string()))
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
pub(crate) fn device_rules(linux: Option<&Linux>) -> Result<Vec<LinuxDeviceCgroup>, Error> {
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
    let given = linux.and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.devices().as_ref());
    rules.extend(given.into_iter().flatten().cloned());
    for (kind, major, minor, access) in ALWAYS {
        rules.push(rule(true, kind, major, minor, access)?);
    }
    Ok(rules)
}
