//! How long a killed daemon's successor needs until it serves and knows all of its containers, beside Debian's containerd.
//!
//! `cargo xtask bench restart [--count N]`

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use api_grpc::services::tasks::{KillRequest, ListTasksRequest, WaitRequest};
use api_grpc::task_types::Status;
use client::Client;
use testkit::{Containerd, Daemon, Leaks};

use crate::options::Options;
use crate::{driver, plain};

/// Restarts of each daemon.
const ROUNDS: usize = 5;

/// Containers that Debian's containerd gets at most: each of its shims has 12 MiB.
const PEER_MAX: usize = 100;

/// Measures and prints.
pub async fn restart(options: &Options) -> Result<()> {
    let count = options.count.unwrap_or(500);
    println!("kill -9 and restart, {ROUNDS} rounds, ms");
    println!(
        "{:<12} {:>10} {:>12} {:>12} {:>12} {:>12}",
        "", "containers", "ready p50", "ready max", "RUNNING p50", "RUNNING max"
    );
    let mut ours = Daemon::start("restart");
    let (address, cgroup) = (ours.address(), ours.cgroup().to_owned());
    measure("gantryd", &address, &cgroup, count, || {
        ours.kill();
        ours.launch().map(drop)
    })
    .await?;
    drop(ours);
    let directory = tempfile::tempdir()?;
    let mut theirs = Containerd::start(&directory.path().join("containerd"), None)?;
    let address = theirs.address();
    let cgroup = format!("/gantry-restart-peer-{}", std::process::id());
    let measured = measure("containerd", &address, &cgroup, count.min(PEER_MAX), || {
        theirs.kill();
        theirs.launch()
    })
    .await;
    Leaks::new(directory.path(), &cgroup).remove_own_cgroup();
    measured
}

async fn measure(
    name: &str,
    address: &str,
    cgroup: &str,
    count: usize,
    mut restart: impl FnMut() -> Result<()>,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = plain::root(directory.path());
    let connect = || Client::connect(address.as_ref(), "restart");
    let client = connect().await?;
    let ids: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
    for id in &ids {
        let spec = plain::spec(&root, &format!("{cgroup}/{id}"), &["sleep", "1000000"]);
        plain::run(&client, id, &spec, "").await?;
    }
    drop(client);
    let (mut ready, mut running) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        tokio::task::block_in_place(&mut restart)?;
        let client = connect().await?;
        let mut first = None;
        loop {
            let tasks = client.tasks().list(ListTasksRequest::default()).await?.into_inner().tasks;
            first.get_or_insert_with(|| began.elapsed());
            if tasks.iter().filter(|task| task.status() == Status::Running).count() == count {
                break;
            }
            ensure!(began.elapsed() < Duration::from_secs(60), "{name}: {} of {count} tasks are left", tasks.len());
        }
        ready.extend(first);
        running.push(began.elapsed());
    }
    ready.sort();
    running.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{name:<12} {count:>10} {:>12.0} {:>12.0} {:>12.0} {:>12.0}",
        ms(driver::percentile(&ready, 50)),
        ms(driver::percentile(&ready, 100)),
        ms(driver::percentile(&running, 50)),
        ms(driver::percentile(&running, 100)),
    );
    let client = connect().await?;
    for id in &ids {
        let kill = KillRequest { container_id: id.clone(), signal: 9, all: true, ..KillRequest::default() };
        client.tasks().kill(kill).await?;
        client.tasks().wait(WaitRequest { container_id: id.clone(), exec_id: String::new() }).await?;
        plain::remove(&client, id).await?;
    }
    Ok(())
}
