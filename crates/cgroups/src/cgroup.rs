//! The front of both versions.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use oci::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::Uid;

use crate::systemd::properties;
use crate::{CgroupPath, Error, Host, OomWatch, Result, Scope, Stats, Unit, v1, v2};

/// A control group. Dropping it leaves the group alone.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    version: Version,
    /// The scope of systemd that the group is of.
    unit: Option<Unit>,
}

#[derive(Debug)]
enum Version {
    V1(v1::Group),
    V2(v2::Group),
}

impl Cgroup {
    /// Makes the group in every hierarchy, with all groups missing above it. On version 2 the controllers are enabled
    /// on the way, as far as the host lets us. What was made is removed again on an error.
    ///
    /// A group that exists is taken over as it is; [`Cgroup::processes`] tells whether it is in use.
    pub fn create(host: &Host, path: &CgroupPath) -> Result<Self> {
        let version = match host {
            Host::V1 { controllers } => Version::V1(v1::Group::create(controllers, path)?),
            Host::V2 { mount } => Version::V2(v2::Group::create(mount, path)?),
        };
        Ok(Self { path: path.clone(), version, unit: None })
    }

    /// Has systemd start a scope with the process `first` in it, and makes the group of the scope in the hierarchies
    /// and with the controllers that systemd does not know. Blocks until the scope is there, at most 30 s. The scope is
    /// stopped again on an error.
    pub fn create_scope(host: &Host, scope: &Scope, first: u32) -> Result<Self> {
        let unit = scope.start(host.is_v2(), first)?;
        let made = Self::path_of_unit(first, unit.name()).and_then(|path| Self::create(host, &path));
        match made {
            Ok(cgroup) => Ok(cgroup.in_unit(Some(unit))),
            Err(error) => {
                // The error that matters is the first one.
                let _ = unit.stop();
                Err(error)
            }
        }
    }

    /// Where systemd has put the process: the manager of a user has its groups below its own.
    fn path_of_unit(pid: u32, unit: &str) -> Result<CgroupPath> {
        let file = format!("/proc/{pid}/cgroup");
        let table = sys::fs::read_small(rustix::fs::CWD, file.as_str()).map_err(|source| Error::Read {
            path: String::new(),
            file: file.clone(),
            source,
        })?;
        let paths = table.lines().filter_map(|line| member_path(line.splitn(3, ':').nth(2)?));
        let mut paths = paths.filter(|path| path.as_str().rsplit('/').next() == Some(unit));
        paths.next().ok_or(Error::Path { path: file, reason: "does not name the scope that systemd has started" })
    }

    /// The same group as that of a unit: limits are set as its properties, too, and it is stopped at the removal.
    #[must_use]
    pub fn in_unit(mut self, unit: Option<Unit>) -> Self {
        self.unit = unit;
        self
    }

    /// The scope of systemd that the group is of.
    pub fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// Opens an existing group; [`Error::Gone`] if no hierarchy has it. Hierarchies without it are left out.
    pub fn open(host: &Host, path: &CgroupPath) -> Result<Self> {
        let version = match host {
            Host::V1 { controllers } => Version::V1(v1::Group::open(controllers, |_| Some(path.clone()))?),
            Host::V2 { mount } => Version::V2(v2::Group::open(mount, path)?),
        };
        Ok(Self { path: path.clone(), version, unit: None })
    }

    /// The group that a process is in. On version 1 hierarchies in which the process stands at the root are left out.
    /// [`Error::Path`] where it stands at the root everywhere, or outside of what we see.
    pub fn of_pid(host: &Host, pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/cgroup");
        let table = sys::fs::read_small(rustix::fs::CWD, file.as_str()).map_err(|source| match source {
            sys::Errno::NOENT | sys::Errno::SRCH => Error::Gone { path: file.clone() },
            _ => Error::Read { path: String::new(), file: file.clone(), source },
        })?;
        let refuse = || Error::Path { path: file, reason: "names no group below the root" };
        match host {
            Host::V1 { controllers } => {
                let path =
                    table.lines().find_map(|line| member_path(line.splitn(3, ':').nth(2)?)).ok_or_else(refuse)?;
                let group = v1::Group::open(controllers, |controller| {
                    let entry = table.lines().find(|line| {
                        line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
                    })?;
                    member_path(entry.splitn(3, ':').nth(2)?)
                })?;
                Ok(Self { path, version: Version::V1(group), unit: None })
            }
            Host::V2 { mount } => {
                let path = table.lines().find_map(|line| line.strip_prefix("0::")).and_then(member_path);
                let path = path.ok_or_else(refuse)?;
                let group = v2::Group::open(mount, &path)?;
                Ok(Self { path, version: Version::V2(group), unit: None })
            }
        }
    }

