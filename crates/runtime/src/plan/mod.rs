//! From a specification to everything that is known before anything is done.

mod labels;
mod mounts;
mod process;
mod resources;
mod spaces;
mod sysctl;
mod tuning;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci::runtime::{Hook, Linux, LinuxDeviceCgroup, LinuxResources};
use sys::clone::flags;

use crate::netdev::{self, Wanted};
use crate::{Error, HostFeatures};
pub(crate) use labels::label_mounts;
pub(crate) use mounts::{DevicePlan, MountKind, MountPlan, fold_path, is_namespaced};
pub(crate) use process::ProcessPlan;
pub(crate) use resources::device_rules;
pub(crate) use spaces::Spaces;
pub(crate) use sysctl::of_network;
pub(crate) use tuning::{Tuning, all_processors};

/// What a plan needs besides the specification.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// The container's id.
    pub id: String,
    /// The bundle: relative paths of the spec are relative to it. Absolute.
    pub bundle: PathBuf,
    /// Replace the root by moving a mount instead of `pivot_root` (for a root on an initramfs).
    pub no_pivot: bool,
    /// Do not give the container a session keyring of its own.
    pub no_new_keyring: bool,
    /// Where the container's cgroup goes when the spec has no `linux.cgroupsPath`; `/gantry/<id>` when empty.
    pub default_cgroup: String,
    /// Make the cgroup as a scope of this systemd; `linux.cgroupsPath` is then `slice:prefix:name`. `None`: make it in
    /// the file system.
    pub systemd: Option<cgroups::Manager>,
    /// How many descriptors from 3 on stay open in the container's process.
    pub preserve_fds: u32,
}

/// How a created container is told to start when the starter is another process than the creator: two FIFOs, both
/// opened for reading and writing. Without a gate the creator keeps a socket to the container's process.
#[derive(Debug)]
pub struct Gate {
    /// One byte here starts the program.
    pub start: OwnedFd,
    /// Errors of the exec come out here; end of file means that the program runs.
    pub report: OwnedFd,
}

/// Everything that is known before anything is done.
#[derive(Debug)]
pub struct Plan {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) oci_version: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) spaces: Spaces,
    pub(crate) hostname: Option<Vec<u8>>,
    pub(crate) domainname: Option<Vec<u8>>,
    pub(crate) root_path: PathBuf,
    pub(crate) root_read_only: bool,
    /// `MS_SHARED` and its kin, with `MS_REC`; 0: not asked for.
    pub(crate) root_propagation: u64,
    pub(crate) no_pivot: bool,
    pub(crate) mounts: Vec<MountPlan>,
    /// Whether `/dev` is ours to fill.
    pub(crate) fill_dev: bool,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) masked_paths: Vec<CString>,
    pub(crate) read_only_paths: Vec<CString>,
    /// Paths below `/proc`.
    pub(crate) sysctls: Vec<(CString, Vec<u8>)>,
    pub(crate) net_devices: Vec<Wanted>,
    pub(crate) resctrl: Option<crate::resctrl::Wanted>,
    /// For the mounts of file systems that files get their label from.
    pub(crate) mount_label: Option<String>,
    pub(crate) hooks: Hooks,
    pub(crate) process: ProcessPlan,
    pub(crate) cgroup: cgroups::CgroupPath,
    /// The scope that the cgroup is to be of.
    pub(crate) scope: Option<cgroups::Scope>,
    /// Who shall own the cgroup.
    pub(crate) cgroup_owner: Option<u32>,
    pub(crate) resources: LinuxResources,
    pub(crate) device_rules: Vec<LinuxDeviceCgroup>,
}

/// The hooks of a specification, by the side that runs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hooks {
    /// `prestart`, then `createRuntime`.
    pub(crate) before: Vec<(&'static str, Hook)>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<(&'static str, Hook)>,
    pub(crate) poststop: Vec<(&'static str, Hook)>,
}

