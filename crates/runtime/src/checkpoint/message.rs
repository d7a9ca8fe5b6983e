//! CRIU's requests and answers (criu.org/RPC): what of them is used, by their numbers.

use std::os::fd::RawFd;

use super::wire::{Broken, Reader, Writer};

/// What is asked for, `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
}

impl Kind {
    fn number(self) -> u64 {
        // The values are those above.
        self as u64
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dump => "DUMP",
            Self::Restore => "RESTORE",
            Self::PreDump => "PRE_DUMP",
            Self::Notify => "NOTIFY",
            Self::FeatureCheck => "FEATURE_CHECK",
            Self::Version => "VERSION",
        }
    }

    fn from_number(number: i32) -> Option<Self> {
        [Self::Dump, Self::Restore, Self::PreDump, Self::Notify, Self::FeatureCheck, Self::Version]
            .into_iter()
            .find(|kind| i32::try_from(kind.number()) == Ok(number))
    }
}

/// How CRIU treats the cgroups, `criu_cg_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Leaves them alone.
    Ignore = 0,
    /// Makes missing groups and sets their properties.
    Soft = 3,
    /// Sets the properties of all.
    Full = 4,
    /// Refuses where a group exists.
    Strict = 5,
    /// What CRIU does by itself, [`CgroupMode::Soft`] at present.
    #[default]
    Default = 6,
}

/// `criu_opts`: all that a request may say. Descriptors are numbers in the process that asks, except those to inherit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) images: RawFd,
    pub(super) work: Option<RawFd>,
    pub(super) pid: Option<i32>,
    pub(super) log_file: String,
    pub(super) root: Vec<u8>,
    pub(super) parent: Option<Vec<u8>>,
    pub(super) config_file: Option<Vec<u8>>,
    pub(super) leave_running: bool,
    pub(super) ext_unix_sk: bool,
    pub(super) tcp_established: bool,
    pub(super) tcp_skip_in_flight: bool,
    pub(super) evasive_devices: bool,
    pub(super) shell_job: bool,
    pub(super) file_locks: bool,
    pub(super) link_remap: bool,
    pub(super) auto_dedup: bool,
    pub(super) lazy_pages: bool,
    /// The restored process becomes a child of the process that asks.
    pub(super) sibling: bool,
    pub(super) page_server: Option<(String, u16)>,
    pub(super) cgroup_mode: CgroupMode,
    /// Controller (empty on version 2) and path.
    pub(super) cgroup_roots: Vec<(String, String)>,
    pub(super) freeze_cgroup: Option<Vec<u8>>,
    /// Key and value.
    pub(super) mounts: Vec<(Vec<u8>, Vec<u8>)>,
    /// `net[inode]:key` and the like.
    pub(super) external: Vec<String>,
    /// Key, and number in CRIU's process.
    pub(super) inherit: Vec<(String, RawFd)>,
    /// Name of the kind, and file.
    pub(super) join: Vec<(&'static str, Vec<u8>)>,
    /// `CLONE_NEW*` of what is made but not filled.
    pub(super) empty_namespaces: u32,
    pub(super) lsm_profile: Option<String>,
    pub(super) lsm_mount_context: Option<String>,
}

/// Debug messages: what is needed to tell why a dump failed.
const LOG_LEVEL: i32 = 4;

impl Options {
    fn encode(&self) -> Writer {
        let mut out = Writer::default();
        out.signed(1, self.images);
        if let Some(pid) = self.pid {
            out.signed(2, pid);
        }
        for (field, value) in [
            (3, self.leave_running),
            (4, self.ext_unix_sk),
            (5, self.tcp_established),
            (6, self.evasive_devices),
            (7, self.shell_job),
            (8, self.file_locks),
        ] {
            out.flag(field, value);
        }
        out.signed(9, LOG_LEVEL);
        out.bytes(10, &self.log_file);
        if let Some((address, port)) = &self.page_server {
            let mut server = Writer::default();
            server.bytes(1, address);
            server.signed(2, i32::from(*port));
            out.message(11, &server);
        }
        // Notifications, which the caller answers, and the older word for the mode of the cgroups.
        out.flag(12, true);
        out.bytes(13, &self.root);
        if let Some(parent) = &self.parent {
            out.bytes(14, parent);
            out.flag(15, true);
        }
        out.flag(16, self.auto_dedup);
        if let Some(work) = self.work {
            out.signed(17, work);
        }
        out.flag(18, self.link_remap);
        for (key, value) in &self.mounts {
            out.message(23, &pair(key, value));
        }
        out.flag(24, true);
        for (controller, path) in &self.cgroup_roots {
            out.message(25, &pair(controller.as_bytes(), path.as_bytes()));
        }
        out.flag(26, self.sibling);
        for (key, fd) in &self.inherit {
            let mut inherit = Writer::default();
            inherit.bytes(1, key);
            inherit.signed(2, *fd);
            out.message(27, &inherit);
        }
        out.number(34, self.cgroup_mode as u64);
        for external in &self.external {
            out.bytes(37, external);
        }
        out.number(38, u64::from(self.empty_namespaces));
        for (kind, file) in &self.join {
            out.message(39, &pair(kind.as_bytes(), file));
        }
        self.encode_late(&mut out);
        out
    }

