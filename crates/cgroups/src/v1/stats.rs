//! Statistics of version 1.

use std::collections::HashMap;

use crate::dir::Dir;
use crate::stats::{BlkioEntry, BlkioV1, CpuV1, HugetlbV1, MemoryEntry, MemoryV1, OomControlV1, Pids, StatsV1};
use crate::{Result, text};

/// `USER_HZ`, in which `cpuacct.stat` counts, is 100 on every architecture that Linux exports it to programs on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Reads everything; `find` gives the directory of a controller.
pub(crate) fn read<'dir>(find: impl Fn(&str) -> Option<&'dir Dir>) -> Result<StatsV1> {
    Ok(StatsV1 {
        pids: find("pids").map(pids).transpose()?,
        cpu: cpu(find("cpuacct"), find("cpu"))?,
        memory: find("memory").map(memory).transpose()?,
        memory_oom_control: find("memory").map(oom_control).transpose()?,
        blkio: find("blkio").map(blkio).transpose()?,
        hugetlb: find("hugetlb").map(hugetlb).transpose()?.unwrap_or_default(),
        rdma: find("rdma").map(crate::v2::stats::rdma).transpose()?,
    })
}

fn pids(dir: &Dir) -> Result<Pids> {
    let limit = dir.number("pids.max")?.unwrap_or(0);
    // containerd shows 0 for no limit on version 1.
    let limit = if limit == u64::MAX { 0 } else { limit };
    Ok(Pids { current: dir.number("pids.current")?.unwrap_or(0), limit })
}

fn cpu(accounting: Option<&Dir>, bandwidth: Option<&Dir>) -> Result<Option<CpuV1>> {
    let mut cpu = CpuV1::default();
    if let Some(dir) = accounting {
        cpu.total_ns = dir.number("cpuacct.usage")?.unwrap_or(0);
        let ticks = dir.read_optional("cpuacct.stat")?.unwrap_or_default();
        cpu.user_ns = text::value_of(&ticks, "user").saturating_mul(NANOSECONDS_PER_TICK);
        cpu.kernel_ns = text::value_of(&ticks, "system").saturating_mul(NANOSECONDS_PER_TICK);
        let each = dir.read_optional("cpuacct.usage_percpu")?.unwrap_or_default();
        cpu.per_cpu_ns = each.split_ascii_whitespace().map(text::number).collect();
    }
    if let Some(dir) = bandwidth {
        for (key, value) in text::keyed(&dir.read_optional("cpu.stat")?.unwrap_or_default()) {
            match key {
                "nr_periods" => cpu.periods = value,
                "nr_throttled" => cpu.throttled_periods = value,
                "throttled_time" => cpu.throttled_ns = value,
                _ => {}
            }
        }
    }
    Ok((accounting.is_some() || bandwidth.is_some()).then_some(cpu))
}

fn memory(dir: &Dir) -> Result<MemoryV1> {
    let entry = |name: &str| -> Result<Option<MemoryEntry>> {
        let Some(usage) = dir.number(&format!("{name}.usage_in_bytes"))? else { return Ok(None) };
        let number = |what: &str| Ok(dir.number(&format!("{name}.{what}"))?.unwrap_or(0));
        let (limit, max, failcnt) = (number("limit_in_bytes")?, number("max_usage_in_bytes")?, number("failcnt")?);
        Ok(Some(MemoryEntry { limit, usage, max, failcnt }))
    };
    let mut memory = MemoryV1 {
        usage: entry("memory")?.unwrap_or_default(),
        swap: entry("memory.memsw")?,
        kernel: entry("memory.kmem")?,
        kernel_tcp: entry("memory.kmem.tcp")?,
        ..MemoryV1::default()
    };
    for (key, value) in text::keyed(&dir.read_optional("memory.stat")?.unwrap_or_default()) {
        if let Some(field) = field(&mut memory, key) {
            *field = value;
        }
    }
    Ok(memory)
}

/// The field for a line of `memory.stat`.
fn field<'memory>(memory: &'memory mut MemoryV1, key: &str) -> Option<&'memory mut u64> {
    Some(match key {
        "cache" => &mut memory.cache,
        "rss" => &mut memory.rss,
        "rss_huge" => &mut memory.rss_huge,
        "mapped_file" => &mut memory.mapped_file,
        "dirty" => &mut memory.dirty,
        "writeback" => &mut memory.writeback,
        "pgpgin" => &mut memory.pgpgin,
        "pgpgout" => &mut memory.pgpgout,
        "pgfault" => &mut memory.pgfault,
        "pgmajfault" => &mut memory.pgmajfault,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "hierarchical_memory_limit" => &mut memory.hierarchical_memory_limit,
        "hierarchical_memsw_limit" => &mut memory.hierarchical_memsw_limit,
        "total_cache" => &mut memory.total_cache,
        "total_rss" => &mut memory.total_rss,
        "total_rss_huge" => &mut memory.total_rss_huge,
        "total_mapped_file" => &mut memory.total_mapped_file,
        "total_dirty" => &mut memory.total_dirty,
        "total_writeback" => &mut memory.total_writeback,
        "total_pgpgin" => &mut memory.total_pgpgin,
        "total_pgpgout" => &mut memory.total_pgpgout,
        "total_pgfault" => &mut memory.total_pgfault,
        "total_pgmajfault" => &mut memory.total_pgmajfault,
        "total_inactive_anon" => &mut memory.total_inactive_anon,
        "total_active_anon" => &mut memory.total_active_anon,
        "total_inactive_file" => &mut memory.total_inactive_file,
        "total_active_file" => &mut memory.total_active_file,
        "total_unevictable" => &mut memory.total_unevictable,
        _ => return None,
    })
}

