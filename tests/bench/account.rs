//! The processor time that a daemon, its shims and its containers use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// A cgroup that counts what runs in it and below it, also after a part of it is gone. What the kernel does on its own
/// threads (the end of a network namespace, for one) is nobody's, here as everywhere.
#[derive(Debug)]
pub struct Account {
    directory: PathBuf,
    usage: PathBuf,
}

impl Account {
    /// Moves the daemon `pid`, and so the shims that it will start, below the cgroup path `top`.
    pub fn open(top: &str, pid: u32) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/cpuacct");
        let (root, file) = if v1.is_dir() { (v1, "cpuacct.usage") } else { (Path::new("/sys/fs/cgroup"), "cpu.stat") };
        let top = root.join(top.trim_start_matches('/'));
        // Containers take the other names below `top`.
        let directory = top.join("the-daemon");
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        fs::write(directory.join("cgroup.procs"), pid.to_string()).context("move the daemon")?;
        Ok(Self { usage: top.join(file), directory })
    }

    /// What was used so far.
    pub fn used(&self) -> Result<Duration> {
        let text = fs::read_to_string(&self.usage).with_context(|| format!("read {}", self.usage.display()))?;
        let mut words = text.split_whitespace();
        Ok(match words.next() {
            Some("usage_usec") => Duration::from_micros(words.next().context("no figure")?.parse()?),
            Some(nanoseconds) => Duration::from_nanos(nanoseconds.parse()?),
            None => Duration::ZERO,
        })
    }

    /// Moves everything back, so that the cgroup can be removed.
    pub fn close(&self) {
        let root = if self.usage.ends_with("cpu.stat") { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpuacct" };
        for pid in fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(Path::new(root).join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}
