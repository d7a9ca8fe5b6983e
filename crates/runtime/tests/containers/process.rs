//! What the program runs as: ids, capabilities, limits, filters, descriptors, terminal.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use runtime::{ConsoleSize, ExecOptions, Operation as _, ProcessIo, Status, wait};
use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Bundle, document, end, exec, reap, running, streams};

pub(crate) const CASES: &[Case] = &[
    ("ids", ids),
    ("capabilities", capabilities),
    ("limits and scores", limits),
    ("no new privileges", no_new_privileges),
    ("seccomp", seccomp),
    ("working directory", working_directory),
    ("home", home),
    ("descriptors", descriptors),
    ("console", console),
    ("exec", execs),
    ("exec in a user namespace", exec_user),
    ("exec of a dying container", exec_dying),
    ("states", states),
    ("opened again", opened_again),
    ("signals to all", signals_to_all),
    ("strict filter", strict_filter),
    ("refused fields", refused),
    ("own program", own_program),
    ("late failure", late_failure),
    ("abandoned", abandoned),
    ("no process", no_process),
    ("environment", environment),
    ("unknown capabilities", unknown_capabilities),
];

fn ids() {
    let output =
        Bundle::new("id -u; id -g; grep Groups /proc/self/status; umask; touch /tmp/x; stat -c %u:%g:%a /tmp/x")
            .with(|spec| {
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27});
                spec["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}));
            })
            .output();
    assert_eq!(output, "1000\n1001\nGroups:\t5 6 \n0027\n1000:1001:640\n");
    assert_eq!(Bundle::new("grep Groups /proc/self/status").output(), "Groups:\t \n", "groups of the runtime");
}

fn capabilities() {
    let show = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2";
    let sets = |names: Value| move |spec: &mut Value| spec["process"]["capabilities"] = names;
    let bit = |numbers: &[u32]| format!("{:016x}", numbers.iter().fold(0_u64, |mask, number| mask | 1 << number));
    let some = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SYS_RESOURCE", "CAP_AUDIT_READ"]);
    let available: u64 = sys::caps::get().unwrap().permitted;
    let have: Vec<u32> = [0, 5, 24, 37].into_iter().filter(|number| available & (1 << number) != 0).collect();
    let output = Bundle::new(show).with(sets(json!({"bounding": some, "effective": some, "permitted": some}))).output();
    let mask = bit(&have);
    assert_eq!(output, format!("{zero}\n{mask}\n{mask}\n{mask}\n{zero}\n", zero = bit(&[])));
    // None named: none had.
    let output = Bundle::new(show).with(|spec| {
        spec["process"].as_object_mut().unwrap().remove("capabilities");
    });
    assert_eq!(output.output(), format!("{0}\n{0}\n{0}\n{0}\n{0}\n", bit(&[])));
    // Ambient ones survive the change of user.
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    let output = Bundle::new(show)
        .with(sets(json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one})))
        .with(|spec| spec["process"]["user"] = json!({"uid": 1, "gid": 1}))
        .output();
    let mask = bit(&[10]);
    assert_eq!(output, format!("{mask}\n{mask}\n{mask}\n{mask}\n{mask}\n"));
    // Inheritable only if asked for (CVE-2022-29162).
    let output = Bundle::new(show).with(sets(json!({"bounding": one, "effective": one, "permitted": one}))).output();
    assert!(output.starts_with(&bit(&[])), "{output}");
    let (io, _) = streams();
    let warned =
        Bundle::new("true").with(sets(json!({"bounding": ["CAP_SYS_RESOURCE"], "effective": [], "permitted": []})));
    let container = warned.create(io).unwrap();
    assert_eq!(container.warnings().is_empty(), available & (1 << 24) != 0, "{:?}", container.warnings());
    end(container);
}

fn limits() {
    let output = Bundle::new("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj")
        .with(|spec| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                                                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
            spec["process"]["oomScoreAdj"] = json!(500);
        })
        .output();
    assert_eq!(output, "100\n200\n0\n500\n");
    // What the host does not allow is a warning.
    let bundle = Bundle::new("true").with(|spec| {
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1_u64 << 40, "hard": 1_u64 << 40}]);
    });
    let (io, _) = streams();
    let container = bundle.create(io).unwrap();
    assert!(!container.warnings().is_empty());
    end(container);
}