impl Plan {
    /// Works out what to do: a function of its arguments, which asks the host nothing.
    pub fn new(spec: &oci::Spec, host: &HostFeatures, options: &PlanOptions) -> Result<Self, Error> {
        oci::validate_spec(spec).map_err(|error| Error::invalid("config.json", error.to_string()))?;
        refuse_unsupported(spec)?;
        let linux = spec.linux().as_ref();
        let spaces = Spaces::new(linux)?;
        if !host.mounts && spaces.new & flags::NEWUSER == 0 && !spaces.joins(flags::NEWUSER) {
            return Err(Error::invalid("linux.namespaces", "rootless container requires user namespaces"));
        }
        for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
            if name.as_ref().is_some_and(|name| !name.is_empty()) && !spaces.has(flags::NEWUTS) {
                return Err(Error::invalid(field, "unable to set it without a private UTS namespace"));
            }
        }
        let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is required"))?;
        let in_user_space = spaces.has(flags::NEWUSER);
        let process_uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
        let mut process = match spec.process() {
            Some(process) => ProcessPlan::new("process", process, host, in_user_space)?,
            None => ProcessPlan::absent(),
        };
        process.filter =
            linux.and_then(|linux| linux.seccomp().as_ref()).map(crate::seccomp::compile).transpose()?.flatten();
        process.keyring = (!options.no_new_keyring).then(|| format!("_ses.{}", options.id));
        process.preserve_fds = options.preserve_fds;
        process.tuning.add_container(linux)?;
        let root_path = options.bundle.join(root.path());
        let mounts = mounts::plan(spec, &options.bundle, &root_path)?;
        process.warnings.extend(mounts::warnings(&mounts));
        restrict(linux, &spaces)?;
        let fill_dev = !mounts.iter().any(|mount| mount.target.as_bytes() == b"dev" && mount.is_bind());
        process.warnings.extend(resources::warnings(linux));
        let (cgroup, scope) = resources::cgroup_place(spec, options)?;
        let limits = linux.and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let relative = |list: &Option<Vec<String>>| {
            list.iter().flatten().map(|path| fold_path(Path::new(path))).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            id: options.id.clone(),
            bundle: options.bundle.clone(),
            oci_version: spec.version().clone(),
            annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            hostname: spec.hostname().as_ref().filter(|n| !n.is_empty()).map(|n| n.clone().into_bytes()),
            domainname: spec.domainname().as_ref().filter(|n| !n.is_empty()).map(|n| n.clone().into_bytes()),
            root_path,
            root_read_only: root.readonly().unwrap_or(false),
            root_propagation: mounts::root_propagation(linux.and_then(|l| l.rootfs_propagation().as_deref()))?,
            no_pivot: options.no_pivot,
            fill_dev,
            devices: mounts::devices(linux)?,
            masked_paths: without_repeats(linux.map(|l| relative(l.masked_paths())).transpose()?.unwrap_or_default()),
            read_only_paths: linux.map(|l| relative(l.readonly_paths())).transpose()?.unwrap_or_default(),
            sysctls: sysctl::sysctls(linux, &spaces)?,
            hooks: Hooks::new(spec),
            cgroup,
            scope,
            cgroup_owner: resources::cgroup_owner(linux, &spaces, &mounts, process_uid),
            device_rules: device_rules(limits.devices().as_deref().unwrap_or_default())?,
            resources: limits,
            net_devices: net_devices(linux, &spaces)?,
            resctrl: crate::resctrl::Wanted::new(linux)?,
            mount_label: labels::mount_label(linux)?,
            mounts,
            spaces,
            process,
        })
    }

    /// The flags with which the seccomp filter will be installed (seccomp(2)), if there is one.
    pub fn filter_flags(&self) -> Option<u32> {
        self.process.filter.as_ref().map(|filter| filter.flags)
    }

    /// Whether the container can be made and started in one go: nobody has to do anything between, or to be told.
    pub fn can_be_launched(&self) -> bool {
        let Hooks { before, create_container, start_container, poststart, poststop: _ } = &self.hooks;
        let quiet = before.is_empty()
            && create_container.is_empty()
            && start_container.is_empty()
            && poststart.is_empty()
            && self.process.filter.as_ref().is_none_or(|filter| filter.listener.is_none());
        let has_program = !self.process.arguments.is_empty();
        // A scope is held by another process until this one is in it.
        quiet && has_program && !self.process.terminal && !self.spaces.needs_intermediate() && self.scope.is_none()
    }

    /// Whether the process of the spec wants a terminal.
    pub fn terminal(&self) -> bool {
        self.process.terminal
    }

    /// Where the container's cgroup will be. That of a scope may be put elsewhere by its systemd.
    pub fn cgroup_path(&self) -> &cgroups::CgroupPath {
        &self.cgroup
    }

    /// Whether the container's cgroup itself is bound into it, so that it must exist before.
    pub(crate) fn binds_cgroup(&self) -> bool {
        !self.spaces.has(flags::NEWCGROUP) && self.mounts.iter().any(|mount| mount.kind == MountKind::Cgroup)
    }

    /// Where the specification says that the root file system is; absolute.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// Whether a root file system may be handed over as a detached mount that the host never sees: no hook looks at
    /// it from the host's side, and it has a mount namespace to be attached in.
    pub fn detached_root_suffices(&self) -> bool {
        self.spaces.own_mounts()
            && self.hooks.before.is_empty()
            && self.hooks.poststart.is_empty()
            && self.hooks.poststop.is_empty()
    }
}

