//! Version 1: one directory per hierarchy.

mod devices;
pub(crate) mod limits;
mod stats;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oci::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{AtFlags, CWD};
use sys::Errno;

use crate::dir::{self, Dir};
use crate::limits::perform;
use crate::{CgroupPath, Error, OomWatch, Result, StatsV1, oom, tree};

/// How long freezing may take.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);

/// A group: its directory in each hierarchy.
#[derive(Debug)]
pub(crate) struct Group {
    nodes: Vec<Node>,
    existed: bool,
    /// Whether it is new and no rule for devices was set in it.
    without_rules: AtomicBool,
}

#[derive(Debug)]
struct Node {
    controllers: Vec<String>,
    dir: Dir,
}

impl Group {
    pub(crate) fn create(controllers: &[(String, PathBuf)], path: &CgroupPath) -> Result<Self> {
        let mut made = Made(Vec::new());
        let mut nodes = Vec::new();
        for (names, mount) in hierarchies(controllers) {
            let location = mount.join(path.as_str());
            let shown = || location.display().to_string();
            let failed = |source| Error::Create { path: shown(), source };
            let is_cpuset = names.iter().any(|name| name == "cpuset");
            let visit = |parent: &Path, child: &Path, made: bool| {
                if is_cpuset { inherit(parent, child, made) } else { Ok(()) }
            };
            if dir::make(mount, path.as_str(), visit).map_err(failed)? {
                made.0.push(location.clone());
            }
            nodes.push(Node { controllers: names, dir: Dir::made(location) });
        }
        let existed = made.0.len() < nodes.len();
        made.0.clear();
        Ok(Self { nodes, existed, without_rules: AtomicBool::new(!existed) })
    }

    /// Opens the group in each hierarchy in which `path_in` names one and it exists.
    pub(crate) fn open(
        controllers: &[(String, PathBuf)],
        path_in: impl Fn(&str) -> Option<CgroupPath>,
    ) -> Result<Self> {
        let mut nodes = Vec::new();
        let mut wanted = String::new();
        for (names, mount) in hierarchies(controllers) {
            let Some(path) = names.first().and_then(|name| path_in(name)) else { continue };
            wanted = path.to_string();
            match Dir::open(mount.join(path.as_str())) {
                Ok(dir) => nodes.push(Node { controllers: names, dir }),
                Err(Errno::NOENT) => {}
                Err(source) => return Err(Error::Read { path: wanted, file: names.join(","), source }),
            }
        }
        if nodes.is_empty() {
            Err(Error::Gone { path: wanted })
        } else {
            Ok(Self { nodes, existed: true, without_rules: AtomicBool::new(false) })
        }
    }

    pub(crate) fn existed(&self) -> bool {
        self.existed
    }

    pub(crate) fn locations(&self) -> Vec<(&str, &Path)> {
        let of = |node| {
            let Node { controllers, dir }: &Node = node;
            controllers.iter().map(|name| (name.as_str(), dir.location()))
        };
        self.nodes.iter().flat_map(of).collect()
    }

    fn find(&self, controller: &str) -> Option<&Dir> {
        self.nodes.iter().find(|node| node.controllers.iter().any(|name| name == controller)).map(|node| &node.dir)
    }

    fn require(&self, controller: &str, limit: &str) -> Result<&Dir> {
        self.find(controller)
            .ok_or_else(|| Error::NoController { limit: limit.to_owned(), controller: controller.to_owned() })
    }

