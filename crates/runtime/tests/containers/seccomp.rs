//! System call filters, and the agents that answer for them.

use runtime::{Container, Creating, Error, ExecOptions, Rootfs, wait};
use serde_json::{Value, json};

use crate::Case;
use crate::agent::Agent;
use crate::fixture::{Bundle, end, read, reap, streams};

pub(crate) const CASES: &[Case] = &[
    ("seccomp agent", agent_of_init),
    ("seccomp agent of an exec", agent_of_exec),
    ("seccomp notification of the runtime's own calls", own_calls),
    ("seccomp listener without pidfd_getfd", sent_listener),
    ("seccomp agent that is gone", agent_gone),
    ("seccomp fields that are refused", refused),
    ("seccomp listener that is not needed", not_needed),
    ("seccomp wait killable", wait_killable),
    ("seccomp of start hooks", start_hooks),
    ("seccomp names", names),
];

fn notifying(script: &str, no_new_privileges: bool, agent: &Agent, names: &[&str]) -> Bundle {
    let path = agent.path();
    Bundle::new(script).with(|spec| {
        spec["annotations"] = json!({"status": "creating"});
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path, "listenerMetadata": "for the agent",
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]});
    })
}

fn create(bundle: &Bundle, agent: &mut Agent) -> Result<(Container, std::fs::File), Error> {
    let (io, output) = streams();
    let rootfs = Rootfs::Path(bundle.rootfs());
    let mut creating = Creating::begin(bundle.plan()?, &bundle.host, rootfs, io, None)?;
    Ok((agent.drive(&mut creating)?, output))
}

fn finish(mut container: Container, output: std::fs::File, agent: &mut Agent) -> String {
    agent.drive(&mut container.start().unwrap()).unwrap();
    agent.until_end(container.pidfd());
    reap(container.pidfd().try_clone_to_owned().unwrap());
    wait(&mut container.delete(false).unwrap()).unwrap();
    read(output)
}

/// The agent gets the descriptor while the container is created, with the document of the specification.
fn agent_of_init() {
    for no_new_privileges in [true, false] {
        let mut agent = Agent::new(&[libc::SYS_mkdir, libc::SYS_mkdirat]);
        let bundle = notifying("mkdir /tmp/x; echo on", no_new_privileges, &agent, &["mkdir", "mkdirat"]);
        let (container, output) = create(&bundle, &mut agent).unwrap();
        let pid = container.pid();
        assert_eq!(
            agent.documents,
            [json!({"ociVersion": oci::RUNTIME_SPEC_VERSION, "fds": ["seccompFd"], "pid": pid,
                    "metadata": "for the agent",
                    "state": {"ociVersion": bundle.spec["ociVersion"], "id": bundle.id, "status": "creating",
                              "pid": pid, "bundle": bundle.directory.path(),
                              "annotations": {"status": "creating"}}})]
        );
        let output = finish(container, output, &mut agent);
        assert!(output.contains("No space left on device") && output.ends_with("on\n"), "{output}");
        assert!(!agent.asked.is_empty());
    }
}

fn agent_of_exec() {
    for no_new_privileges in [true, false] {
        let mut agent = Agent::new(&[libc::SYS_mkdir, libc::SYS_mkdirat]);
        let bundle = notifying("sleep 1000", no_new_privileges, &agent, &["mkdir", "mkdirat"]);
        let (mut container, _) = create(&bundle, &mut agent).unwrap();
        agent.drive(&mut container.start().unwrap()).unwrap();
        let (io, output) = streams();
        let document = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
                              "args": ["sh", "-c", "mkdir /tmp/x; echo on"]});
        let process = oci::parse_process(document.to_string().as_bytes()).unwrap();
        let process = agent.drive(&mut container.exec(&process, io, &ExecOptions::default()).unwrap()).unwrap();
        agent.until_end(std::os::fd::AsFd::as_fd(&process.pidfd));
        reap(process.pidfd);
        assert!(read(output).contains("No space left on device"));
        let told = &agent.documents[1];
        assert_eq!(told["pid"], process.identity.pid);
        assert_eq!((&told["state"]["pid"], &told["state"]["status"]), (&json!(container.pid()), &json!("running")));
        end(container);
    }
}

/// The agent may be asked about calls that the runtime itself makes once the filter is on.
fn own_calls() {
    let names = ["execve", "openat", "open", "read", "close", "fcntl", "capset", "prctl", "poll", "ppoll", "recvfrom"];
    for no_new_privileges in [true, false] {
        let mut agent = Agent::new(&[]);
        let bundle = notifying("echo fine", no_new_privileges, &agent, &names);
        let (container, output) = create(&bundle, &mut agent).unwrap();
        assert_eq!(finish(container, output, &mut agent), "fine\n");
        assert!(agent.asked.contains(&libc::SYS_execve) && agent.asked.contains(&libc::SYS_read), "{:?}", agent.asked);
    }
}

