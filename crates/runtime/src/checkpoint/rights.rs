//! What was restored, compared with the specification while nothing of it runs yet.
//!
//! CRIU takes credentials, filters, namespaces and mounts from the images. Whoever could write those could make a
//! container with more rights than its specification gives; such a restore is refused here.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sys::clone::flags;

use crate::plan::MountKind;
use crate::{Error, Plan};

/// More processes than anybody restores.
const MAX_PROCESSES: usize = 1 << 20;

/// File systems of the kernel's own that show or hold nothing of the host but what a container may see.
const HARMLESS: [&str; 8] = ["tmpfs", "ramfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"];

fn refuse(problem: String) -> Error {
    Error::Criu { operation: "restore", problem: format!("the images do not agree with the specification: {problem}") }
}

/// Checks init and everything below it. What CRIU itself cannot restore comes back as warnings.
pub(super) fn check(plan: &Plan, init: u32) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    namespaces(plan, init)?;
    let table = read(&format!("/proc/{init}/mountinfo"))?;
    mounts(plan, &table)?;
    let mut left = vec![init];
    let mut seen = 0;
    while let Some(pid) = left.pop() {
        seen += 1;
        if seen > MAX_PROCESSES {
            return Err(refuse("there are too many processes".to_owned()));
        }
        let status = read(&format!("/proc/{pid}/status"))?;
        process(plan, pid, &status)?;
        if plan.process.no_new_privileges == Some(true) && field(&status, "NoNewPrivs") != "1" {
            // CRIU 3.17 does not restore it. The bounding set, which is checked, still limits what can be gained.
            warnings.push(format!("criu restored process {pid} without process.noNewPrivileges"));
        }
        if pid != init {
            namespaces(plan, pid)?;
        }
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
            .map_err(|source| Error::host(format!("listing the threads of {pid}"), source))?;
        for thread in threads.flatten() {
            let thread = thread.file_name();
            let thread = thread.to_string_lossy();
            process(plan, pid, &read(&format!("/proc/{pid}/task/{thread}/status"))?)?;
            let children = read(&format!("/proc/{pid}/task/{thread}/children"))?;
            left.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    Ok(warnings)
}

/// A field of a status file.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
}

fn read(path: &str) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::host(format!("reading {path}"), source))
}

/// One thread's rights, by its status file.
fn process(plan: &Plan, pid: u32, status: &str) -> Result<(), Error> {
    if let Some(capabilities) = &plan.process.capabilities {
        let allowed = capabilities.bounding
            | capabilities.permitted
            | capabilities.effective
            | capabilities.inheritable
            | capabilities.ambient;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let found = u64::from_str_radix(field(status, set), 16).unwrap_or(u64::MAX);
            if found & !allowed != 0 {
                return Err(refuse(format!("process {pid} has more in {set}: {found:016x}, of {allowed:016x}")));
            }
        }
    }
    if plan.process.filter.is_some() && field(status, "Seccomp") != "2" {
        return Err(refuse(format!("process {pid} has no filter (linux.seccomp)")));
    }
    Ok(())
}

/// Whether a process has a namespace of its own of every kind that the specification asks for, and the very one that
/// it is to join.
fn namespaces(plan: &Plan, pid: u32) -> Result<(), Error> {
    const KINDS: [(u64, &str); 7] = [
        (flags::NEWNS, "mnt"),
        (flags::NEWPID, "pid"),
        (flags::NEWNET, "net"),
        (flags::NEWIPC, "ipc"),
        (flags::NEWUTS, "uts"),
        (flags::NEWUSER, "user"),
        (flags::NEWCGROUP, "cgroup"),
    ];
    let identity = |path: &Path| {
        let found =
            std::fs::metadata(path).map_err(|source| Error::host(format!("looking at {}", path.display()), source))?;
        Ok::<_, Error>((found.dev(), found.ino()))
    };
    for (kind, name) in KINDS {
        let of = |who: &str| identity(Path::new(&format!("/proc/{who}/ns/{name}")));
        if plan.spaces.new & kind != 0 && of(&pid.to_string())? == of("self")? {
            return Err(refuse(format!("process {pid} is in the {name} namespace of this runtime")));
        }
        if let Some((_, path)) = plan.spaces.joined.iter().find(|(joined, _)| *joined == kind)
            && of(&pid.to_string())? != identity(path)?
        {
            return Err(refuse(format!("process {pid} is not in the {name} namespace {}", path.display())));
        }
    }
    Ok(())
}

