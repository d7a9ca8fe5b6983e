//! The four scenarios in which containerd loses, delays or doubles: an exit while the daemon is dead, a stopped daemon,
//! stopped shims when tasks are listed, and stopped shims at a restart. Ours must pass each; the same script on Debian's
//! containerd prints its result beside it.
//!
//! Long waits are shortened; with `GANTRY_LONG_OUTAGES=1` they are as long as in the field: 4 and 30 s.

mod plain;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api_grpc::decode::{self, unpack};
use api_grpc::events::TaskExit;
use api_grpc::services::events::SubscribeRequest;
use api_grpc::services::tasks::{GetRequest, KillRequest, ListTasksRequest, WaitRequest};
use api_grpc::task_types::Status;
use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Containerd, Daemon, Leaks};

/// How long an unanswered question may take before the scenario counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client that lost its stream subscribes again so late, as dockerd does.
const RESUBSCRIBE: Duration = Duration::from_millis(2600);

fn long() -> bool {
    std::env::var_os("GANTRY_LONG_OUTAGES").is_some()
}

/// A daemon that can be killed and started again.
enum Machine {
    Ours(Box<Daemon>),
    Theirs(Containerd),
}

impl Machine {
    fn address(&self) -> PathBuf {
        match self {
            Self::Ours(daemon) => daemon.address().into(),
            Self::Theirs(peer) => peer.address().into(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Ours(daemon) => daemon.pid(),
            Self::Theirs(peer) => peer.pid(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Ours(daemon) => daemon.kill(),
            Self::Theirs(peer) => peer.kill(),
        }
    }

    fn launch(&mut self) {
        match self {
            Self::Ours(daemon) => drop(daemon.launch().unwrap()),
            Self::Theirs(peer) => peer.launch().unwrap(),
        }
    }
}

/// A daemon with the image, and everything that its scenarios need.
/// Its connection is dropped first: an open one counts as a leak of the daemon.
struct Stage {
    client: Client,
    machine: Machine,
    cgroup: String,
    root: PathBuf,
    directory: tempfile::TempDir,
}

impl Stage {
    async fn new(ours: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = plain::root(directory.path());
        let (machine, cgroup) = if ours {
            let daemon = Daemon::start("outage");
            let cgroup = daemon.cgroup().to_owned();
            (Machine::Ours(Box::new(daemon)), cgroup)
        } else {
            let peer = Containerd::start(&directory.path().join("containerd"), None).unwrap();
            (Machine::Theirs(peer), format!("/gantry-outage-peer-{}", std::process::id()))
        };
        let client = Client::connect(&machine.address(), "bench").await.unwrap();
        Self { client, machine, cgroup, root, directory }
    }

    /// Starts a container; gives its pid.
    async fn run(&self, id: &str, script: &str) -> u32 {
        let spec = plain::spec(&self.root, &format!("{}/{id}", self.cgroup), &["sh", "-c", script]);
        plain::run(&self.client, id, &spec, "").await.unwrap()
    }

    /// Kills a container, waits for its end and removes it, as far as the daemon knows it.
    async fn end(&self, id: &str) {
        let kill = KillRequest { container_id: id.into(), signal: 9, all: true, ..KillRequest::default() };
        let _ = self.client.tasks().kill(kill).await;
        let wait = WaitRequest { container_id: id.into(), exec_id: String::new() };
        let _ = self.client.tasks().wait(wait).await;
        let _ = plain::remove(&self.client, id).await;
    }

    /// A connection as soon as somebody serves, and how long that took.
    async fn connect(&mut self) -> Duration {
        let began = Instant::now();
        loop {
            if let Ok(client) = Client::connect(&self.machine.address(), "bench").await
                && client.tasks().list(ListTasksRequest::default()).await.is_ok()
            {
                self.client = client;
                return began.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Status and exit code of a task; `None` where the daemon knows none.
    async fn state(&self, id: &str) -> Option<(Status, u32)> {
        let request = GetRequest { container_id: id.into(), exec_id: String::new() };
        let asked = tokio::time::timeout(PATIENCE, self.client.tasks().get(request)).await.ok()?;
        let process = asked.ok()?.into_inner().process?;
        Some((process.status(), process.exit_status))
    }

    /// Kills and removes what there is. What the peer has lost is ended by hand.
    async fn clear(mut self, ids: &[&str], pids: &[u32]) {
        for id in ids {
            let _ = tokio::time::timeout(PATIENCE, self.end(id)).await;
        }
        if let Machine::Theirs(_) = self.machine {
            for pid in pids {
                signal(*pid, Signal::KILL);
            }
            self.machine.kill();
            for (pid, _) in testkit::processes_naming(&self.directory.path().to_string_lossy()) {
                signal(u32::try_from(pid).unwrap(), Signal::KILL);
            }
            testkit::eventually("the peer's mounts are gone", || {
                let place = self.directory.path().to_string_lossy().into_owned();
                let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                let points: Vec<&str> = mounts
                    .lines()
                    .filter_map(|line| line.split(' ').nth(4))
                    .filter(|at| at.starts_with(&place))
                    .collect();
                for point in points.iter().rev() {
                    let _ = testkit::run("umount", &["--lazy", point]);
                }
                if points.is_empty() { Ok(()) } else { Err(format!("{points:?}")) }
            });
            let leaks = Leaks::new(self.directory.path(), &self.cgroup);
            for id in ids {
                leaks.remove_cgroup(id);
            }
            leaks.remove_own_cgroup();
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended needs none.
        let _ = kill_process(pid, signal);
    }
}

fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// The exits of a container that a stream tells within a time.
async fn exits(address: &Path, id: &str, time: Duration) -> Vec<u32> {
    let Ok(client) = Client::connect(address, "bench").await else { return Vec::new() };
    let request = SubscribeRequest { filters: vec!["topic==\"/tasks/exit\"".into()] };
    let mut told = Vec::new();
    let listening = async {
        let Ok(stream) = client.events().subscribe(request).await else { return };
        let mut stream = stream.into_inner();
        while let Ok(Some(envelope)) = stream.message().await {
            let event = decode::any(envelope.event.unwrap_or_default());
            if let Ok(exit) = unpack::<TaskExit>(&event)
                && exit.container_id == id
            {
                told.push(exit.exit_status);
            }
        }
    };
    let _ = tokio::time::timeout(time, listening).await;
    told
}

/// Both machines in turns; what each has to say is printed.
fn beside(what: &str, scenario: impl AsyncFn(Stage) -> Outcome) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for ours in [true, false] {
        let outcome = runtime.block_on(async { scenario(Stage::new(ours).await).await });
        let name = if ours { "gantryd" } else { "containerd" };
        println!("{what}: {name}: {}: {}", if outcome.passed { "pass" } else { "FAIL" }, outcome.text);
        assert!(!ours || outcome.passed, "{what}: {}", outcome.text);
    }
}

struct Outcome {
    passed: bool,
    text: String,
}

async fn exit_while_dead(mut stage: Stage, outage: Duration) -> Outcome {
    let pid = stage.run("seven", "sleep 0.3; exit 7").await;
    stage.machine.kill();
    tokio::time::sleep(outage).await;
    stage.machine.launch();
    let _ = stage.connect().await;
    tokio::time::sleep(RESUBSCRIBE).await;
    let told = exits(&stage.machine.address(), "seven", Duration::from_secs(2)).await;
    let state = stage.state("seven").await;
    let passed = state == Some((Status::Stopped, 7)) && told == [7];
    let text = format!("state {state:?}, exits told to a new stream {told:?}");
    stage.clear(&["seven"], &[pid]).await;
    Outcome { passed, text }
}

#[test]
fn an_exit_while_the_daemon_is_dead() {
    let outages = if long() { [4, 30] } else { [1, 4] };
    for seconds in outages {
        let what = format!("exit during an outage of {seconds} s");
        beside(&what, async |stage| exit_while_dead(stage, Duration::from_secs(seconds)).await);
    }
}

#[test]
fn a_daemon_that_is_stopped_for_a_while() {
    let seconds = if long() { 30 } else { 6 };
    beside(&format!("daemon stopped for {seconds} s"), async |stage| {
        let healthy = stage.run("healthy", "exec sleep 1000").await;
        let pid = stage.run("five", "sleep 1; exit 5").await;
        let address = stage.machine.address();
        let listening = tokio::spawn(async move { exits(&address, "five", Duration::from_secs(seconds + 12)).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        signal(stage.machine.pid(), Signal::STOP);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        signal(stage.machine.pid(), Signal::CONT);
        let told = listening.await.unwrap();
        let (five, other) = (stage.state("five").await, stage.state("healthy").await);
        let alive = Path::new(&format!("/proc/{healthy}")).exists();
        let passed = told == [5] && five == Some((Status::Stopped, 5)) && other == Some((Status::Running, 0)) && alive;
        let text = format!("exits told {told:?}, state {five:?}, the other one {other:?}, alive {alive}");
        stage.clear(&["five", "healthy"], &[pid, healthy]).await;
        Outcome { passed, text }
    });
}

#[test]
fn tasks_are_listed_while_shims_are_stopped() {
    for frozen in [1, 3] {
        beside(&format!("task ls with {frozen} stopped shims"), async |stage| {
            let ids = ["a", "b", "c", "d"];
            let mut pids = Vec::new();
            for id in ids {
                pids.push(stage.run(id, "exec sleep 1000").await);
            }
            let shims: Vec<u32> = pids.iter().take(frozen).map(|pid| parent(*pid)).collect();
            shims.iter().for_each(|shim| signal(*shim, Signal::STOP));
            let began = Instant::now();
            let mut tasks = stage.client.tasks();
            let listing = tasks.list(ListTasksRequest::default());
            let listed = tokio::time::timeout(PATIENCE, listing).await;
            let took = began.elapsed();
            drop(tasks);
            shims.iter().for_each(|shim| signal(*shim, Signal::CONT));
            let known = listed.ok().and_then(Result::ok).map(|answer| answer.into_inner().tasks).unwrap_or_default();
            let running = known.iter().filter(|task| task.status() == Status::Running).count();
            let passed = running == ids.len() && took < Duration::from_millis(200);
            let text = format!("{running} of {} RUNNING in {took:.1?}", ids.len());
            stage.clear(&ids, &pids).await;
            Outcome { passed, text }
        });
    }
}

#[test]
fn a_restart_while_shims_are_stopped() {
    beside("restart with 3 stopped shims of 5", async |mut stage| {
        let ids = ["a", "b", "c", "d", "e"];
        let mut pids = Vec::new();
        for id in ids {
            pids.push(stage.run(id, "exec sleep 1000").await);
        }
        let shims: Vec<u32> = pids.iter().take(3).map(|pid| parent(*pid)).collect();
        shims.iter().for_each(|shim| signal(*shim, Signal::STOP));
        stage.machine.kill();
        let began = Instant::now();
        stage.machine.launch();
        let _ = tokio::time::timeout(Duration::from_secs(60), stage.connect()).await;
        let ready = began.elapsed();
        let mut running = 0;
        for id in ids {
            running += usize::from(stage.state(id).await == Some((Status::Running, 0)));
        }
        let took = began.elapsed();
        shims.iter().for_each(|shim| signal(*shim, Signal::CONT));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let alive = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
        let passed = running == ids.len() && alive == ids.len() && took < Duration::from_secs(2);
        let text = format!("serves after {ready:.1?}, {running} of 5 RUNNING after {took:.1?}, {alive} of 5 alive");
        stage.clear(&ids, &pids).await;
        Outcome { passed, text }
    });
}