fn no_new_privileges() {
    for value in [true, false] {
        let output = Bundle::new("grep NoNewPrivs /proc/self/status | cut -f2")
            .with(|spec| spec["process"]["noNewPrivileges"] = json!(value))
            .output();
        assert_eq!(output, format!("{}\n", i32::from(value)));
    }
}

fn seccomp() {
    for no_new_privileges in [true, false] {
        let with = |rule: Value, script: &str| {
            Bundle::new(script)
                .with(|spec| {
                    spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
                })
                .run()
                .unwrap()
        };
        let denied = with(
            json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}),
            "mkdir /tmp/x; grep Seccomp: /proc/self/status | cut -f2",
        );
        assert!(denied.output.contains("No space left on device") && denied.output.ends_with("2\n"), "{denied:?}");
        let killed = with(
            json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}),
            "mkdir /tmp/x; echo status $?",
        );
        assert!(killed.output.contains("status 159"), "{killed:?}");
        let argument = with(
            json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO",
                   "args": [{"index": 1, "op": "SCMP_CMP_EQ", "value": 10}]}),
            "kill -0 $$ && echo ok; kill -10 $$ 2>&1 || echo refused",
        );
        assert!(argument.output.starts_with("ok\n") && argument.output.ends_with("refused\n"), "{argument:?}");
    }
}

fn working_directory() {
    let at = |cwd: &str| Bundle::new("pwd").with(|spec| spec["process"]["cwd"] = json!(cwd));
    assert_eq!(at("/tmp").output(), "/tmp\n");
    assert_eq!(at("/made/on/the/way").output(), "/made/on/the/way\n");
    assert_eq!(at("/tmp/../etc").output(), "/etc\n");
    let error = at("/etc/passwd").error();
    assert!(error.contains("not a directory"), "{error}");
}

