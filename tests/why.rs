//! `gantryctl task why`: each cause is brought about and must be named.

mod plain;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use api_grpc::services::tasks::{CreateTaskRequest, KillRequest, WaitRequest};
use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Daemon, Settings, eventually};
use tonic::Status;

/// A daemon, a root file system for all containers, and a connection.
struct House {
    runtime: tokio::runtime::Runtime,
    client: Option<Client>,
    daemon: Daemon,
    root: PathBuf,
}

impl House {
    fn new(settings: Settings) -> Self {
        let daemon = Daemon::start_with("why", settings);
        let root = plain::root(daemon.directory());
        // An ELF header for a machine that this one is not.
        let mut foreign = testkit::requires_busybox().unwrap()[..4096].to_vec();
        foreign[18] = if foreign[18] == 183 { 62 } else { 183 };
        fs::write(root.join("bin/foreign"), foreign).unwrap();
        fs::set_permissions(root.join("bin/foreign"), fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(Client::connect(Path::new(&daemon.address()), "default")).unwrap();
        Self { runtime, client: Some(client), daemon, root }
    }

    fn client(&self) -> Client {
        self.client.clone().unwrap()
    }

    fn spec(&self, id: &str, command: &[&str]) -> Value {
        plain::spec(&self.root, &format!("{}/{id}", self.daemon.cgroup()), command)
    }

    fn run(&self, id: &str, spec: &Value, stdout: &str) -> Result<u32, Status> {
        self.runtime.block_on(plain::run(&self.client(), id, spec, stdout))
    }

    fn kill(&self, id: &str) {
        let kill = KillRequest { container_id: id.into(), signal: 9, all: true, ..KillRequest::default() };
        let _ = self.runtime.block_on(self.client().tasks().kill(kill));
    }

    fn wait(&self, id: &str) {
        let wait = WaitRequest { container_id: id.into(), exec_id: String::new() };
        self.runtime.block_on(self.client().tasks().wait(wait)).unwrap();
    }

    /// Removes the container and what there is of its task.
    fn remove(&self, id: &str) {
        let _ = self.runtime.block_on(plain::remove(&self.client(), id));
    }

    /// What `gantryctl task why` says, as soon as it has all of these words.
    fn says(&self, cause: &str, id: &str, words: &[&str]) {
        let text = eventually(cause, || {
            let said = self.daemon.ctl(&["task", "why", id]);
            let text = said.text();
            match words.iter().find(|word| !text.to_lowercase().contains(&word.to_lowercase())) {
                None => Ok(text),
                Some(missing) => Err(format!("{missing:?} is missing in: {text}")),
            }
        });
        println!("{cause}:\n{text}");
    }

    /// One cause that shows when the container has ended.
    fn ends(&self, cause: &str, id: &str, spec: &Value, words: &[&str]) {
        self.run(id, spec, "").unwrap();
        self.wait(id);
        self.says(cause, id, words);
        self.remove(id);
    }

    /// One cause that keeps the container from being made.
    fn fails(&self, cause: &str, id: &str, spec: &Value, words: &[&str]) {
        self.run(id, spec, "").unwrap_err();
        self.says(cause, id, words);
        self.remove(id);
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // An open connection counts as a leak of the daemon, which is dropped next.
        self.client = None;
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn shim_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

/// A file of a cgroup, on version 1 below the hierarchy of its controller.
fn cgroup_file(controller: &str, path: &str, v1: &str, v2: &str) -> PathBuf {
    let path = path.trim_start_matches('/');
    let first = Path::new("/sys/fs/cgroup").join(controller).join(path);
    if first.is_dir() { first.join(v1) } else { Path::new("/sys/fs/cgroup").join(path).join(v2) }
}

#[test]
fn how_it_ended() {
    let house = House::new(Settings::default());
    house.ends("exit", "c1", &house.spec("c1", &["sh", "-c", "exit 7"]), &["status 7", "exited by itself"]);

    let pid = house.run("c2", &house.spec("c2", &["sleep", "1000"]), "").unwrap();
    signal(pid, Signal::KILL);
    house.wait("c2");
    house.says("signal", "c2", &["status 137", "signal 9 (SIGKILL) killed it"]);
    assert!(!house.daemon.ctl(&["task", "why", "c2"]).stdout.contains("Kill request"));
    house.remove("c2");

    house.run("c3", &house.spec("c3", &["sleep", "1000"]), "").unwrap();
    house.kill("c3");
    house.wait("c3");
    house.says("killed by operator", "c3", &["a Kill request had asked for signal 9 (SIGKILL)"]);
    house.remove("c3");

    let pid = house.run("c4", &house.spec("c4", &["sleep", "1000"]), "").unwrap();
    signal(shim_of(pid), Signal::KILL);
    house.wait("c4");
    house.says("lost shim", "c4", &["status 137", "its shim had died without a word"]);
    house.remove("c4");

    let mut spec = house.spec("c5", &["mkdir", "/tmp/x"]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]
    });
    house.ends("seccomp kill", "c5", &spec, &["SIGSYS", "seccomp profile forbids"]);
}

#[test]
fn memory_ran_out() {
    let house = House::new(Settings::default());
    let eater = ["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"];
    let mut spec = house.spec("own", &eater);
    spec["linux"]["resources"]["memory"]["limit"] = json!(16 << 20);
    house.ends("OOM, own limit", "own", &spec, &["for lack of memory", "its own limit was reached"]);

    let parent = format!("{}/above", house.daemon.cgroup());
    let mut spec = house.spec("above/below", &eater);
    spec["linux"]["resources"]["memory"]["limit"] = json!(512 << 20);
    let limit = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, (24 << 20).to_string()).unwrap();
    };
    let memory = Path::new("/sys/fs/cgroup/memory");
    let parent_file = if memory.is_dir() {
        memory.join(parent.trim_start_matches('/')).join("memory.limit_in_bytes")
    } else {
        Path::new("/sys/fs/cgroup").join(parent.trim_start_matches('/')).join("memory.max")
    };
    limit(&parent_file);
    house.ends("OOM, a limit above", "below", &spec, &["for lack of memory", "of a cgroup above it", &parent]);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(parent.trim_start_matches('/')));
    }
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(parent.trim_start_matches('/')));
}