/// With `pidfd_getfd` nothing but `write` and `read` is needed; without, `sendmsg` must be free.
fn sent_listener() {
    for no_new_privileges in [true, false] {
        let mut agent = Agent::new(&[]);
        let bundle = notifying("echo fine", no_new_privileges, &agent, &["sendmsg", "mkdir"]);
        match create(&bundle, &mut agent) {
            Ok((container, output)) => {
                assert!(!sys::features().forced_fallbacks);
                assert_eq!(finish(container, output, &mut agent), "fine\n");
            }
            Err(error) => {
                let error = model::render(&error);
                assert!(sys::features().forced_fallbacks && error.contains("forbids to send by sendmsg"), "{error}");
            }
        }
    }
}

/// Nobody answers any more: the kernel says ENOSYS.
fn agent_gone() {
    let mut agent = Agent::new(&[]);
    let bundle = notifying("mkdir /tmp/x", true, &agent, &["mkdir", "mkdirat"]);
    let (container, output) = create(&bundle, &mut agent).unwrap();
    agent.descriptors.clear();
    assert!(finish(container, output, &mut agent).contains("Function not implemented"));
}

fn refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("SCMP_ACT_NOTIFY cannot be used for the write syscall", |seccomp| {
            seccomp["syscalls"][0]["names"] = json!(["mkdir", "write"]);
        }),
        ("SCMP_ACT_NOTIFY cannot be used as default action", |seccomp| {
            seccomp["defaultAction"] = json!("SCMP_ACT_NOTIFY");
        }),
        ("seccomp listenerPath is not set", |seccomp| seccomp["listenerPath"] = json!("")),
        ("failed to connect with seccomp agent", |seccomp| seccomp["listenerPath"] = json!("/nowhere/agent.sock")),
        ("failed to connect with seccomp agent", |seccomp| seccomp["listenerPath"] = json!("@nobody-listens-here")),
        ("failed to connect with seccomp agent", |seccomp| {
            seccomp["listenerPath"] = json!(format!("/{}", "x".repeat(200)));
        }),
        ("must allow the write syscall", |seccomp| seccomp["defaultAction"] = json!("SCMP_ACT_ERRNO")),
        ("linux.seccomp.defaultErrnoRet", |seccomp| seccomp["defaultErrnoRet"] = json!(1)),
        ("linux.seccomp.syscalls[0].errnoRet", |seccomp| seccomp["syscalls"][0]["errnoRet"] = json!(1)),
        ("linux.seccomp.syscalls[0].errnoRet: 4096 exceeds 4095", |seccomp| {
            seccomp["syscalls"][0] = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096});
        }),
        ("linux.seccomp.syscalls[0].args", |seccomp| {
            seccomp["syscalls"][0]["args"] = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
        }),
        ("linux.seccomp.flags", |seccomp| {
            seccomp["syscalls"] = json!([{"names": ["mkdir"], "action": "SCMP_ACT_TRAP"}]);
            seccomp["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
        }),
    ];
    let agent = Agent::new(&[]);
    for (words, change) in changes {
        let error =
            notifying("true", true, &agent, &["mkdir"]).with(|spec| change(&mut spec["linux"]["seccomp"])).error();
        assert!(error.contains(words), "{words}: {error}");
    }
    for (part, value) in [
        ("flags", json!(["SECCOMP_FILTER_FLAG_NEW_LISTENER"])),
        ("architectures", json!(["SCMP_ARCH_PDP11"])),
        ("defaultAction", json!("SCMP_ACT_ASK")),
    ] {
        let bundle =
            notifying("true", true, &agent, &["mkdir"]).with(|spec| spec["linux"]["seccomp"][part] = value.clone());
        let error = oci::parse_spec(bundle.spec.to_string().as_bytes()).unwrap_err();
        let unknown = value.as_str().or(value[0].as_str()).unwrap();
        assert!(model::render(&error).contains(unknown), "{error:?}");
    }
}

fn not_needed() {
    let agent = Agent::new(&[]);
    let bundle = notifying("mkdir /tmp/x && echo made", true, &agent, &[]);
    assert_eq!(bundle.output(), "made\n");
    assert!(agent.documents.is_empty());
}

fn wait_killable() {
    let mut agent = Agent::new(&[]);
    let bundle = notifying("mkdir /tmp/x && echo made", false, &agent, &["mkdir"]).with(|spec| {
        spec["linux"]["seccomp"]["flags"] =
            json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"]);
    });
    if !sys::features().seccomp_wait_killable() {
        let error = create(&bundle, &mut agent).map(drop).unwrap_err();
        assert!(error.to_string().contains("linux.seccomp.flags: this kernel lacks SECCOMP_FILTER_FLAG"), "{error}");
        return;
    }
    let (container, output) = create(&bundle, &mut agent).unwrap();
    assert_eq!(finish(container, output, &mut agent), "made\n");
}

/// A hook of the container's side has the filter of the container, with and without `no_new_privs`.
fn start_hooks() {
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new("true").with(|spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}]});
            spec["hooks"] = json!({"startContainer": [{"path": "/bin/mkdir", "args": ["mkdir", "/tmp/x"]}]});
        });
        let error = bundle.error();
        assert!(error.contains("error running startContainer hook #0: signal: bad system call"), "{error}");
    }
}

/// Names that no table has are passed over.
fn names() {
    let bundle = Bundle::new("mkdir /tmp/x").with(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 100}]});
    });
    assert!(bundle.run().unwrap().output.contains("Network is down"));
}