fn home() {
    let bundle = |uid: u32| {
        let bundle = Bundle::new("echo $HOME").with(|spec| {
            spec["process"]["env"] = json!(["PATH=/bin"]);
            spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        });
        let long = format!("long:x:7:7:{}:/long:/bin/sh\n", "x".repeat(5000));
        let text = "x:x:5:5::/five:/bin/sh\n".to_owned()
            + &"filler:x:99:99::/none:/bin/sh\n".repeat(300)
            + "y:x:6:6::/six:\n"
            + &long;
        std::fs::write(bundle.rootfs().join("etc/passwd"), text).unwrap();
        bundle
    };
    for (uid, want) in [(5, "/five\n"), (6, "/six\n"), (7, "/\n"), (8, "/\n")] {
        assert_eq!(bundle(uid).output(), want, "{uid}");
    }
    let pipe = bundle(5);
    std::fs::remove_file(pipe.rootfs().join("etc/passwd")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, pipe.rootfs().join("etc/passwd"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    assert_eq!(pipe.output(), "/\n");
    assert_eq!(Bundle::new("echo $HOME").output(), "/root\n");
}

/// Nothing but the standard streams reaches the program, although descriptors without close-on-exec are open here.
fn descriptors() {
    let leaked = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let output = Bundle::new("ls -l /proc/self/fd").output();
    let numbers = output.lines().filter(|line| line.contains(" -> ")).count();
    // The directory that `ls` itself has open is gone when it looks at it.
    assert_eq!(numbers, 3, "{output}");
    assert!(output.matches("/proc/self/fd").count() <= 1, "{output}");
    drop(leaked);
    let bundle = Bundle::new("ls /proc/self/fd | wc -l");
    let (io, output) = streams();
    let options = runtime::PlanOptions { preserve_fds: 1, ..bundle.options() };
    let spec = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap();
    let plan = runtime::Plan::new(&spec, &bundle.host, &options).unwrap();
    let kept = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let creating = runtime::Creating::begin(plan, &bundle.host, runtime::Rootfs::Path(bundle.rootfs()), io, None);
    let mut container = wait(&mut creating.unwrap()).unwrap();
    wait(&mut container.start().unwrap()).unwrap();
    reap(container.pidfd().try_clone_to_owned().unwrap());
    wait(&mut container.delete(false).unwrap()).unwrap();
    drop(kept);
    let counted: usize = crate::fixture::read(output).trim().parse().unwrap();
    assert!((4..=5).contains(&counted), "{counted}");
}

fn console() {
    let bundle = Bundle::new(
        "tty; stty size; stat -c %t /dev/console; test -t 0 && test -t 2 && echo terminal; read x; echo got $x",
    )
    .with(|spec| spec["process"]["terminal"] = json!(true));
    let size = ConsoleSize { rows: 33, columns: 111 };
    let mut container = bundle.create(ProcessIo::Console { size: Some(size) }).unwrap();
    let mut master = std::fs::File::from(container.take_console().unwrap());
    wait(&mut container.start().unwrap()).unwrap();
    master.write_all(b"word\n").unwrap();
    reap(container.pidfd().try_clone_to_owned().unwrap());
    let mut text = Vec::new();
    let _ = master.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    for want in ["/dev/pts/0\n", "33 111\n", "88\n", "terminal\n", "got word\n"] {
        assert!(text.contains(want), "{want:?} not in {text:?}");
    }
    wait(&mut container.delete(false).unwrap()).unwrap();
}

fn execs() {
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
    });
    let container = running(&bundle);
    let outcome = exec(&container, &document("hostname; ps -o args | grep -c 'sleep 1000'; exit 7")).unwrap();
    assert_eq!(outcome.status, 7);
    assert!(outcome.output.starts_with("inside\n"), "{outcome:?}");
    let spaces = "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";
    let ours = exec(&container, &document(spaces)).unwrap().output;
    let theirs = exec(&container, &document(&spaces.replace("self", "1"))).unwrap().output;
    assert_eq!(ours, theirs);
    // The filter, limits and capabilities of the container hold for its execs.
    let outcome = exec(
        &container,
        &document(
            "mkdir /tmp/x; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
        cat /proc/1/status | grep -E 'CapEff|NoNewPrivs|Seccomp:'",
        ),
    )
    .unwrap();
    assert!(outcome.output.contains("No space left"), "{outcome:?}");
    let lines: Vec<&str> = outcome.output.lines().skip(1).collect();
    assert_eq!(lines[..3], lines[3..], "{outcome:?}");
    let mut user = document("id -u; pwd; cat /proc/self/oom_score_adj");
    user["user"] = json!({"uid": 9, "gid": 9});
    user["cwd"] = json!("/tmp");
    user["oomScoreAdj"] = json!(321);
    assert_eq!(exec(&container, &user).unwrap().output, "9\n/tmp\n321\n");
    let group = container.pids().unwrap().len();
    let (io, _) = streams();
    let process = oci::parse_process(document("sleep 1000").to_string().as_bytes()).unwrap();
    let second = wait(&mut container.exec(&process, io, &ExecOptions::default()).unwrap()).unwrap();
    assert_eq!(container.pids().unwrap().len(), group + 1, "an exec belongs to the cgroup");
    for (program, want) in [("nope", "executable file not found in $PATH"), ("/nope", "stat /nope: no such file")] {
        let mut missing = document("");
        missing["args"] = json!([program]);
        let error = exec(&container, &missing).unwrap_err();
        assert!(model::render(&error).contains(want), "{error:?}");
    }
    let mut console = document("tty");
    console["terminal"] = json!(true);
    let process = oci::parse_process(console.to_string().as_bytes()).unwrap();
    let mut third =
        wait(&mut container.exec(&process, ProcessIo::Console { size: None }, &ExecOptions::default()).unwrap())
            .unwrap();
    let mut text = Vec::new();
    let _ = std::fs::File::from(third.console.take().unwrap()).read_to_end(&mut text);
    assert!(String::from_utf8_lossy(&text).contains("/dev/pts/0"), "{text:?}");
    reap(third.pidfd);
    // Init's end is not told before those of all others in its pid namespace have been taken.
    container.kill(9).unwrap();
    assert_eq!(reap(second.pidfd), 137, "execs end with init");
    end(container);
}

