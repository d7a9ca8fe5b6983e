//! Chaos: the daemon, its shims and the machine fail under load, and nothing may be lost.
//!
//! ```text
//! chaos [--kills N] [--shim-kills N] [--seed N] [--round N]
//! ```
//!
//! Without words it is the short form of CI: each crash point once, some deaths at random times, and each other fault
//! once. The long form is `cargo xtask chaos --kills 1000 --shim-kills 200`. Rounds have a daemon of their own and a seed,
//! which is printed; `--seed N --round 1` repeats one. The order of faults and what the containers do is the seed's; when
//! exactly a fault strikes is up to the machine.
//!
//! After each round: no container was lost, each process that was started has one exit with the code that it was told to
//! have, a subscriber that resumes has every event once and in the order of a task's life, and nothing is left: no mount,
//! process, cgroup, socket, directory, descriptor.

mod check;
mod faults;
mod ledger;
mod load;
mod random;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use api_grpc::services::events::PublishRequest;
use api_grpc::services::snapshots::ListSnapshotsRequest;
use client::Client;
use sys::crash;
use testkit::{Daemon, Settings};

use faults::{Faults, Tally};
use ledger::Ledger;
use load::{Hand, IMAGE, World};
use random::Random;
use witness::Witness;

/// Deaths of the daemon in one round.
const ROUND: u64 = 50;

/// Workers whose containers end, and whose containers stay.
const WORKERS: (u64, u64) = (3, 4);

/// The last event of a round.
const LAST: &str = "/chaos/last";

/// Size of the file system of a round, which can be filled.
const DISK_BYTES: &str = "256m";

