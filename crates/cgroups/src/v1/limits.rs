//! Limits of the runtime specification as writes of version 1.

use oci::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use crate::Result;
use crate::limits::{Write, check_page_size, check_word, refuse};

/// What the order of writes depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// Bytes in use.
    pub(crate) memory_usage: Option<u64>,
    /// The limit of memory and swap together; `None` where swap is not counted.
    pub(crate) memory_and_swap: Option<u64>,
}

/// What `cpu.shares` takes (Linux, `MIN_SHARES` and `MAX_SHARES`).
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

/// All writes for `resources`, memory last: a limit too small to work in then hinders nothing else.
pub(crate) fn plan(resources: &LinuxResources, now: &Now) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(unified) = resources.unified()
        && let Some(name) = unified.keys().next()
    {
        let reason = "can't be set: invalid configuration: unified resources need cgroup version 2".to_owned();
        return Err(crate::Error::Unified { file: name.chars().take(200).collect(), reason });
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes)?;
    }
    crate::v2::limits::pids_write(resources, &mut writes);
    if let Some(block) = resources.block_io() {
        block_writes(block, &mut writes);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit.page_size())?;
        let (size, bytes) = (limit.page_size(), limit.limit());
        writes.push(Write::new("hugetlb", "hugepages", format!("hugetlb.{size}.limit_in_bytes"), bytes));
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        writes.push(Write::new("hugetlb", "hugepages", reserved, bytes).optional_if(true));
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            writes.push(Write::new("net_cls", "network class", "net_cls.classid", class));
        }
        for priority in network.priorities().iter().flatten() {
            check_word("network priority", priority.name())?;
            let line = format!("{} {}", priority.name(), priority.priority());
            writes.push(Write::new("net_prio", "network priority", "net_prio.ifpriomap", line));
        }
    }
    crate::v2::limits::rdma_writes(resources, &mut writes)?;
    if let Some(memory) = resources.memory() {
        memory_writes(memory, now, &mut writes)?;
    }
    Ok(writes)
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<()> {
    let idle = cpu.idle();
    // Shares of an idle group cannot be set: leave that state before, enter it after.
    if idle == Some(0) {
        writes.push(Write::new("cpu", "cpu idle", "cpu.idle", 0).optional_if(true));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        // The kernel would take them and set another number.
        match shares {
            ..SHARES_MIN => return refuse("cpu shares", shares, "the minimum allowed cpu-shares is 2"),
            SHARES_MAX.. if shares > SHARES_MAX => {
                return refuse("cpu shares", shares, "the maximum allowed cpu-shares is 262144");
            }
            _ => writes.push(Write::new("cpu", "cpu shares", "cpu.shares", shares)),
        }
    }
    // A new period or burst may not fit the old quota, and a new quota may not fit the old ones: EINVAL is tried again
    // when the others are set.
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        writes.push(Write::new("cpu", "cpu period", "cpu.cfs_period_us", period).retried());
    }
    if let Some(burst) = cpu.burst() {
        writes.push(Write::new("cpu", "cpu burst", "cpu.cfs_burst_us", burst).optional_if(burst == 0).retried());
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        writes.push(Write::new("cpu", "cpu quota", "cpu.cfs_quota_us", quota).retried());
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        writes.push(Write::new("cpu", "realtime period", "cpu.rt_period_us", period).retried());
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        writes.push(Write::new("cpu", "realtime runtime", "cpu.rt_runtime_us", runtime).retried());
    }
    if let Some(idle) = idle.filter(|idle| *idle != 0) {
        if idle != 1 {
            return refuse("cpu idle", idle, "is neither 0 nor 1");
        }
        writes.push(Write::new("cpu", "cpu idle", "cpu.idle", 1));
    }
    for (file, set) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
            writes.push(Write::new("cpuset", file, file, set));
        }
    }
    Ok(())
}

