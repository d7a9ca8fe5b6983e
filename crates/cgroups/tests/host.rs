//! Groups on the running kernel: each test once with what the host has mounted, and twice more with a pure version 2
//! view (as the kernel is, and with the fallbacks for older ones), for which it runs itself again in mount and cgroup
//! namespaces of its own. Groups carry the pid in their name and go away with the test.

#![cfg(test)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups::{Cgroup, CgroupPath, Error, Host, OomWatch, Stats};
use oci::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::process::Exit;
use sys::spawn::{Child, Command};

const INSIDE: &str = "GANTRY_TEST_INSIDE_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` with the host's own control groups, then again with version 2 alone; `name` is the test's own.
fn everywhere(name: &str, test: impl Fn(&Host)) {
    if std::env::var_os(INSIDE).is_some() {
        rustix::mount::mount("cgroup2", "/sys/fs/cgroup", "cgroup2", rustix::mount::MountFlags::empty(), None).unwrap();
        let host = Host::detect().unwrap();
        assert!(host.is_v2(), "{host:?}");
        test(&host);
        return;
    }
    let host = Host::detect().unwrap();
    test(&host);
    if host.is_v2() {
        return;
    }
    let fallbacks = if sys::features().forced_fallbacks { &["1"][..] } else { &["0", "1"] };
    for forced in fallbacks {
        let command = Command::new("/usr/bin/unshare")
            .args(["--mount", "--cgroup", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .inherit_env()
            .env(INSIDE, "1")
            .env(sys::FORCE_FALLBACKS_VARIABLE, forced)
            .borrow_fd(2, std::io::stderr().as_fd())
            .unwrap();
        let exit = command.status().unwrap().exit;
        assert_eq!(exit, Exit::Code(0), "the version 2 run (fallbacks: {forced}) failed, see the output above");
    }
}

/// Where a controller of version 1 is, if the host has it.
fn v1_place<'host>(host: &'host Host, controller: &str) -> Option<&'host PathBuf> {
    match host {
        Host::V1 { controllers } => controllers.iter().find(|(name, _)| name == controller).map(|(_, place)| place),
        Host::V2 { .. } => None,
    }
}

/// A group that goes away with the test, whatever happens.
struct Group<'host> {
    host: &'host Host,
    path: CgroupPath,
    cgroup: Cgroup,
}

impl<'host> Group<'host> {
    fn new(host: &'host Host, name: &str) -> Self {
        let path = CgroupPath::new(&format!("gantry-test-{}-{name}/inner/group", std::process::id())).unwrap();
        Self { host, cgroup: Cgroup::create(host, &path).unwrap(), path }
    }

    /// The file of a controller, wherever that is mounted.
    fn file(&self, controller: &str, file: &str) -> PathBuf {
        let mount = match self.host {
            Host::V1 { .. } => v1_place(self.host, controller).unwrap(),
            Host::V2 { mount } => mount,
        };
        mount.join(self.path.as_str()).join(file)
    }

    fn read(&self, controller: &str, file: &str) -> String {
        std::fs::read_to_string(self.file(controller, file)).unwrap().trim().to_owned()
    }