    /// The hierarchy whose groups say which processes belong here: any would do, the freezer is least often absent.
    fn members(&self) -> Result<&Dir> {
        ["freezer", "pids", "devices", "memory"]
            .iter()
            .find_map(|controller| self.find(controller))
            .or_else(|| self.nodes.first().map(|node| &node.dir))
            .ok_or_else(|| Error::Gone { path: String::new() })
    }

    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<()> {
        // The state of memory is asked for only where memory is to change.
        let memory = self.find("memory").filter(|_| resources.memory().is_some());
        let number = |file: &str| memory.map_or(Ok(None), |memory| memory.number(file));
        let now = limits::Now {
            memory_usage: number("memory.usage_in_bytes")?,
            memory_and_swap: number("memory.memsw.limit_in_bytes")?,
        };
        let applied = perform(&limits::plan(resources, &now)?, |controller| self.find(controller));
        match (applied, memory) {
            // What is in use could not be pushed out.
            (Err(Error::Write { file, value: limit, source: Errno::BUSY, .. }), Some(memory))
                if file == "memory.limit_in_bytes" =>
            {
                let usage = memory.number("memory.usage_in_bytes")?.unwrap_or(0);
                let peak = memory.number("memory.max_usage_in_bytes")?.unwrap_or(0);
                Err(Error::TooLow { limit, usage, peak })
            }
            (applied, _) => applied,
        }
    }

    /// The limits that properties of a unit are completed with, in the form of version 2.
    pub(crate) fn now(&self) -> Result<crate::v2::limits::Now> {
        let Some(cpu) = self.find("cpu") else { return Ok(crate::v2::limits::Now::default()) };
        let quota = cpu.read_optional("cpu.cfs_quota_us")?.unwrap_or_default();
        let period = cpu.read_optional("cpu.cfs_period_us")?.unwrap_or_default();
        let cpu_max = Some(format!("{} {}", quota.trim(), period.trim()));
        Ok(crate::v2::limits::Now { cpu_max, ..crate::v2::limits::Now::default() })
    }

