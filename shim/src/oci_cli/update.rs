//! `update`.

use std::path::Path;

use serde_json::{Value, json};

use super::args::{Flag, Global, Words, option};
use super::store::Entry;
use super::{Command, Error, Result, log};

pub(crate) const UPDATE: Command = Command {
    name: "update",
    about: "change the limits of a container",
    usage: "update [options] CONTAINER",
    flags: &FLAGS,
    rest_is_command: false,
    run: update,
};

const FLAGS: [Flag; 19] = [
    option("resources", "r", "file with linux.resources as JSON, - for standard input; then no other option counts"),
    option("blkio-weight", "", "weight of block I/O, 10 to 1000"),
    option("cpu-period", "", "length of a period in microseconds"),
    option("cpu-quota", "", "processor time per period in microseconds"),
    option("cpu-burst", "", "processor time that may be saved up, in microseconds"),
    option("cpu-share", "", "share of processor time against others"),
    option("cpu-rt-period", "", "length of a realtime period in microseconds"),
    option("cpu-rt-runtime", "", "realtime per period in microseconds"),
    option("cpu-idle", "", "1: only what nobody else wants"),
    option("cpuset-cpus", "", "processors to use"),
    option("cpuset-mems", "", "memory nodes to use"),
    option("memory", "", "limit of memory in bytes"),
    option("memory-reservation", "", "soft limit of memory in bytes"),
    option("memory-swap", "", "limit of memory and swap in bytes"),
    option("pids-limit", "", "limit of processes"),
    option("kernel-memory", "", "of no effect: kernels do not limit it any more"),
    option("kernel-memory-tcp", "", "of no effect: kernels do not limit it any more"),
    option("l3-cache-schema", "", "not supported: refused"),
    option("mem-bw-schema", "", "not supported: refused"),
];

/// Where each option goes.
const FIELDS: [(&str, &str, &str); 12] = [
    ("blkio-weight", "blockIO", "weight"),
    ("cpu-period", "cpu", "period"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-share", "cpu", "shares"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-idle", "cpu", "idle"),
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
    ("pids-limit", "pids", "limit"),
];

fn update(global: &Global, words: Words) -> Result {
    let entry = Entry::find(global, words.id()?)?;
    for (flag, what) in [
        ("l3-cache-schema", "Intel RDT/CAT: l3 cache schema"),
        ("mem-bw-schema", "Intel RDT/MBA: memory bandwidth schema"),
    ] {
        if words.value(flag).is_some() {
            return Err(Error::State(format!("{what} is not enabled")));
        }
    }
    if words.value("kernel-memory").or(words.value("kernel-memory-tcp")).is_some() {
        log::warnings(global, &["Kernel memory settings are ignored and will be removed".to_owned()]);
    }
    let bytes = match words.value("resources") {
        Some("-") => super::store::read_bounded(std::io::stdin().lock())
            .map_err(|source| Error::io("reading standard input", source))?,
        Some(path) => super::store::read_document(Path::new(path))?,
        None => from_options(&words)?.to_string().into_bytes(),
    };
    let resources =
        oci::parse_resources(&bytes).map_err(|source| Error::Document { document: "resources".to_owned(), source })?;
    let (mut container, _) = entry.open()?;
    container.update(&resources)?;
    Ok(0)
}

fn from_options(words: &Words) -> core::result::Result<Value, Error> {
    let mut value = json!({});
    for (flag, group, field) in FIELDS {
        let number = match words.value(flag) {
            // Sizes may be given with a unit.
            Some(text) if group == "memory" => Some(bytes(text)?),
            _ => words.number::<i64>(flag)?,
        };
        if let Some(number) = number {
            value[group][field] = json!(number);
        }
    }
    for (flag, field) in [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")] {
        if let Some(list) = words.value(flag) {
            value["cpu"][field] = json!(list);
        }
    }
    Ok(value)
}

/// A size in bytes: a number, with `k`, `m`, `g` or `t` for powers of 1024.
fn bytes(text: &str) -> core::result::Result<i64, Error> {
    let lower = text.trim_end_matches(['b', 'B']).to_ascii_lowercase();
    let (digits, shift) = match lower.char_indices().next_back() {
        Some((at, 'k')) => (&lower[..at], 10),
        Some((at, 'm')) => (&lower[..at], 20),
        Some((at, 'g')) => (&lower[..at], 30),
        Some((at, 't')) => (&lower[..at], 40),
        _ => (lower.as_str(), 0),
    };
    let number = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| Error::Usage(format!("invalid value for memory: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_resources() {
        let line = ["--memory", "64m", "--pids-limit=20", "--cpu-quota", "-1", "--cpuset-cpus", "0-1", "id"];
        let words = Words::parse("update", line.map(str::to_owned).to_vec(), &FLAGS, false).unwrap();
        let want = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}, "cpu": {"quota": -1, "cpus": "0-1"}});
        assert_eq!(from_options(&words).unwrap(), want);
        oci::parse_resources(want.to_string().as_bytes()).unwrap();
        for bad in ["", "m", "1x", "9999999999t"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