    fn encode_late(&self, out: &mut Writer) {
        if let Some(freezer) = &self.freeze_cgroup {
            out.bytes(44, freezer);
        }
        out.flag(46, self.tcp_skip_in_flight);
        out.flag(48, self.lazy_pages);
        // The master of a terminal is not in the container: it comes back in a notification.
        out.flag(50, true);
        if let Some(file) = &self.config_file {
            out.bytes(51, file);
        }
        if let Some(profile) = &self.lsm_profile {
            out.bytes(53, profile);
        }
        if let Some(context) = &self.lsm_mount_context {
            out.bytes(63, context);
        }
    }
}

fn pair(key: &[u8], value: &[u8]) -> Writer {
    let mut pair = Writer::default();
    pair.bytes(1, key);
    pair.bytes(2, value);
    pair
}

/// What CRIU and the kernel may be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) memory_tracking: bool,
    pub(super) lazy_pages: bool,
}

/// `criu_req`.
#[derive(Clone, Debug)]
pub(super) enum Request<'a> {
    /// Which CRIU it is; the connection stays open.
    Version,
    /// Which of these it can do; the connection stays open.
    FeatureCheck(Features),
    /// Dump, pre-dump or restore.
    Act(Kind, &'a Options),
    /// The answer to a notification.
    Notified { success: bool },
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Writer {
        let mut out = Writer::default();
        match self {
            Self::Version => {
                out.number(1, Kind::Version.number());
                out.flag(4, true);
            }
            Self::FeatureCheck(wanted) => {
                let mut features = Writer::default();
                features.flag(1, wanted.memory_tracking);
                features.flag(2, wanted.lazy_pages);
                out.number(1, Kind::FeatureCheck.number());
                out.flag(4, true);
                out.message(5, &features);
            }
            Self::Act(kind, options) => {
                out.number(1, kind.number());
                out.message(2, &options.encode());
            }
            Self::Notified { success } => {
                out.number(1, Kind::Notify.number());
                out.number(3, u64::from(*success));
            }
        }
        out
    }
}

/// `criu_resp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// `None`: a type that is not known.
    pub(super) kind: Option<Kind>,
    pub(super) success: bool,
    /// The restored process.
    pub(super) restored: Option<i32>,
    /// Name of a notification, and the pid it is about.
    pub(super) notification: Option<(String, i32)>,
    pub(super) errno: i32,
    pub(super) features: Features,
    /// Major, minor and sublevel as one number: 3.17.1 is 31701.
    pub(super) version: i32,
}

impl Response {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Broken> {
        let mut response = Self::default();
        for field in Reader::new(bytes) {
            let (number, value) = field?;
            match number {
                1 => response.kind = Kind::from_number(value.signed()),
                2 => response.success = value.flag(),
                4 => {
                    let pid =
                        Reader::new(value.bytes()).find_map(|field| field.ok().filter(|(number, _)| *number == 1));
                    response.restored = pid.map(|(_, pid)| pid.signed());
                }
                5 => {
                    let (mut script, mut pid) = (String::new(), 0);
                    for field in Reader::new(value.bytes()) {
                        match field? {
                            (1, name) => script = name.text(),
                            (2, number) => pid = number.signed(),
                            _ => {}
                        }
                    }
                    response.notification = Some((script, pid));
                }
                7 => response.errno = value.signed(),
                8 => {
                    for field in Reader::new(value.bytes()) {
                        match field? {
                            (1, has) => response.features.memory_tracking = has.flag(),
                            (2, has) => response.features.lazy_pages = has.flag(),
                            _ => {}
                        }
                    }
                }
                10 => response.version = version(value.bytes())?,
                // Later versions of CRIU may say more.
                _ => {}
            }
        }
        Ok(response)
    }
}

fn version(bytes: &[u8]) -> Result<i32, Broken> {
    let (mut major, mut minor, mut sublevel) = (0_i32, 0_i32, 0_i32);
    for field in Reader::new(bytes) {
        match field? {
            (1, number) => major = number.signed(),
            (2, number) => minor = number.signed(),
            (4, number) => sublevel = number.signed(),
            _ => {}
        }
    }
    Ok(major.saturating_mul(10_000).saturating_add(minor.saturating_mul(100)).saturating_add(sublevel))
}
