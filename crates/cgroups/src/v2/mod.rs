//! Version 2: one directory.

pub(crate) mod devices;
pub(crate) mod limits;
pub(crate) mod stats;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oci::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Uid};
use sys::Errno;

use crate::dir::{self, Dir};
use crate::limits::perform;
use crate::{CgroupPath, Error, OomWatch, Result, StatsV2, oom, text, tree};

/// How long freezing may take.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);

/// A group.
#[derive(Debug)]
pub(crate) struct Group {
    dir: Dir,
    existed: bool,
    /// Whether it is new and no rule for devices was set in it.
    without_rules: AtomicBool,
}

impl Group {
    pub(crate) fn create(mount: &Path, path: &CgroupPath) -> Result<Self> {
        let location = mount.join(path.as_str());
        let failed = |source| Error::Create { path: location.display().to_string(), source };
        let new = dir::make(mount, path.as_str(), |parent, _, _| {
            enable_controllers(parent);
            Ok(())
        })
        .map_err(failed)?;
        match Dir::open(location.clone()) {
            Ok(dir) => Ok(Self { dir, existed: !new, without_rules: AtomicBool::new(new) }),
            Err(errno) => {
                if new {
                    // The error that matters is the first one.
                    let _ = rustix::fs::unlinkat(CWD, &location, AtFlags::REMOVEDIR);
                }
                Err(failed(errno))
            }
        }
    }

    pub(crate) fn open(mount: &Path, path: &CgroupPath) -> Result<Self> {
        match Dir::open(mount.join(path.as_str())) {
            Ok(dir) => Ok(Self { dir, existed: true, without_rules: AtomicBool::new(false) }),
            Err(Errno::NOENT) => Err(Error::Gone { path: path.to_string() }),
            Err(source) => Err(Error::Read { path: path.to_string(), file: String::new(), source }),
        }
    }

    /// Whether groups below have controllers: then no process may be in this one (cgroup-v2.rst, "No Internal Process
    /// Constraint").
    pub(crate) fn is_inner(&self) -> bool {
        matches!(self.dir.read_optional("cgroup.subtree_control"), Ok(Some(list)) if !list.trim().is_empty())
    }

    pub(crate) fn existed(&self) -> bool {
        self.existed
    }

    pub(crate) fn location(&self) -> &Path {
        self.dir.location()
    }