    fn has(&self, controller: &str) -> bool {
        match self.host {
            Host::V1 { .. } => v1_place(self.host, controller).is_some(),
            Host::V2 { .. } => self.read("", "cgroup.controllers").split(' ').any(|name| name == controller),
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let _ = self.cgroup.kill_all();
        let top = CgroupPath::new(self.path.as_str().split('/').next().unwrap()).unwrap();
        // Opening may fail if the test has removed everything itself.
        if let Ok(top) = Cgroup::open(self.host, &top) {
            let result = top.delete();
            assert!(std::thread::panicking() || result.is_ok(), "{result:?}");
        }
    }
}

/// A shell that waits for a line before it does anything, and is then asked by further lines.
struct Shell {
    child: Child,
    input: File,
    output: File,
}

impl Shell {
    fn new() -> Self {
        let (input, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (read, output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let child = Command::new("/bin/sh").env("PATH", "/usr/bin:/bin").fd(0, input).fd(1, output).spawn().unwrap();
        Self { child, input: write.into(), output: read.into() }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The line that comes back, if any comes in `patience`.
    fn heard(&mut self, patience: Duration) -> Option<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if !sys::fs::poll_readable(self.output.as_fd(), Some(patience)).unwrap() {
                return None;
            }
            let mut byte = [0];
            if self.output.read(&mut byte).unwrap() == 0 {
                break;
            }
            line.extend(byte);
        }
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.heard(PATIENCE).unwrap()
    }

    fn end(self) -> Exit {
        drop(self.input);
        assert!(sys::fs::poll_readable(self.child.pidfd.as_fd(), Some(PATIENCE)).unwrap());
        sys::process::wait(self.child.pidfd.as_fd()).unwrap().exit
    }
}

fn resources(document: &str) -> LinuxResources {
    serde_json::from_str(document).unwrap()
}

#[test]
fn a_group_lives_and_goes() {
    everywhere("a_group_lives_and_goes", |host| {
        let group = Group::new(host, "life");
        let mut shell = Shell::new();
        assert!(group.cgroup.processes().unwrap().is_empty());
        group.cgroup.add_process(shell.child.pid).unwrap();
        assert_eq!(group.cgroup.processes().unwrap(), [shell.child.pid]);
        assert_eq!(Cgroup::of_pid(host, shell.child.pid).unwrap().path(), &group.path);
        assert_eq!(Cgroup::open(host, &group.path).unwrap().processes().unwrap(), [shell.child.pid]);
        assert_eq!(shell.ask("echo here"), "here");
        assert_eq!(group.cgroup.oom_kills().unwrap(), 0);
        // Taken over as it is.
        assert_eq!(Cgroup::create(host, &group.path).unwrap().processes().unwrap(), [shell.child.pid]);
        let busy = group.cgroup.delete().unwrap_err();
        assert_eq!(busy.errno(), Some(sys::Errno::BUSY));
        let pid = shell.child.pid;
        assert_eq!(shell.end(), Exit::Code(0));
        group.cgroup.delete().unwrap();
        group.cgroup.delete().unwrap();
        group.cgroup.kill_all().unwrap();
        for error in [
            group.cgroup.stats().map(drop).unwrap_err(),
            group.cgroup.processes().map(drop).unwrap_err(),
            group.cgroup.thaw().unwrap_err(),
            group.cgroup.add_process(std::process::id()).unwrap_err(),
            Cgroup::open(host, &group.path).map(drop).unwrap_err(),
            Cgroup::of_pid(host, pid).map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Gone { .. }), "{error}");
            assert_eq!(model::Coded::code(&error), model::Code::NotFound);
        }
    });
}

#[test]
fn frozen_processes_wait_and_can_be_killed() {
    everywhere("frozen_processes_wait_and_can_be_killed", |host| {
        let group = Group::new(host, "freeze");
        // An empty group freezes, too.
        group.cgroup.freeze().unwrap();
        group.cgroup.thaw().unwrap();
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        assert!(!group.cgroup.is_frozen().unwrap());
        group.cgroup.freeze().unwrap();
        assert!(group.cgroup.is_frozen().unwrap());
        shell.tell("echo thawed");
        assert_eq!(shell.heard(Duration::from_millis(100)), None);
        group.cgroup.thaw().unwrap();
        assert!(!group.cgroup.is_frozen().unwrap());
        assert_eq!(shell.heard(PATIENCE).unwrap(), "thawed");
        group.cgroup.freeze().unwrap();
        group.cgroup.kill_all().unwrap();
        assert_eq!(shell.end(), Exit::Signal(9));
        group.cgroup.delete().unwrap();
    });
}

