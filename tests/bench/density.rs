//! What idle containers cost: memory and threads of their shims, memory and descriptors of the daemon, beside Debian's
//! containerd in the same run.
//!
//! `cargo xtask bench density [--count CONTAINERS] [--peer NAME=SOCKET]`

use std::time::Duration;

use anyhow::Result;

use crate::driver::{Field, docker_like, percentile};
use crate::options::Options;
use crate::process::{Process, parent};

/// How long containers are left alone before they are looked at.
const IDLE: Duration = Duration::from_secs(5);

/// Measures and prints.
pub async fn density(options: &Options) -> Result<()> {
    let count = options.count.unwrap_or(20);
    let field = Field::open(options).await?;
    println!("{count} idle containers, {IDLE:?} after the last start; medians of their shims, KiB; the daemon, KiB");
    println!(
        "{:<18} {:>8} {:>8} {:>8} {:>8}   {:>10} {:>12} {:>14}",
        "", "RSS", "PSS", "private", "threads", "daemon RSS", "descriptors", "a container"
    );
    for subject in &field.subjects {
        let look = || subject.daemon.map(Process::look).transpose();
        let before = look()?;
        let mut shims = Vec::new();
        for number in 0..count {
            let id = format!("idle-{number}");
            subject.create(&id, &["sleep", "100000"], docker_like()).await?;
            shims.push(parent(subject.start(&id, "").await?)?);
        }
        tokio::time::sleep(IDLE).await;
        let shims = shims.into_iter().map(Process::look).collect::<Result<Vec<_>>>()?;
        let median = |figure: fn(&Process) -> u64| {
            let mut sorted: Vec<u64> = shims.iter().map(figure).collect();
            sorted.sort_unstable();
            percentile(&sorted, 50)
        };
        print!(
            "{:<18} {:>8} {:>8} {:>8} {:>8}   ",
            subject.name,
            median(|shim| shim.resident),
            median(|shim| shim.proportional),
            median(|shim| shim.private),
            median(|shim| shim.threads),
        );
        match (before, look()?) {
            (Some(before), Some(now)) => println!(
                "{:>10} {:>12} {:>14.2}",
                now.resident,
                now.descriptors,
                now.descriptors.saturating_sub(before.descriptors) as f64 / count as f64
            ),
            _ => println!("{:>10} {:>12} {:>14}", "-", "-", "-"),
        }
        for number in 0..count {
            subject.end(&format!("idle-{number}")).await?;
        }
    }
    Ok(())
}
