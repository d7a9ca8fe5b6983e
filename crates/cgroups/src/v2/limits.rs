//! Limits of the runtime specification as writes of version 2.

use std::collections::BTreeMap;

use oci::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use crate::limits::{Write, check_page_size, check_word, refuse};
use crate::{Error, Result};

/// What a partial update is completed with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// `cpu.max`: quota and period.
    pub(crate) cpu_max: Option<String>,
    /// Bytes in use.
    pub(crate) memory_usage: Option<u64>,
    /// `memory.max`.
    pub(crate) memory_limit: Option<u64>,
}

/// All writes for `resources`: memory near the end, so that a limit too small to work in hinders nothing else, then
/// what `unified` says, which has the last word.
pub(crate) fn plan(resources: &LinuxResources, now: &Now) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, now, &mut writes)?;
    }
    pids_write(resources, &mut writes);
    if let Some(block) = resources.block_io() {
        block_writes(block, &mut writes)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        check_page_size(limit.page_size())?;
        let (size, bytes) = (limit.page_size(), number_or_max(limit.limit()));
        writes.push(Write::new("hugetlb", "hugepages", format!("hugetlb.{size}.max"), &bytes));
        let reserved = format!("hugetlb.{size}.rsvd.max");
        writes.push(Write::new("hugetlb", "hugepages", reserved, &bytes).optional_if(true));
    }
    if let Some(network) = resources.network() {
        let missing = |limit: &str, controller: &str| {
            Err(Error::NoController { limit: limit.to_owned(), controller: controller.to_owned() })
        };
        if network.class_id().is_some_and(|class| class != 0) {
            return missing("network class", "net_cls");
        }
        if network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty()) {
            return missing("network priority", "net_prio");
        }
    }
    rdma_writes(resources, &mut writes)?;
    if let Some(memory) = resources.memory() {
        memory_writes(memory, now, &mut writes)?;
    }
    // Sorted, so that the same document always gives the same writes.
    for (file, value) in resources.unified().iter().flatten().collect::<BTreeMap<_, _>>() {
        unified_writes(file, value, &mut writes)?;
    }
    Ok(writes)
}

/// The same on both versions. A negative limit is none. 0 becomes 1, as in runc: systemd knows no limit of 0, and a
/// group with one process that may not fork is the same thing.
pub(crate) fn pids_write(resources: &LinuxResources, writes: &mut Vec<Write>) {
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() < 0 { "max".to_owned() } else { pids.limit().max(1).to_string() };
        writes.push(Write::new("pids", "pids", "pids.max", limit));
    }
}

fn number_or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Shares 2 to 262144 of version 1 as a weight from 1 to 10000. The exponent is the quadratic that takes the least, the
/// default (1024 to 100) and the most to their counterparts, as runc and crun have it since 2025; the straight line
/// used before gave a default container the weight 39.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "shares are less than 2^18 here")]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10000")]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