impl Hooks {
    fn new(spec: &oci::Spec) -> Self {
        let Some(hooks) = spec.hooks() else { return Self::default() };
        let named = |kind, list: &Option<Vec<Hook>>| {
            list.iter().flatten().map(move |hook| (kind, hook.clone())).collect::<Vec<_>>()
        };
        let mut before = named("prestart", hooks.prestart());
        before.extend(named("createRuntime", hooks.create_runtime()));
        Self {
            before,
            create_container: hooks.create_container().clone().unwrap_or_default(),
            start_container: hooks.start_container().clone().unwrap_or_default(),
            poststart: named("poststart", hooks.poststart()),
            poststop: named("poststop", hooks.poststop()),
        }
    }
}

/// The paths in their order, each once.
fn without_repeats(paths: Vec<CString>) -> Vec<CString> {
    let mut seen = std::collections::BTreeSet::new();
    paths.into_iter().filter(|path| seen.insert(path.clone())).collect()
}

/// The network devices that move into the container, by name.
fn net_devices(linux: Option<&Linux>, spaces: &Spaces) -> Result<Vec<Wanted>, Error> {
    let invalid = |problem: String| Error::invalid("linux.netDevices", problem);
    let mut list = Vec::new();
    for (name, device) in linux.into_iter().flat_map(|linux| linux.net_devices().iter().flatten()) {
        let new_name = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(name);
        for name in [name, new_name] {
            if !netdev::is_name(name) {
                return Err(invalid(format!("invalid network device name {name:?}")));
            }
        }
        list.push(Wanted { name: name.clone(), new_name: new_name.clone() });
    }
    if !list.is_empty() && !spaces.has(flags::NEWNET) {
        return Err(invalid("unable to move network devices without a NET namespace".to_owned()));
    }
    list.sort_by(|one, other| one.name.cmp(&other.name));
    let names: std::collections::BTreeSet<&str> = list.iter().map(|device| device.new_name.as_str()).collect();
    if names.len() != list.len() {
        return Err(invalid("two devices have one name in the container".to_owned()));
    }
    Ok(list)
}

/// What would be hidden or closed for everybody in a mount namespace that is not the container's.
fn restrict(linux: Option<&Linux>, spaces: &Spaces) -> Result<(), Error> {
    let Some(linux) = linux.filter(|_| !spaces.has(flags::NEWNS)) else { return Ok(()) };
    for (field, list) in [("linux.maskedPaths", linux.masked_paths()), ("linux.readonlyPaths", linux.readonly_paths())]
    {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(Error::invalid(field, "unable to restrict sys entries without a private MNT namespace"));
        }
    }
    Ok(())
}

/// Fields that mean something and are not honoured. None is ignored silently.
fn refuse_unsupported(spec: &oci::Spec) -> Result<(), Error> {
    let refuse = |wanted: bool, field: &str, reason: &str| {
        if wanted { Err(Error::unsupported(field, reason)) } else { Ok(()) }
    };
    refuse(spec.vm().is_some(), "vm", "virtual machines are not supported")?;
    refuse(spec.windows().is_some(), "windows", "this is Linux")?;
    refuse(spec.solaris().is_some(), "solaris", "this is Linux")?;
    refuse(spec.zos().is_some(), "zos", "this is Linux")
}

#[cfg(test)]
mod tests;
