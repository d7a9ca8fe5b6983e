//! How the program is scheduled, where its memory comes from, which kernel it sees: of a container and of its execs.

use serde_json::{Value, json};

use crate::Case;
use crate::fixture::{Bundle, document, end, exec, running};

pub(crate) const CASES: &[Case] = &[
    ("scheduler", scheduler),
    ("scheduler with few processors", deadline_on_few),
    ("io priority", io_priority),
    ("processor affinity", affinity),
    ("affinity of the caller", affinity_of_caller),
    ("memory policy", memory_policy),
    ("personality", personality),
    ("inherited by execs", inherited),
    ("hostile tuning", hostile),
];

/// Nice value and policy of the process that looks: fields 19 and 41 of proc_pid_stat(5).
const POLICY: &str = "cut -d' ' -f19,41 /proc/self/stat";

fn scheduler() {
    for (document, want) in [
        (json!({"policy": "SCHED_OTHER", "nice": 5}), "5 0\n"),
        (json!({"policy": "SCHED_BATCH", "nice": 19, "priority": 0}), "19 3\n"),
        (json!({"policy": "SCHED_IDLE"}), "0 5\n"),
    ] {
        assert_eq!(Bundle::new(POLICY).with(|spec| spec["process"]["scheduler"] = document).output(), want);
    }
    let flagged = json!({"policy": "SCHED_BATCH", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    // The shell itself is favoured; its children are not.
    let output =
        Bundle::new(&format!("read line < /proc/self/stat; set -- $line; echo ${{19}} ${{41}}; {POLICY}; true"))
            .with(|spec| spec["process"]["scheduler"] = flagged)
            .output();
    assert_eq!(output, "-5 3\n0 3\n");
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 100_000, "period": 1_000_000,
        "nice": 19, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    let bundle = Bundle::new("sleep 1000");
    let container = running(&bundle);
    let mut process = document("read line < /proc/self/stat; set -- $line; echo ${41}");
    process["scheduler"] = deadline;
    match exec(&container, &process) {
        Ok(outcome) => assert_eq!(outcome.output, "6\n"),
        // Not where a cgroup has no real-time share.
        Err(error) => {
            let text = model::render(&error);
            assert!(text.contains("setting process.scheduler: operation not permitted"), "{text}");
        }
    }
    end(container);
}

fn deadline_on_few() {
    let bundle = Bundle::new("true").with(|spec| {
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "0", "mems": "0"});
        spec["process"]["scheduler"] =
            json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000});
    });
    if bundle.host.cgroups.is_v2() {
        // The view that is tested in has no processors to give.
        return;
    }
    let error = bundle.error();
    assert!(error.contains("process scheduler can't be used together with AllowedCPUs"), "{error}");
}

fn io_priority() {
    for (document, want) in [
        (json!({"class": "IOPRIO_CLASS_BE", "priority": 4}), "best-effort: prio 4"),
        (json!({"class": "IOPRIO_CLASS_IDLE"}), "idle"),
        (json!({"class": "IOPRIO_CLASS_RT", "priority": 7}), "realtime: prio 7"),
    ] {
        let output = Bundle::new("ionice -p $$").with(|spec| spec["process"]["ioPriority"] = document).output();
        assert!(output.contains(want), "{want}: {output}");
    }
}

fn allowed(process: &mut Value, affinity: Value) {
    process["execCPUAffinity"] = affinity;
}

const ALLOWED: &str = "grep Cpus_allowed_list /proc/self/status | cut -f2";

fn affinity() {
    let Some(all) = processors() else { return };
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        allowed(&mut spec["process"], json!({"initial": "0", "final": "1"}));
    });
    let container = running(&bundle);
    let of = |affinity: Value| {
        let mut process = document(ALLOWED);
        if !affinity.is_null() {
            allowed(&mut process, affinity);
        }
        exec(&container, &process).unwrap().output
    };
    // Of the container's document, then of the exec's own.
    assert_eq!(of(Value::Null), "1\n");
    assert_eq!(of(json!({"initial": "0"})), "0\n");
    assert_eq!(of(json!({"initial": "1", "final": "0"})), "0\n");
    assert_eq!(of(json!({"final": "0-1"})), "0-1\n");
    // Processors that do not exist are cut off.
    assert_eq!(of(json!({"final": "0,5000,65535"})), "0\n");
    let mut process = document("true");
    allowed(&mut process, json!({"final": "60000"}));
    let error = model::render(&exec(&container, &process).unwrap_err());
    assert!(error.contains("setting process.execCPUAffinity: invalid argument"), "{error}");
    // It is meant for execs only.
    let mut process = document("grep Cpus_allowed_list /proc/1/status | cut -f2");
    allowed(&mut process, json!({}));
    assert_eq!(exec(&container, &process).unwrap().output, all);
    end(container);
}

