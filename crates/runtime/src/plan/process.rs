//! The program and what it runs as.

use std::ffi::CString;

use oci::Process;
use oci::runtime::{Capabilities as Names, PosixRlimitType};
use rustix::process::{Resource, Rlimit};
use sys::undefended::{Defence, left_out};

use super::tuning::Tuning;
use crate::child::Capabilities;
use crate::lsm::Labels;
use crate::seccomp::Filter;
use crate::{ConsoleSize, Error, HostFeatures};

/// A process document, checked and translated.
#[derive(Clone, Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) working_directory: CString,
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// `None`: the document says nothing.
    pub(crate) umask: Option<u32>,
    pub(crate) limits: Vec<(Resource, Rlimit)>,
    pub(crate) oom_score: Option<i32>,
    /// `None`: the document says nothing.
    pub(crate) capabilities: Option<Capabilities>,
    /// `None`: the document says nothing.
    pub(crate) no_new_privileges: Option<bool>,
    pub(crate) filter: Option<Filter>,
    pub(crate) keyring: Option<String>,
    pub(crate) preserve_fds: u32,
    pub(crate) tuning: Tuning,
    pub(crate) labels: Labels,
    pub(crate) warnings: Vec<String>,
}

/// As many as the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 1 << 16;

fn c_string(field: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::invalid(field, "must not contain a NUL byte"))
}

impl ProcessPlan {
    pub(crate) fn new(field: &str, process: &Process, host: &HostFeatures, in_user_space: bool) -> Result<Self, Error> {
        let strings = |name: &str, list: &Option<Vec<String>>| {
            list.iter().flatten().map(|text| c_string(&format!("{field}.{name}"), text)).collect::<Result<Vec<_>, _>>()
        };
        let mut warnings = Vec::new();
        let capabilities =
            process.capabilities().as_ref().map(|sets| capabilities(sets, host, in_user_space, &mut warnings));
        let user = process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        if groups.len() > MAX_GROUPS {
            return Err(Error::invalid(format!("{field}.user.additionalGids"), "has more than 65536 entries"));
        }
        let terminal = process.terminal().unwrap_or(false);
        Ok(Self {
            arguments: strings("args", process.args())?,
            environment: unique(strings("env", process.env())?),
            working_directory: super::fold_path(process.cwd())?,
            terminal,
            console_size: process.console_size().filter(|_| terminal).map(|size| ConsoleSize {
                rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
                columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
            }),
            uid: user.uid(),
            gid: user.gid(),
            groups,
            umask: user.umask().map(|mask| mask & 0o777),
            limits: process.rlimits().iter().flatten().map(limit).collect(),
            oom_score: process.oom_score_adj(),
            capabilities,
            no_new_privileges: process.no_new_privileges(),
            filter: None,
            keyring: None,
            preserve_fds: 0,
            tuning: Tuning::of_process(field, process)?,
            labels: Labels::of_process(field, process)?,
            warnings,
        })
    }

    /// Of a container that has no process to run: it can be made, and not be started.
    pub(crate) fn absent() -> Self {
        Self {
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: CString::default(),
            terminal: false,
            console_size: None,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            umask: None,
            limits: Vec::new(),
            oom_score: None,
            capabilities: None,
            no_new_privileges: None,
            filter: None,
            keyring: None,
            preserve_fds: 0,
            tuning: Tuning::default(),
            labels: Labels::default(),
            warnings: Vec::new(),
        }
    }

    /// The program as the document names it.
    pub(crate) fn program_name(&self) -> String {
        self.arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Where the program may be: the places in order, and whether they come from `PATH`.
    pub(crate) fn candidates(&self) -> (Vec<CString>, bool) {
        let Some(name) = self.arguments.first() else { return (Vec::new(), false) };
        if name.as_bytes().contains(&b'/') {
            return (vec![name.clone()], false);
        }
        let path = self.environment.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        let directories = path.unwrap_or_default().split(|byte| *byte == b':');
        let candidates = directories
            // A relative directory would be looked up in the working directory: never, as Go's LookPath refuses it.
            .filter(|directory| directory.starts_with(b"/"))
            .filter_map(|directory| CString::new([directory, b"/", name.as_bytes()].concat()).ok())
            .collect();
        (candidates, true)
    }
}

/// One entry per name, the last one, as a shell would see it; entries that are no assignments are kept.
fn unique(environment: Vec<CString>) -> Vec<CString> {
    let name = |entry: &CString| {
        let bytes = entry.as_bytes();
        bytes.iter().position(|byte| *byte == b'=').map(|end| bytes[..end].to_vec())
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut list: Vec<CString> =
        environment.into_iter().rev().filter(|entry| name(entry).is_none_or(|name| seen.insert(name))).collect();
    list.reverse();
    // An empty one is as good as none: it is looked up.
    list.retain(|entry| entry.as_bytes() != b"HOME=");
    list
}

fn limit(limit: &oci::runtime::PosixRlimit) -> (Resource, Rlimit) {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    };
    // The largest number means no limit, to the specification as to the kernel.
    let value = |number: u64| (number != u64::MAX).then_some(number);
    (resource, Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) })
}

fn capabilities(
    sets: &oci::runtime::LinuxCapabilities,
    host: &HostFeatures,
    in_user_space: bool,
    warnings: &mut Vec<String>,
) -> Capabilities {
    // A new user namespace begins with all of them.
    let known = u64::MAX.checked_shr(64 - host.capabilities_known).unwrap_or(0);
    let available = if in_user_space { known } else { host.capabilities };
    let mut missing = std::collections::BTreeSet::new();
    let mut mask = |names: &Option<Names>| {
        let mut mask = 0_u64;
        for name in names.iter().flatten() {
            let name = format!("CAP_{name}");
            match sys::caps::number(&name).filter(|number| available & (1 << number) != 0) {
                Some(number) => mask |= 1 << number,
                None => {
                    missing.insert(name);
                }
            }
        }
        mask
    };
    let (bounding, effective, permitted) = (mask(sets.bounding()), mask(sets.effective()), mask(sets.permitted()));
    let (inheritable, ambient) = (mask(sets.inheritable()), mask(sets.ambient()));
    if !missing.is_empty() {
        let names = missing.into_iter().collect::<Vec<_>>().join(" ");
        warnings.push(format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
    for (number, name) in sys::caps::NAMES.iter().enumerate() {
        if ambient & !(permitted & inheritable) & (1 << number) != 0 {
            warnings.push(format!("can't raise ambient capability CAP_{name}: operation not permitted"));
        }
    }
    // The kernel refuses a set that breaks these rules (capabilities(7)); the specification does not forbid one.
    Capabilities {
        bounding,
        effective: effective & permitted,
        permitted,
        inheritable: if left_out(Defence::Inheritable) { permitted } else { inheritable & (bounding | permitted) },
        ambient: ambient & permitted & inheritable,
        known: host.capabilities_known,
    }
}