    pub(crate) fn apply_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let dir = self.require("devices", "devices")?;
        let lines = if self.without_rules.swap(false, Ordering::Relaxed) {
            devices::first(rules)?
        } else {
            devices::replacement(&dir.read("devices.list")?, rules)?
        };
        let each = lines.chunk_by(|one, next| one.0 == next.0);
        each.filter_map(|group| Some((group.first()?.0, group)))
            .try_for_each(|(file, group)| dir.write_each(file, group.iter().map(|(_, line)| line.as_str())))
    }

    pub(crate) fn add_process(&self, pid: u32) -> Result<()> {
        let pid = pid.to_string();
        self.nodes.iter().try_for_each(|node| node.dir.write("cgroup.procs", &pid))
    }

    pub(crate) fn entrances(&self) -> Result<Vec<OwnedFd>> {
        // The hierarchy of version 2 on a hybrid host has no file of that name.
        let file = |node: &Node| if node.controllers.iter().all(String::is_empty) { "cgroup.procs" } else { "tasks" };
        self.nodes.iter().map(|node| node.dir.open_file(file(node))).collect()
    }

    pub(crate) fn stats(&self) -> Result<StatsV1> {
        // The statistics of a group that is gone would otherwise be an honest-looking zero.
        if !self.nodes.iter().any(|node| node.dir.exists()) {
            return Err(Error::Gone { path: self.members()?.shown() });
        }
        stats::read(|controller| self.find(controller))
    }

    pub(crate) fn oom_kills(&self) -> Result<u64> {
        self.find("memory").map_or(Ok(0), |memory| oom::kills(memory, false))
    }

    /// See [`crate::Cgroup::oom_origin`].
    pub(crate) fn oom_origin(&self, controllers: &[(String, PathBuf)]) -> Option<String> {
        let mount = controllers.iter().find(|(name, _)| name == "memory").map(|(_, mount)| mount)?;
        Some(oom::origin(self.find("memory")?.location(), mount, false))
    }

    pub(crate) fn watch_oom(&self) -> Result<Option<OomWatch>> {
        self.find("memory").map(OomWatch::v1).transpose()
    }

    /// The kernel freezes step by step and tells nobody when it is done, so the state is asked for, at growing
    /// intervals. A process that forks while it happens can leave the group half frozen for good; writing the state
    /// again makes the kernel look again (runc issue 2257).
    pub(crate) fn freeze(&self) -> Result<()> {
        let freezer = self.require("freezer", "freezing")?;
        let deadline = Instant::now() + FREEZE_DEADLINE;
        let mut pause = Duration::from_micros(50);
        let mut attempt = 0_u32;
        loop {
            attempt += 1;
            if attempt.is_multiple_of(32) {
                // Going back once lets a process that is stuck half way finish what it does.
                freezer.write("freezer.state", "THAWED")?;
            }
            freezer.write("freezer.state", "FROZEN")?;
            if freezer.read("freezer.state")?.trim() == "FROZEN" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                freezer.write("freezer.state", "THAWED")?;
                let (path, seconds) = (freezer.shown(), FREEZE_DEADLINE.as_secs());
                return Err(Error::Timeout { path, state: "frozen", seconds });
            }
            tree::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        self.require("freezer", "freezing")?.write("freezer.state", "THAWED")
    }

    pub(crate) fn is_frozen(&self) -> Result<bool> {
        let Some(freezer) = self.find("freezer") else { return Ok(false) };
        Ok(freezer.read("freezer.state")?.trim() != "THAWED")
    }

    /// Freezes first where it can, so that nothing forks while we look, and thaws in any case: only then do frozen
    /// processes die.
    pub(crate) fn kill_all(&self) -> Result<()> {
        let freezer = self.find("freezer");
        if let Some(freezer) = freezer {
            // Not waiting for the result: what is not frozen yet is caught by another round.
            let _ = freezer.try_write("freezer.state", "FROZEN");
        }
        let killed = tree::kill_each(self.members()?);
        if freezer.is_some() {
            match self.thaw() {
                Ok(()) | Err(Error::Gone { .. }) => {}
                Err(error) => return killed.and(Err(error)),
            }
        }
        killed
    }

    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        Ok(tree::processes(self.members()?)?.into_iter().collect())
    }

    /// The same group, not opened.
    pub(crate) fn by_path(&self) -> Self {
        let of = |node: &Node| Node {
            controllers: node.controllers.clone(),
            dir: Dir::made(node.dir.location().to_owned()),
        };
        Self { nodes: self.nodes.iter().map(of).collect(), existed: true, without_rules: AtomicBool::new(false) }
    }

    /// Nothing is removed if a process is in the group or a group below it.
    pub(crate) fn delete_empty(&self) -> Result<bool> {
        if self.nodes.is_empty() {
            return Ok(true);
        }
        let members = self.members()?;
        if !tree::delete_empty(members)? {
            return Ok(false);
        }
        let others = self.nodes.iter().map(|node| &node.dir).filter(|dir| dir.location() != members.location());
        others.map(tree::delete_empty).try_fold(true, |all, one| Ok(all & one?))
    }

    /// Goes on where one hierarchy fails, and tells the first error. The patience is for all of them together.
    pub(crate) fn delete(&self) -> Result<()> {
        let deadline = Instant::now() + tree::DELETE_PATIENCE;
        self.nodes.iter().map(|node| tree::delete(&node.dir, deadline)).fold(Ok(()), Result::and)
    }
}

/// Groups controllers by where they are mounted.
fn hierarchies(controllers: &[(String, PathBuf)]) -> Vec<(Vec<String>, &Path)> {
    let mut hierarchies: Vec<(Vec<String>, &Path)> = Vec::new();
    for (name, mount) in controllers {
        match hierarchies.iter_mut().find(|(_, known)| known == mount) {
            Some((names, _)) => names.push(name.clone()),
            None => hierarchies.push((vec![name.clone()], mount)),
        }
    }
    hierarchies
}

/// A new cpuset group has no processors and no memory nodes, and refuses processes, until it is given some: those of
/// its parent, who may be as new, made by somebody else.
fn inherit(parent: &Path, child: &Path, new: bool) -> sys::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !new && !dir::text_at(&child.join(file))?.trim().is_empty() {
            continue;
        }
        let mut value = dir::text_at(&parent.join(file))?;
        if value.trim().is_empty()
            && let Some(above) = parent.parent()
            // Above the hierarchy there is nothing to inherit: the kernel then refuses the process.
            && above.join(file).exists()
        {
            inherit(above, parent, false)?;
            value = dir::text_at(&parent.join(file))?;
        }
        Dir::made(child.to_owned()).try_write(file, value.trim())?;
    }
    Ok(())
}