/// What this process may run on, as the kernel writes it; `None` with less than two processors.
fn processors() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    (list.contains(['-', ','])).then(|| format!("{list}\n"))
}

fn affinity_of_caller() {
    let Some(all) = processors() else { return };
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(0);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let bundle = Bundle::new("sleep 1000");
    let container = running(&bundle);
    let outcome = exec(&container, &document(&format!("{ALLOWED}; {}", ALLOWED.replace("self", "1")))).unwrap();
    rustix::thread::sched_setaffinity(None, &before).unwrap();
    end(container);
    assert_eq!(outcome.output, format!("{all}{all}"));
}

fn memory_policy() {
    let show = "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2";
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return;
    }
    for (document, want) in [
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}), "interleave:0\n"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0\n"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}), "prefer=relative:0\n"),
        (json!({"mode": "MPOL_PREFERRED"}), "local\n"),
        (json!({"mode": "MPOL_LOCAL"}), "local\n"),
        (json!({"mode": "MPOL_DEFAULT"}), "default\n"),
    ] {
        let output = Bundle::new(show).with(|spec| spec["linux"]["memoryPolicy"] = document.clone()).output();
        assert_eq!(output, want, "{document}");
    }
    let error =
        Bundle::new(show).with(|spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "1000"}));
    assert!(error.error().contains("setting linux.memoryPolicy: invalid argument"));
}

fn personality() {
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    for (domain, want) in [("LINUX32", "i686\n"), ("LINUX", "x86_64\n")] {
        let output = Bundle::new("uname -m").with(|spec| spec["linux"]["personality"] = json!({"domain": domain}));
        assert_eq!(output.output(), want);
    }
    let flags = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
    let error = Bundle::new("true").with(|spec| spec["linux"]["personality"] = flags).error();
    assert!(error.contains("linux.personality.flags"), "{error}");
}

fn inherited() {
    let bundle = Bundle::new("sleep 1000").with(|spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 4});
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        spec["process"]["user"]["umask"] = json!(0o77);
        spec["process"]["oomScoreAdj"] = json!(321);
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"});
        spec["linux"]["personality"] = json!({"domain": "LINUX"});
    });
    let container = running(&bundle);
    let look = format!("{POLICY}; ionice -p $$; umask; cat /proc/self/oom_score_adj; head -n 1 /proc/self/numa_maps");
    let outcome = exec(&container, &document(&look)).unwrap();
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines[..4], ["4 3", "best-effort: prio 6", "0077", "321"], "{outcome:?}");
    assert!(lines[4].contains("interleave:0"), "{outcome:?}");
    let mut other = document(&look);
    other["scheduler"] = json!({"policy": "SCHED_IDLE"});
    other["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE"});
    other["user"]["umask"] = json!(0o27);
    other["oomScoreAdj"] = json!(400);
    let outcome = exec(&container, &other).unwrap();
    assert!(outcome.output.starts_with("0 5\nidle\n0027\n400\n"), "{outcome:?}");
    end(container);
}

/// What is absurd is refused by name, before anything exists.
fn hostile() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 15] = [
        ("process.scheduler.nice", |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": i32::MIN});
        }),
        ("process.scheduler.priority", |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "priority": 1});
        }),
        ("process.scheduler.priority", |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": -1});
        }),
        ("process.scheduler.priority", |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_RR"})),
        ("process.scheduler.policy", |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_ISO"})),
        ("process.scheduler.period", |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "period": u64::MAX});
        }),
        ("process.ioPriority.priority", |spec| {
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
        }),
        ("process.ioPriority.priority", |spec| {
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": i64::MIN});
        }),
        ("process.execCPUAffinity.initial", |spec| {
            spec["process"]["execCPUAffinity"] = json!({"initial": "65536"});
        }),
        ("process.execCPUAffinity.final", |spec| {
            spec["process"]["execCPUAffinity"] = json!({"final": "9876543210"});
        }),
        ("process.execCPUAffinity.final", |spec| spec["process"]["execCPUAffinity"] = json!({"final": "2-1"})),
        ("mode requires 0 nodes but got 8", |spec| {
            spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"});
        }),
        ("at least one node", |spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND"})),
        ("invalid memory policy node", |spec| {
            spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"});
        }),
        ("linux.memoryPolicy.nodes", |spec| {
            spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "1024"});
        }),
    ];
    for (want, change) in cases {
        let error = Bundle::new("true").with(change).error();
        assert!(error.contains(want), "{want}: {error}");
    }
}
