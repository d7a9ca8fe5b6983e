//! Statistics of version 2, and what both versions count alike.

use crate::dir::Dir;
use crate::stats::{
    CpuV2, HugetlbV2, IoEntryV2, IoV2, MemoryEventsV2, MemoryV2, Pids, Psi, PsiLine, Rdma, RdmaEntry, StatsV2,
};
use crate::{Result, text};

pub(crate) fn read(dir: &Dir) -> Result<StatsV2> {
    Ok(StatsV2 {
        pids: pids(dir)?,
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        memory_events: memory_events(dir)?,
        rdma: Some(rdma(dir)?).filter(|rdma| *rdma != Rdma::default()),
        io: io(dir)?,
        hugetlb: hugetlb(dir)?,
    })
}

fn pids(dir: &Dir) -> Result<Option<Pids>> {
    let Some(current) = dir.number("pids.current")? else { return Ok(None) };
    Ok(Some(Pids { current, limit: dir.number("pids.max")?.unwrap_or(u64::MAX) }))
}

fn cpu(dir: &Dir) -> Result<Option<CpuV2>> {
    let Some(text) = dir.read_optional("cpu.stat")? else { return Ok(None) };
    let mut cpu = CpuV2 { psi: psi(dir, "cpu.pressure")?, ..CpuV2::default() };
    for (key, value) in text::keyed(&text) {
        match key {
            "usage_usec" => cpu.usage_usec = value,
            "user_usec" => cpu.user_usec = value,
            "system_usec" => cpu.system_usec = value,
            "nr_periods" => cpu.nr_periods = value,
            "nr_throttled" => cpu.nr_throttled = value,
            "throttled_usec" => cpu.throttled_usec = value,
            "nr_bursts" => cpu.nr_bursts = value,
            "burst_usec" => cpu.burst_usec = value,
            _ => {}
        }
    }
    Ok(Some(cpu))
}

fn memory(dir: &Dir) -> Result<Option<MemoryV2>> {
    let Some(usage) = dir.number("memory.current")? else { return Ok(None) };
    let number = |file: &str| Ok::<_, crate::Error>(dir.number(file)?.unwrap_or(0));
    let mut memory = MemoryV2 {
        usage,
        usage_limit: number("memory.max")?,
        swap_usage: number("memory.swap.current")?,
        swap_limit: number("memory.swap.max")?,
        max_usage: number("memory.peak")?,
        swap_max_usage: number("memory.swap.peak")?,
        psi: psi(dir, "memory.pressure")?,
        ..MemoryV2::default()
    };
    for (key, value) in text::keyed(&dir.read_optional("memory.stat")?.unwrap_or_default()) {
        if let Some(field) = field(&mut memory, key) {
            *field += value;
        }
    }
    Ok(Some(memory))
}

/// The field for a line of `memory.stat`. Since Linux 5.9 the workingset lines are split into anonymous and file
/// pages, which are added up.
fn field<'memory>(memory: &'memory mut MemoryV2, key: &str) -> Option<&'memory mut u64> {
    Some(match key {
        "anon" => &mut memory.anon,
        "file" => &mut memory.file,
        "kernel_stack" => &mut memory.kernel_stack,
        "slab" => &mut memory.slab,
        "sock" => &mut memory.sock,
        "shmem" => &mut memory.shmem,
        "file_mapped" => &mut memory.file_mapped,
        "file_dirty" => &mut memory.file_dirty,
        "file_writeback" => &mut memory.file_writeback,
        "anon_thp" => &mut memory.anon_thp,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "slab_reclaimable" => &mut memory.slab_reclaimable,
        "slab_unreclaimable" => &mut memory.slab_unreclaimable,
        "pgfault" => &mut memory.pgfault,
        "pgmajfault" => &mut memory.pgmajfault,
        "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => &mut memory.workingset_refault,
        "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
            &mut memory.workingset_activate
        }
        "workingset_nodereclaim" => &mut memory.workingset_nodereclaim,
        "pgrefill" => &mut memory.pgrefill,
        "pgscan" => &mut memory.pgscan,
        "pgsteal" => &mut memory.pgsteal,
        "pgactivate" => &mut memory.pgactivate,
        "pgdeactivate" => &mut memory.pgdeactivate,
        "pglazyfree" => &mut memory.pglazyfree,
        "pglazyfreed" => &mut memory.pglazyfreed,
        "thp_fault_alloc" => &mut memory.thp_fault_alloc,
        "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
        _ => return None,
    })
}

fn memory_events(dir: &Dir) -> Result<Option<MemoryEventsV2>> {
    let Some(text) = dir.read_optional("memory.events")? else { return Ok(None) };
    let value = |name| text::value_of(&text, name);
    Ok(Some(MemoryEventsV2 {
        low: value("low"),
        high: value("high"),
        max: value("max"),
        oom: value("oom"),
        oom_kill: value("oom_kill"),
        oom_group_kill: value("oom_group_kill"),
    }))
}

