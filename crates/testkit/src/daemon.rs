use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Leaks, Output, binary, eventually, run};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// How a scenario wants its daemon.
#[derive(Debug, Default, Clone)]
pub struct Settings {
    /// Variables added to the daemon's environment.
    pub environment: Vec<(String, String)>,
    /// How much it logs: everything that helps to understand a failure, unless measured.
    pub log_level: Option<&'static str>,
    /// Further text of the configuration file; none is written when empty.
    pub config: String,
    /// A command that the daemon runs under, `strace` for instance.
    pub wrapper: Vec<String>,
    /// Where the directory is made; the system's place for temporary files otherwise.
    pub parent: Option<PathBuf>,
}

/// A gantryd of `cargo xtask dist` with root, state, socket and cgroup of its own. Dropping it stops the daemon and
/// fails the test if a mount, a process, a cgroup or a descriptor of the daemon was left behind.
#[derive(Debug)]
pub struct Daemon {
    directory: PathBuf,
    cgroup: String,
    settings: Settings,
    child: Option<Child>,
    pid: u32,
    descriptors: usize,
    leaks: Leaks,
}

impl Daemon {
    /// Starts a daemon and returns once it says that it is ready.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, Settings::default())
    }

    /// As [`Daemon::start`], with settings. `GANTRY_FORCE_FALLBACKS` of the test's own environment is passed on.
    pub fn start_with(name: &str, settings: Settings) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("gantry-{name}-{}-{number}", std::process::id());
        let parent = settings.parent.clone().unwrap_or_else(std::env::temp_dir);
        let directory = parent.join(&unique);
        fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("make {}: {error}", directory.display()));
        let cgroup = format!("/{unique}");
        let leaks = Leaks::new(&directory, &cgroup);
        let mut daemon = Self { directory, cgroup, settings, child: None, pid: 0, descriptors: 0, leaks };
        daemon.launch().unwrap_or_else(|error| panic!("start gantryd: {error:#}\n{}", daemon.log()));
        daemon.descriptors = daemon.open_descriptors();
        daemon
    }

    /// Starts the daemon again after [`Daemon::kill`] or [`Daemon::stop`], and returns the time until it was ready.
    pub fn launch(&mut self) -> Result<Duration> {
        let ready = self.directory.join("ready");
        let _ = fs::remove_file(&ready);
        let notify = UnixDatagram::bind(&ready).context("bind the readiness socket")?;
        notify.set_read_timeout(Some(Duration::from_millis(20)))?;
        let log = File::options().append(true).create(true).open(self.directory.join("gantryd.log"))?;
        let mut words: Vec<String> = self.settings.wrapper.clone();
        words.push(binary("gantryd").to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.args(["--root", self.text("root").as_str(), "--state", self.text("state").as_str()]);
        command.args(["--address", self.address().as_str(), "--log-level", self.settings.log_level.unwrap_or("debug")]);
        if !self.settings.config.is_empty() {
            fs::write(self.directory.join("config.toml"), &self.settings.config)?;
            command.args(["--config", self.text("config.toml").as_str()]);
        }
        command.env("NOTIFY_SOCKET", &ready).envs(self.settings.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        let began = Instant::now();
        let child = command.spawn().context("spawn gantryd")?;
        let spawned = child.id();
        self.child = Some(child);
        self.pid = spawned;
        let mut buffer = [0u8; 512];
        loop {
            match notify.recv(&mut buffer) {
                Ok(count) if String::from_utf8_lossy(&buffer[..count]).contains("READY=1") => break,
                Ok(_) => {}
                Err(_) if self.ended() => bail!("gantryd ended before it said READY=1"),
                Err(_) if began.elapsed() < Duration::from_secs(20) => {}
                Err(error) => return Err(error).context("gantryd did not say READY=1"),
            }
        }
        let took = began.elapsed();
        self.pid = if self.settings.wrapper.is_empty() { spawned } else { self.wrapped_pid(spawned)? };
        Ok(took)
    }

    /// The daemon behind a wrapper: the wrapper's child.
    fn wrapped_pid(&self, wrapper: u32) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{wrapper}/task/{wrapper}/children"))?;
        children.split_whitespace().next().context("the wrapper has no child")?.parse().context("its pid")
    }

    /// The scenario's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The gRPC socket.
    pub fn address(&self) -> String {
        self.text("gantryd.sock")
    }

    /// The cgroup below which the scenario puts its containers.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("gantryd.log")).unwrap_or_default()
    }

    /// Runs Debian's unmodified `ctr` against this daemon.
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut words = vec!["--address".to_owned(), self.address()];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run("ctr", &words).unwrap_or_else(|error| panic!("ctr {arguments:?}: {error:#}\n{}", self.log()))
    }

    /// Runs `gantryctl` against this daemon.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        let mut words = vec!["--address".to_owned(), self.address()];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run(binary("gantryctl"), &words)
            .unwrap_or_else(|error| panic!("gantryctl {arguments:?}: {error:#}\n{}", self.log()))
    }

    /// Makes the busybox image and imports it with `ctr` as `docker.io/library/busybox:latest`.
    pub fn import_busybox(&self) -> &'static str {
        const NAME: &str = "docker.io/library/busybox:latest";
        let tar = self.directory.join("busybox.tar");
        crate::busybox_image(&tar, NAME).unwrap_or_else(|error| panic!("{error:#}"));
        self.ctr(&["image", "import", tar.to_string_lossy().as_ref()]).ok();
        NAME
    }

    /// `ctr run` with the scenario's cgroup and FIFO directory; `arguments` are the flags, then image, id and command.
    pub fn ctr_run(&self, id: &str, flags: &[&str], image: &str, command: &[&str]) -> Output {
        let words = self.run_words(id, flags, image, command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.ctr(&words)
    }

    /// The words behind `ctr` that [`Daemon::ctr_run`] uses.
    pub fn run_words(&self, id: &str, flags: &[&str], image: &str, command: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = vec![
            "run".into(),
            "--cgroup".into(),
            format!("{}/{id}", self.cgroup),
            "--fifo-dir".into(),
            self.text("fifo"),
        ];
        words.extend(flags.iter().map(|word| (*word).to_owned()));
        words.push(image.to_owned());
        words.push(id.to_owned());
        words.extend(command.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Ends the daemon as a power button would: no warning.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    /// Ends the daemon as systemd does, and checks that it goes in time and cleanly.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let code = self.reap();
        assert_eq!(code, Some(0), "gantryd after SIGTERM\n{}", self.log());
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether the daemon has died by itself. [`Daemon::kill`] takes note of it, and [`Daemon::launch`] may follow.
    pub fn ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    fn reap(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) if Instant::now() < until => std::thread::park_timeout(Duration::from_millis(5)),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return None;
                }
            }
        }
    }

    fn text(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// Removes what a failed scenario left, so that one failure does not become many.
    fn sweep(&self) {
        for (pid, _) in crate::processes_naming(&self.directory.to_string_lossy()) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let directory = self.directory.to_string_lossy();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point.starts_with(directory.as_ref()) {
                let _ = run("umount", &["--lazy", point]);
            }
        }
    }

    /// Fails unless everything the scenario made is gone.
    fn check(&mut self) -> Result<()> {
        if self.child.is_some() {
            let baseline = self.descriptors;
            let until = Instant::now() + Duration::from_secs(5);
            while self.open_descriptors() > baseline && Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let now = self.open_descriptors();
            if now > baseline {
                bail!("gantryd had {baseline} descriptors when it started and has {now} at the end");
            }
            self.stop();
        }
        let mut found = Vec::new();
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            found = self.leaks.find();
            if found.is_empty() {
                return Ok(());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        bail!("left behind:\n{}", found.join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let outcome = if std::thread::panicking() { Ok(()) } else { self.check() };
        if let Some(mut child) = self.child.take() {
            self.signal(Signal::KILL);
            let _ = child.kill();
            let _ = child.wait();
        }
        self.sweep();
        self.leaks.remove_own_cgroup();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("gantryd's log:\n{}", tail(&log));
        }
        // Mounts that go lazily keep the directory busy for a moment.
        let directory = self.directory.clone();
        let _ = std::panic::catch_unwind(|| {
            eventually("remove the scenario's directory", || fs::remove_dir_all(&directory).map_err(|e| e.to_string()));
        });
        if let Err(error) = outcome {
            panic!("{error:#}\ngantryd's log:\n{}", tail(&log));
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
