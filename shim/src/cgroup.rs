//! The cgroup that an operator wants shims in (option `shim_cgroup`), apart from the containers' own.

use crate::error::Error;

/// Moves a process to the cgroup at `path` below the hierarchies, which is made if it is missing.
pub(crate) fn enter(path: &str, pid: u32) -> Result<(), Error> {
    let host = cgroups::Host::detect()?;
    Ok(cgroups::Cgroup::create(&host, &cgroups::CgroupPath::new(path)?)?.add_process(pid)?)
}