    /// Opens groups below an existing one, as a process of it joins them: `below` gives, per controller, a path relative
    /// to `path`, `None` for the group itself. On version 2 it is asked for the controller of no name.
    ///
    /// [`Error::Gone`], with the path, if a group that `below` names does not exist.
    pub fn open_below(
        host: &Host,
        path: &CgroupPath,
        below: impl Fn(&str) -> Result<Option<CgroupPath>>,
    ) -> Result<Self> {
        let version = match host {
            Host::V1 { controllers } => {
                let mut paths = Vec::new();
                for (controller, mount) in controllers {
                    let joined = below(controller)?;
                    let whole = joined.as_ref().unwrap_or(path);
                    if joined.is_some() && !mount.join(whole.as_str()).is_dir() {
                        return Err(Error::Gone { path: whole.to_string() });
                    }
                    paths.push((controller.as_str(), whole.clone()));
                }
                Version::V1(v1::Group::open(controllers, |controller| {
                    paths.iter().find(|(name, _)| *name == controller).map(|(_, path)| path.clone())
                })?)
            }
            Host::V2 { mount } => Version::V2(v2::Group::open(mount, below("")?.as_ref().unwrap_or(path))?),
        };
        Ok(Self { path: path.clone(), version, unit: None })
    }

    /// Whether the kernel takes no process into the group itself, only into those below it. Never on version 1.
    pub fn is_inner(&self) -> bool {
        match &self.version {
            Version::V1(_) => false,
            Version::V2(group) => group.is_inner(),
        }
    }

    /// Whether [`Cgroup::create`] found the group in at least one hierarchy.
    pub fn existed(&self) -> bool {
        match &self.version {
            Version::V1(group) => group.existed(),
            Version::V2(group) => group.existed(),
        }
    }

    /// Where the group is, by controller; on version 2 one place, with no controller's name.
    pub fn locations(&self) -> Vec<(&str, &Path)> {
        match &self.version {
            Version::V1(group) => group.locations(),
            Version::V2(group) => vec![("", group.location())],
        }
    }