#[derive(Debug)]
struct Plan {
    kills: u64,
    shim_kills: u64,
    seed: u64,
    /// Also what is not a death.
    others: bool,
    rounds: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // `cargo test` passes what it was given to every program of tests.
    let other = |word: &&str| !word.starts_with('-') && word.parse::<u64>().is_err() && !"chaos".contains(*word);
    if words.iter().any(other) || words.contains(&"--list") {
        return ExitCode::SUCCESS;
    }
    let outcome = plan(&words).and_then(|plan| run(&plan));
    match outcome {
        Ok(()) => {
            println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("chaos: {error:#}");
            println!("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
            ExitCode::FAILURE
        }
    }
}

fn plan(words: &[&str]) -> Result<Plan> {
    let number = |name: &str| -> Result<Option<u64>> {
        let Some(at) = words.iter().position(|word| *word == name) else { return Ok(None) };
        let text = words.get(at + 1).with_context(|| format!("{name} needs a number"))?;
        Ok(Some(text.parse().with_context(|| format!("{name} {text}"))?))
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = number("--seed")?.unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
    let (kills, shim_kills) = (number("--kills")?, number("--shim-kills")?);
    let short = kills.is_none() && shim_kills.is_none();
    let points = has_points()?;
    let all = |points: &[&str]| points.len() as u64;
    let kills = kills.unwrap_or(match (short, points) {
        (true, true) => all(crash::daemon::ALL) * 5 / 3,
        (true, false) => 10,
        (false, _) => 0,
    });
    let shim_kills = shim_kills.unwrap_or(match (short, points) {
        (true, true) => all(crash::shim::ALL) * 5 / 3,
        (true, false) => 3,
        (false, _) => 0,
    });
    let rounds = if short { 1 } else { kills.max(shim_kills * 5).div_ceil(ROUND).max(1) };
    let rounds = number("--round")?.unwrap_or(rounds);
    Ok(Plan { kills, shim_kills, seed, others: true, rounds })
}

/// Whether the binaries under test were built with crash points.
fn has_points() -> Result<bool> {
    let bytes = std::fs::read(testkit::binary("gantryd")).context("read gantryd")?;
    Ok(bytes.windows(crash::MARK.len()).any(|window| window == crash::MARK.as_bytes()))
}

fn run(plan: &Plan) -> Result<()> {
    let points = has_points()?;
    if !points {
        testkit::skip("chaos at named points", "these binaries have none: `cargo xtask chaos` builds some that do");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut tally = Tally::default();
    let mut wrong = 0;
    println!(
        "chaos: seed {}, {} rounds, {} kills of the daemon, {} of shims",
        plan.seed, plan.rounds, plan.kills, plan.shim_kills
    );
    for number in 0..plan.rounds {
        let share = |all: u64| all * (number + 1) / plan.rounds - all * number / plan.rounds;
        let seed = Random::new(plan.seed.wrapping_add(number)).next();
        let round = Round {
            number,
            seed: plan.seed.wrapping_add(number),
            kills: share(plan.kills),
            shims: share(plan.shim_kills),
            others: plan.others,
            points,
        };
        let complaints = runtime
            .block_on(round.run(seed, &mut tally))
            .with_context(|| format!("round with --seed {}", round.seed))?;
        wrong += complaints;
    }
    report(&tally, points);
    if wrong > 0 {
        bail!("{wrong} things are wrong");
    }
    Ok(())
}

struct Round {
    number: u64,
    seed: u64,
    kills: u64,
    shims: u64,
    others: bool,
    points: bool,
}

impl Round {
    /// One round on a daemon of its own; tells how many things are wrong.
    async fn run(&self, seed: u64, tally: &mut Tally) -> Result<usize> {
        let disk = Disk::mount()?;
        let tokens = disk.0.join("tokens");
        std::fs::create_dir_all(&tokens)?;
        let settings = Settings {
            environment: vec![(crash::VARIABLE.to_owned(), tokens.to_string_lossy().into_owned())],
            parent: Some(disk.0.clone()),
            ..Settings::default()
        };
        let mut daemon = Daemon::start_with("chaos", settings);
        let ledger = Arc::new(Ledger::default());
        let outcome = self.load(&mut daemon, &ledger, &tokens, seed, tally).await;
        if let Err(error) = &outcome {
            ledger.complain(format!("{error:#}"));
        }
        let complaints = ledger.complaints();
        if !complaints.is_empty() {
            let kept = std::env::temp_dir().join(format!("chaos-{}.log", self.seed));
            let _ = std::fs::write(&kept, daemon.log());
            println!("    the daemon's log is kept: {}", kept.display());
        }
        // Its checks are the last ones: they panic with what was left.
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(daemon)));
        let left = usize::from(dropped.is_err());
        Ok(complaints.len() + left)
    }

    async fn load(
        &self,
        daemon: &mut Daemon,
        ledger: &Arc<Ledger>,
        tokens: &Path,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<()> {
        let address = PathBuf::from(daemon.address());
        let client = Client::connect(&address, "chaos").await?;
        let image = daemon.directory().join("busybox.tar");
        testkit::busybox_image(&image, IMAGE)?;
        client::image::import(&client, &image, "overlayfs").await?;
        let parent = client::image::unpack(&client, IMAGE, "overlayfs").await?.chain_id;
        let snapshots = count_snapshots(&client).await?;
        drop(client);
        let world = Arc::new(World {
            address: address.clone(),
            cgroup: daemon.cgroup().to_owned(),
            parent,
            ledger: Arc::clone(ledger),
            ending: AtomicBool::new(false),
            troubled: AtomicBool::new(false),
            operations: AtomicU64::new(0),
        });
        let mut random = Random::new(seed);
        let witness = Witness::start(address.clone(), Arc::clone(ledger)).await?;
        let mut workers = tokio::task::JoinSet::new();
        for number in 0..WORKERS.0 {
            workers.spawn(Hand::new(&world, random.next()).await.live(format!("life{number}")));
        }
        for number in 0..WORKERS.1 {
            workers.spawn(Hand::new(&world, random.next()).await.stay(format!("stay{number}")));
        }
        let began = Instant::now();
        let kills = tally.daemon_kills();
        let shims = tally.shim_kills();
        let outcome = tokio::task::block_in_place(|| {
            let mut faults = Faults {
                daemon,
                world: Arc::clone(&world),
                tokens: tokens.to_owned(),
                random: random.clone(),
                tally,
                points: self.points,
            };
            faults.run(self.kills, self.shims)?;
            if self.others {
                faults.freeze(false, Duration::from_millis(1500))?;
                faults.freeze(true, Duration::from_millis(1500))?;
                faults.no_descriptors(Duration::from_millis(400))?;
                faults.no_memory(Duration::from_millis(400))?;
                faults.fill_disk(Duration::from_millis(600))?;
            }
            anyhow::Ok(())
        });
        let seconds = began.elapsed().as_secs_f64();
        world.ending.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(Duration::from_secs(90), async {
            while let Some(joined) = workers.join_next().await {
                if let Err(error) = joined {
                    ledger.complain(format!("a worker: {error}"));
                }
            }
        });
        outcome?;
        ended.await.context("the workers do not end within 90 s")?;
        let operations = world.operations.load(Ordering::Relaxed);
        // The collector may still remove what the workers gave up.
        let client = Client::connect(&address, "chaos").await?;
        client
            .events()
            .publish(PublishRequest {
                topic: LAST.into(),
                event: Some(prost_types::Any { type_url: "chaos".into(), value: Vec::new() }),
            })
            .await?;
        let (events, begin) = witness.until(LAST).await?;
        check::sequences(&events, &begin, ledger);
        check::lives(&events, ledger);
        let again = witness::read_again(&address, &begin, LAST).await?;
        if again != events {
            ledger.complain(format!("{} events are in the journal and {} were seen", again.len(), events.len()));
        }
        settle(&client, daemon.directory(), snapshots, ledger).await?;
        tally.events += events.len() as u64;
        tally.operations += operations;
        tally.seconds += seconds;
        println!(
            "  round {:>2} (--seed {} --round 1): {} deaths of the daemon, {} of shims, {} containers, {} events, {:.0} operations a second, {:.0} s",
            self.number + 1,
            self.seed,
            tally.daemon_kills() - kills,
            tally.shim_kills() - shims,
            ledger.records().len(),
            events.len(),
            operations as f64 / seconds,
            seconds,
        );
        Ok(())
    }
}

/// Looks for leftovers as soon as the collector has had its chance.
async fn settle(client: &Client, directory: &Path, snapshots: usize, ledger: &Ledger) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let count = count_snapshots(client).await?;
        let mut found = check::leftovers(directory, snapshots);
        if count != snapshots {
            found.push(format!("{count} snapshots, want {snapshots}"));
        }
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            found.into_iter().for_each(|text| ledger.complain(text));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count_snapshots(client: &Client) -> Result<usize> {
    let request = ListSnapshotsRequest { snapshotter: "overlayfs".into(), ..ListSnapshotsRequest::default() };
    let mut stream = client.snapshots().list(request).await?.into_inner();
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        count += message.info.len();
    }
    Ok(count)
}

/// A small file system of memory for one round.
struct Disk(PathBuf);

impl Disk {
    fn mount() -> Result<Self> {
        let place = std::env::temp_dir().join(format!("gantry-chaos-{}", std::process::id()));
        std::fs::create_dir_all(&place)?;
        let options = format!("size={DISK_BYTES}");
        let mounted = testkit::run("mount", &["-t", "tmpfs", "-o", &options, "chaos", &place.to_string_lossy()])?;
        if mounted.code != 0 {
            bail!("mount a file system of memory: {}", mounted.text());
        }
        Ok(Self(place))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = testkit::run("umount", &["--lazy", &self.0.to_string_lossy()]);
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn report(tally: &Tally, points: bool) {
    let mut ready = tally.ready.clone();
    ready.sort();
    let named = |hits: &std::collections::BTreeMap<&str, u64>| {
        hits.iter().filter(|(point, _)| !point.is_empty()).map(|(_, hits)| hits).sum::<u64>()
    };
    println!(
        "chaos: {} deaths of the daemon ({} at named points), {} of shims ({} at named points), {} events, {:.0} operations a second",
        tally.daemon_kills(),
        named(&tally.daemon),
        tally.shim_kills(),
        named(&tally.shim),
        tally.events,
        tally.operations as f64 / tally.seconds,
    );
    if let (Some(middle), Some(last)) = (ready.get(ready.len() / 2), ready.last()) {
        println!("chaos: ready again after {middle:.0?} (median), {last:.0?} (most)");
    }
    for (what, count) in &tally.others {
        println!("chaos: {count} {what}");
    }
    if points {
        for (all, hits) in [(crash::daemon::ALL, &tally.daemon), (crash::shim::ALL, &tally.shim)] {
            let words: Vec<String> =
                all.iter().map(|point| format!("{point} {}", hits.get(point).unwrap_or(&0))).collect();
            println!("chaos: {}", words.join(", "));
        }
    }
}