#[test]
fn groups_within_are_counted_killed_and_removed() {
    everywhere("groups_within_are_counted_killed_and_removed", |host| {
        let group = Group::new(host, "nested");
        let inner = Cgroup::create(host, &group.path.join("made/by/the/container").unwrap()).unwrap();
        let beside = Cgroup::create(host, &group.path.join("made/beside").unwrap()).unwrap();
        let mut shells = [Shell::new(), Shell::new(), Shell::new()];
        for (shell, place) in shells.iter_mut().zip([&inner, &beside, &inner]) {
            place.add_process(shell.child.pid).unwrap();
            // Each has a child of its own.
            assert_eq!(shell.ask("sleep 1000 & echo started"), "started");
        }
        assert_eq!(group.cgroup.processes().unwrap().len(), 6);
        group.cgroup.kill_all().unwrap();
        for shell in shells {
            assert_eq!(shell.end(), Exit::Signal(9));
        }
        group.cgroup.delete().unwrap();
        assert!(matches!(Cgroup::open(host, &group.path).map(drop).unwrap_err(), Error::Gone { .. }));
    });
}

#[test]
fn a_nest_deeper_than_any_path_is_removed() {
    everywhere("a_nest_deeper_than_any_path_is_removed", |host| {
        let group = Group::new(host, "deep");
        let place = group.file("freezer", "");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut current = rustix::fs::openat(CWD, &place, flags, Mode::empty()).unwrap();
        let name = "n".repeat(200);
        for _ in 0..30 {
            rustix::fs::mkdirat(&current, &name, Mode::RWXU).unwrap();
            current = rustix::fs::openat(&current, &name, flags, Mode::empty()).unwrap();
        }
        drop(current);
        assert!(group.cgroup.processes().unwrap().is_empty());
        group.cgroup.delete().unwrap();
        assert!(!place.exists());
    });
}

