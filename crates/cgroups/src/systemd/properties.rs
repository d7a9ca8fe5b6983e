//! Limits as properties of a unit.
//!
//! systemd writes the control files of its units again whenever it looks at them anew (`systemctl daemon-reload`), so a
//! limit that stands only in a file is lost. Each limit for which a unit has a property is therefore set as that, too;
//! what has no property systemd does not touch.

use std::collections::BTreeMap;

use oci::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use crate::limits::refuse;
use crate::v2::devices::Rule;
use crate::v2::limits::{Now, io_weight, swap_value, weight_of_shares};
use crate::{Result, text};

use super::Property;
use super::bus::property;
use super::wire::Value;

/// The versions that brought a property.
const QUOTA_PERIOD_SINCE: u32 = 242;
const CPUSET_SINCE: u32 = 244;
const IDLE_SINCE: u32 = 252;

/// Period where none was ever set, microseconds (Linux, CFS bandwidth control).
const USUAL_PERIOD_US: u64 = 100_000;
/// systemd keeps a quota in whole hundredths of a processor: microseconds per second.
const QUOTA_STEP_US: u64 = 10_000;

/// The unit, as far as the properties depend on it.
#[derive(Debug)]
pub(crate) struct Unit<'now> {
    pub(crate) is_v2: bool,
    /// Of systemd.
    pub(crate) version: u32,
    /// What a partial update is completed with.
    pub(crate) now: &'now Now,
}

/// The quota that systemd can keep: rounded up to its step, so that the file says the same before and after systemd has
/// written it.
pub(crate) fn rounded_quota(cpu: &LinuxCpu, now: &Now) -> Option<i64> {
    let quota = cpu.quota().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period != 0).or_else(|| current(now).1).unwrap_or(USUAL_PERIOD_US);
    let per_second = per_second(quota.unsigned_abs(), period)?;
    i64::try_from(u128::from(per_second) * u128::from(period) / 1_000_000).ok()
}

fn per_second(quota: u64, period: u64) -> Option<u64> {
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    u64::try_from(exact).ok()?.checked_next_multiple_of(QUOTA_STEP_US)
}

/// The quota and the period of now, from a line `max 100000`.
fn current(now: &Now) -> (Option<u64>, Option<u64>) {
    let mut words = now.cpu_max.as_deref().unwrap_or_default().split_ascii_whitespace();
    let quota = words.next().and_then(|quota| quota.parse().ok());
    (quota, words.next().and_then(|period| period.parse().ok()))
}

/// All properties for `resources`, by name.
pub(crate) fn of_resources(resources: &LinuxResources, unit: &Unit<'_>) -> Result<Vec<Property>> {
    let mut list = BTreeMap::new();
    let mut set = |name: &'static str, value: Value| drop(list.insert(name, value));
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
            set(if unit.is_v2 { "MemoryMax" } else { "MemoryLimit" }, amount(limit));
        }
        if unit.is_v2 {
            if let Some(low) = memory.reservation().filter(|low| *low != 0) {
                set("MemoryLow", amount(low));
            }
            let limit = memory.limit().filter(|limit| *limit != 0);
            if let Some(swap) = swap_value(memory, limit, unit.now)? {
                set("MemorySwapMax", Value::U64(text::number(&swap)));
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, unit, &mut set)?;
    }
    if let Some(pids) = resources.pids() {
        set("TasksMax", tasks(pids.limit()));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|block| block.weight()).filter(|weight| *weight != 0) {
        match unit.is_v2 {
            true => set("IOWeight", Value::U64(io_weight(weight))),
            false => set("BlockIOWeight", Value::U64(weight.into())),
        }
    }
    for (file, value) in resources.unified().iter().flatten() {
        of_unified(file, value.trim(), unit, &mut set)?;
    }
    Ok(list.into_iter().map(|(name, value)| property(name, value)).collect())
}

/// A negative amount is none.
fn amount(limit: i64) -> Value {
    Value::U64(u64::try_from(limit).unwrap_or(u64::MAX))
}

/// systemd takes no 0.
fn tasks(limit: i64) -> Value {
    Value::U64(u64::try_from(limit).map_or(u64::MAX, |limit| limit.max(1)))
}

