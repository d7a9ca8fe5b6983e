//! What becomes of a container's output: the throughput into a file, beside Debian's containerd, and a FIFO whose daemon
//! and whose reader are stopped for a while.
//!
//! `cargo xtask bench stdio [--count MIB]`

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use crate::driver::{Field, Subject, docker_like};
use crate::options::Options;

/// How long the daemon, and then the reader, is stopped.
const STOPPED: Duration = Duration::from_secs(10);
/// Rounds of the file's throughput, in turns.
const ROUNDS: usize = 5;
const LINE: &str = "what a container says\n";

/// Measures and prints.
pub async fn stdio(options: &Options) -> Result<()> {
    let mib = options.count.unwrap_or(1024);
    let field = Field::open(options).await?;
    for block_kib in [64, 4] {
        files(&field, mib, block_kib).await?;
    }
    for subject in &field.subjects {
        if let Some(daemon) = subject.daemon {
            fifo(subject, daemon, field.directory(), mib << 20).await?;
        }
    }
    Ok(())
}

async fn files(field: &Field, mib: usize, block_kib: usize) -> Result<()> {
    let count = (mib << 10) / block_kib;
    let script = format!("dd if=/dev/zero bs={block_kib}k count={count} 2>/dev/null");
    println!(
        "{mib} MiB of output in writes of {block_kib} KiB into file://, {ROUNDS} rounds in turns, MiB/s, the best"
    );
    let mut best = vec![0_f64; field.subjects.len()];
    for round in 0..ROUNDS {
        for (subject, best) in field.subjects.iter().zip(&mut best) {
            let (id, log) = (format!("file-{block_kib}-{round}"), field.directory().join("log"));
            subject
                .create_with(&id, &["sh", "-c", &script], docker_like(), &format!("file://{}", log.display()))
                .await?;
            let began = Instant::now();
            subject.start(&id, "").await?;
            let status = subject.wait(&id, "").await?;
            // The removal waits for what a shim has not written yet.
            subject.remove(&id).await?;
            let took = began.elapsed();
            ensure!(status == 0, "{}: {id} ended with {status}", subject.name);
            let length = log.metadata()?.len();
            ensure!(length == (mib as u64) << 20, "{}: {length} bytes of {mib} MiB arrived", subject.name);
            std::fs::remove_file(&log)?;
            *best = best.max(mib as f64 / took.as_secs_f64());
        }
    }
    for (subject, rate) in field.subjects.iter().zip(&best) {
        println!("{:<20} {rate:>8.0}   gantryd is {:.1} times as fast", subject.name, best[0] / rate);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "how long the daemon and the reader stand still is what is measured")]
async fn fifo(subject: &Subject, daemon: u32, directory: &Path, bytes: usize) -> Result<()> {
    let path = directory.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)?;
    // Opened for both, so that it neither waits for a writer nor ends with one.
    let mut reader = File::options().read(true).write(true).open(&path)?;
    let script = format!("yes '{}' | head -c {bytes}", LINE.trim_end());
    subject.create_with("fifo", &["sh", "-c", &script], docker_like(), &path.to_string_lossy()).await?;
    subject.start("fifo", "").await?;
    let began = Instant::now();
    let reading = tokio::task::spawn_blocking(move || {
        let (mut hash, mut buffer, mut done) = (Sha256::new(), vec![0; 65_536], 0);
        let (mut daemon_stopped, mut slept) = (false, false);
        while done < bytes {
            let count = reader.read(&mut buffer).context("read the FIFO")?;
            hash.update(&buffer[..count]);
            done += count;
            if !daemon_stopped && done > bytes / 4 {
                daemon_stopped = true;
                signal(daemon, Signal::STOP)?;
                std::thread::spawn(move || {
                    std::thread::sleep(STOPPED);
                    signal(daemon, Signal::CONT)
                });
            }
            if !slept && done > bytes / 2 {
                slept = true;
                std::thread::sleep(STOPPED);
            }
        }
        anyhow::Ok(hash.finalize())
    });
    let read = reading.await.context("the reader")??;
    let took = began.elapsed();
    let status = subject.wait("fifo", "").await?;
    subject.remove("fifo").await?;
    std::fs::remove_file(&path)?;
    let mut expected = Sha256::new();
    let block = LINE.repeat(1024);
    for at in (0..bytes).step_by(block.len()) {
        expected.update(&block.as_bytes()[..block.len().min(bytes - at)]);
    }
    let equal = if expected.finalize() == read { "equal" } else { "NOT EQUAL" };
    println!(
        "{:<20} {bytes} bytes through a FIFO, daemon and reader stopped for {STOPPED:?} each: hash {equal}, ended with \
         {status}, {took:.1?}",
        subject.name
    );
    ensure!(equal == "equal", "{}: output was lost or changed", subject.name);
    Ok(())
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
    kill_process(pid, signal).context("signal the daemon")
}