fn cpu_writes(cpu: &LinuxCpu, now: &Now, writes: &mut Vec<Write>) -> Result<()> {
    let realtime = (cpu.realtime_period(), cpu.realtime_runtime());
    if realtime.0.is_some_and(|period| period != 0) || realtime.1.is_some_and(|runtime| runtime != 0) {
        return refuse("realtime", "period or runtime", "needs cgroup version 1");
    }
    let idle = cpu.idle();
    // The weight of an idle group cannot be set: leave that state before, enter it after.
    if idle == Some(0) {
        writes.push(Write::new("cpu", "cpu idle", "cpu.idle", 0).optional_if(true));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        writes.push(Write::new("cpu", "cpu shares", "cpu.weight", weight_of_shares(shares)));
    }
    // A burst may not fit the old quota, and a quota not the old burst: EINVAL is tried again when both are set.
    if let Some(burst) = cpu.burst() {
        writes.push(Write::new("cpu", "cpu burst", "cpu.max.burst", burst).optional_if(burst == 0).retried());
    }
    let quota = cpu.quota().filter(|quota| *quota != 0).map(number_or_max);
    let period = cpu.period().filter(|period| *period != 0);
    let value = match (quota, period) {
        // One word leaves the period as it is.
        (Some(quota), None) => Some(quota),
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (None, Some(period)) => {
            let quota = now.cpu_max.as_deref().and_then(|now| now.split_ascii_whitespace().next()).unwrap_or("max");
            Some(format!("{quota} {period}"))
        }
        (None, None) => None,
    };
    if let Some(value) = value {
        writes.push(Write::new("cpu", "cpu quota", "cpu.max", value).retried());
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

/// A weight 10 to 1000 of version 1 as one from 1 to 10000.
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn block_writes(block: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<()> {
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return refuse("block I/O leaf weight", block.leaf_weight().unwrap_or(0), "needs cgroup version 1");
    }
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        // BFQ's file takes the weight as it is.
        let write = Write::new("io", "block I/O weight", "io.bfq.weight", weight);
        writes.push(write.or("io.weight", io_weight(weight)));
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let line = |weight: u64| format!("{}:{} {weight}", device.major(), device.minor());
            let write = Write::new("io", "block I/O weight", "io.bfq.weight", line(weight.into()));
            writes.push(write.or("io.weight", line(io_weight(weight))));
        }
    }
    for (key, devices) in [
        ("rbps", block.throttle_read_bps_device()),
        ("wbps", block.throttle_write_bps_device()),
        ("riops", block.throttle_read_iops_device()),
        ("wiops", block.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            // 0 takes the limit away on version 1; here the word for it is `max`.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            writes.push(Write::new("io", "block I/O rate", "io.max", line));
        }
    }
    Ok(())
}

/// The same on both versions.
pub(crate) fn rdma_writes(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<()> {
    for (device, limit) in resources.rdma().iter().flatten().collect::<BTreeMap<_, _>>() {
        check_word("rdma", device)?;
        let mut line = device.clone();
        if let Some(handles) = limit.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limit.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        if line.len() > device.len() {
            writes.push(Write::new("rdma", "rdma", "rdma.max", line));
        }
    }
    Ok(())
}

/// `checkBeforeUpdate`: a limit below what is in use now would end with the kernel killing something.
pub(crate) fn check_usage(memory: &LinuxMemory, limit: Option<i64>, usage: Option<u64>) -> Result<()> {
    let (Some(true), Some(usage)) = (memory.check_before_update(), usage) else { return Ok(()) };
    for (name, limit) in [("memory and swap", memory.swap()), ("memory", limit)] {
        let limit = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit != 0);
        if let Some(limit) = limit.filter(|limit| *limit <= usage) {
            return refuse(name, limit, "is not more than what is in use, and checkBeforeUpdate is set");
        }
    }
    Ok(())
}

/// `useHierarchy`: since Linux 5.11 every group counts what is below it, on version 2 always.
pub(crate) fn check_hierarchy(memory: &LinuxMemory) -> Result<()> {
    if memory.use_hierarchy() == Some(false) {
        return refuse("memory useHierarchy", "false", "cannot be had: the kernel always counts hierarchically");
    }
    Ok(())
}

fn memory_writes(memory: &LinuxMemory, now: &Now, writes: &mut Vec<Write>) -> Result<()> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    check_usage(memory, limit, now.memory_usage)?;
    check_hierarchy(memory)?;
    if memory.swappiness().is_some() {
        return refuse("memory swappiness", memory.swappiness().unwrap_or(0), "needs cgroup version 1");
    }
    if memory.disable_oom_killer() == Some(true) {
        return refuse("the out-of-memory killer", "disabled", "needs cgroup version 1");
    }
    if memory.kernel_tcp().is_some_and(|tcp| tcp > 0) {
        return refuse("kernel TCP memory", memory.kernel_tcp().unwrap_or(0), "needs cgroup version 1");
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        writes.push(Write::new("memory", "memory reservation", "memory.low", number_or_max(reservation)));
    }
    if let Some(swap) = swap_value(memory, limit, now)? {
        // Before memory.max: with that lowered first, what could go to swap would be killed instead. Without swap in
        // the kernel, none and any amount of it mean the same.
        let optional = swap == "max" || swap == "0";
        writes.push(Write::new("memory", "swap", "memory.swap.max", swap).optional_if(optional));
    }
    if let Some(limit) = limit {
        writes.push(Write::new("memory", "memory", "memory.max", number_or_max(limit)));
    }
    Ok(())
}