/// Groups to remove again, unless the list is emptied.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for location in &self.0 {
            // The error that brought us here matters more than one of cleaning up.
            let _ = rustix::fs::unlinkat(CWD, location, AtFlags::REMOVEDIR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_one_hierarchy_share_a_directory() {
        let list = |entries: &[(&str, &str)]| -> Vec<(String, PathBuf)> {
            entries.iter().map(|(name, place)| ((*name).to_owned(), PathBuf::from(place))).collect()
        };
        let controllers = list(&[("cpu", "/a"), ("memory", "/b"), ("cpuacct", "/a")]);
        let expected = vec![
            (vec!["cpu".to_owned(), "cpuacct".to_owned()], Path::new("/a")),
            (vec!["memory".to_owned()], Path::new("/b")),
        ];
        assert_eq!(hierarchies(&controllers), expected);
    }

    #[test]
    fn an_empty_cpuset_takes_what_its_parent_has() {
        let top = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| std::fs::write(top.path().join(path), text).unwrap();
        std::fs::create_dir(top.path().join("child")).unwrap();
        write("cpuset.cpus", "0-3\n");
        write("cpuset.mems", "0\n");
        write("child/cpuset.cpus", "\n");
        write("child/cpuset.mems", "1\n");
        inherit(top.path(), &top.path().join("child"), false).unwrap();
        let read = |path: &str| std::fs::read_to_string(top.path().join(path)).unwrap();
        assert_eq!((read("child/cpuset.cpus"), read("child/cpuset.mems")), ("0-3".to_owned(), "1\n".to_owned()));
        // Somebody made the parent, and gave it nothing.
        std::fs::create_dir_all(top.path().join("pod/child")).unwrap();
        for file in ["pod/cpuset.cpus", "pod/cpuset.mems", "pod/child/cpuset.cpus", "pod/child/cpuset.mems"] {
            write(file, "\n");
        }
        inherit(&top.path().join("pod"), &top.path().join("pod/child"), true).unwrap();
        assert_eq!((read("pod/cpuset.cpus"), read("pod/child/cpuset.mems")), ("0-3".to_owned(), "0".to_owned()));
    }

    #[test]
    fn what_fails_is_undone() {
        let top = tempfile::tempdir().unwrap();
        let good = top.path().join("good");
        std::fs::create_dir(&good).unwrap();
        let controllers = [("memory".to_owned(), good.clone()), ("pids".to_owned(), top.path().join("missing"))];
        let error = Group::create(&controllers, &CgroupPath::new("/a").unwrap()).unwrap_err();
        assert!(matches!(error, Error::Create { source: Errno::NOENT, .. }));
        assert!(!good.join("a").exists());
    }

    /// What hardly any machine has, on a tree of plain files.
    #[test]
    fn rare_controllers_get_their_bytes() {
        let top = tempfile::tempdir().unwrap();
        let mut controllers = Vec::new();
        let rare = [
            ("hugetlb", "hugetlb.2MB.limit_in_bytes", "4194304"),
            ("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
            ("rdma", "rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
            ("net_cls", "net_cls.classid", "1048577"),
            ("net_prio", "net_prio.ifpriomap", "eth0 5"),
            ("blkio", "blkio.bfq.weight", "500"),
            ("blkio", "blkio.leaf_weight", "300"),
        ];
        for (controller, file, _) in rare {
            let place = top.path().join(controller);
            std::fs::create_dir_all(place.join("a")).unwrap();
            std::fs::write(place.join("a").join(file), "before").unwrap();
            controllers.push((controller.to_owned(), place));
        }
        let path = CgroupPath::new("/a").unwrap();
        let group = Group::open(&controllers, |_| Some(path.clone())).unwrap();
        let resources: LinuxResources = serde_json::from_str(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"blockIO":{"weight":500,"leafWeight":300},
                "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}},
                "network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#,
        )
        .unwrap();
        group.apply(&resources).unwrap();
        for (controller, file, expected) in rare {
            assert_eq!(group.find(controller).unwrap().read(file).unwrap(), expected, "{file}");
        }
    }
}
