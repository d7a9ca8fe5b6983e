//! `gantry-oci` as the runtime of other engines: podman with conmon, Docker Engine, and Debian's containerd with its
//! own shim. The programs are Debian's, unmodified.

mod containerd;
mod docker;
mod podman;

use std::path::{Path, PathBuf};

/// The state that `gantry-oci` keeps where nobody gives it a root.
const DEFAULT_STATE: &str = "/run/gantry-oci";

/// The runtime under test.
fn gantry_oci() -> PathBuf {
    testkit::binary("gantry-oci")
}

/// Says so and gives true where a program is missing.
fn missing(scenario: &str, programs: &[(&str, &str)]) -> bool {
    let absent = programs.iter().find(|(path, _)| !Path::new(path).exists());
    if let Some((path, package)) = absent {
        testkit::skip(scenario, &format!("{path} is not there (package {package})"));
    }
    absent.is_some()
}

/// Whether limits can be read below `/sys/fs/cgroup/<controller>`.
fn cgroup_v1() -> bool {
    Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
}

/// Prints the limits of memory, processor time and processes, from inside of a container.
const READ_LIMITS: &str = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max";

/// A shell that ends with code 5 when it is asked to.
const OBEDIENT: &str = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