    /// Its directory, which is open.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.dir.fd().ok()
    }

    /// The same group, not opened.
    pub(crate) fn by_path(&self) -> Self {
        Self { dir: Dir::made(self.dir.location().to_owned()), existed: true, without_rules: AtomicBool::new(false) }
    }

    pub(crate) fn delete_empty(&self) -> Result<bool> {
        tree::delete_empty(&self.dir)
    }

    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let now = self.now(resources)?;
        let writes = limits::plan(resources, &now)?;
        if writes.is_empty() {
            return Ok(());
        }
        let available = self.dir.read_optional("cgroup.controllers")?.unwrap_or_default();
        let has = |controller: &str| {
            controller == "cgroup" || available.split_ascii_whitespace().any(|name| name == controller)
        };
        perform(&writes, |controller| has(controller).then_some(&self.dir))
    }

    /// What a partial update is completed with.
    pub(crate) fn now(&self, resources: &LinuxResources) -> Result<limits::Now> {
        let mut now = limits::Now::default();
        if resources.cpu().is_some() {
            now.cpu_max = self.dir.read_optional("cpu.max")?;
        }
        if resources.memory().is_some() {
            now.memory_usage = self.dir.number("memory.current")?;
            now.memory_limit = self.dir.number("memory.max")?;
        }
        Ok(now)
    }

    /// Gives the group to a user, as far as the kernel says that this is safe: who owns the files that it lists may
    /// move processes and make groups below, but not change the limits of the group itself.
    pub(crate) fn delegate(&self, owner: Uid) -> Result<()> {
        // Before Linux 4.15 the list was written down only (cgroups(7)).
        const USUAL: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads";
        let list = sys::fs::read_small(CWD, "/sys/kernel/cgroup/delegate").unwrap_or_else(|_| USUAL.to_owned());
        let dir = self.dir.fd().map_err(|source| self.dir.write_error(".", "an owner", source))?;
        let give = |file: &str| match rustix::fs::chownat(dir, file, Some(owner), None, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(self.dir.write_error(file, "an owner", source)),
        };
        give(".")?;
        list.lines().filter(|file| !file.contains('/')).try_for_each(give)
    }

    pub(crate) fn apply_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        devices::install(&self.dir, &devices::program(rules)?, self.without_rules.swap(false, Ordering::Relaxed))
    }

    pub(crate) fn add_process(&self, pid: u32) -> Result<()> {
        self.dir.write("cgroup.procs", &pid.to_string())
    }

    pub(crate) fn stats(&self) -> Result<StatsV2> {
        if !self.dir.exists() {
            return Err(Error::Gone { path: self.dir.shown() });
        }
        stats::read(&self.dir)
    }

    pub(crate) fn oom_kills(&self) -> Result<u64> {
        oom::kills(&self.dir, true)
    }

    /// See [`crate::Cgroup::oom_origin`].
    pub(crate) fn oom_origin(&self, mount: &Path) -> String {
        oom::origin(self.dir.location(), mount, true)
    }

    pub(crate) fn watch_oom(&self) -> Result<Option<OomWatch>> {
        if !self.dir.has("memory.events") {
            return Ok(None);
        }
        OomWatch::v2(&self.dir).map(Some)
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        let result = self.change_freezer(true);
        if result.is_err() {
            // The error that matters is the first one.
            let _ = self.dir.try_write("cgroup.freeze", "0");
        }
        result
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        self.dir.write("cgroup.freeze", "0")
    }

    /// Writes the wish and waits for the kernel's notice that it is fulfilled.
    fn change_freezer(&self, frozen: bool) -> Result<()> {
        let file = "cgroup.events";
        let failed = |source| self.dir.read_error(file, source);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = self.dir.fd().map_err(failed)?;
        let events = rustix::fs::openat(dir, file, flags, Mode::empty()).map_err(failed)?;
        self.dir.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let deadline = Instant::now() + FREEZE_DEADLINE;
        loop {
            let mut buffer = [0_u8; 256];
            let count = rustix::io::pread(&events, &mut buffer[..], 0).map_err(failed)?;
            let text = std::str::from_utf8(&buffer[..count]).unwrap_or_default();
            if (text::value_of(text, "frozen") == 1) == frozen {
                return Ok(());
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() || !sys::fs::poll_priority(events.as_fd(), Some(rest)).map_err(failed)? {
                let (path, seconds) = (self.dir.shown(), FREEZE_DEADLINE.as_secs());
                return Err(Error::Timeout { path, state: "frozen", seconds });
            }
        }
    }

    pub(crate) fn is_frozen(&self) -> Result<bool> {
        Ok(self.dir.number("cgroup.freeze")? == Some(1))
    }

    /// One write where the kernel has `cgroup.kill` (Linux 5.14). Else the group is frozen, so that nothing forks while
    /// we look; a frozen process of version 2 dies at once.
    pub(crate) fn kill_all(&self) -> Result<()> {
        if sys::features().cgroup_kill {
            match self.dir.try_write("cgroup.kill", "1") {
                // A threaded group cannot be killed as a whole; old kernels lack the file.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                result => return result.map_err(|source| self.dir.write_error("cgroup.kill", "1", source)),
            }
        }
        // Not waiting for the result: what is not frozen yet is caught by another round.
        let _ = self.dir.try_write("cgroup.freeze", "1");
        let killed = tree::kill_each(&self.dir);
        match self.thaw() {
            Ok(()) | Err(Error::Gone { .. }) => killed,
            Err(error) => killed.and(Err(error)),
        }
    }

    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        Ok(tree::processes(&self.dir)?.into_iter().collect())
    }

    pub(crate) fn delete(&self) -> Result<()> {
        tree::delete(&self.dir, Instant::now() + tree::DELETE_PATIENCE)
    }
}