fn oom_control(dir: &Dir) -> Result<OomControlV1> {
    let text = dir.read_optional("memory.oom_control")?.unwrap_or_default();
    let value = |name| text::value_of(&text, name);
    Ok(OomControlV1 {
        oom_kill_disable: value("oom_kill_disable"),
        under_oom: value("under_oom"),
        oom_kill: value("oom_kill"),
    })
}

/// The CFQ scheduler's files count everything; where they are missing or empty (no scheduler that fills them), the
/// throttling layer counts bytes and operations.
fn blkio(dir: &Dir) -> Result<BlkioV1> {
    let names = device_names();
    let entries = |file: &str| -> Result<Vec<BlkioEntry>> {
        Ok(dir.read_optional(file)?.map(|text| blkio_entries(&text, &names)).unwrap_or_default())
    };
    for prefix in ["blkio.", "blkio.bfq."] {
        let file = |name: &str| entries(&format!("{prefix}{name}_recursive"));
        let serviced = file("io_serviced")?;
        if !serviced.is_empty() {
            return Ok(BlkioV1 {
                serviced,
                service_bytes: file("io_service_bytes")?,
                queued: file("io_queued")?,
                service_time: file("io_service_time")?,
                wait_time: file("io_wait_time")?,
                merged: file("io_merged")?,
                time: file("time")?,
                sectors: file("sectors")?,
            });
        }
    }
    Ok(BlkioV1 {
        serviced: entries("blkio.throttle.io_serviced")?,
        service_bytes: entries("blkio.throttle.io_service_bytes")?,
        ..BlkioV1::default()
    })
}

/// Lines `8:0 Read 4096` or `8:0 4096`. The line `Total 4096` that sums up all devices is left out.
fn blkio_entries(text: &str, names: &HashMap<(u64, u64), String>) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = text::device(words.next()?)?;
        let (op, value) = match (words.next()?, words.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        let device = names.get(&(major, minor)).cloned().unwrap_or_default();
        Some(BlkioEntry { op: op.to_owned(), device, major, minor, value: text::number(value) })
    };
    text.lines().filter_map(entry).collect()
}

/// Paths of block devices by number.
fn device_names() -> HashMap<(u64, u64), String> {
    // The names are a courtesy: without the table the numbers still say which device it is.
    let table = sys::fs::read_small(rustix::fs::CWD, "/proc/diskstats").unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", words.next()?)))
    };
    table.lines().filter_map(entry).collect()
}

fn hugetlb(dir: &Dir) -> Result<Vec<HugetlbV1>> {
    let mut list = Vec::new();
    for page_size in crate::v2::stats::page_sizes() {
        let Some(usage) = dir.number(&format!("hugetlb.{page_size}.usage_in_bytes"))? else { continue };
        let max = dir.number(&format!("hugetlb.{page_size}.max_usage_in_bytes"))?.unwrap_or(0);
        let failcnt = dir.number(&format!("hugetlb.{page_size}.failcnt"))?.unwrap_or(0);
        list.push(HugetlbV1 { page_size, usage, max, failcnt });
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_numbers() {
        let top = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cgroup.procs", ""),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpuacct.usage", "1234567\n"),
            ("cpuacct.stat", "user 7\nsystem 5\n"),
            ("cpuacct.usage_percpu", "1000000 234567 \n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 2\nthrottled_time 99\nnr_bursts 0\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.failcnt", "1\n"),
            ("memory.kmem.usage_in_bytes", "77\n"),
            ("memory.stat", "cache 1\nrss 2\nhierarchical_memsw_limit 3\ntotal_unevictable 4\nunknown 5\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 6\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n"),
            ("blkio.throttle.io_serviced", "999:0 1\n"),
        ] {
            std::fs::write(top.path().join(file), text).unwrap();
        }
        let dir = Dir::open(top.path().to_owned()).unwrap();
        let stats = read(|controller| (controller != "rdma" && controller != "hugetlb").then_some(&dir)).unwrap();
        assert_eq!(stats.pids, Some(Pids { current: 3, limit: 0 }));
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.total_ns, cpu.user_ns, cpu.kernel_ns), (1_234_567, 70_000_000, 50_000_000));
        assert_eq!(cpu.per_cpu_ns, [1_000_000, 234_567]);
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (10, 2, 99));
        let memory = stats.memory.unwrap();
        assert_eq!(memory.usage, MemoryEntry { limit: 9_223_372_036_854_771_712, usage: 4096, max: 8192, failcnt: 1 });
        assert_eq!(memory.kernel.unwrap().usage, 77);
        assert_eq!((memory.swap, memory.kernel_tcp), (None, None));
        assert_eq!((memory.cache, memory.rss, memory.hierarchical_memsw_limit, memory.total_unevictable), (1, 2, 3, 4));
        let oom = OomControlV1 { oom_kill_disable: 0, under_oom: 1, oom_kill: 6 };
        assert_eq!(stats.memory_oom_control, Some(oom));
        let blkio = stats.blkio.unwrap();
        assert_eq!(blkio.service_bytes.len(), 2);
        assert_eq!((blkio.service_bytes[0].op.as_str(), blkio.service_bytes[0].value), ("Read", 4096));
        assert_eq!((blkio.serviced[0].op.as_str(), blkio.serviced[0].major, blkio.serviced[0].value), ("", 999, 1));
        assert!(blkio.queued.is_empty() && stats.hugetlb.is_empty() && stats.rdma.is_none());
    }

    #[test]
    fn what_is_missing_is_absent() {
        let stats = read(|_| None).unwrap();
        assert_eq!(stats, StatsV1::default());
    }
}