fn exec_user() {
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
    let container = running(&bundle);
    let outcome = exec(&container, &document("id -u; cat /proc/self/uid_map")).unwrap();
    let words: Vec<&str> = outcome.output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"]);
    end(container);
}

fn exec_dying() {
    let bundle = Bundle::new("sleep 1000");
    let container = running(&bundle);
    container.kill(9).unwrap();
    sys::fs::poll_readable(container.pidfd(), None).unwrap();
    // Not reaped yet: a zombie.
    let error = exec(&container, &document("true")).unwrap_err();
    assert_eq!(model::Coded::code(&error), model::Code::FailedPrecondition, "{error:?}");
    assert!(matches!(container.kill(15), Err(runtime::Error::Finished)));
    reap(container.pidfd().try_clone_to_owned().unwrap());
    let mut container = container;
    wait(&mut container.delete(false).unwrap()).unwrap();
}

fn states() {
    let bundle = Bundle::new("sleep 1000");
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    assert_eq!(container.status(), Status::Created);
    assert!(container.delete(false).is_err());
    wait(&mut container.start().unwrap()).unwrap();
    assert_eq!(container.status(), Status::Running);
    assert!(container.start().is_err());
    assert!(container.resume().is_err());
    container.pause().unwrap();
    assert_eq!(container.status(), Status::Paused);
    assert!(exec(&container, &document("true")).is_err());
    container.resume().unwrap();
    assert_eq!(container.status(), Status::Running);
    container.pause().unwrap();
    end(container);
}

fn opened_again() {
    let bundle = Bundle::new("sleep 1000");
    let container = running(&bundle);
    let spec = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap();
    let open = || runtime::Container::open(&container.state(), &spec, &bundle.host, None).unwrap();
    let again = open();
    assert_eq!((again.status(), again.pid()), (Status::Running, container.pid()));
    assert_eq!(exec(&again, &document("hostname")).unwrap().output, "inside\n");
    again.kill(9).unwrap();
    reap(container.pidfd().try_clone_to_owned().unwrap());
    // Gone and reaped: known by its state only.
    let mut gone = open();
    assert_eq!(gone.status(), Status::Stopped);
    assert!(matches!(gone.kill(15), Err(runtime::Error::Finished)));
    assert!(gone.start().is_err());
    wait(&mut gone.delete(false).unwrap()).unwrap();
    wait(&mut open().delete(false).unwrap()).unwrap();
    assert!(again.pids().unwrap().is_empty());
}

fn signals_to_all() {
    let bundle = Bundle::new("trap 'exit 9' TERM; sleep 1000 & while :; do wait; done");
    let container = running(&bundle);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while container.pids().unwrap().len() < 2 {
        assert!(std::time::Instant::now() < deadline);
    }
    container.kill_all(15).unwrap();
    assert_eq!(reap(container.pidfd().try_clone_to_owned().unwrap()), 9);
    let mut container = container;
    container.kill_all(15).unwrap();
    wait(&mut container.delete(false).unwrap()).unwrap();
}

/// A profile that kills for everything it does not list needs to list little of ours.
fn strict_filter() {
    for no_new_privileges in [true, false] {
        let names = json!([
            "read",
            "write",
            "execve",
            "exit_group",
            "exit",
            "brk",
            "arch_prctl",
            "set_tid_address",
            "set_robust_list",
            "rseq",
            "prlimit64",
            "readlink",
            "readlinkat",
            "getrandom",
            "mprotect",
            "mmap",
            "munmap",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "setuid",
            "setgid",
            "ioctl",
            "fstat",
            "newfstatat",
            "fcntl",
            "uname",
            "capset",
            "prctl"
        ]);
        let bundle = Bundle::new("").with(|spec| {
            spec["process"]["args"] = json!(["echo", "allowed"]);
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS",
                "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
        });
        assert_eq!(bundle.output(), "allowed\n");
    }
}

fn refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 3] = [
        ("apparmorProfile", |spec| spec["process"]["apparmorProfile"] = json!("x")),
        ("selinuxLabel", |spec| spec["process"]["selinuxLabel"] = json!("x")),
        ("linux.intelRdt", |spec| spec["linux"]["intelRdt"] = json!({"closID": "x"})),
    ];
    for (name, change) in changes {
        let error = Bundle::new("true").with(change).error();
        assert!(error.contains(name), "{name}: {error}");
    }
}

