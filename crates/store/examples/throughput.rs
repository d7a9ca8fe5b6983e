//! How many transactions a second the store acknowledges from the disk, and at what cost, beside sled flushed by every
//! caller for itself (whose every write the guard then syncs). Run it with `--release`, and name a directory on the disk
//! that is meant; the default is the temporary one.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Durability, Options, Store};

const RECORD_BYTES: usize = 600;
const TRANSACTIONS: usize = 3840;
const ROUNDS: usize = 20;

static SYNCS: AtomicU64 = AtomicU64::new(0);

/// Counts the calls that the store and its guard make, and makes them.
#[expect(unsafe_code, reason = "the only way to count them without a tracer")]
#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: libc::c_int) -> libc::c_int {
    SYNCS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the system call takes no pointers.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as libc::c_int }
}

/// One way to commit, and what it has cost so far.
struct Contender<'a> {
    what: &'static str,
    commit: Box<dyn Fn(usize, usize) -> Result<(), String> + Sync + 'a>,
    times: Vec<Duration>,
    elapsed: Duration,
    syncs: u64,
    bytes: u64,
}

impl<'a> Contender<'a> {
    fn new(what: &'static str, commit: impl Fn(usize, usize) -> Result<(), String> + Sync + 'a) -> Self {
        let commit = Box::new(commit);
        Self { what, commit, times: Vec::new(), elapsed: Duration::ZERO, syncs: 0, bytes: 0 }
    }

    /// Runs `callers` threads that commit one after the other.
    fn run(&mut self, callers: usize, transactions: usize) -> Result<(), Box<dyn Error>> {
        let (syncs, bytes, start) = (SYNCS.load(Ordering::Relaxed), written()?, Instant::now());
        let commit = &self.commit;
        let first = self.times.len() / callers;
        let caller = |caller: usize| {
            let times = (first..first + transactions / callers).map(|n| {
                let start = Instant::now();
                commit(caller, n).map(|()| start.elapsed())
            });
            times.collect::<Result<Vec<_>, _>>()
        };
        let times = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..callers).map(|number| scope.spawn(move || caller(number))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a caller panicked".to_owned())?);
            joined.collect::<Result<Vec<_>, String>>()
        })?;
        self.times.extend(times.concat());
        self.elapsed += start.elapsed();
        self.syncs += SYNCS.load(Ordering::Relaxed) - syncs;
        self.bytes += written()? - bytes;
        Ok(())
    }

    fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn report(&mut self, callers: usize, peer: f64) {
        self.times.sort_unstable();
        let count = self.times.len();
        println!(
            "{callers:>7}  {:<13} {:>11.0} {:>8} {:>8} {:>10.2} {:>12.2} {:>13.2}x",
            self.what,
            self.per_second(),
            self.times[count / 2].as_micros(),
            self.times[count * 99 / 100].as_micros(),
            self.syncs as f64 / count as f64,
            self.bytes as f64 / 1024.0 / count as f64,
            self.per_second() / peer,
        );
    }
}

/// Bytes that this process has sent to files so far.
fn written() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("/proc/self/io has no wchar")?;
    Ok(line.parse()?)
}

/// A record, an entry of an index, and an event that replaces the one before: what a request typically writes.
fn entries(caller: usize, n: usize) -> [(Vec<u8>, Vec<u8>); 3] {
    let id = format!("{caller}/{}", n % 200);
    [
        (format!("record/{id}").into_bytes(), vec![n as u8; RECORD_BYTES]),
        (format!("index/{id}").into_bytes(), vec![]),
        (format!("event/{caller}").into_bytes(), vec![n as u8; 100]),
    ]
}

fn with_store(store: &Store, durability: Durability) -> impl Fn(usize, usize) -> Result<(), String> + Sync {
    move |caller, n| {
        let put =
            |tx: &mut store::Transaction| entries(caller, n).iter().try_for_each(|(key, value)| tx.put(key, value));
        store.write(durability, put).map_err(|error| error.to_string())
    }
}

fn with_sled(db: &sled::Db) -> impl Fn(usize, usize) -> Result<(), String> + Sync {
    move |caller, n| {
        let mut batch = sled::Batch::default();
        entries(caller, n).into_iter().for_each(|(key, value)| batch.insert(key, value));
        db.apply_batch(batch).and_then(|()| db.flush()).map(drop).map_err(|error| error.to_string())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    println!("callers  what           per second   p50 us   p99 us  fdatasync  KiB written  ratio to sled");
    for callers in [1, 4, 32] {
        let work = tempfile::TempDir::new_in(&parent)?;
        let config = sled::Config::new().path(work.path().join("sled")).cache_capacity(8 << 20).flush_every_ms(None);
        let db = config.open()?;
        let on_disk = Store::open(&work.path().join("on-disk"), Options::default())?;
        let ordered = Store::open(&work.path().join("ordered"), Options::default())?;
        let mut contenders = [
            Contender::new("sled", with_sled(&db)),
            Contender::new("store on disk", with_store(&on_disk, Durability::OnDisk)),
            Contender::new("store ordered", with_store(&ordered, Durability::Ordered)),
        ];
        // In turns, because the disk belongs to others, too.
        for _ in 0..ROUNDS {
            for contender in &mut contenders {
                contender.run(callers, TRANSACTIONS / ROUNDS)?;
            }
        }
        let peer = contenders[0].per_second();
        contenders.iter_mut().for_each(|contender| contender.report(callers, peer));
    }
    Ok(())
}
