//! Many lives in a row: what of gantryd grows with them.
//!
//! `cargo xtask bench soak [--count CYCLES]`

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::driver::{Field, Subject, docker_like};
use crate::options::Options;
use crate::process::Process;

/// Looks during the whole run.
const LOOKS: usize = 20;
/// Callers at once.
const CALLERS: usize = 4;

/// One look: a name and a figure each.
type Look = Vec<(&'static str, f64)>;

/// Measures and prints.
pub async fn soak(options: &Options) -> Result<()> {
    let cycles = options.count.unwrap_or(10_000);
    let field = Field::open(&Options { alone: true, ..Options::default() }).await?;
    let subject = &field.subjects[0];
    let directory = field.ours.directory();
    let step = cycles.div_ceil(LOOKS).div_ceil(CALLERS);
    let mut looks: Vec<(usize, Look)> = Vec::new();
    for number in 0..=LOOKS {
        if number > 0 {
            let one = |caller: usize| lives(subject, number, caller, step);
            tokio::try_join!(one(0), one(1), one(2), one(3))?;
        }
        looks.push((number * step * CALLERS, look(field.ours.pid(), directory)?));
        print_row(&looks);
    }
    // The first half makes directories, fills caches and the journal's retention.
    let half: Vec<&(usize, Look)> = looks.iter().skip(LOOKS / 2).collect();
    println!("\ngrowth in 1,000 cycles, by least squares over the second half");
    for (column, (name, _)) in looks[0].1.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            half.iter().map(|(cycles, figures)| (*cycles as f64 / 1000.0, figures[column].1)).collect();
        println!("{name:<12} {:>10.2}", slope(&points));
    }
    Ok(())
}

async fn lives(subject: &Subject, number: usize, caller: usize, count: usize) -> Result<()> {
    for life in 0..count {
        subject.life(&format!("soak-{number}-{caller}-{life}"), docker_like()).await?;
    }
    Ok(())
}

fn look(daemon: u32, directory: &Path) -> Result<Look> {
    let process = Process::look(daemon)?;
    let mounts = fs::read_to_string(format!("/proc/{daemon}/mountinfo"))?.lines().count();
    let hierarchies = fs::read_to_string("/proc/cgroups")?;
    let cgroups: u64 =
        hierarchies.lines().skip(1).filter_map(|line| line.split('\t').nth(2)?.parse::<u64>().ok()).sum();
    let (disk_kib, files) = below(directory);
    Ok(vec![
        ("RSS KiB", process.resident as f64),
        ("private KiB", process.private as f64),
        ("descriptors", process.descriptors as f64),
        ("threads", process.threads as f64),
        ("mounts", mounts as f64),
        ("cgroups", cgroups as f64),
        ("disk KiB", disk_kib as f64),
        ("files", files as f64),
    ])
}

/// Blocks in KiB and files below a directory. What goes away meanwhile does not count.
fn below(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let (mut kib, mut files) = (0, 0);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        kib += metadata.blocks() / 2;
        files += 1;
        if metadata.is_dir() {
            let (inner, count) = below(&entry.path());
            kib += inner;
            files += count;
        }
    }
    (kib, files)
}

fn print_row(looks: &[(usize, Look)]) {
    let Some((cycles, figures)) = looks.last() else { return };
    if looks.len() == 1 {
        let names: Vec<String> = figures.iter().map(|(name, _)| format!("{name:>12}")).collect();
        println!("{:>8}{}", "cycles", names.concat());
    }
    let figures: Vec<String> = figures.iter().map(|(_, figure)| format!("{figure:>12.0}")).collect();
    println!("{cycles:>8}{}", figures.concat());
}

/// The slope of the line that lies nearest to the points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below == 0.0 { 0.0 } else { above / below }
}