/// `/proc/self/exe` is our program until the exec: a container must not run it (CVE-2019-5736).
fn own_program() {
    let bundle = Bundle::new("sleep 1000");
    let container = running(&bundle);
    let mut process = document("");
    process["args"] = json!(["/proc/self/exe"]);
    let error = exec(&container, &process).unwrap_err();
    assert!(model::render(&error).contains("permission denied"), "{error:?}");
    end(container);
}

/// What only the exec itself finds out is an error of the start.
fn late_failure() {
    let bundle = Bundle::new("").with(|spec| spec["process"]["args"] = json!(["/bin/garbage"]));
    let path = bundle.rootfs().join("bin/garbage");
    std::fs::write(&path, "\x7fELFgarbage").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    let error = wait(&mut container.start().unwrap()).unwrap_err();
    assert!(error.to_string().contains("exec /bin/garbage: exec format error"), "{error}");
    end(container);
}

/// A creation that nobody finishes leaves nothing.
fn abandoned() {
    let bundle = Bundle::new("true");
    let before = children();
    for polls in 0..3 {
        let (io, _) = streams();
        let creating = runtime::Creating::begin(
            bundle.plan().unwrap(),
            &bundle.host,
            runtime::Rootfs::Path(bundle.rootfs()),
            io,
            None,
        )
        .unwrap();
        for _ in 0..polls {
            sys::fs::poll_readable(creating.poll_fd().as_fd(), None).unwrap();
        }
        drop(creating);
    }
    assert_eq!(children(), before);
    // A container whose starter goes away ends by itself.
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    drop(container.start().unwrap());
    reap(container.pidfd().try_clone_to_owned().unwrap());
    wait(&mut container.delete(false).unwrap()).unwrap();
}

fn children() -> String {
    let pid = std::process::id();
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
}

/// A container may be made without a process, but not started (runtime-spec, config, "Process").
fn no_process() {
    let bundle = Bundle::new("").with(|spec| {
        spec.as_object_mut().unwrap().remove("process");
    });
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap();
    assert_eq!(container.status(), Status::Created);
    let error = wait(&mut container.start().unwrap()).unwrap_err();
    assert!(matches!(error, runtime::Error::NoProcess), "{error}");
    reap(container.pidfd().try_clone_to_owned().unwrap());
    assert_eq!(container.status(), Status::Stopped);
    wait(&mut container.delete(false).unwrap()).unwrap();
}

fn environment() {
    let of = |env: Value| Bundle::new("env").with(|spec| spec["process"]["env"] = env).output();
    let sorted = |text: String| {
        let mut lines: Vec<String> =
            text.lines().filter(|l| !l.starts_with("SHLVL") && !l.starts_with("PWD")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let output = of(json!(["A=1", "PATH=/bin", "A=2", "HOME=/x", "B=", "HOME=", "C=x=y"]));
    assert_eq!(sorted(output), ["A=2", "B=", "C=x=y", "HOME=/root", "PATH=/bin"]);
    for (entry, want) in [("NAME", "missing '='"), ("=x", "name cannot be empty"), ("a=\u{0}", "NUL byte")] {
        let bundle = Bundle::new("env").with(|spec| spec["process"]["env"] = json!([entry]));
        let error = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains("process.env") && error.contains(want), "{error}");
    }
}

fn unknown_capabilities() {
    let bundle = Bundle::new("grep CapBnd /proc/self/status | cut -f2").with(|spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_UNKNOWN", "UNKNOWN_CAP"], "inheritable": ["CAP_CHOWN"],
            "permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN", "CAP_KILL"]});
    });
    assert_eq!(bundle.output(), "0000000000000001\n");
    let warned = |warnings: &[String]| {
        warnings.iter().any(|line| line == "can't raise ambient capability CAP_KILL: operation not permitted")
    };
    let container = running(&bundle);
    assert!(warned(container.warnings()), "{:?}", container.warnings());
    end(container);
}