fn of_cpu(cpu: &LinuxCpu, unit: &Unit<'_>, set: &mut impl FnMut(&'static str, Value)) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        match unit.is_v2 {
            true => set("CPUWeight", Value::U64(weight_of_shares(shares))),
            false => set("CPUShares", Value::U64(shares)),
        }
    }
    if unit.is_v2 && cpu.idle() == Some(1) && unit.version >= IDLE_SINCE {
        set("CPUWeight", Value::U64(0));
    }
    let (quota_now, period_now) = current(unit.now);
    let period = cpu.period().filter(|period| *period != 0);
    let quota = match cpu.quota().filter(|quota| *quota != 0) {
        Some(quota) => u64::try_from(quota).ok(),
        None => quota_now,
    };
    if cpu.quota().is_some_and(|quota| quota != 0) || period.is_some() {
        of_quota(quota, period.or(period_now), unit, set);
    }
    for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty() && unit.version >= CPUSET_SINCE) {
            set(name, bits(name, list)?);
        }
    }
    Ok(())
}

fn of_quota(quota: Option<u64>, period: Option<u64>, unit: &Unit<'_>, set: &mut impl FnMut(&'static str, Value)) {
    if let Some(period) = period.filter(|_| unit.version >= QUOTA_PERIOD_SINCE) {
        set("CPUQuotaPeriodUSec", Value::U64(period));
    }
    let per_second = quota.and_then(|quota| per_second(quota, period.unwrap_or(USUAL_PERIOD_US)));
    set("CPUQuotaPerSecUSec", Value::U64(per_second.unwrap_or(u64::MAX)));
}

/// A control file that has a property; of the others systemd knows nothing.
fn of_unified(file: &str, value: &str, unit: &Unit<'_>, set: &mut impl FnMut(&'static str, Value)) -> Result<()> {
    let number = || match value {
        "max" => Ok(u64::MAX),
        digits => digits.parse().or_else(|_| refuse(file, digits.escape_default(), "is not a number")),
    };
    match file {
        "memory.min" => set("MemoryMin", Value::U64(number()?)),
        "memory.low" => set("MemoryLow", Value::U64(number()?)),
        "memory.high" => set("MemoryHigh", Value::U64(number()?)),
        "memory.max" => set("MemoryMax", Value::U64(number()?)),
        "memory.swap.max" => set("MemorySwapMax", Value::U64(number()?)),
        "pids.max" => set("TasksMax", Value::U64(number()?.max(1))),
        "cpu.weight" => set("CPUWeight", Value::U64(number()?)),
        "cpu.idle" if value == "1" && unit.version >= IDLE_SINCE => set("CPUWeight", Value::U64(0)),
        "io.weight" => {
            let weight = value.strip_prefix("default ").unwrap_or(value).trim();
            // A weight for one device is a line of its own form, which systemd does not overwrite.
            if let Ok(weight) = weight.parse() {
                set("IOWeight", Value::U64(weight));
            }
        }
        "cpu.max" => {
            let mut words = value.split_ascii_whitespace();
            let quota = words.next().and_then(|quota| quota.parse().ok());
            of_quota(quota, words.next().and_then(|period| period.parse().ok()), unit, set);
        }
        "cpuset.cpus" if unit.version >= CPUSET_SINCE => set("AllowedCPUs", bits(file, value)?),
        "cpuset.mems" if unit.version >= CPUSET_SINCE => set("AllowedMemoryNodes", bits(file, value)?),
        _ => {}
    }
    Ok(())
}

/// A list `0-3,7` as a bit mask, the lowest eight in the first byte.
fn bits(limit: &str, list: &str) -> Result<Value> {
    const HIGHEST: usize = 8191;
    let mut bytes: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) else {
            return refuse(limit, list.escape_default(), "is not a list such as 0-3,7");
        };
        if first > last || last > HIGHEST {
            return refuse(limit, list.escape_default(), "is not a list such as 0-3,7");
        }
        if bytes.len() <= last / 8 {
            bytes.resize(last / 8 + 1, 0);
        }
        for number in first..=last {
            bytes[number / 8] |= 1 << (number % 8);
        }
    }
    if bytes.is_empty() { refuse(limit, list.escape_default(), "is empty") } else { Ok(Value::Bytes(bytes)) }
}

