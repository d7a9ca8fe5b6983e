//! What goes wrong, and when.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use sys::crash;
use testkit::Daemon;

use crate::load::World;
use crate::random::Random;

/// How long a token waits for somebody to take it.
const TOKEN: Duration = Duration::from_millis(2500);

/// Points that only a new daemon comes to.
const AT_START: &[&str] = &[crash::daemon::ADOPT_SCANNED, crash::daemon::ADOPT_TOLD, crash::daemon::ADOPT_SWEPT];

/// Points that are come to when a shim has died.
const AT_BURIAL: &[&str] = &[crash::daemon::BURIAL_BEGUN, crash::daemon::BURIAL_CLEANED];

/// What was done, over all rounds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Deaths of the daemon by point; the empty name stands for kills at random times.
    pub(crate) daemon: BTreeMap<&'static str, u64>,
    /// Deaths of shims, likewise.
    pub(crate) shim: BTreeMap<&'static str, u64>,
    pub(crate) others: BTreeMap<&'static str, u64>,
    /// Times from the start of a daemon to READY.
    pub(crate) ready: Vec<Duration>,
    pub(crate) events: u64,
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
}

impl Tally {
    pub(crate) fn daemon_kills(&self) -> u64 {
        self.daemon.values().sum()
    }

    pub(crate) fn shim_kills(&self) -> u64 {
        self.shim.values().sum()
    }
}

/// The one who makes things go wrong.
pub(crate) struct Faults<'a> {
    pub(crate) daemon: &'a mut Daemon,
    pub(crate) world: Arc<World>,
    pub(crate) tokens: PathBuf,
    pub(crate) random: Random,
    pub(crate) tally: &'a mut Tally,
    /// Whether the binaries have crash points.
    pub(crate) points: bool,
}