/// Every mount must be of a harmless kind, of a kind that the specification names, or of a device that the root or a
/// bind mount is on.
fn mounts(plan: &Plan, table: &str) -> Result<(), Error> {
    let mut kinds: BTreeSet<&str> = HARMLESS.into();
    let mut devices = BTreeSet::new();
    let mut device_of = |path: &Path| {
        if let Ok(found) = rustix::fs::stat(path) {
            devices.insert(format!("{}:{}", rustix::fs::major(found.st_dev), rustix::fs::minor(found.st_dev)));
        }
    };
    device_of(&plan.root_path);
    // What masks files.
    device_of(Path::new("/dev/null"));
    for mount in &plan.mounts {
        match &mount.kind {
            MountKind::Bind(source) => device_of(source),
            MountKind::Filesystem(kind, _) => {
                kinds.insert(kind);
            }
            MountKind::Cgroup => {}
        }
    }
    for line in table.lines() {
        let device = line.split(' ').nth(2).unwrap_or_default();
        let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
        let kind = right.split(' ').next().unwrap_or_default();
        // The root may be a file system of several devices, which stat and the table name differently.
        let root = left.split(' ').nth(4) == Some("/");
        if !(root || kinds.contains(kind) || devices.contains(device)) {
            let place = left.split(' ').nth(4).unwrap_or_default();
            return Err(refuse(format!("a {kind} of device {device} is mounted on {place}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    const STATUS: &str = "Name:\tsh\nCapInh:\t0000000000000000\nCapPrm:\t00000000000000ff\nCapEff:\t00000000000000ff\n\
                          CapBnd:\t00000000000000ff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn more_rights_than_the_specification_gives_are_refused() {
        let mut plan = plan(serde_json::json!({}));
        let capabilities = plan.process.capabilities.as_mut().unwrap();
        (capabilities.bounding, capabilities.permitted, capabilities.effective) = (0xff, 0xff, 0xff);
        process(&plan, 1, STATUS).unwrap();
        for (from, to, want) in [
            ("CapBnd:\t00000000000000ff", "CapBnd:\t00000000002000ff", "CapBnd"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000200000", "CapInh"),
            ("CapPrm:\t00000000000000ff\n", "", "CapPrm"),
        ] {
            let error = process(&plan, 1, &STATUS.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
    }

    #[test]
    fn foreign_mounts_are_refused() {
        let plan = plan(serde_json::json!({}));
        let own = "10 9 253:1 / / rw - ext4 /dev/x rw\n11 10 0:5 / /proc rw - proc proc rw\n\
                   12 10 0:6 / /tmp rw shared:3 - tmpfs tmpfs rw\n";
        mounts(&plan, own).unwrap();
        for bad in [
            "13 10 253:77 / /host rw - ext4 /dev/vda1 rw\n",
            "13 10 0:77 / /host rw - overlay overlay rw,lowerdir=/\n",
            "13 10 0:77 / /sys/kernel/debug rw - debugfs none rw\n",
        ] {
            assert!(mounts(&plan, &format!("{own}{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_of_the_host_is_none_of_a_container() {
        let error = namespaces(&plan(serde_json::json!({})), std::process::id()).unwrap_err();
        assert!(error.to_string().contains("mnt namespace"), "{error}");
    }
}