/// Enables for the children of a group all controllers that it has. What cannot be (processes in the group itself, a
/// host that did not delegate it) stays off: only a limit that needs it is an error, later and by name.
fn enable_controllers(group: &Path) {
    let dir = Dir::made(group.to_owned());
    let read = |file: &str| dir.read_optional(file).ok().flatten().unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let enabled: Vec<&str> = enabled.split_ascii_whitespace().collect();
    let missing: Vec<String> = available
        .split_ascii_whitespace()
        .filter(|name| !enabled.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || dir.try_write("cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return;
    }
    // All or nothing failed: one that is refused must not take the others with it.
    for name in missing {
        let _ = dir.try_write("cgroup.subtree_control", &name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_are_missing_are_enabled() {
        let top = tempfile::tempdir().unwrap();
        let file = |name: &str| top.path().join(name);
        std::fs::write(file("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        std::fs::write(file("cgroup.subtree_control"), "cpu\n").unwrap();
        enable_controllers(top.path());
        let written = std::fs::read_to_string(file("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+cpuset +io +memory +pids");
        // Nothing missing, nothing written.
        std::fs::write(file("cgroup.subtree_control"), "memory pids cpuset cpu io\n").unwrap();
        enable_controllers(top.path());
        assert_eq!(std::fs::read_to_string(file("cgroup.subtree_control")).unwrap(), "memory pids cpuset cpu io\n");
    }

    #[test]
    fn limits_end_in_the_files_of_the_group() {
        let top = tempfile::tempdir().unwrap();
        let group = top.path().join("a");
        std::fs::create_dir(&group).unwrap();
        for (file, text) in [
            ("cgroup.procs", ""),
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("memory.max", "max\n"),
            ("memory.current", "0\n"),
            ("memory.swap.max", "max\n"),
            ("pids.max", "max\n"),
        ] {
            std::fs::write(group.join(file), text).unwrap();
        }
        let group = Group::open(top.path(), &CgroupPath::new("/a").unwrap()).unwrap();
        let resources: LinuxResources = serde_json::from_str(
            r#"{"cpu":{"shares":1024,"quota":20000},"memory":{"limit":1000,"swap":1500},"pids":{"limit":9}}"#,
        )
        .unwrap();
        group.apply(&resources).unwrap();
        for (file, expected) in [
            ("cpu.max", "20000"),
            ("cpu.weight", "100"),
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("pids.max", "9"),
        ] {
            assert_eq!(group.dir.read(file).unwrap(), expected, "{file}");
        }
        let resources: LinuxResources =
            serde_json::from_str(r#"{"pids":{"limit":1},"blockIO":{"weight":10}}"#).unwrap();
        let error = group.apply(&resources).unwrap_err();
        assert_eq!(error.to_string(), r#"block I/O weight cannot be limited: cgroup controller "io" is not available"#);
        assert_eq!(group.dir.read("pids.max").unwrap(), "9");
    }

    /// What hardly any machine has, on a tree of plain files.
    #[test]
    fn rare_controllers_get_their_bytes() {
        let top = tempfile::tempdir().unwrap();
        let group = top.path().join("a");
        std::fs::create_dir(&group).unwrap();
        let rare = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max", "rdma.max", "misc.max", "io.weight"];
        for file in rare.iter().chain(&["cgroup.procs", "io.max"]) {
            std::fs::write(group.join(file), "before").unwrap();
        }
        std::fs::write(group.join("cgroup.controllers"), "hugetlb rdma misc io\n").unwrap();
        let group = Group::open(top.path(), &CgroupPath::new("/a").unwrap()).unwrap();
        let resources: LinuxResources = serde_json::from_str(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"1GB","limit":0}],
                "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}},"blockIO":{"weight":500},
                "unified":{"misc.max":"sev 7"}}"#,
        )
        .unwrap();
        group.apply(&resources).unwrap();
        let read = |file: &str| group.dir.read(file).unwrap();
        assert_eq!(
            rare.map(read),
            ["4194304", "4194304", "0", "mlx5_1 hca_handle=3 hca_object=10000", "sev 7", "4950"]
        );
        // BFQ's own file comes before the general one.
        std::fs::write(top.path().join("a/io.bfq.weight"), "").unwrap();
        let resources: LinuxResources = serde_json::from_str(r#"{"blockIO":{"weight":300}}"#).unwrap();
        group.apply(&resources).unwrap();
        assert_eq!((read("io.bfq.weight").as_str(), read("io.weight").as_str()), ("300", "4950"));
    }
}
