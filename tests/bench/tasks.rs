//! Tasks through gRPC, gantryd and Debian's containerd taking turns: one life of `true`, one exec of `true`, and lives
//! from four callers at once.
//!
//! `cargo xtask bench tasks [--count ROUNDS] [--binary crun] [--peer NAME=SOCKET]`

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::driver::{Field, Subject, docker_like, percentile};
use crate::options::Options;

/// Rounds that make directories and warm caches.
const WARM_UP: usize = 3;
const CALLERS: usize = 4;

/// The samples of one subject.
#[derive(Default)]
struct Samples {
    times: Vec<Duration>,
    used: Duration,
}

impl Samples {
    fn p50_ms(&self) -> f64 {
        percentile(&self.times, 50).as_secs_f64() * 1e3
    }

    fn used_ms(&self) -> f64 {
        self.used.as_secs_f64() * 1e3 / self.times.len() as f64
    }
}

/// Measures and prints.
pub async fn tasks(options: &Options) -> Result<()> {
    let rounds = options.count.unwrap_or(60);
    let field = Field::open(options).await?;
    lives(&field.subjects, rounds).await?;
    execs(&field.subjects, rounds).await?;
    callers(&field.subjects, rounds).await
}

async fn lives(subjects: &[Subject], rounds: usize) -> Result<()> {
    for (what, variant) in [("net", bench_runtime::spec::VARIANTS[1]), ("net, seccomp", docker_like())] {
        let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
        for round in 0..rounds + WARM_UP {
            for (subject, samples) in subjects.iter().zip(&mut samples) {
                let before = used(subject)?;
                let took = subject.life(&format!("life-{round}"), variant).await?;
                if round >= WARM_UP {
                    samples.times.push(took);
                    samples.used += used(subject)?.saturating_sub(before);
                }
            }
        }
        table(&format!("one life of true ({what}), prepare to remove, overlayfs"), subjects, &mut samples);
    }
    Ok(())
}

async fn execs(subjects: &[Subject], rounds: usize) -> Result<()> {
    for subject in subjects {
        subject.create("busy", &["sleep", "100000"], docker_like()).await?;
        subject.start("busy", "").await?;
    }
    let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
    for round in 0..rounds + WARM_UP {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            let before = used(subject)?;
            let took = subject.exec("busy", &format!("exec-{round}")).await?;
            if round >= WARM_UP {
                samples.times.push(took);
                samples.used += used(subject)?.saturating_sub(before);
            }
        }
    }
    table("one exec of true, exec to delete", subjects, &mut samples);
    for subject in subjects {
        subject.end("busy").await?;
    }
    Ok(())
}

async fn callers(subjects: &[Subject], rounds: usize) -> Result<()> {
    println!("\n{CALLERS} callers at once, lives a second, batches of {CALLERS} x 10 in turns");
    let mut spent = vec![Duration::ZERO; subjects.len()];
    let batches = rounds.div_ceil(20);
    for batch in 0..batches {
        for (subject, spent) in subjects.iter().zip(&mut spent) {
            let began = Instant::now();
            let one = |caller: usize| async move {
                for number in 0..10 {
                    subject.life(&format!("many-{batch}-{caller}-{number}"), docker_like()).await?;
                }
                anyhow::Ok(())
            };
            tokio::try_join!(one(0), one(1), one(2), one(3))?;
            *spent += began.elapsed();
        }
    }
    let rates: Vec<f64> = spent.iter().map(|spent| (batches * CALLERS * 10) as f64 / spent.as_secs_f64()).collect();
    for (subject, rate) in subjects.iter().zip(&rates) {
        println!("{:<20} {rate:>8.1}   gantryd is {:.1} times as fast", subject.name, rates[0] / rate);
    }
    Ok(())
}

fn used(subject: &Subject) -> Result<Duration> {
    subject.account.as_ref().map_or(Ok(Duration::ZERO), |account| account.used())
}

fn table(title: &str, subjects: &[Subject], samples: &mut [Samples]) {
    println!("\n{title}, {} rounds in turns, ms", samples[0].times.len());
    println!(
        "{:<20} {:>8} {:>8} {:>8} {:>8} {:>10}   {:>8} {:>8}",
        "", "min", "p10", "p50", "p90", "processor", "p50", "processor"
    );
    for samples in samples.iter_mut() {
        samples.times.sort();
    }
    for (subject, own) in subjects.iter().zip(&*samples) {
        let ms = |percent| percentile(&own.times, percent).as_secs_f64() * 1e3;
        let ratio = |ours: f64, theirs: f64| format!("1 / {:.1}", theirs / ours);
        let processor = if subject.account.is_some() { format!("{:.2}", own.used_ms()) } else { "-".to_owned() };
        let processor_ratio =
            if subject.account.is_some() { ratio(samples[0].used_ms(), own.used_ms()) } else { "-".to_owned() };
        println!(
            "{:<20} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {processor:>10}   {:>8} {processor_ratio:>8}",
            subject.name,
            ms(0),
            ms(10),
            ms(50),
            ms(90),
            ratio(samples[0].p50_ms(), own.p50_ms()),
        );
    }
}