/// The rules for devices on version 1, where systemd would otherwise allow everything when it looks at the unit anew.
/// On version 2 it leaves our program alone, so nothing is said there.
///
/// A unit knows no denial of a part: an allowance of which a later rule takes something away is left out, so that the
/// container has less after systemd's writing, never more.
pub(crate) fn of_devices(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Property>> {
    let rules = rules.iter().map(Rule::parse).collect::<Result<Vec<_>>>()?;
    let begin = rules.iter().rposition(Rule::matches_everything).unwrap_or(0);
    let rules = rules.get(begin..).unwrap_or_default();
    if rules.first().is_some_and(|rule| rule.allow && rule.matches_everything()) && rules.iter().all(|rule| rule.allow)
    {
        let none = Value::Pairs(Vec::new());
        return Ok(vec![property("DevicePolicy", Value::Text("auto".to_owned())), property("DeviceAllow", none)]);
    }
    let mut list = Vec::new();
    for (position, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.allow) {
        if rules.iter().skip(position).any(|later| !later.allow && later.overlaps(rule)) {
            continue;
        }
        for (kind, word) in [(LinuxDeviceType::B, "block"), (LinuxDeviceType::C, "char")] {
            if rule.kind.is_some_and(|only| only != kind) {
                continue;
            }
            let device = match (rule.major, rule.minor) {
                (None, None) => format!("{word}-*"),
                (Some(major), Some(minor)) => format!("/dev/{word}/{major}:{minor}"),
                // systemd takes the number of a class of devices in the place of its name since version 240.
                (Some(major), None) => format!("{word}-{major}"),
                // One minor number of every major one cannot be said.
                (None, Some(_)) => continue,
            };
            list.push((device, rule.access_text()));
        }
    }
    let strict = Value::Text("strict".to_owned());
    // The empty list first: the next one would be added to what the unit has.
    Ok(vec![
        property("DevicePolicy", strict),
        property("DeviceAllow", Value::Pairs(Vec::new())),
        property("DeviceAllow", Value::Pairs(list)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: &[Property]) -> Vec<String> {
        list.iter()
            .map(|property| match &property.value {
                Value::U64(u64::MAX) => format!("{}=infinity", property.name),
                Value::U64(value) => format!("{}={value}", property.name),
                Value::Bytes(bytes) => format!("{}={bytes:?}", property.name),
                Value::Text(text) => format!("{}={text}", property.name),
                Value::Bool(_) | Value::I32(_) | Value::Texts(_) | Value::U32s(_) | Value::Pairs(_) => {
                    format!("{}={:?}", property.name, property.value)
                }
            })
            .collect()
    }

    fn planned(document: &str, is_v2: bool, version: u32) -> Result<Vec<String>> {
        let resources: LinuxResources = serde_json::from_str(document).unwrap();
        let now = Now { cpu_max: Some("30000 50000\n".to_owned()), memory_usage: Some(0), memory_limit: Some(1000) };
        Ok(shown(&of_resources(&resources, &Unit { is_v2, version, now: &now })?))
    }

    #[test]
    fn limits_of_version_2() {
        for (document, expected) in [
            ("{}", &[][..]),
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                &["MemoryLow=50", "MemoryMax=100", "MemorySwapMax=200"],
            ),
            (r#"{"memory":{"limit":-1}}"#, &["MemoryMax=infinity", "MemorySwapMax=infinity"]),
            (r#"{"memory":{"swap":1500}}"#, &["MemorySwapMax=500"]),
            (
                r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1,9","mems":"0"}}"#,
                &[
                    "AllowedCPUs=[3, 2]",
                    "AllowedMemoryNodes=[1]",
                    "CPUQuotaPerSecUSec=500000",
                    "CPUQuotaPeriodUSec=100000",
                    "CPUWeight=100",
                ],
            ),
            // The period of now, and the quota of now.
            (r#"{"cpu":{"quota":25000}}"#, &["CPUQuotaPerSecUSec=500000", "CPUQuotaPeriodUSec=50000"]),
            (r#"{"cpu":{"period":60000}}"#, &["CPUQuotaPerSecUSec=500000", "CPUQuotaPeriodUSec=60000"]),
            (r#"{"cpu":{"quota":-1}}"#, &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=50000"]),
            (r#"{"cpu":{"shares":2,"idle":1}}"#, &["CPUWeight=0"]),
            (r#"{"pids":{"limit":0}}"#, &["TasksMax=1"]),
            (r#"{"pids":{"limit":-1}}"#, &["TasksMax=infinity"]),
            (r#"{"blockIO":{"weight":1000}}"#, &["IOWeight=10000"]),
            (
                r#"{"memory":{"limit":100},"unified":{"memory.max":"max","memory.high":"90","pids.max":"0",
                    "cpu.max":"max 1000","io.weight":"default 50","cpuset.cpus":"1","misc.max":"x 1"}}"#,
                &[
                    "AllowedCPUs=[2]",
                    "CPUQuotaPerSecUSec=infinity",
                    "CPUQuotaPeriodUSec=1000",
                    "IOWeight=50",
                    "MemoryHigh=90",
                    "MemoryMax=infinity",
                    "TasksMax=1",
                ],
            ),
        ] {
            assert_eq!(planned(document, true, 252).unwrap(), expected, "{document}");
        }
        for document in [
            r#"{"cpu":{"cpus":"x"}}"#,
            r#"{"cpu":{"cpus":"3-1"}}"#,
            r#"{"cpu":{"cpus":"0-99999999999"}}"#,
            r#"{"unified":{"memory.max":"a lot"}}"#,
        ] {
            assert!(planned(document, true, 252).is_err(), "{document}");
        }
    }

    #[test]
    fn limits_of_version_1_and_of_an_old_systemd() {
        let document = r#"{"memory":{"limit":100,"swap":300},"blockIO":{"weight":500},
            "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0","idle":1}}"#;
        let expected = ["BlockIOWeight=500", "CPUQuotaPerSecUSec=500000", "CPUShares=512", "MemoryLimit=100"];
        assert_eq!(planned(document, false, 241).unwrap(), expected);
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_keeps() {
        let now = Now::default();
        for (document, expected) in [
            (r#"{"quota":50000,"period":100000}"#, Some(50_000)),
            (r#"{"quota":50001,"period":100000}"#, Some(51_000)),
            (r#"{"quota":12345}"#, Some(13_000)),
            (r#"{"quota":1,"period":1000000}"#, Some(10_000)),
            (r#"{"quota":-1}"#, None),
            ("{}", None),
        ] {
            let cpu: LinuxCpu = serde_json::from_str(document).unwrap();
            assert_eq!(rounded_quota(&cpu, &now), expected, "{document}");
        }
    }

    #[test]
    fn devices_of_version_1() {
        let rules = |documents: &[&str]| -> Vec<LinuxDeviceCgroup> {
            documents.iter().map(|document| serde_json::from_str(document).unwrap()).collect()
        };
        let pairs = |list: &[Property]| match list.last().map(|property| &property.value) {
            Some(Value::Pairs(pairs)) => pairs.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>(),
            _ => panic!("no list"),
        };
        let list = of_devices(&rules(&[
            r#"{"allow":true}"#,
            r#"{"allow":false,"access":"rwm"}"#,
            r#"{"allow":true,"type":"c","access":"m"}"#,
            r#"{"allow":true,"type":"c","major":1,"minor":3}"#,
            r#"{"allow":true,"type":"c","major":136,"access":"rw"}"#,
            r#"{"allow":true,"type":"b","major":8,"minor":0}"#,
            r#"{"allow":false,"type":"b","major":8,"access":"w"}"#,
        ]))
        .unwrap();
        assert_eq!(list[0].value, Value::Text("strict".to_owned()));
        assert_eq!(pairs(&list), ["char-* m", "/dev/char/1:3 rwm", "char-136 rw"]);
        let list = of_devices(&rules(&[r#"{"allow":false}"#, r#"{"allow":true,"type":"a"}"#])).unwrap();
        assert_eq!((list[0].value.clone(), pairs(&list).len()), (Value::Text("auto".to_owned()), 0));
    }
}