impl Faults<'_> {
    /// Kills the daemon `kills` times and `shims` shims, in a random order.
    pub(crate) fn run(&mut self, mut kills: u64, mut shims: u64) -> Result<()> {
        while kills + shims > 0 {
            let pause = self.random.between(30, 250);
            std::thread::park_timeout(Duration::from_millis(pause));
            if self.random.between(0, kills + shims) < shims {
                shims -= self.one_shim()?.min(shims);
            } else {
                kills -= self.one_daemon()?.min(kills);
            }
        }
        Ok(())
    }

    /// One death of the daemon or more; tells how many.
    fn one_daemon(&mut self) -> Result<u64> {
        let before = self.tally.daemon_kills();
        let point = if self.points && self.random.percent(65) { self.rarest(crash::daemon::ALL, true) } else { "" };
        if point.is_empty() {
            self.kill_daemon("")?;
        } else if AT_START.contains(&point) {
            self.put(point)?;
            self.kill_daemon("")?;
        } else {
            self.put(point)?;
            if AT_BURIAL.contains(&point) {
                self.kill_some_shim()?;
            }
            self.await_token(point)?;
        }
        Ok(self.tally.daemon_kills() - before)
    }

    fn one_shim(&mut self) -> Result<u64> {
        let before = self.tally.shim_kills();
        if self.points && self.random.percent(65) {
            let point = self.rarest(crash::shim::ALL, false);
            self.put(point)?;
            self.await_token(point)?;
        } else {
            self.kill_some_shim()?;
        }
        Ok(self.tally.shim_kills() - before)
    }

    /// A point that was hit as seldom as any, of those a random one.
    fn rarest(&mut self, all: &[&'static str], daemon: bool) -> &'static str {
        let hits = if daemon { &self.tally.daemon } else { &self.tally.shim };
        let count = |point: &str| hits.get(point).copied().unwrap_or(0);
        let least = all.iter().map(|point| count(point)).min().unwrap_or(0);
        let rare: Vec<&&str> = all.iter().filter(|point| count(point) == least).collect();
        rare[usize::try_from(self.random.between(0, rare.len() as u64)).unwrap_or(0)]
    }

    fn put(&self, point: &str) -> Result<()> {
        fs::write(self.tokens.join(point), "").with_context(|| format!("put the token of {point}"))
    }

    /// Waits until a token is taken, and does what is to be done then; takes it back when nobody comes.
    fn await_token(&mut self, point: &'static str) -> Result<()> {
        let until = Instant::now() + TOKEN;
        loop {
            if !self.tokens.join(point).exists() || self.daemon.ended() {
                break;
            }
            if Instant::now() > until && fs::remove_file(self.tokens.join(point)).is_ok() {
                *self.tally.others.entry("tokens that nobody came for").or_default() += 1;
                return Ok(());
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.collect()?;
        if point.starts_with("daemon.") || self.daemon.ended() {
            self.relaunch()?;
        }
        Ok(())
    }

    /// Counts the tokens that were taken, and excuses the containers of shims that have died.
    fn collect(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(2);
        for entry in fs::read_dir(&self.tokens)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(hit) = name.strip_suffix(".hit").and_then(|name| name.rsplit_once('.')) else { continue };
            let path = self.tokens.join(&name);
            let known = |all: &[&'static str]| all.iter().find(|point| **point == hit.0).copied();
            if let Some(point) = known(crash::daemon::ALL) {
                *self.tally.daemon.entry(point).or_default() += 1;
            } else if let Some(point) = known(crash::shim::ALL) {
                *self.tally.shim.entry(point).or_default() += 1;
                // It writes who it was before it dies.
                let mut words = fs::read_to_string(&path)?;
                while words.is_empty() && Instant::now() < until {
                    std::thread::park_timeout(Duration::from_millis(1));
                    words = fs::read_to_string(&path)?;
                }
                if let Some(id) = container_of(&words) {
                    self.world.ledger.shim_killed(&id);
                }
            }
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Kills the daemon now, and starts the next one.
    fn kill_daemon(&mut self, point: &'static str) -> Result<()> {
        if !self.daemon.ended() {
            *self.tally.daemon.entry(point).or_default() += 1;
        }
        self.relaunch()
    }

    /// Starts a daemon in the place of the dead one, as often as it takes.
    fn relaunch(&mut self) -> Result<()> {
        self.daemon.kill();
        let mut attempts = 0;
        loop {
            match self.daemon.launch() {
                Ok(took) => {
                    self.tally.ready.push(took);
                    return Ok(());
                }
                Err(error) => {
                    attempts += 1;
                    self.daemon.kill();
                    let before = self.tally.daemon_kills();
                    self.collect()?;
                    let troubled = self.world.troubled.load(Ordering::Relaxed);
                    if (self.tally.daemon_kills() == before && !troubled) || attempts > 50 {
                        let log = self.daemon.log();
                        let end: Vec<&str> = log.lines().rev().take(10).collect();
                        return Err(error.context(end.join("\n")));
                    }
                }
            }
        }
    }

    /// Kills the shim of some container.
    fn kill_some_shim(&mut self) -> Result<()> {
        let shims = self.shims();
        if shims.is_empty() {
            return Ok(());
        }
        let (pid, id) = &shims[usize::try_from(self.random.between(0, shims.len() as u64)).unwrap_or(0)];
        if kill_process(*pid, Signal::KILL).is_ok() {
            self.world.ledger.shim_killed(id);
            *self.tally.shim.entry("").or_default() += 1;
        }
        Ok(())
    }

    /// Pid and container of each shim.
    fn shims(&self) -> Vec<(Pid, String)> {
        let directory = self.daemon.address();
        let all = testkit::processes_naming(&directory).into_iter();
        let mut shims: Vec<_> = all
            .filter(|(_, words)| words.ends_with(" serve"))
            .filter_map(|(pid, words)| Some((Pid::from_raw(pid)?, container_of(&words)?)))
            .collect();
        shims.sort_by(|a, b| a.1.cmp(&b.1));
        shims
    }

    /// Stops the daemon, or a shim, for a while.
    pub(crate) fn freeze(&mut self, shim: bool, time: Duration) -> Result<()> {
        let shims = self.shims();
        let daemon = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw);
        let pid = if shim { shims.first().map(|(pid, _)| *pid) } else { daemon };
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, Signal::STOP)?;
        std::thread::park_timeout(time);
        // A shim may have been ended meanwhile by its daemon.
        let _ = kill_process(pid, Signal::CONT);
        *self.tally.others.entry(if shim { "stopped shims" } else { "stopped daemons" }).or_default() += 1;
        Ok(())
    }

    /// Leaves no room in the file system for a while, and kills the daemon at the worst moment.
    pub(crate) fn fill_disk(&mut self, time: Duration) -> Result<()> {
        let ballast = self.tokens.with_file_name("ballast");
        self.world.troubled.store(true, Ordering::Relaxed);
        fill(&ballast)?;
        std::thread::park_timeout(time / 2);
        self.kill_without_room()?;
        std::thread::park_timeout(time / 2);
        fs::remove_file(&ballast)?;
        if self.daemon.ended() {
            self.relaunch()?;
        }
        self.over("full disks")
    }

    /// A daemon may refuse to start without room; it is started again when there is some.
    fn kill_without_room(&mut self) -> Result<()> {
        *self.tally.daemon.entry("").or_default() += 1;
        self.daemon.kill();
        match self.daemon.launch() {
            Ok(took) => self.tally.ready.push(took),
            Err(_) => self.daemon.kill(),
        }
        Ok(())
    }

    /// The daemon can open nothing more for a while.
    pub(crate) fn no_descriptors(&mut self, time: Duration) -> Result<()> {
        let daemon = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw);
        let open = fs::read_dir(format!("/proc/{}/fd", self.daemon.pid()))?.count() as u64;
        self.world.troubled.store(true, Ordering::Relaxed);
        let few = Rlimit { current: Some(open + 2), maximum: None };
        let before = prlimit(
            daemon,
            Resource::Nofile,
            Rlimit { maximum: rustix::process::getrlimit(Resource::Nofile).maximum, ..few },
        )?;
        std::thread::park_timeout(time);
        if !self.daemon.ended() {
            prlimit(daemon, Resource::Nofile, before)?;
        }
        self.over("times without descriptors")
    }

    /// The daemon gets no more memory for a while; it may die of that.
    pub(crate) fn no_memory(&mut self, time: Duration) -> Result<()> {
        let daemon = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw);
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.daemon.pid()))?;
        let pages: u64 = statm.split(' ').next().unwrap_or("0").parse()?;
        self.world.troubled.store(true, Ordering::Relaxed);
        let maximum = rustix::process::getrlimit(Resource::As).maximum;
        let before = prlimit(daemon, Resource::As, Rlimit { current: Some(pages * 4096 + (1 << 18)), maximum })?;
        std::thread::park_timeout(time);
        if self.daemon.ended() {
            *self.tally.daemon.entry("").or_default() += 1;
            self.relaunch()?;
        } else {
            prlimit(daemon, Resource::As, before)?;
        }
        self.over("times without memory")
    }

    /// Requests that failed because of the trouble may come back a little later.
    fn over(&mut self, what: &'static str) -> Result<()> {
        std::thread::park_timeout(Duration::from_millis(300));
        self.world.troubled.store(false, Ordering::Relaxed);
        *self.tally.others.entry(what).or_default() += 1;
        Ok(())
    }
}

/// The container that a shim's command line names.
fn container_of(words: &str) -> Option<String> {
    let mut words = words.split(' ');
    words.find(|word| *word == "-id")?;
    words.next().map(str::to_owned)
}

/// Writes until nothing more fits.
fn fill(path: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    for size in [1 << 20, 4096, 1] {
        let block = vec![0u8; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}
