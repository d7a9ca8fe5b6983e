//! Statistics of a control group as the messages that containerd's clients tell apart by type.

use api_shim::messages::{cgroups_v1 as v1, cgroups_v2 as v2};
use cgroups::{BlkioEntry, MemoryEntry, MemoryV1, MemoryV2, Psi, PsiLine, Rdma, Stats, StatsV1, StatsV2};
use protobuf::{Message, MessageField};

use crate::error::Error;

/// The type URL and the encoded message.
pub(crate) fn encode(stats: &Stats) -> Result<(&'static str, Vec<u8>), Error> {
    let (url, bytes) = match stats {
        Stats::V1(stats) => ("io.containerd.cgroups.v1.Metrics", metrics_v1(stats).write_to_bytes()),
        Stats::V2(stats) => ("io.containerd.cgroups.v2.Metrics", metrics_v2(stats).write_to_bytes()),
    };
    bytes.map(|bytes| (url, bytes)).map_err(|source| Error::Encode { what: "statistics", source })
}

fn metrics_v1(stats: &StatsV1) -> v1::Metrics {
    let mut out = v1::Metrics::new();
    out.pids = field(stats.pids.as_ref(), |pids| {
        let mut out = v1::PidsStat::new();
        out.current = pids.current;
        out.limit = pids.limit;
        out
    });
    out.cpu = field(stats.cpu.as_ref(), |cpu| {
        let mut usage = v1::CPUUsage::new();
        usage.total = cpu.total_ns;
        usage.kernel = cpu.kernel_ns;
        usage.user = cpu.user_ns;
        usage.per_cpu.clone_from(&cpu.per_cpu_ns);
        let mut throttling = v1::Throttle::new();
        throttling.periods = cpu.periods;
        throttling.throttled_periods = cpu.throttled_periods;
        throttling.throttled_time = cpu.throttled_ns;
        let mut out = v1::CPUStat::new();
        out.usage = MessageField::some(usage);
        out.throttling = MessageField::some(throttling);
        out
    });
    out.memory = field(stats.memory.as_ref(), memory_v1);
    out.memory_oom_control = field(stats.memory_oom_control.as_ref(), |control| {
        let mut out = v1::MemoryOomControl::new();
        out.oom_kill_disable = control.oom_kill_disable;
        out.under_oom = control.under_oom;
        out.oom_kill = control.oom_kill;
        out
    });
    out.blkio = field(stats.blkio.as_ref(), |blkio| {
        let mut out = v1::BlkIOStat::new();
        out.io_service_bytes_recursive = blkio_entries(&blkio.service_bytes);
        out.io_serviced_recursive = blkio_entries(&blkio.serviced);
        out.io_queued_recursive = blkio_entries(&blkio.queued);
        out.io_service_time_recursive = blkio_entries(&blkio.service_time);
        out.io_wait_time_recursive = blkio_entries(&blkio.wait_time);
        out.io_merged_recursive = blkio_entries(&blkio.merged);
        out.io_time_recursive = blkio_entries(&blkio.time);
        out.sectors_recursive = blkio_entries(&blkio.sectors);
        out
    });
    for page in &stats.hugetlb {
        let mut entry = v1::HugetlbStat::new();
        entry.pagesize.clone_from(&page.page_size);
        entry.usage = page.usage;
        entry.max = page.max;
        entry.failcnt = page.failcnt;
        out.hugetlb.push(entry);
    }
    out.rdma = field(stats.rdma.as_ref(), rdma_v1);
    out
}

/// Copies fields of the same name from one structure to another.
macro_rules! copy {
    ($from:expr => $to:expr; $($name:ident)*) => { $($to.$name = $from.$name;)* };
}

fn memory_v1(memory: &MemoryV1) -> v1::MemoryStat {
    let mut out = v1::MemoryStat::new();
    copy!(memory => out; cache rss rss_huge mapped_file dirty writeback inactive_anon active_anon inactive_file
        active_file unevictable hierarchical_memory_limit total_cache total_rss total_rss_huge total_mapped_file
        total_dirty total_writeback total_inactive_anon total_active_anon total_inactive_file total_active_file
        total_unevictable);
    out.pg_pg_in = memory.pgpgin;
    out.pg_pg_out = memory.pgpgout;
    out.pg_fault = memory.pgfault;
    out.pg_maj_fault = memory.pgmajfault;
    out.hierarchical_swap_limit = memory.hierarchical_memsw_limit;
    out.total_pg_pg_in = memory.total_pgpgin;
    out.total_pg_pg_out = memory.total_pgpgout;
    out.total_pg_fault = memory.total_pgfault;
    out.total_pg_maj_fault = memory.total_pgmajfault;
    out.usage = field(Some(&memory.usage), memory_entry);
    out.swap = field(memory.swap.as_ref(), memory_entry);
    out.kernel = field(memory.kernel.as_ref(), memory_entry);
    out.kernel_tcp = field(memory.kernel_tcp.as_ref(), memory_entry);
    out
}

fn memory_entry(entry: &MemoryEntry) -> v1::MemoryEntry {
    let mut out = v1::MemoryEntry::new();
    copy!(entry => out; limit usage max failcnt);
    out
}

