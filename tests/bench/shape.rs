//! What an idle container costs: memory and threads of its shim, beside Debian's containerd in the same run.
//!
//! `cargo xtask bench shape [CONTAINERS]`

use std::fs;
use std::time::Duration;

use crate::driver::{IMAGE, Subject, percentile};
use anyhow::{Context as _, Result};
use testkit::{Containerd, Daemon, Leaks, busybox_image};

/// A process by the kernel's own account, KiB.
#[derive(Default)]
struct Shape {
    resident: Vec<u64>,
    proportional: Vec<u64>,
    private: Vec<u64>,
    threads: Vec<u64>,
}

impl Shape {
    fn add(&mut self, pid: u32) -> Result<()> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read smaps_rollup")?;
        let kib = |name: &str| -> u64 {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.resident.push(kib("Rss:"));
        self.proportional.push(kib("Pss:"));
        self.private.push(kib("Private_Clean:") + kib("Private_Dirty:"));
        self.threads.push(fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64);
        Ok(())
    }

    fn median(samples: &mut [u64]) -> u64 {
        samples.sort_unstable();
        percentile(samples, 50)
    }
}

fn parent(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no PPid")?;
    Ok(line.trim().parse()?)
}

/// Measures and prints.
pub async fn shape(count: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("busybox.tar");
    busybox_image(&image, IMAGE)?;
    let ours = Daemon::start("bench");
    let theirs = Containerd::start(&directory.path().join("containerd"), None)?;
    let cgroup = format!("/gantry-bench-peer-{}", std::process::id());
    let subjects = [
        (Subject::prepare("gantryd", &ours.address(), ours.cgroup(), &image).await?, ours.pid()),
        (Subject::prepare("containerd", &theirs.address(), &cgroup, &image).await?, theirs.pid()),
    ];
    println!("{count} idle containers, 5 s after the last start; medians of their shims, KiB");
    println!("{:<12} {:>8} {:>8} {:>8} {:>8} {:>12}", "", "RSS", "PSS", "private", "threads", "daemon RSS");
    for (subject, daemon) in &subjects {
        let mut shims = Vec::new();
        for number in 0..count {
            let id = format!("idle-{number}");
            subject.create(&id, &["sleep", "100000"]).await?;
            shims.push(parent(subject.start(&id).await?)?);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut shape = Shape::default();
        for pid in shims {
            shape.add(pid)?;
        }
        let mut whole = Shape::default();
        whole.add(*daemon)?;
        println!(
            "{:<12} {:>8} {:>8} {:>8} {:>8} {:>12}",
            subject.name,
            Shape::median(&mut shape.resident),
            Shape::median(&mut shape.proportional),
            Shape::median(&mut shape.private),
            Shape::median(&mut shape.threads),
            whole.resident[0]
        );
        for number in 0..count {
            subject.end(&format!("idle-{number}")).await?;
        }
    }
    // What containers of the peer left above themselves.
    Leaks::new(directory.path(), &cgroup).remove_own_cgroup();
    Ok(())
}
