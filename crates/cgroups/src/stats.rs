//! What a control group has used, in the shape that the containerd API reports it.

/// Statistics of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stats {
    /// Of cgroup v1 hierarchies: `io.containerd.cgroups.v1.Metrics`.
    V1(Box<StatsV1>),
    /// Of the one cgroup v2 hierarchy: `io.containerd.cgroups.v2.Metrics`.
    V2(Box<StatsV2>),
}

/// Statistics of cgroup v1. A part whose controller is not there is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsV1 {
    /// Processes.
    pub pids: Option<Pids>,
    /// Processor time.
    pub cpu: Option<CpuV1>,
    /// Memory.
    pub memory: Option<MemoryV1>,
    /// State of the out-of-memory killer.
    pub memory_oom_control: Option<OomControlV1>,
    /// Block devices.
    pub blkio: Option<BlkioV1>,
    /// Huge pages, per size.
    pub hugetlb: Vec<HugetlbV1>,
    /// RDMA.
    pub rdma: Option<Rdma>,
}

/// Number of processes. A limit of `u64::MAX` on v2, and 0 on v1, means none, as containerd reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// At most.
    pub limit: u64,
}

/// Processor time of v1, nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuV1 {
    /// All.
    pub total_ns: u64,
    /// In the kernel.
    pub kernel_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// Per processor.
    pub per_cpu_ns: Vec<u64>,
    /// Bandwidth periods that have passed.
    pub periods: u64,
    /// Periods in which the group was throttled.
    pub throttled_periods: u64,
    /// For how long it was throttled.
    pub throttled_ns: u64,
}

/// A counter with a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// At most, bytes.
    pub limit: u64,
    /// Now, bytes.
    pub usage: u64,
    /// The most it ever was, bytes.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Memory of v1: the lines of `memory.stat` by name, and four counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the kernel's names in memory.stat; bytes or counts as it documents them"
)]
pub struct MemoryV1 {
    pub cache: u64,
    pub rss: u64,
    pub rss_huge: u64,
    pub mapped_file: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub pgpgin: u64,
    pub pgpgout: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub hierarchical_memory_limit: u64,
    pub hierarchical_memsw_limit: u64,
    pub total_cache: u64,
    pub total_rss: u64,
    pub total_rss_huge: u64,
    pub total_mapped_file: u64,
    pub total_dirty: u64,
    pub total_writeback: u64,
    pub total_pgpgin: u64,
    pub total_pgpgout: u64,
    pub total_pgfault: u64,
    pub total_pgmajfault: u64,
    pub total_inactive_anon: u64,
    pub total_active_anon: u64,
    pub total_inactive_file: u64,
    pub total_active_file: u64,
    pub total_unevictable: u64,
    pub usage: MemoryEntry,
    pub swap: Option<MemoryEntry>,
    pub kernel: Option<MemoryEntry>,
    pub kernel_tcp: Option<MemoryEntry>,
}

/// State of the out-of-memory killer of v1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomControlV1 {
    /// The killer is off: processes wait for memory instead.
    pub oom_kill_disable: u64,
    /// Processes wait now.
    pub under_oom: u64,
    /// Processes killed so far.
    pub oom_kill: u64,
}

/// One line of a blkio file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`; empty where the file has no operations.
    pub op: String,
    /// Device name; empty where it is not known.
    pub device: String,
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// The counter.
    pub value: u64,
}

/// Block devices of v1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioV1 {
    /// Bytes.
    pub service_bytes: Vec<BlkioEntry>,
    /// Operations.
    pub serviced: Vec<BlkioEntry>,
    /// Operations waiting.
    pub queued: Vec<BlkioEntry>,
    /// Time in service, nanoseconds.
    pub service_time: Vec<BlkioEntry>,
    /// Time waiting, nanoseconds.
    pub wait_time: Vec<BlkioEntry>,
    /// Operations merged.
    pub merged: Vec<BlkioEntry>,
    /// Time on the device, milliseconds.
    pub time: Vec<BlkioEntry>,
    /// Sectors.
    pub sectors: Vec<BlkioEntry>,
}

/// Huge pages of one size, v1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbV1 {
    /// `2MB` for instance.
    pub page_size: String,
    /// Bytes now.
    pub usage: u64,
    /// Most bytes ever.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// RDMA resources per device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// In use.
    pub current: Vec<RdmaEntry>,
    /// At most; `u32::MAX` for no limit.
    pub limit: Vec<RdmaEntry>,
}

/// RDMA resources of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Device name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// Statistics of cgroup v2. A part whose controller is not there is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsV2 {
    /// Processes.
    pub pids: Option<Pids>,
    /// Processor time. The kernel counts usage even without the controller.
    pub cpu: Option<CpuV2>,
    /// Memory.
    pub memory: Option<MemoryV2>,
    /// Memory events.
    pub memory_events: Option<MemoryEventsV2>,
    /// RDMA.
    pub rdma: Option<Rdma>,
    /// Block devices.
    pub io: Option<IoV2>,
    /// Huge pages, per size.
    pub hugetlb: Vec<HugetlbV2>,
}

/// Processor time of v2, microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the kernel's names in cpu.stat")]
pub struct CpuV2 {
    pub usage_usec: u64,
    pub user_usec: u64,
    pub system_usec: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_usec: u64,
    pub nr_bursts: u64,
    pub burst_usec: u64,
    pub psi: Option<Psi>,
}

/// Memory of v2: the lines of `memory.stat` by name, and the limits. `u64::MAX` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the kernel's names in memory.stat and its sibling files")]
pub struct MemoryV2 {
    pub anon: u64,
    pub file: u64,
    pub kernel_stack: u64,
    pub slab: u64,
    pub sock: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub anon_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub workingset_refault: u64,
    pub workingset_activate: u64,
    pub workingset_nodereclaim: u64,
    pub pgrefill: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgactivate: u64,
    pub pgdeactivate: u64,
    pub pglazyfree: u64,
    pub pglazyfreed: u64,
    pub thp_fault_alloc: u64,
    pub thp_collapse_alloc: u64,
    pub usage: u64,
    pub usage_limit: u64,
    pub swap_usage: u64,
    pub swap_limit: u64,
    pub max_usage: u64,
    pub swap_max_usage: u64,
    pub psi: Option<Psi>,
}

/// Memory events of v2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the kernel's names in memory.events")]
pub struct MemoryEventsV2 {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    pub oom_group_kill: u64,
}

/// Block devices of v2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoV2 {
    /// Per device.
    pub usage: Vec<IoEntryV2>,
    /// Time lost waiting.
    pub psi: Option<Psi>,
}

/// One block device of v2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the kernel's names in io.stat")]
pub struct IoEntryV2 {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// Huge pages of one size, v2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbV2 {
    /// `2MB` for instance.
    pub page_size: String,
    /// Bytes now.
    pub current: u64,
    /// At most; `u64::MAX` for no limit.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    /// Time in which some task waited.
    pub some: PsiLine,
    /// Time in which all tasks waited.
    pub full: PsiLine,
}

impl Eq for Psi {}

/// One line of pressure stall information. The averages are percentages, never NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiLine {
    /// Over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
    /// Total, microseconds.
    pub total_usec: u64,
}

impl Eq for PsiLine {}
