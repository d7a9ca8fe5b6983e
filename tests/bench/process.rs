//! A process by the kernel's own account.

use std::fs;

use anyhow::{Context as _, Result};

/// Memory in KiB, threads, open descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub resident: u64,
    pub proportional: u64,
    /// Clean and dirty pages that no other process has.
    pub private: u64,
    pub threads: u64,
    pub descriptors: u64,
}

impl Process {
    /// Looks at a process.
    pub fn look(pid: u32) -> Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read smaps_rollup")?;
        let kib = |name: &str| -> u64 {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let entries = |name: &str| anyhow::Ok(fs::read_dir(format!("/proc/{pid}/{name}"))?.count() as u64);
        Ok(Self {
            resident: kib("Rss:"),
            proportional: kib("Pss:"),
            private: kib("Private_Clean:") + kib("Private_Dirty:"),
            threads: entries("task")?,
            descriptors: entries("fd")?,
        })
    }
}

/// Who started a process.
pub fn parent(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no PPid")?;
    Ok(line.trim().parse()?)
}