#[test]
fn limits_stand_in_the_files() {
    everywhere("limits_stand_in_the_files", |host| {
        let group = Group::new(host, "limits");
        if host.is_v2() {
            limits_of_v2(&group);
            return;
        }
        // From nothing, up, down, and lifted.
        for (limit, swap) in [(1 << 24, 1 << 25), (1 << 27, 1 << 28), (1 << 23, 1 << 23), (1 << 28, -1)] {
            let document = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
            match group.cgroup.apply(&resources(&document)) {
                Err(Error::NoFile { .. }) => {
                    println!("SKIP swap accounting");
                    break;
                }
                result => result.unwrap(),
            }
            assert_eq!(group.read("memory", "memory.limit_in_bytes"), limit.to_string());
        }
        group.cgroup.apply(&resources(r#"{"memory":{"limit":-1}}"#)).unwrap();
        assert!(group.read("memory", "memory.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);
        // Too small for anything to run in, and still settable.
        group.cgroup.apply(&resources(r#"{"memory":{"limit":4096,"reservation":4096}}"#)).unwrap();

        let cpu = r#"{"cpu":{"shares":512,"quota":20000,"period":50000,"cpus":"0","mems":"0"},"pids":{"limit":17}}"#;
        group.cgroup.apply(&resources(cpu)).unwrap();
        for (controller, file, value) in [
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "50000"),
            ("cpuset", "cpuset.cpus", "0"),
            ("pids", "pids.max", "17"),
        ] {
            assert_eq!(group.read(controller, file), value, "{file}");
        }
        // A burst larger than the quota of before, and a quota smaller than the burst of before.
        for (quota, burst) in [(40_000, 30_000), (20_000, 10_000)] {
            let document = format!(r#"{{"cpu":{{"quota":{quota},"burst":{burst}}}}}"#);
            group.cgroup.apply(&resources(&document)).unwrap();
            assert_eq!(group.read("cpu", "cpu.cfs_burst_us"), burst.to_string());
        }
        group.cgroup.apply(&resources(r#"{"cpu":{"burst":0,"quota":-1},"pids":{"limit":-1}}"#)).unwrap();
        assert_eq!(
            (group.read("cpu", "cpu.cfs_quota_us"), group.read("pids", "pids.max")),
            ("-1".into(), "max".into())
        );
        group.cgroup.apply(&resources(r#"{"cpu":{"idle":1}}"#)).unwrap();
        group.cgroup.apply(&resources(r#"{"cpu":{"idle":0,"shares":1024}}"#)).unwrap();
        assert_eq!(group.read("cpu", "cpu.shares"), "1024");

        if !group.has("rdma") {
            let error = group.cgroup.apply(&resources(r#"{"rdma":{"x":{"hcaHandles":1}}}"#)).unwrap_err();
            assert_eq!(error.to_string(), r#"rdma cannot be limited: cgroup controller "rdma" is not available"#);
        }
        let error = group.cgroup.apply(&resources(r#"{"cpu":{"cpus":"9999"}}"#)).unwrap_err();
        assert!(error.to_string().contains(r#"writing "9999" to cpuset.cpus of cgroup "#), "{error}");
    });
}

/// What of version 2 the host lets us use.
fn limits_of_v2(group: &Group<'_>) {
    let applied = |document: &str, file: &str, expected: &str| {
        group.cgroup.apply(&resources(document)).unwrap();
        assert_eq!(group.read("", file), expected, "{document}");
    };
    applied(r#"{"unified":{"cgroup.max.depth":"7"}}"#, "cgroup.max.depth", "7");
    if group.has("memory") {
        for (limit, swap, left) in [(1 << 24, 1 << 25, "16777216"), (1 << 23, 1 << 23, "0"), (1 << 28, -1, "max")] {
            let document = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
            applied(&document, "memory.max", &limit.to_string());
            if group.file("", "memory.swap.max").exists() {
                assert_eq!(group.read("", "memory.swap.max"), left);
            }
        }
        applied(r#"{"memory":{"limit":-1,"reservation":4096}}"#, "memory.max", "max");
        applied(r#"{"memory":{"limit":4096}}"#, "memory.max", "4096");
    }
    if group.has("cpu") {
        applied(r#"{"cpu":{"shares":1024}}"#, "cpu.weight", "100");
        applied(r#"{"cpu":{"quota":20000,"period":50000}}"#, "cpu.max", "20000 50000");
        applied(r#"{"cpu":{"quota":30000}}"#, "cpu.max", "30000 50000");
        applied(r#"{"cpu":{"period":100000}}"#, "cpu.max", "30000 100000");
        if group.file("", "cpu.max.burst").exists() {
            applied(r#"{"cpu":{"quota":50000,"burst":40000}}"#, "cpu.max.burst", "40000");
            applied(r#"{"cpu":{"quota":20000,"burst":10000}}"#, "cpu.max", "20000 100000");
        }
        applied(r#"{"cpu":{"quota":-1,"burst":0}}"#, "cpu.max", "max 100000");
        applied(r#"{"cpu":{"shares":2,"idle":1}}"#, "cpu.idle", "1");
        applied(r#"{"cpu":{"shares":1024,"idle":0}}"#, "cpu.weight", "100");
    }
    if group.has("pids") {
        applied(r#"{"pids":{"limit":17}}"#, "pids.max", "17");
        applied(r#"{"pids":{"limit":-1}}"#, "pids.max", "max");
    }
    if group.has("cpuset") {
        applied(r#"{"cpu":{"cpus":"0","mems":"0"}}"#, "cpuset.cpus", "0");
    }
    for (controller, document) in [
        ("rdma", r#"{"rdma":{"x":{"hcaHandles":1}}}"#),
        ("cpu", r#"{"cpu":{"shares":512}}"#),
        ("memory", r#"{"memory":{"limit":4194304}}"#),
    ] {
        if !group.has(controller) {
            let error = group.cgroup.apply(&resources(document)).unwrap_err();
            assert!(matches!(error, Error::NoController { .. }), "{error}");
        }
    }
}

#[test]
fn a_limit_of_processes_holds() {
    everywhere("a_limit_of_processes_holds", |host| {
        let group = Group::new(host, "pids");
        if !group.has("pids") {
            let error = group.cgroup.apply(&resources(r#"{"pids":{"limit":1}}"#)).unwrap_err();
            assert_eq!(error.to_string(), r#"pids cannot be limited: cgroup controller "pids" is not available"#);
            return;
        }
        group.cgroup.apply(&resources(r#"{"pids":{"limit":1}}"#)).unwrap();
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        shell.tell("exec 2>&1; (echo forked)");
        let heard = shell.heard(PATIENCE).unwrap();
        assert!(heard.contains("fork"), "{heard}");
        assert_ne!(shell.end(), Exit::Code(0));
    });
}

#[test]
fn devices_are_denied_and_allowed() {
    everywhere("devices_are_denied_and_allowed", |host| {
        let rules = |documents: &[&str]| -> Vec<LinuxDeviceCgroup> {
            documents.iter().map(|document| serde_json::from_str(document).unwrap()).collect()
        };
        let group = Group::new(host, "devices");
        let null = r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#;
        let zero = r#"{"allow":true,"type":"c","major":1,"minor":5,"access":"r"}"#;
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        let probe = "exec 2>/dev/null; \
                     r() { if (: < $1); then printf r; fi; if (: >> $1); then printf w; fi; }; \
                     n=$(r /dev/null); z=$(r /dev/zero); echo null=$n zero=$z";
        for (list, expected) in [
            (&[r#"{"allow":false}"#, null, zero][..], "null=rw zero=r"),
            (&[r#"{"allow":false}"#, null], "null=rw zero="),
            (&[r#"{"allow":true}"#], "null=rw zero=rw"),
        ] {
            group.cgroup.apply_devices(&rules(list)).unwrap();
            assert_eq!(shell.ask(probe), expected, "{list:?}");
        }
        // No rules, no change.
        group.cgroup.apply_devices(&[]).unwrap();
        assert_eq!(shell.ask(probe), "null=rw zero=rw");
        assert_eq!(shell.end(), Exit::Code(0));
    });
}

#[test]
fn devices_are_replaced_without_a_gap() {
    everywhere("devices_are_replaced_without_a_gap", |host| {
        let rules = |minors: &[u32]| -> Vec<LinuxDeviceCgroup> {
            let mut documents = vec![r#"{"allow":false,"access":"rwm"}"#.to_owned()];
            let allow = |minor| format!(r#"{{"allow":true,"type":"c","major":1,"minor":{minor},"access":"rw"}}"#);
            documents.extend(minors.iter().map(allow));
            documents.iter().map(|document| serde_json::from_str(document).unwrap()).collect()
        };
        let group = Group::new(host, "replace");
        group.cgroup.apply_devices(&rules(&[3])).unwrap();
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        // Opens the null device all the time, and tells of the first refusal.
        shell.tell("exec 2>&1; echo ready; while :; do : </dev/null || { echo refused; exit 1; }; done");
        assert_eq!(shell.heard(PATIENCE).unwrap(), "ready");
        for round in 0..200 {
            group.cgroup.apply_devices(&rules(if round % 2 == 0 { &[3, 5] } else { &[3, 7] })).unwrap();
        }
        assert_eq!(shell.heard(Duration::from_millis(50)), None);
        group.cgroup.apply_devices(&rules(&[5])).unwrap();
        assert!(shell.heard(PATIENCE).is_some(), "the last rules do not hold");
        assert_ne!(shell.end(), Exit::Code(0));
    });
}

#[test]
fn a_delegated_group_is_its_owners_to_arrange() {
    everywhere("a_delegated_group_is_its_owners_to_arrange", |host| {
        use std::os::unix::fs::MetadataExt as _;
        const OWNER: u32 = 54_321;
        let group = Group::new(host, "delegated");
        group.cgroup.delegate(rustix::fs::Uid::from_raw(OWNER)).unwrap();
        if !host.is_v2() {
            return;
        }
        let owner = |file: &str| std::fs::metadata(group.file("", file)).unwrap().uid();
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            assert_eq!(owner(file), OWNER, "{file}");
        }
        for file in ["cgroup.max.depth", "cgroup.freeze", "cgroup.events"] {
            assert_eq!(owner(file), 0, "{file}");
        }
    });
}

#[test]
fn statistics_are_there() {
    everywhere("statistics_are_there", |host| {
        let group = Group::new(host, "stats");
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        assert_eq!(shell.ask("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i"), "20000");
        match group.cgroup.stats().unwrap() {
            Stats::V1(stats) => {
                if group.has("pids") {
                    assert_eq!(stats.pids.unwrap(), cgroups::Pids { current: 1, limit: 0 });
                }
                if group.has("cpuacct") {
                    let cpu = stats.cpu.unwrap();
                    assert!(cpu.total_ns > 0 && !cpu.per_cpu_ns.is_empty(), "{cpu:?}");
                }
                if group.has("memory") {
                    let memory = stats.memory.unwrap();
                    assert!(memory.usage.limit > 0 && memory.hierarchical_memory_limit > 0, "{memory:?}");
                    assert!(stats.memory_oom_control.is_some());
                }
                assert_eq!(stats.rdma.is_some(), group.has("rdma"));
            }
            Stats::V2(stats) => {
                assert!(stats.cpu.unwrap().usage_usec > 0);
                assert_eq!(stats.memory.is_some(), group.has("memory"));
                assert_eq!(stats.pids.is_some(), group.has("pids"));
            }
        }
        assert_eq!(shell.end(), Exit::Code(0));
    });
}

#[test]
fn lack_of_memory_is_told_and_counted() {
    everywhere("lack_of_memory_is_told_and_counted", |host| {
        let group = Group::new(host, "oom");
        let watch = group.cgroup.watch_oom().unwrap();
        if !group.has("memory") {
            assert!(watch.is_none());
            return;
        }
        let watch = watch.unwrap();
        watch.drain().unwrap();
        let limited = group.cgroup.apply(&resources(r#"{"memory":{"limit":8388608,"swap":8388608}}"#));
        if matches!(limited, Err(Error::NoFile { .. })) {
            group.cgroup.apply(&resources(r#"{"memory":{"limit":8388608}}"#)).unwrap();
        } else {
            limited.unwrap();
        }
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        // Where the tests run under a service that the kernel must not kill, its children inherit that.
        shell.tell("echo 500 > /proc/self/oom_score_adj; a=0123456789; while :; do a=$a$a; done");
        assert!(sys::fs::poll_readable(watch.as_fd(), Some(PATIENCE)).unwrap());
        watch.drain().unwrap();
        assert_eq!(shell.end(), Exit::Signal(9));
        assert_eq!(group.cgroup.oom_kills().unwrap(), 1);
        let by_path = OomWatch::open(host, group.cgroup.path()).unwrap().unwrap();
        assert_eq!((watch.kills().unwrap(), by_path.kills().unwrap()), (1, 1));
        assert_eq!(group.cgroup.oom_origin(host).unwrap(), group.cgroup.path().to_string());
    });
}

#[test]
fn a_limit_below_what_is_in_use_is_told_so() {
    everywhere("a_limit_below_what_is_in_use_is_told_so", |host| {
        let group = Group::new(host, "low");
        if host.is_v2() || !group.has("memory") {
            return;
        }
        let mut shell = Shell::new();
        group.cgroup.add_process(shell.child.pid).unwrap();
        shell.ask(
            "a=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do a=$a$a; done; echo ${#a}",
        );
        // Without swap the memory of a process cannot be pushed out.
        match group.cgroup.apply(&resources(r#"{"memory":{"limit":65536}}"#)) {
            Err(error @ Error::TooLow { .. }) => {
                let text = error.to_string();
                assert!(text.starts_with("memory limit too low: unable to set memory limit to 65536"), "{text}");
            }
            other => println!("SKIP a limit below what is in use: the host has swap ({other:?})"),
        }
        assert_eq!(shell.end(), Exit::Code(0));
    });
}

#[test]
fn the_join_descriptor_is_of_version_2_only() {
    everywhere("the_join_descriptor_is_of_version_2_only", |host| {
        let group = Group::new(host, "join");
        let expected = host.is_v2() && sys::features().clone_into_cgroup;
        assert_eq!(group.cgroup.join_fd().is_some(), expected);
    });
}

#[test]
fn cpusets_are_usable_on_every_level() {
    everywhere("cpusets_are_usable_on_every_level", |host| {
        let group = Group::new(host, "cpuset");
        let Some(place) = v1_place(host, "cpuset") else { return };
        let mut level = place.join(group.path.as_str());
        while level != *place {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                assert_ne!(std::fs::read_to_string(level.join(file)).unwrap().trim(), "", "{}", level.display());
            }
            level = level.parent().map(Path::to_owned).unwrap();
        }
    });
}