fn io(dir: &Dir) -> Result<Option<IoV2>> {
    let Some(text) = dir.read_optional("io.stat")? else { return Ok(None) };
    Ok(Some(IoV2 { usage: text.lines().filter_map(io_entry).collect(), psi: psi(dir, "io.pressure")? }))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_entry(line: &str) -> Option<IoEntryV2> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = text::device(words.next()?)?;
    let mut entry = IoEntryV2 { major, minor, ..IoEntryV2::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = text::number(value);
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line `full`. `None` where the kernel does not measure it.
fn psi(dir: &Dir, file: &str) -> Result<Option<Psi>> {
    Ok(dir.read_optional(file)?.map(|text| {
        let line = |name: &str| {
            let mut line = PsiLine::default();
            let words = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            for (key, value) in words.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
                let average = || value.parse().ok().filter(|value: &f64| value.is_finite()).unwrap_or(0.0);
                match key {
                    "avg10" => line.avg10 = average(),
                    "avg60" => line.avg60 = average(),
                    "avg300" => line.avg300 = average(),
                    "total" => line.total_usec = text::number(value),
                    _ => {}
                }
            }
            line
        };
        Psi { some: line("some "), full: line("full ") }
    }))
}

fn hugetlb(dir: &Dir) -> Result<Vec<HugetlbV2>> {
    let mut list = Vec::new();
    for page_size in page_sizes() {
        let Some(current) = dir.number(&format!("hugetlb.{page_size}.current"))? else { continue };
        let max = dir.number(&format!("hugetlb.{page_size}.max"))?.unwrap_or(u64::MAX);
        let events = dir.read_optional(&format!("hugetlb.{page_size}.events"))?.unwrap_or_default();
        list.push(HugetlbV2 { page_size, current, max, failcnt: text::value_of(&events, "max") });
    }
    Ok(list)
}

/// The huge pages of this host, as control files name them. The names in `/sys` are `hugepages-2048kB`.
pub(crate) fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            entry.ok()?.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

fn page_size(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

/// The same on both versions: `mlx5_0 hca_handle=2 hca_object=max`.
pub(crate) fn rdma(dir: &Dir) -> Result<Rdma> {
    let entries = |file: &str| -> Result<Vec<RdmaEntry>> {
        Ok(dir.read_optional(file)?.unwrap_or_default().lines().filter_map(rdma_entry).collect())
    };
    Ok(Rdma { current: entries("rdma.current")?, limit: entries("rdma.max")? })
}

fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split_ascii_whitespace();
    let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = u32::try_from(text::number(value)).unwrap_or(u32::MAX);
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
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
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 2\nthrottled_usec 3\nburst_usec 9\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "1\n"),
            ("memory.swap.max", "2\n"),
            ("memory.peak", "8192\n"),
            (
                "memory.stat",
                "anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\nthp_collapse_alloc 5\nzswap 6\n",
            ),
            ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n\nnonsense\n"),
            ("rdma.max", "mlx hca_handle=2 hca_object=max\n"),
        ] {
            std::fs::write(top.path().join(file), text).unwrap();
        }
        let stats = read(&Dir::open(top.path().to_owned()).unwrap()).unwrap();
        assert_eq!(stats.pids, Some(Pids { current: 3, limit: u64::MAX }));
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.throttled_usec, cpu.nr_bursts, cpu.burst_usec), (10, 3, 0, 9));
        let psi = cpu.psi.unwrap();
        assert_eq!((psi.some.avg10, psi.some.avg60, psi.some.total_usec, psi.full.total_usec), (1.5, 0.2, 77, 5));
        let memory = stats.memory.unwrap();
        assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (4096, u64::MAX, 8192));
        assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (1, 2, 0));
        assert_eq!((memory.anon, memory.file, memory.workingset_refault, memory.thp_collapse_alloc), (1, 2, 7, 5));
        assert_eq!(memory.psi, None);
        let events = MemoryEventsV2 { low: 0, high: 1, max: 2, oom: 3, oom_kill: 4, oom_group_kill: 5 };
        assert_eq!(stats.memory_events, Some(events));
        let io = IoEntryV2 { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(stats.io.unwrap().usage, [io]);
        let limit = RdmaEntry { device: "mlx".to_owned(), hca_handles: 2, hca_objects: u32::MAX };
        assert_eq!(stats.rdma.unwrap().limit, [limit]);
    }

    #[test]
    fn what_is_missing_is_absent() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(read(&Dir::open(top.path().to_owned()).unwrap()).unwrap(), StatsV2::default());
    }

    #[test]
    fn page_sizes_are_named_like_control_files() {
        assert_eq!([64, 2048, 1_048_576, 16_777_216].map(page_size), ["64KB", "2MB", "1GB", "16GB"]);
    }
}
