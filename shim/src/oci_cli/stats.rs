//! Statistics of a control group in the form of runc's `events`, which is that of its Go package `types`.

use std::collections::BTreeMap;

use cgroups::{BlkioEntry, MemoryEntry, Pids, Psi, PsiLine, StatsV1, StatsV2};
use serde_json::{Value, json};

fn pids(pids: Option<&Pids>) -> Value {
    let none = |limit: u64| if limit == u64::MAX { 0 } else { limit };
    pids.map_or(json!({}), |pids| json!({"current": pids.current, "limit": none(pids.limit)}))
}

fn memory_entry(entry: &MemoryEntry) -> Value {
    json!({"limit": entry.limit, "usage": entry.usage, "max": entry.max, "failcnt": entry.failcnt})
}

pub(crate) fn of_v1(stats: &StatsV1) -> Value {
    let cpu = stats.cpu.as_ref().map_or(json!({}), |cpu| {
        json!({
            "usage": {"total": cpu.total_ns, "percpu": cpu.per_cpu_ns, "kernel": cpu.kernel_ns, "user": cpu.user_ns},
            "throttling": {"periods": cpu.periods, "throttledPeriods": cpu.throttled_periods,
                           "throttledTime": cpu.throttled_ns},
        })
    });
    let memory = stats.memory.as_ref().map_or(json!({}), |memory| {
        let mut value = json!({"cache": memory.cache, "usage": memory_entry(&memory.usage)});
        for (name, entry) in [("swap", memory.swap), ("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)] {
            if let Some(entry) = entry {
                value[name] = memory_entry(&entry);
            }
        }
        macro_rules! raw {
            ($($name:ident)*) => { BTreeMap::from([$((stringify!($name), memory.$name)),*]) };
        }
        value["raw"] = json!(raw!(cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault
            inactive_anon active_anon inactive_file active_file unevictable hierarchical_memory_limit
            hierarchical_memsw_limit total_cache total_rss total_rss_huge total_mapped_file total_dirty total_writeback
            total_pgpgin total_pgpgout total_pgfault total_pgmajfault total_inactive_anon total_active_anon
            total_inactive_file total_active_file total_unevictable));
        value
    });
    let blkio = stats.blkio.as_ref().map_or(json!({}), |blkio| {
        let lists = [
            ("ioServiceBytesRecursive", &blkio.service_bytes),
            ("ioServicedRecursive", &blkio.serviced),
            ("ioQueueRecursive", &blkio.queued),
            ("ioServiceTimeRecursive", &blkio.service_time),
            ("ioWaitTimeRecursive", &blkio.wait_time),
            ("ioMergedRecursive", &blkio.merged),
            ("ioTimeRecursive", &blkio.time),
            ("sectorsRecursive", &blkio.sectors),
        ];
        let entry = |e: &BlkioEntry| json!({"major": e.major, "minor": e.minor, "op": e.op, "value": e.value});
        let filled = lists.into_iter().filter(|(_, list)| !list.is_empty());
        filled.map(|(name, list)| (name.to_owned(), list.iter().map(entry).collect::<Value>())).collect()
    });
    let hugetlb: BTreeMap<&str, Value> = stats
        .hugetlb
        .iter()
        .map(|page| (page.page_size.as_str(), json!({"usage": page.usage, "max": page.max, "failcnt": page.failcnt})))
        .collect();
    whole(cpu, memory, pids(stats.pids.as_ref()), blkio, json!(hugetlb))
}

fn whole(cpu: Value, memory: Value, pids: Value, blkio: Value, hugetlb: Value) -> Value {
    json!({"cpu": cpu, "cpuset": {}, "memory": memory, "pids": pids, "blkio": blkio, "hugetlb": hugetlb,
           "intel_rdt": {}, "network_interfaces": null})
}

fn psi(psi: Option<&Psi>) -> Value {
    let line = |line: &PsiLine| json!({"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total_usec});
    psi.map_or(Value::Null, |psi| json!({"some": line(&psi.some), "full": line(&psi.full)}))
}

pub(crate) fn of_v2(stats: &StatsV2) -> Value {
    let cpu = stats.cpu.as_ref().map_or(json!({}), |cpu| {
        // Version 2 counts microseconds where the document has nanoseconds.
        json!({
            "usage": {"total": cpu.usage_usec * 1000, "kernel": cpu.system_usec * 1000, "user": cpu.user_usec * 1000},
            "throttling": {"periods": cpu.nr_periods, "throttledPeriods": cpu.nr_throttled,
                           "throttledTime": cpu.throttled_usec * 1000},
            "psi": psi(cpu.psi.as_ref()),
        })
    });
    let memory = stats.memory.as_ref().map_or(json!({}), |memory| {
        macro_rules! raw {
            ($($name:ident)*) => { BTreeMap::from([$((stringify!($name), memory.$name)),*]) };
        }
        json!({
            "cache": memory.file,
            "usage": {"limit": memory.usage_limit, "usage": memory.usage, "max": memory.max_usage, "failcnt": 0},
            "swap": {"limit": memory.swap_limit, "usage": memory.swap_usage, "max": memory.swap_max_usage,
                     "failcnt": 0},
            "raw": raw!(anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp
                inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable
                pgfault pgmajfault workingset_refault workingset_activate workingset_nodereclaim pgrefill pgscan
                pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc),
            "psi": psi(memory.psi.as_ref()),
        })
    });
    let blkio = stats.io.as_ref().map_or(json!({}), |io| {
        let lines = |read: fn(&cgroups::IoEntryV2) -> u64, write: fn(&cgroups::IoEntryV2) -> u64| {
            let both = |entry: &cgroups::IoEntryV2| {
                [("Read", read(entry)), ("Write", write(entry))]
                    .map(|(op, value)| json!({"major": entry.major, "minor": entry.minor, "op": op, "value": value}))
            };
            io.usage.iter().flat_map(both).collect::<Value>()
        };
        json!({
            "ioServiceBytesRecursive": lines(|entry| entry.rbytes, |entry| entry.wbytes),
            "ioServicedRecursive": lines(|entry| entry.rios, |entry| entry.wios),
            "psi": psi(io.psi.as_ref()),
        })
    });
    let hugetlb: BTreeMap<&str, Value> = stats
        .hugetlb
        .iter()
        .map(|page| (page.page_size.as_str(), json!({"usage": page.current, "max": page.max, "failcnt": page.failcnt})))
        .collect();
    whole(cpu, memory, pids(stats.pids.as_ref()), blkio, json!(hugetlb))
}
