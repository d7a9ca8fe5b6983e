//! `gantry-oci` as an engine uses it: one process per command, state in files between them.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests: a failure is a panic, a skip is said")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";

/// A bundle, a root for the states, and the binary.
struct Fixture {
    directory: tempfile::TempDir,
    cgroup: String,
}

impl Fixture {
    fn new(script: &str) -> Option<Self> {
        let program = std::fs::read(BUSYBOX).unwrap_or_default();
        let usable = !program.is_empty() && !program.windows(7).any(|bytes| bytes == b"/ld-lin");
        if !usable || !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: needs root and a static {BUSYBOX}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("rootfs/bin");
        for path in ["bin", "proc", "sys", "dev", "etc"] {
            std::fs::create_dir_all(directory.path().join("rootfs").join(path)).unwrap();
        }
        std::fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
        for applet in ["sh", "sleep", "echo", "cat", "hostname", "id", "tty", "true"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        let name = directory.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let fixture = Self { directory, cgroup: format!("/gantry-test-cli-{name}") };
        fixture.ok(&["spec", "--bundle", fixture.bundle()]);
        fixture.change(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["rlimits"] = json!([]);
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["linux"]["cgroupsPath"] = json!(fixture.cgroup);
        });
        Some(fixture)
    }

    fn bundle(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        std::fs::write(path, spec.to_string()).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(["--root", &self.path("state")]).args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must succeed and gives its output.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail and gives its exit code and what it says.
    fn fails(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// `create` as engines call it: the streams are not pipes that it would hold open.
    fn create(&self, id: &str) {
        let log = std::fs::File::create(self.path("output")).unwrap();
        let status = self
            .command(&["create", "--bundle", self.bundle(), "--pid-file", &self.path("pid"), id])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(self.path("output")).unwrap());
    }

    fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    fn eventually(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !check() {
            assert!(Instant::now() < deadline, "{what} does not come");
            std::thread::yield_now();
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for id in ["c", "d"] {
            let _ = self.run(&["delete", "--force", id]);
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let left = hierarchy.path().join(self.cgroup.trim_start_matches('/'));
            assert!(std::thread::panicking() || !left.exists(), "{} is left", left.display());
        }
    }
}

#[test]
fn run_gives_output_and_exit_code() {
    let Some(fixture) = Fixture::new("echo out; exit 7") else { return };
    let output = fixture.run(&["run", "--bundle", fixture.bundle(), "c"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"out\n".as_slice()), "{output:?}");
    assert!(!Path::new(&fixture.path("state/c")).exists());
}

#[test]
fn a_start_of_nothing_warns_and_ends_the_container() {
    let Some(fixture) = Fixture::new("") else { return };
    fixture.change(|spec| {
        spec.as_object_mut().unwrap().remove("process");
    });
    fixture.create("c");
    let output = fixture.run(&["start", "c"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("process: is required"), "{output:?}");
    fixture.eventually("the end", || fixture.status("c") == "stopped");
    fixture.ok(&["delete", "c"]);
}

#[test]
fn a_life_in_many_processes() {
    let Some(fixture) = Fixture::new("sleep 1000") else { return };
    fixture.create("c");
    let pid = std::fs::read_to_string(fixture.path("pid")).unwrap();
    let state: Value = serde_json::from_str(&fixture.ok(&["state", "c"])).unwrap();
    assert_eq!(
        (&state["status"], &state["id"], &state["ociVersion"]),
        (&json!("created"), &json!("c"), &json!("1.3.0"))
    );
    assert_eq!(state["pid"].to_string(), pid);
    let (_, text) = fixture.fails(&["create", "--bundle", fixture.bundle(), "c"]);
    assert!(text.contains("container with given ID already exists"), "{text}");
    fixture.ok(&["start", "c"]);
    assert_eq!(fixture.status("c"), "running");
    let (_, text) = fixture.fails(&["start", "c"]);
    assert!(text.contains("cannot start an already running container"), "{text}");
    assert!(fixture.ok(&["list"]).contains("running"));
    assert_eq!(fixture.ok(&["list", "-q"]), "c\n");
    assert_eq!(fixture.ok(&["ps", "--format", "json", "c"]).trim(), format!("[{pid}]"));
    assert_eq!(fixture.ok(&["exec", "c", "hostname"]), "runc\n");
    assert_eq!(fixture.fails(&["exec", "--env", "X=5", "c", "sh", "-c", "exit $X"]).0, 5);
    assert_eq!(fixture.ok(&["exec", "--user", "7:8", "c", "id", "-u"]), "7\n");
    let (code, text) = fixture.fails(&["exec", "c", "nope"]);
    assert_eq!(code, 255);
    assert!(text.contains("executable file not found in $PATH"), "{text}");
    let document = json!({"user": {"uid": 0, "gid": 0}, "args": ["/bin/echo", "doc"], "cwd": "/"});
    std::fs::write(fixture.path("process.json"), document.to_string()).unwrap();
    assert_eq!(fixture.ok(&["exec", "--process", &fixture.path("process.json"), "c"]), "doc\n");
    let line = fixture.ok(&["events", "--stats", "c"]);
    assert!(line.starts_with(r#"{"type":"stats","id":"c","data":{"#), "{line}");
    fixture.ok(&["pause", "c"]);
    assert_eq!(fixture.status("c"), "paused");
    let (code, text) = fixture.fails(&["exec", "c", "true"]);
    assert!(code == 255 && text.contains("cannot exec in a paused container"), "{text}");
    fixture.ok(&["resume", "c"]);
    fixture.ok(&["update", "c"]);
    let (_, text) = fixture.fails(&["delete", "c"]);
    assert!(text.contains("is not stopped"), "{text}");
    fixture.ok(&["kill", "c", "KILL"]);
    fixture.eventually("the end", || fixture.status("c") == "stopped");
    let (_, text) = fixture.fails(&["kill", "c", "9"]);
    assert!(text.contains("container not running"), "{text}");
    fixture.ok(&["kill", "--all", "c", "0"]);
    let (code, text) = fixture.fails(&["exec", "c", "true"]);
    assert!(code == 255 && text.contains("cannot exec in a stopped container"), "{text}");
    fixture.ok(&["delete", "c"]);
    let (_, text) = fixture.fails(&["state", "c"]);
    assert!(text.contains("container does not exist"), "{text}");
    fixture.ok(&["delete", "--force", "c"]);
}

#[test]
fn errors_reach_the_log_in_the_form_that_engines_read() {
    let Some(fixture) = Fixture::new("") else { return };
    for (program, want) in [("nope", "executable file not found in $PATH"), ("/nope", "no such file or directory")] {
        fixture.change(|spec| spec["process"]["args"] = json!([program]));
        let log = fixture.path("log.json");
        let words = ["--log", &log, "--log-format", "json", "create", "--bundle", fixture.bundle(), "c"];
        assert_eq!(fixture.fails(&words).0, 1);
        let text = std::fs::read_to_string(&log).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(last["msg"].as_str().unwrap().contains(want), "{text}");
    }
    assert_eq!(fixture.ok(&["list", "-q"]), "");
    for words in [&["nope"][..], &["create", "--nope", "x"], &["create", "../x"], &["kill", "c", "NOPE"]] {
        let (code, text) = fixture.fails(words);
        assert!(code == 1 && !text.is_empty(), "{words:?}");
    }
}

#[test]
fn an_exec_error_after_the_start_is_an_error_of_the_start() {
    let Some(fixture) = Fixture::new("") else { return };
    let path = fixture.path("rootfs/bin/garbage");
    std::fs::write(&path, "\x7fELFgarbage").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fixture.change(|spec| spec["process"]["args"] = json!(["garbage"]));
    fixture.create("c");
    let (_, text) = fixture.fails(&["start", "c"]);
    assert_eq!(text, "exec garbage: exec format error\n");
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let Some(fixture) = Fixture::new("tty; echo done") else { return };
    fixture.change(|spec| spec["process"]["terminal"] = json!(true));
    let (_, text) = fixture.fails(&["create", "--bundle", fixture.bundle(), "c"]);
    assert!(text.contains("console socket"), "{text}");
    let socket = fixture.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fixture.ok(&["create", "--bundle", fixture.bundle(), "--console-socket", &socket, "c"]);
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, flags).unwrap();
    let master =
        control
            .drain()
            .find_map(|message| {
                if let rustix::net::RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None }
            })
            .unwrap();
    fixture.ok(&["start", "c"]);
    let mut text = Vec::new();
    let _ = std::io::Read::read_to_end(&mut std::fs::File::from(master), &mut text);
    assert_eq!(String::from_utf8_lossy(&text).replace('\r', ""), "/dev/pts/0\ndone\n");
}

#[test]
fn what_engines_ask_first() {
    let Some(fixture) = Fixture::new("") else { return };
    assert!(fixture.ok(&["--version"]).starts_with("gantry-oci version "));
    let features: Value = serde_json::from_str(&fixture.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert!(fixture.ok(&["--help"]).contains("create"));
    assert!(fixture.ok(&["exec", "--help"]).contains("--process"));
    let (_, text) = fixture.fails(&["spec", "--bundle", fixture.bundle()]);
    assert!(text.contains("exists"), "{text}");
}

#[test]
fn readiness_goes_to_the_service_manager() {
    use std::os::unix::net::UnixDatagram;
    let Some(fixture) = Fixture::new("test -S $NOTIFY_SOCKET && sleep 1000") else { return };
    let manager = UnixDatagram::bind(fixture.path("manager")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut child = fixture
        .command(&["run", "--detach", "--bundle", fixture.bundle(), "--pid-file", &fixture.path("pid"), "c"])
        .env("NOTIFY_SOCKET", fixture.path("manager"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // What the container sees as /run/notify/notify.sock.
    let inside = fixture.path("state/c/notify/notify.sock");
    let container = UnixDatagram::unbound().unwrap();
    for said in ["STATUS=nearly", "STATUS=now\nREADY=1\n"] {
        fixture.eventually("the socket", || container.send_to(said.as_bytes(), &inside).is_ok());
    }
    let heard = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(heard(), "READY=1\n");
    let pid = heard().trim().to_owned();
    // The pipe that comes with it is closed as nobody takes it, which is the answer.
    assert_eq!(heard(), "BARRIER=1");
    assert!(child.wait().unwrap().success());
    assert_eq!(pid, format!("MAINPID={}", std::fs::read_to_string(fixture.path("pid")).unwrap()));
    assert_eq!(fixture.status("c"), "running");
}

/// Where CRIU can serve, a container goes on where it was; where it cannot, the container goes on as if nothing had been.
#[test]
fn checkpoints_and_restores() {
    let script = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done";
    let Some(fixture) = Fixture::new(script) else { return };
    fixture.change(|spec| spec["root"]["readonly"] = json!(false));
    let quiet = |words: &[&str]| {
        let mut command = fixture.command(words);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(fixture.path("errors")).unwrap());
        (command.status().unwrap().success(), std::fs::read_to_string(fixture.path("errors")).unwrap())
    };
    let count = || {
        let text = std::fs::read_to_string(fixture.path("rootfs/count")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let moves = |what: &str| {
        let before = count();
        fixture.eventually(what, || count() > before);
    };
    let (images, work) = (fixture.path("images"), fixture.path("work"));
    let (ran, errors) = quiet(&["run", "--detach", "--bundle", fixture.bundle(), "c"]);
    assert!(ran, "{errors}");
    moves("the first number");

    // Without the program there is a plain answer.
    let alone =
        fixture.command(&["checkpoint", "--image-path", &images, "c"]).env("PATH", "/var/empty").output().unwrap();
    assert!(String::from_utf8_lossy(&alone.stderr).contains("need criu"), "{alone:?}");
    for (parent, want) in [("/before", "must be relative"), ("../nothing", "--parent-path")] {
        let (_, text) = fixture.fails(&["checkpoint", "--image-path", &images, "--parent-path", parent, "c"]);
        assert!(text.contains(want), "{text}");
    }
    if Command::new("criu").arg("--version").output().is_err() {
        println!("SKIP checkpoints_and_restores: criu is not installed");
        return;
    }
    // A link to somewhere else is not written through.
    std::fs::create_dir_all(&work).unwrap();
    symlink(fixture.path("elsewhere"), fixture.path("work/dump.log")).unwrap();
    let (_, text) = fixture.fails(&["checkpoint", "--image-path", &images, "--work-path", &work, "c"]);
    assert!(text.contains("dump.log") && !Path::new(&fixture.path("elsewhere")).exists(), "{text}");
    std::fs::remove_file(fixture.path("work/dump.log")).unwrap();

    let (dumped, errors) = quiet(&["checkpoint", "--image-path", &images, "--work-path", &work, "c"]);
    if !dumped {
        assert!(errors.contains("criu failed: type DUMP") && errors.contains("work/dump.log"), "{errors}");
        assert_eq!(fixture.status("c"), "running");
        moves("a number after a checkpoint that failed");
        println!("SKIP checkpoints_and_restores: the restore: criu cannot dump on this kernel: {errors}");
        return;
    }
    fixture.fails(&["state", "c"]);
    let at = count();
    let words =
        ["restore", "--detach", "--bundle", fixture.bundle(), "--image-path", &images, "--work-path", &work, "c"];
    let (restored, errors) = quiet(&words);
    assert!(restored, "{errors}");
    moves("a number after the restore");
    assert!(count() > at && fixture.status("c") == "running");
    assert_eq!(fixture.ok(&["exec", "c", "echo", "inside"]), "inside\n");
}

/// Containers of ours in the eyes of runc, where the host has it.
#[test]
fn runc_shows_our_containers() {
    let Some(fixture) = Fixture::new("sleep 1000") else { return };
    let runc = |words: &[&str]| {
        let output = Command::new("runc").args(["--root", &fixture.path("state")]).args(words).output().ok()?;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).ok()
    };
    if Command::new("runc").arg("--version").output().is_err() {
        println!("SKIP runc_shows_our_containers: no runc on this host");
        return;
    }
    fixture.create("c");
    let pid = std::fs::read_to_string(fixture.path("pid")).unwrap();
    for status in ["created", "running", "paused"] {
        match status {
            "running" => drop(fixture.ok(&["start", "c"])),
            "paused" => drop(fixture.ok(&["pause", "c"])),
            _ => {}
        }
        let state: Value = serde_json::from_str(&runc(&["state", "c"]).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["status"]), (&json!("c"), &json!(status)));
        assert_eq!((state["pid"].to_string(), &state["bundle"]), (pid.clone(), &json!(fixture.bundle())));
        let list = runc(&["list"]).unwrap();
        assert!(list.contains(status) && list.contains(&pid), "{list}");
    }
}

/// The release binary where `cargo xtask test` names a directory of them, else the one that cargo built beside the test.
fn binary() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_gantry-oci");
    std::env::var_os("GANTRY_BIN_DIR")
        .map_or_else(|| built.into(), |directory| Path::new(&directory).join("gantry-oci"))
}
