use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::runtime::{LinuxIdMapping, LinuxNamespaceType};
use crate::{Error, Process, Spec};

/// The most entries that any list of a document may have. The kernel's own limits (mounts, groups, mappings) are lower.
const MAX_ENTRIES: usize = 100_000;

/// Checks every rule of the runtime specification that can be checked without a look at the host.
pub fn validate_spec(spec: &Spec) -> Result<(), Error> {
    check_version(spec.version())?;
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is required"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Error::invalid("root.path", "must not be empty"));
    }
    check_path("root.path", root.path())?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}].destination");
        if mount.destination().as_os_str().is_empty() {
            return Err(Error::invalid(field, "must not be empty"));
        }
        check_path(&field, mount.destination())?;
        if let Some(source) = mount.source() {
            check_path(&format!("mounts[{index}].source"), source)?;
        }
    }
    if let Some(process) = spec.process() {
        validate_process("process", process)?;
    }
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if name.as_ref().is_some_and(|name| name.len() > 64 || name.contains('\0')) {
            return Err(Error::invalid(field, "must be at most 64 bytes without NUL"));
        }
    }
    validate_hooks(spec)?;
    validate_linux(spec)
}

fn validate_hooks(spec: &Spec) -> Result<(), Error> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            if !hook.path().is_absolute() {
                return Err(Error::invalid(field + ".path", "must be absolute"));
            }
            check_path(&field, hook.path())?;
            check_strings(&field, hook.args().iter().flatten())?;
            check_strings(&field, hook.env().iter().flatten())?;
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(Error::invalid(field + ".timeout", "must be greater than zero"));
            }
        }
    }
    Ok(())
}

fn validate_linux(spec: &Spec) -> Result<(), Error> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let mut seen = 0u32;
    let mut has_user = false;
    for namespace in linux.namespaces().iter().flatten() {
        let bit = namespace.typ() as u32;
        if seen & bit != 0 {
            let problem = format!("malformed spec file: duplicated ns {:?}", namespace.typ().to_string());
            return Err(Error::invalid("linux.namespaces", problem));
        }
        seen |= bit;
        has_user |= namespace.typ() == LinuxNamespaceType::User;
        if let Some(path) = namespace.path() {
            check_path("linux.namespaces", path)?;
        }
    }
    for (field, mappings) in [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
    {
        if !has_user && mappings.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(Error::invalid(field, "needs a user namespace"));
        }
        check_mappings(field, mappings.iter().flatten())?;
    }
    for (field, list) in [("linux.maskedPaths", linux.masked_paths()), ("linux.readonlyPaths", linux.readonly_paths())]
    {
        check_strings(field, list.iter().flatten())?;
        if let Some(path) = list.iter().flatten().find(|path| !path.starts_with('/')) {
            return Err(Error::invalid(field, format!("{path:?} must be absolute")));
        }
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = format!("linux.devices[{index}].path");
        if !device.path().is_absolute() {
            return Err(Error::invalid(field, "must be absolute"));
        }
        check_path(&field, device.path())?;
    }
    for (key, value) in linux.sysctl().iter().flatten() {
        check_strings("linux.sysctl", [key, value])?;
    }
    if let Some(path) = linux.cgroups_path() {
        check_path("linux.cgroupsPath", path)?;
    }
    Ok(())
}

fn check_mappings<'a>(field: &str, mappings: impl Iterator<Item = &'a LinuxIdMapping>) -> Result<(), Error> {
    for (index, mapping) in mappings.enumerate() {
        let overflows = |start: u32| start.checked_add(mapping.size()).is_none();
        if mapping.size() == 0 || overflows(mapping.host_id()) || overflows(mapping.container_id()) {
            return Err(Error::invalid(format!("{field}[{index}]"), "is empty or reaches beyond the largest id"));
        }
        if index >= 340 {
            // user_namespaces(7): the kernel takes at most 340 lines.
            return Err(Error::invalid(field, "has more than 340 entries"));
        }
    }
    Ok(())
}

/// Checks the document of a process. `field` is the name that errors begin with.
pub fn validate_process(field: &str, process: &Process) -> Result<(), Error> {
    if !process.cwd().is_absolute() {
        return Err(Error::invalid(format!("{field}.cwd"), "must be an absolute path"));
    }
    check_path(&format!("{field}.cwd"), process.cwd())?;
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid(format!("{field}.args"), "must not be empty"));
    }
    check_strings(&format!("{field}.args"), args)?;
    check_strings(&format!("{field}.env"), process.env().iter().flatten())?;
    for entry in process.env().iter().flatten() {
        let problem = match entry.find('=') {
            None => "invalid environment variable: missing '='",
            Some(0) => "invalid environment variable: name cannot be empty",
            Some(_) => continue,
        };
        return Err(Error::invalid(format!("{field}.env"), problem));
    }
    let mut kinds = BTreeSet::new();
    for limit in process.rlimits().iter().flatten() {
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(format!("{field}.rlimits"), format!("{}: soft exceeds hard", limit.typ())));
        }
        if !kinds.insert(limit.typ() as u32) {
            return Err(Error::invalid(format!("{field}.rlimits"), format!("{} is listed twice", limit.typ())));
        }
    }
    // (uid_t)-1 means "leave as it is" to the kernel: it must never reach setresuid (uid overflow class).
    let user = process.user();
    let groups = user.additional_gids().iter().flatten().copied();
    if [user.uid(), user.gid()].into_iter().chain(groups).any(|id| id == u32::MAX) {
        return Err(Error::invalid(format!("{field}.user"), "4294967295 is no id"));
    }
    if process.oom_score_adj().is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return Err(Error::invalid(format!("{field}.oomScoreAdj"), "must lie between -1000 and 1000"));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), Error> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = core.split('.').map(str::parse::<u32>);
    let well_formed = matches!(
        (numbers.next(), numbers.next(), numbers.next(), numbers.next()),
        (Some(Ok(1)), Some(Ok(_)), Some(Ok(_)), None)
    );
    if well_formed {
        Ok(())
    } else {
        let shown: String = version.chars().take(40).collect();
        Err(Error::invalid("ociVersion", format!("{shown:?} is not a version 1.x.y")))
    }
}

fn check_path(field: &str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Error::invalid(field, "must not contain a NUL byte"));
    }
    if bytes.len() >= 4096 {
        return Err(Error::invalid(field, "is longer than 4095 bytes"));
    }
    Ok(())
}

fn check_strings<'a>(field: &str, list: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    for (index, text) in list.into_iter().enumerate() {
        if index >= MAX_ENTRIES {
            return Err(Error::invalid(field, format!("has more than {MAX_ENTRIES} entries")));
        }
        if text.contains('\0') {
            return Err(Error::invalid(field, "must not contain a NUL byte"));
        }
    }
    Ok(())
}