#[test]
fn it_was_never_made() {
    let house = House::new(Settings::default());
    house.fails("missing binary", "m1", &house.spec("m1", &["/nope"]), &["failed at", "/nope", "no such file"]);
    house.fails("wrong architecture", "m2", &house.spec("m2", &["/bin/foreign"]), &["failed at", "exec format error"]);

    let mut spec = house.spec("m3", &["sleep", "1"]);
    spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}]});
    house.fails("hook failure", "m3", &spec, &["creation failed at", "hook", "broken"]);

    let mut spec = house.spec("m4", &["sleep", "1"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "type": "bind", "source": "/not/there", "options": ["rbind"]}));
    house.fails("mount failure", "m4", &spec, &["creation failed at", "mount", "/not/there"]);

    let mut spec = house.spec("m5", &["sleep", "1"]);
    spec["linux"]["resources"]["pids"]["limit"] = json!(1);
    spec["linux"]["resources"]["memory"]["limit"] = json!(4096);
    house.fails("limit too low", "m5", &spec, &["failed at", "memory"]);
    // The failure is known to the next daemon, and gone once the task could be made.
    let unknown = house.daemon.ctl(&["task", "why", "nobody"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("not found"), "{}", unknown.text());
}

#[test]
fn it_is_stuck() {
    let house = House::new(Settings::default());
    house.run("s1", &house.spec("s1", &["sleep", "1000"]), "").unwrap();
    let path = format!("{}/s1", house.daemon.cgroup());
    let freezer = cgroup_file("freezer", &path, "freezer.state", "cgroup.freeze");
    let v1 = freezer.ends_with("freezer.state");
    fs::write(&freezer, if v1 { "FROZEN" } else { "1" }).unwrap();
    house.says("frozen cgroup", "s1", &["RUNNING", "frozen by the cgroup", &path]);
    fs::write(&freezer, if v1 { "THAWED" } else { "0" }).unwrap();

    let pid = house.run("s2", &house.spec("s2", &["sleep", "1000"]), "").unwrap();
    let shim = shim_of(pid);
    signal(shim, Signal::STOP);
    house.says("frozen shim", "s2", &["RUNNING", &format!("its shim {shim} is stopped by a signal")]);
    signal(shim, Signal::CONT);

    let fifo = house.daemon.directory().join("full");
    testkit::run("mkfifo", &[&fifo.to_string_lossy()]).unwrap().ok();
    house.run("s3", &house.spec("s3", &["yes"]), &fifo.to_string_lossy()).unwrap();
    house.says("blocked FIFO", "s3", &["RUNNING", "waits to write", &fifo.to_string_lossy(), "nobody reads it"]);
    // With both ends open nobody is waited for.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    house.says("a reader that does not read", "s3", &["could read it and does not"]);
    drop(reader);
    for id in ["s1", "s2", "s3"] {
        house.kill(id);
        house.wait(id);
        house.remove(id);
    }
}

#[test]
fn the_disk_is_full() {
    let place = tempfile::tempdir().unwrap();
    let text = place.path().to_string_lossy().into_owned();
    testkit::run("mount", &["-t", "tmpfs", "-o", "size=64m", "why", &text]).unwrap().ok();
    let outcome = std::panic::catch_unwind(|| {
        let house = House::new(Settings { parent: Some(place.path().to_owned()), ..Settings::default() });
        let spec = house.spec("d1", &["sleep", "1"]);
        house.run("warm", &house.spec("warm", &["sh", "-c", "exit 0"]), "").unwrap();
        house.wait("warm");
        house.remove("warm");
        let client = house.client();
        house.runtime.block_on(plain::record(&client, "d1", &spec)).unwrap();
        let ballast = place.path().join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        let create = CreateTaskRequest { container_id: "d1".into(), ..CreateTaskRequest::default() };
        house.runtime.block_on(client.tasks().create(create)).unwrap_err();
        house.says("full disk", "d1", &["creation failed at", "no space left on device"]);
        fs::remove_file(&ballast).unwrap();
        drop(client);
        house.remove("d1");
    });
    testkit::run("umount", &["--lazy", &text]).unwrap().ok();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