fn blkio_entries(entries: &[BlkioEntry]) -> Vec<v1::BlkIOEntry> {
    let convert = |entry: &BlkioEntry| {
        let mut out = v1::BlkIOEntry::new();
        out.op.clone_from(&entry.op);
        out.device.clone_from(&entry.device);
        copy!(entry => out; major minor value);
        out
    };
    entries.iter().map(convert).collect()
}

fn rdma_v1(rdma: &Rdma) -> v1::RdmaStat {
    let convert = |entry: &cgroups::RdmaEntry| {
        let mut out = v1::RdmaEntry::new();
        out.device.clone_from(&entry.device);
        copy!(entry => out; hca_handles hca_objects);
        out
    };
    let mut out = v1::RdmaStat::new();
    out.current = rdma.current.iter().map(convert).collect();
    out.limit = rdma.limit.iter().map(convert).collect();
    out
}

fn metrics_v2(stats: &StatsV2) -> v2::Metrics {
    let mut out = v2::Metrics::new();
    out.pids = field(stats.pids.as_ref(), |pids| {
        let mut out = v2::PidsStat::new();
        copy!(pids => out; current limit);
        out
    });
    out.cpu = field(stats.cpu.as_ref(), |cpu| {
        let mut out = v2::CPUStat::new();
        copy!(cpu => out; usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts burst_usec);
        out.psi = field(cpu.psi.as_ref(), psi);
        out
    });
    out.memory = field(stats.memory.as_ref(), memory_v2);
    out.memory_events = field(stats.memory_events.as_ref(), |events| {
        let mut out = v2::MemoryEvents::new();
        copy!(events => out; low high max oom oom_kill oom_group_kill);
        out
    });
    out.rdma = field(stats.rdma.as_ref(), |rdma| {
        let convert = |entry: &cgroups::RdmaEntry| {
            let mut out = v2::RdmaEntry::new();
            out.device.clone_from(&entry.device);
            copy!(entry => out; hca_handles hca_objects);
            out
        };
        let mut out = v2::RdmaStat::new();
        out.current = rdma.current.iter().map(convert).collect();
        out.limit = rdma.limit.iter().map(convert).collect();
        out
    });
    out.io = field(stats.io.as_ref(), |io| {
        let mut out = v2::IOStat::new();
        for device in &io.usage {
            let mut entry = v2::IOEntry::new();
            copy!(device => entry; major minor rbytes wbytes rios wios);
            out.usage.push(entry);
        }
        out.psi = field(io.psi.as_ref(), psi);
        out
    });
    for page in &stats.hugetlb {
        let mut entry = v2::HugeTlbStat::new();
        entry.pagesize.clone_from(&page.page_size);
        entry.pagesize.clone_from(&page.page_size);
        copy!(page => entry; current max failcnt);
        out.hugetlb.push(entry);
    }
    out
}

fn memory_v2(memory: &MemoryV2) -> v2::MemoryStat {
    let mut out = v2::MemoryStat::new();
    copy!(memory => out; anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp
        inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault
        pgmajfault workingset_refault workingset_activate workingset_nodereclaim pgrefill pgscan pgsteal pgactivate
        pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc usage usage_limit swap_usage
        swap_limit max_usage swap_max_usage);
    out.psi = field(memory.psi.as_ref(), psi);
    out
}

fn psi(psi: &Psi) -> v2::PSIStats {
    let line = |line: &PsiLine| {
        let mut out = v2::PSIData::new();
        copy!(line => out; avg10 avg60 avg300);
        out.total = line.total_usec;
        out
    };
    let mut out = v2::PSIStats::new();
    out.some = MessageField::some(line(&psi.some));
    out.full = MessageField::some(line(&psi.full));
    out
}

fn field<T, M>(value: Option<&T>, convert: impl FnOnce(&T) -> M) -> MessageField<M> {
    MessageField::from_option(value.map(convert))
}

#[cfg(test)]
mod tests {
    use cgroups::{CpuV1, Pids};

    use super::*;

    #[test]
    fn each_version_has_its_type() {
        let v1 = StatsV1 {
            pids: Some(Pids { current: 3, limit: 9 }),
            cpu: Some(CpuV1 { total_ns: 5, ..CpuV1::default() }),
            ..StatsV1::default()
        };
        let (url, bytes) = encode(&Stats::V1(Box::new(v1))).unwrap();
        assert_eq!(url, "io.containerd.cgroups.v1.Metrics");
        let read = v1::Metrics::parse_from_bytes(&bytes).unwrap();
        assert_eq!((read.pids.current, read.pids.limit, read.cpu.usage.total), (3, 9, 5));
        assert!(read.memory.is_none());

        let v2 = StatsV2 {
            memory: Some(MemoryV2 {
                usage: 7,
                usage_limit: u64::MAX,
                psi: Some(Psi::default()),
                ..MemoryV2::default()
            }),
            ..StatsV2::default()
        };
        let (url, bytes) = encode(&Stats::V2(Box::new(v2))).unwrap();
        assert_eq!(url, "io.containerd.cgroups.v2.Metrics");
        let read = v2::Metrics::parse_from_bytes(&bytes).unwrap();
        assert_eq!((read.memory.usage, read.memory.usage_limit), (7, u64::MAX));
        assert!(read.memory.psi.is_some() && read.pids.is_none());
    }
}
