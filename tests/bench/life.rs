//! One life of `true` through gRPC, gantryd and Debian's containerd with runc taking turns.
//!
//! `cargo xtask bench life [ROUNDS]`

use std::time::Duration;

use crate::driver::{IMAGE, Subject, percentile};
use anyhow::Result;
use testkit::{Containerd, Daemon, Leaks, busybox_image};

/// Measures and prints.
pub async fn life(rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("busybox.tar");
    busybox_image(&image, IMAGE)?;
    let ours = Daemon::start("bench");
    let theirs = Containerd::start(&directory.path().join("containerd"), None)?;
    let cgroup = format!("/gantry-bench-peer-{}", std::process::id());
    let subjects = [
        Subject::prepare("gantryd", &ours.address(), ours.cgroup(), &image).await?,
        Subject::prepare("containerd", &theirs.address(), &cgroup, &image).await?,
    ];
    let mut samples: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds + 3 {
        for (subject, times) in subjects.iter().zip(&mut samples) {
            let took = subject.life(&format!("life-{round}")).await?;
            // The first rounds make directories and warm caches.
            if round >= 3 {
                times.push(took);
            }
        }
    }
    println!("one life of true, prepare to remove, overlayfs, {rounds} rounds in turns, ms");
    println!("{:<12} {:>8} {:>8} {:>8} {:>8}", "", "min", "p10", "p50", "p90");
    let mut medians = Vec::new();
    for (subject, times) in subjects.iter().zip(&mut samples) {
        times.sort();
        let ms = |percent| percentile(times, percent).as_secs_f64() * 1e3;
        println!("{:<12} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", subject.name, ms(0), ms(10), ms(50), ms(90));
        medians.push(ms(50));
    }
    println!("ratio of p50: {:.3} (1 / {:.1})", medians[0] / medians[1], medians[1] / medians[0]);
    // What containers of the peer left above themselves.
    Leaks::new(directory.path(), &cgroup).remove_own_cgroup();
    Ok(())
}