/// The specification limits memory and swap together, version 2 swap alone.
pub(crate) fn swap_value(memory: &LinuxMemory, limit: Option<i64>, now: &Now) -> Result<Option<String>> {
    let swap = match memory.swap().filter(|swap| *swap != 0) {
        None => return Ok((limit == Some(-1)).then(|| "max".to_owned())),
        Some(..0) => return Ok(Some("max".to_owned())),
        Some(swap) => swap.unsigned_abs(),
    };
    let limit = match limit {
        // Memory without a limit: what is left of the sum is swap.
        Some(..0) => Some(0),
        Some(limit) => u64::try_from(limit).ok(),
        None => now.memory_limit.filter(|limit| *limit != u64::MAX),
    };
    match limit {
        None => refuse("memory and swap", swap, "needs a limit of memory alone, too"),
        Some(limit) if swap < limit => refuse("memory and swap", swap, "is less than the limit of memory alone"),
        Some(limit) => Ok(Some((swap - limit).to_string())),
    }
}

/// `unified`: a control file by name, one write for each line of its value. Files that rule over the group itself are
/// not limits.
fn unified_writes(file: &str, value: &str, writes: &mut Vec<Write>) -> Result<()> {
    let refuse = |reason: &str| {
        let file = file.chars().take(200).collect();
        Err(Error::Unified { file, reason: reason.to_owned() })
    };
    if file.contains('/') {
        return refuse("must be a file name (no slashes)");
    }
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let controller = match file.split_once('.') {
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() && plain(file) => controller,
        _ => return refuse("must be in the form CONTROLLER.PARAMETER"),
    };
    if controller == "cgroup" && !file.starts_with("cgroup.max.") {
        return refuse("can't be set: it is not a limit");
    }
    if value.contains('\0') {
        return refuse("can't be set: its value has a NUL byte");
    }
    for line in value.split('\n').filter(|line| !line.trim().is_empty()) {
        writes.push(Write {
            controller: controller.to_owned().into(),
            limit: file.to_owned().into(),
            choices: vec![(file.to_owned().into(), line.to_owned())],
            optional: false,
            retry: false,
            unified: true,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(document: &str, now: &Now) -> Result<Vec<String>> {
        let resources: LinuxResources = serde_json::from_str(document).unwrap();
        let writes = plan(&resources, now)?;
        Ok(writes.iter().map(|write| format!("{}={}", write.choices[0].0, write.choices[0].1)).collect())
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (10, 4),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (10_000, 627),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            let weight = weight_of_shares(shares);
            assert!(weight >= last && (1..=10_000).contains(&weight), "{shares}");
            last = weight;
        }
        assert_eq!([10, 500, 1000, 9, 5000].map(io_weight), [1, 4950, 10_000, 1, 10_000]);
    }

    #[test]
    fn documents_become_writes() {
        let now = Now { cpu_max: Some("30000 100000\n".to_owned()), memory_usage: Some(0), memory_limit: Some(1000) };
        for (document, expected) in [
            ("{}", &[][..]),
            (
                r#"{"cpu":{"shares":0,"quota":0,"period":0},"memory":{"limit":0,"swap":0},"network":{"classID":0,"priorities":[]}}"#,
                &[],
            ),
            (
                r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":1000,"cpus":"0-1","mems":"0"}}"#,
                &["cpu.weight=100", "cpu.max.burst=1000", "cpu.max=50000 100000", "cpuset.cpus=0-1", "cpuset.mems=0"],
            ),
            (r#"{"cpu":{"quota":50000}}"#, &["cpu.max=50000"]),
            (r#"{"cpu":{"quota":-1}}"#, &["cpu.max=max"]),
            (r#"{"cpu":{"period":50000}}"#, &["cpu.max=30000 50000"]),
            (r#"{"cpu":{"shares":2,"idle":1}}"#, &["cpu.weight=1", "cpu.idle=1"]),
            (r#"{"cpu":{"shares":2,"idle":0}}"#, &["cpu.idle=0", "cpu.weight=1"]),
            (r#"{"pids":{"limit":-1}}"#, &["pids.max=max"]),
            (r#"{"pids":{"limit":0}}"#, &["pids.max=1"]),
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &["memory.low=50", "memory.swap.max=200", "memory.max=100"],
            ),
            (r#"{"memory":{"limit":100,"swap":100}}"#, &["memory.swap.max=0", "memory.max=100"]),
            (r#"{"memory":{"limit":100,"swap":-1}}"#, &["memory.swap.max=max", "memory.max=100"]),
            (r#"{"memory":{"limit":-1}}"#, &["memory.swap.max=max", "memory.max=max"]),
            (r#"{"memory":{"swap":1500}}"#, &["memory.swap.max=500"]),
            (r#"{"memory":{"limit":-1,"swap":50}}"#, &["memory.swap.max=50", "memory.max=max"]),
            (r#"{"memory":{"disableOOMKiller":false,"useHierarchy":true}}"#, &[]),
            (
                r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":100}],
                "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                &["io.bfq.weight=500", "io.bfq.weight=8:0 100", "io.max=8:0 rbps=1048576", "io.max=8:16 wiops=max"],
            ),
            (r#"{"hugepageLimits":[{"pageSize":"1GB","limit":0}]}"#, &["hugetlb.1GB.max=0", "hugetlb.1GB.rsvd.max=0"]),
            (
                r#"{"rdma":{"b":{"hcaObjects":1},"a":{"hcaHandles":2},"c":{}}}"#,
                &["rdma.max=a hca_handle=2", "rdma.max=b hca_object=1"],
            ),
            (
                r#"{"memory":{"limit":100},"unified":{"memory.high":"90","cgroup.max.depth":"3"}}"#,
                &["memory.max=100", "cgroup.max.depth=3", "memory.high=90"],
            ),
            (
                r#"{"unified":{"io.max":"259:0 rbps=1\n253:0 wiops=2\n","misc.max":"sev 5","hugetlb.2MB.max":"max"}}"#,
                &["hugetlb.2MB.max=max", "io.max=259:0 rbps=1", "io.max=253:0 wiops=2", "misc.max=sev 5"],
            ),
        ] {
            assert_eq!(planned(document, &now).unwrap(), expected, "{document}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let now = Now { memory_usage: Some(1000), ..Now::default() };
        for document in [
            r#"{"memory":{"limit":100,"swap":50}}"#,
            r#"{"memory":{"swap":50}}"#,
            r#"{"memory":{"useHierarchy":false}}"#,
            r#"{"memory":{"limit":4000,"swap":1000,"checkBeforeUpdate":true}}"#,
            r#"{"memory":{"swappiness":10}}"#,
            r#"{"memory":{"disableOOMKiller":true}}"#,
            r#"{"memory":{"kernelTCP":10}}"#,
            r#"{"memory":{"limit":999,"checkBeforeUpdate":true}}"#,
            r#"{"cpu":{"realtimeRuntime":1}}"#,
            r#"{"cpu":{"idle":7}}"#,
            r#"{"blockIO":{"leafWeight":7}}"#,
            r#"{"hugepageLimits":[{"pageSize":"","limit":1}]}"#,
        ] {
            assert!(matches!(planned(document, &now).unwrap_err(), Error::Limit { .. }), "{document}");
        }
        for (file, value) in [
            ("../memory.max", "1"),
            ("memory/x.max", "1"),
            ("memory", "1"),
            (".max", "1"),
            ("memory.", "1"),
            ("memory.max x", "1"),
            ("cgroup.procs", "1"),
            ("cgroup.subtree_control", "-memory"),
            ("memory.max", "1\\u0000"),
        ] {
            let document = format!(r#"{{"unified":{{"{file}":"{value}"}}}}"#);
            assert!(matches!(planned(&document, &now).unwrap_err(), Error::Unified { .. }), "{document}");
        }
        for document in [r#"{"network":{"classID":7}}"#, r#"{"network":{"priorities":[{"name":"lo","priority":1}]}}"#] {
            assert!(matches!(planned(document, &now).unwrap_err(), Error::NoController { .. }), "{document}");
        }
    }
}