    /// The path of the group.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Sets all limits that `resources` has, except devices. Used at creation and for updates alike: what is not
    /// named, or 0 where 0 is no limit, stays as it is, and the order of writes never passes through a state that the
    /// kernel refuses. A controller that is missing is found out before anything is written.
    ///
    /// In a scope of systemd they become properties of the unit, too, and a quota is rounded up to what those can say.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let Some(unit) = &self.unit else { return self.apply_to_files(resources) };
        let now = match &self.version {
            Version::V1(group) => group.now()?,
            Version::V2(group) => group.now(resources)?,
        };
        let mut rounded = resources.clone();
        if let Some(mut cpu) = rounded.cpu().clone()
            && let Some(quota) = properties::rounded_quota(&cpu, &now)
        {
            cpu.set_quota(Some(quota));
            rounded.set_cpu(Some(cpu));
        }
        // The files first: what they refuse never reaches the unit.
        self.apply_to_files(&rounded)?;
        let is_v2 = matches!(self.version, Version::V2(_));
        unit.set(|version| properties::of_resources(&rounded, &properties::Unit { is_v2, version, now: &now }))
    }

    fn apply_to_files(&self, resources: &LinuxResources) -> Result<()> {
        match &self.version {
            Version::V1(group) => group.apply(resources),
            Version::V2(group) => group.apply(resources),
        }
    }

    /// Gives the group to the user who is root in the container, on version 2 only: in a cgroup namespace of its own
    /// it may then arrange its processes in groups, but not change its limits.
    pub fn delegate(&self, owner: Uid) -> Result<()> {
        match &self.version {
            Version::V1(_) => Ok(()),
            Version::V2(group) => group.delegate(owner),
        }
    }

    /// Allows and denies devices, rules in order, the last match wins. What no rule matches is denied on version 2 and
    /// left as inherited on version 1; give a first rule `deny a` to start from nothing on both. Applied again, the
    /// new rules take the place of the old ones; on version 2 without a moment in which neither holds.
    pub fn apply_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        if let (Some(unit), Version::V1(group)) = (&self.unit, &self.version) {
            // systemd denies everything before it allows again: nobody may look meanwhile.
            let frozen = group.is_frozen()? || group.freeze().is_err();
            let set = unit.set(|_| properties::of_devices(rules));
            if !frozen {
                group.thaw()?;
            }
            set?;
        }
        match &self.version {
            Version::V1(group) => group.apply_devices(rules),
            Version::V2(group) => group.apply_devices(rules),
        }
    }

    /// On version 2, the directory for `CLONE_INTO_CGROUP` if the kernel has it; else use [`Cgroup::add_process`].
    pub fn join_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.version {
            Version::V1(_) => None,
            Version::V2(group) => group.fd().filter(|_| sys::features().clone_into_cgroup),
        }
    }

    /// Moves a process, with all its threads, into the group.
    pub fn add_process(&self, pid: u32) -> Result<()> {
        match &self.version {
            Version::V1(group) => group.add_process(pid),
            Version::V2(group) => group.add_process(pid),
        }
    }

    /// Descriptors into which a process of one thread writes `0` to move itself into the group: one per hierarchy on
    /// version 1, none on version 2 (use [`Cgroup::join_fd`] or [`Cgroup::add_process`]).
    ///
    /// A thread that moves itself cannot fork or exit meanwhile, so the kernel need not stop all others from doing so.
    /// Moving another process, as [`Cgroup::add_process`] does, costs such a stop: about 15 ms (Linux,
    /// `cgroup_procs_write_start`).
    pub fn entrances(&self) -> Result<Vec<OwnedFd>> {
        match &self.version {
            Version::V1(group) => group.entrances(),
            Version::V2(_) => Ok(Vec::new()),
        }
    }

    /// What the group has used. [`Error::Gone`] once it is removed.
    pub fn stats(&self) -> Result<Stats> {
        match &self.version {
            Version::V1(group) => Ok(Stats::V1(Box::new(group.stats()?))),
            Version::V2(group) => Ok(Stats::V2(Box::new(group.stats()?))),
        }
    }

    /// How many processes of the group the kernel has killed for lack of memory; 0 where there is no memory
    /// controller.
    pub fn oom_kills(&self) -> Result<u64> {
        match &self.version {
            Version::V1(group) => group.oom_kills(),
            Version::V2(group) => group.oom_kills(),
        }
    }

    /// Which group's limit was reached when the kernel killed something of this one for lack of memory: the path of this
    /// group or of the nearest one above it that ran into its limit; `/` if none did and the host ran out. `None` where
    /// there is no memory controller. A good guess on version 1, which does not count what came of reaching a limit.
    pub fn oom_origin(&self, host: &Host) -> Option<String> {
        match (&self.version, host) {
            (Version::V1(group), Host::V1 { controllers }) => group.oom_origin(controllers),
            (Version::V2(group), Host::V2 { mount }) => Some(group.oom_origin(mount)),
            (Version::V1(_), Host::V2 { .. }) | (Version::V2(_), Host::V1 { .. }) => None,
        }
    }

    /// Watches for lack of memory; `None` where there is no memory controller.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        match &self.version {
            Version::V1(group) => group.watch_oom(),
            Version::V2(group) => group.watch_oom(),
        }
    }

    /// Stops all processes of the group and of those below, and returns when they have stopped. On an error the group
    /// is thawed again. Waits at most 2 s.
    pub fn freeze(&self) -> Result<()> {
        match &self.version {
            Version::V1(group) => group.freeze(),
            Version::V2(group) => group.freeze(),
        }
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        match &self.version {
            Version::V1(group) => group.thaw(),
            Version::V2(group) => group.thaw(),
        }
    }

    /// Whether the group itself is frozen, or being frozen. False where there is no freezer.
    pub fn is_frozen(&self) -> Result<bool> {
        match &self.version {
            Version::V1(group) => group.is_frozen(),
            Version::V2(group) => group.is_frozen(),
        }
    }

    /// Sends SIGKILL to every process of the group and of those below, frozen ones too. Does not wait for their end.
    /// A group that is gone is fine.
    pub fn kill_all(&self) -> Result<()> {
        let result = match &self.version {
            Version::V1(group) => group.kill_all(),
            Version::V2(group) => group.kill_all(),
        };
        match result {
            Err(Error::Gone { .. }) => Ok(()),
            result => result,
        }
    }

    /// The pids in the group and in those below, in the caller's pid namespace, ascending.
    pub fn processes(&self) -> Result<Vec<u32>> {
        match &self.version {
            Version::V1(group) => group.processes(),
            Version::V2(group) => group.processes(),
        }
    }

    /// The same group by its path: nothing is asked of the kernel before something is done with it.
    #[must_use]
    pub fn by_path(&self) -> Self {
        let version = match &self.version {
            Version::V1(group) => Version::V1(group.by_path()),
            Version::V2(group) => Version::V2(group.by_path()),
        };
        Self { path: self.path.clone(), version, unit: self.unit.clone() }
    }

    /// Removes the group if no process is in it and no group below; false if it has to be done by [`Cgroup::delete`],
    /// as always for a scope. A group that is gone is fine.
    pub fn delete_empty(&self) -> Result<bool> {
        match &self.version {
            _ if self.unit.is_some() => Ok(false),
            Version::V1(group) => group.delete_empty(),
            Version::V2(group) => group.delete_empty(),
        }
    }

    /// Removes the group and those below from every hierarchy. Processes in it must be gone; those that are about to
    /// go are waited for, at most 2 s. A group that is gone is fine.
    ///
    /// A scope is stopped by systemd, which ends what is in it; blocks until that is done, at most 30 s.
    pub fn delete(&self) -> Result<()> {
        let stopped = self.unit.as_ref().map_or(Ok(()), Unit::stop);
        let deleted = match &self.version {
            Version::V1(group) => group.delete(),
            Version::V2(group) => group.delete(),
        };
        stopped.and(deleted)
    }
}

/// The path of a line of `/proc/<pid>/cgroup`, if it is one below the root that we can see.
fn member_path(path: &str) -> Option<CgroupPath> {
    if path.ends_with(" (deleted)") {
        return None;
    }
    CgroupPath::new(path).ok()
}