fn block_writes(block: &LinuxBlockIo, writes: &mut Vec<Write>) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.push(Write::new("blkio", "block I/O weight", "blkio.weight", weight).or("blkio.bfq.weight", weight));
    }
    if let Some(weight) = block.leaf_weight().filter(|weight| *weight != 0) {
        writes.push(Write::new("blkio", "block I/O leaf weight", "blkio.leaf_weight", weight));
    }
    for device in block.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let write = Write::new("blkio", "block I/O weight", "blkio.weight_device", line(weight));
            writes.push(write.or("blkio.bfq.weight_device", line(weight)));
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            let file = "blkio.leaf_weight_device";
            writes.push(Write::new("blkio", "block I/O leaf weight", file, line(weight)));
        }
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", block.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", block.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", block.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", block.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            writes.push(Write::new("blkio", "block I/O rate", file, line));
        }
    }
}

fn memory_writes(memory: &LinuxMemory, now: &Now, writes: &mut Vec<Write>) -> Result<()> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    crate::v2::limits::check_usage(memory, limit, now.memory_usage)?;
    crate::v2::limits::check_hierarchy(memory)?;
    // Without a limit on memory, one on both together would stay where it was and refuse the write.
    let lifted = limit == Some(-1) && now.memory_and_swap.is_some();
    let swap = memory.swap().filter(|swap| *swap != 0).or_else(|| lifted.then_some(-1));
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && (limit == -1 || swap < limit)
    {
        return refuse("memory and swap", swap, "is less than the limit of memory alone");
    }
    let mut pair = Vec::new();
    if let Some(limit) = limit {
        pair.push(Write::new("memory", "memory", "memory.limit_in_bytes", limit));
    }
    if let Some(swap) = swap {
        let write = Write::new("memory", "memory and swap", "memory.memsw.limit_in_bytes", swap);
        // Where swap is not counted, no limit on it is what holds.
        pair.push(write.optional_if(swap == -1));
    }
    // Memory alone may never exceed memory and swap together: raise that one first, lower it last.
    let raises = limit.is_some_and(|limit| {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        now.memory_and_swap.is_some_and(|both| limit > both)
    });
    if raises || swap == Some(-1) {
        pair.reverse();
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        writes.push(Write::new("memory", "memory reservation", "memory.soft_limit_in_bytes", reservation));
    }
    // `kernel` is not written: the kernel has no such limit since 5.16, and runc ignores it since 1.0.
    if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
        writes.push(Write::new("memory", "kernel TCP memory", "memory.kmem.tcp.limit_in_bytes", tcp));
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return refuse("memory swappiness", swappiness, "is more than 100");
        }
        writes.push(Write::new("memory", "memory swappiness", "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push(Write::new("memory", "the out-of-memory killer", "memory.oom_control", 1));
    }
    writes.extend(pair);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The writes for a document, as `file=value`.
    fn planned(document: &str, now: &Now) -> Result<Vec<String>> {
        let resources: LinuxResources = serde_json::from_str(document).unwrap();
        let writes = plan(&resources, now)?;
        Ok(writes.iter().map(|write| format!("{}={}", write.choices[0].0, write.choices[0].1)).collect())
    }

    #[test]
    fn documents_become_writes() {
        let now = Now { memory_usage: Some(0), memory_and_swap: Some(u64::MAX) };
        for (document, expected) in [
            ("{}", &[][..]),
            (r#"{"cpu":{"shares":0,"quota":0,"period":0},"memory":{"limit":0},"blockIO":{"weight":0}}"#, &[]),
            (
                r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"burst":1000,"cpus":"0-1","mems":"0"}}"#,
                &[
                    "cpu.shares=512",
                    "cpu.cfs_period_us=100000",
                    "cpu.cfs_burst_us=1000",
                    "cpu.cfs_quota_us=50000",
                    "cpuset.cpus=0-1",
                    "cpuset.mems=0",
                ],
            ),
            (r#"{"cpu":{"quota":-1,"idle":1,"shares":2}}"#, &["cpu.shares=2", "cpu.cfs_quota_us=-1", "cpu.idle=1"]),
            (r#"{"cpu":{"shares":2,"idle":0}}"#, &["cpu.idle=0", "cpu.shares=2"]),
            (
                r#"{"cpu":{"realtimePeriod":1000000,"realtimeRuntime":950000}}"#,
                &["cpu.rt_period_us=1000000", "cpu.rt_runtime_us=950000"],
            ),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            (r#"{"pids":{"limit":0}}"#, &["pids.max=1"]),
            (r#"{"pids":{"limit":42}}"#, &["pids.max=42"]),
            (
                r#"{"memory":{"limit":67108864,"swap":134217728,"reservation":33554432,"swappiness":60,"disableOOMKiller":true}}"#,
                &[
                    "memory.soft_limit_in_bytes=33554432",
                    "memory.swappiness=60",
                    "memory.oom_control=1",
                    "memory.limit_in_bytes=67108864",
                    "memory.memsw.limit_in_bytes=134217728",
                ],
            ),
            (r#"{"memory":{"disableOOMKiller":false,"useHierarchy":true}}"#, &[]),
            (
                r#"{"blockIO":{"weight":500,"leafWeight":300,
                    "weightDevice":[{"major":8,"minor":0,"weight":100,"leafWeight":50}],
                    "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}],
                    "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":10}]}}"#,
                &[
                    "blkio.weight=500",
                    "blkio.leaf_weight=300",
                    "blkio.weight_device=8:0 100",
                    "blkio.leaf_weight_device=8:0 50",
                    "blkio.throttle.read_bps_device=8:0 1048576",
                    "blkio.throttle.write_iops_device=8:16 10",
                ],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                &["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.2MB.rsvd.limit_in_bytes=4194304"],
            ),
            (
                r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]},
                    "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}}}"#,
                &[
                    "net_cls.classid=1048577",
                    "net_prio.ifpriomap=eth0 5",
                    "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
                ],
            ),
        ] {
            assert_eq!(planned(document, &now).unwrap(), expected, "{document}");
        }
    }

    #[test]
    fn memory_and_swap_move_in_the_order_that_the_kernel_takes() {
        let at = |both| Now { memory_usage: None, memory_and_swap: both };
        let (limit, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        for (document, now, expected) in [
            // Raising beyond the sum of before: the sum first.
            (
                r#"{"memory":{"limit":200,"swap":300}}"#,
                at(Some(100)),
                vec![format!("{both}=300"), format!("{limit}=200")],
            ),
            // Lowering: the sum last.
            (r#"{"memory":{"limit":20,"swap":30}}"#, at(Some(100)), vec![format!("{limit}=20"), format!("{both}=30")]),
            (
                r#"{"memory":{"limit":200,"swap":-1}}"#,
                at(Some(100)),
                vec![format!("{both}=-1"), format!("{limit}=200")],
            ),
            // Lifting the limit lifts the sum.
            (r#"{"memory":{"limit":-1}}"#, at(Some(100)), vec![format!("{both}=-1"), format!("{limit}=-1")]),
            (r#"{"memory":{"limit":-1}}"#, at(None), vec![format!("{limit}=-1")]),
            (r#"{"memory":{"swap":500}}"#, at(Some(100)), vec![format!("{both}=500")]),
        ] {
            assert_eq!(planned(document, &now).unwrap(), expected, "{document}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let now = Now { memory_usage: Some(1000), memory_and_swap: None };
        for document in [
            r#"{"memory":{"limit":100,"swap":50}}"#,
            r#"{"memory":{"limit":-1,"swap":50}}"#,
            r#"{"memory":{"useHierarchy":false}}"#,
            r#"{"memory":{"swappiness":101}}"#,
            r#"{"cpu":{"shares":1}}"#,
            r#"{"cpu":{"shares":262145}}"#,
            r#"{"memory":{"limit":999,"checkBeforeUpdate":true}}"#,
            r#"{"cpu":{"idle":2}}"#,
            r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
            r#"{"network":{"priorities":[{"name":"eth0 1\nlo","priority":5}]}}"#,
            r#"{"rdma":{"a b":{"hcaHandles":3}}}"#,
        ] {
            assert!(matches!(planned(document, &now).unwrap_err(), crate::Error::Limit { .. }), "{document}");
        }
        let unified = planned(r#"{"unified":{"memory.high":"1"}}"#, &now).unwrap_err();
        let text = "unified resource \"memory.high\" can't be set: invalid configuration: unified resources need cgroup \
                    version 2";
        assert_eq!(unified.to_string(), text);
    }
}
