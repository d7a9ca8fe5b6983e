//! A bundle with a root file system, and a way to run it to its end.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use runtime::{
    Container, Creating, Error, ExecOptions, ExecProcess, HostFeatures, Plan, PlanOptions, ProcessIo, Rootfs, wait,
};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 43] = [
    "sh", "true", "false", "cat", "echo", "id", "ls", "mount", "sleep", "hostname", "readlink", "stat", "touch",
    "mkdir", "kill", "grep", "head", "env", "pwd", "ip", "chmod", "mknod", "dd", "od", "tty", "stty", "umount", "wc",
    "sort", "ps", "ln", "rm", "rmdir", "cut", "date", "sync", "chown", "dmesg", "test", "tr", "usleep", "ionice",
    "uname",
];

/// Why nothing can be tested here.
pub(crate) fn missing() -> Option<String> {
    let mut head = Vec::new();
    match File::open(BUSYBOX).and_then(|file| file.take(4 << 20).read_to_end(&mut head)) {
        Err(error) => Some(format!("{BUSYBOX}: {error}")),
        // A dynamic program names its loader.
        Ok(_) if head.windows(7).any(|bytes| bytes == b"/ld-lin") => Some(format!("{BUSYBOX} is not static")),
        Ok(_) if !rustix::process::geteuid().is_root() => Some("needs root".to_owned()),
        Ok(_) => None,
    }
}

/// A bundle of its own, with its own cgroup.
pub(crate) struct Bundle {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) spec: Value,
    pub(crate) host: HostFeatures,
    pub(crate) id: String,
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: u32,
    pub(crate) output: String,
}

impl Bundle {
    /// A shell command with Docker-like mounts and namespaces.
    pub(crate) fn new(script: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("case-{number}");
        let directory = tempfile::tempdir().unwrap();
        let rootfs = directory.path().join("rootfs");
        for path in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(rootfs.join(path)).unwrap();
        }
        std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let mut spec = serde_json::to_value(oci::default_spec().unwrap()).unwrap();
        spec["root"]["readonly"] = json!(false);
        spec["hostname"] = json!("inside");
        let process = &mut spec["process"];
        process["terminal"] = json!(false);
        process["args"] = json!(["sh", "-c", script]);
        process["env"] = json!(["PATH=/bin", "HOME=/root"]);
        process["rlimits"] = json!([]);
        let all = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE", "CAP_MKNOD"];
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(all);
        }
        spec["linux"]["cgroupsPath"] = json!(format!("/gantry-test-{}/{id}", std::process::id()));
        Self { directory, spec, host: HostFeatures::detect().unwrap(), id }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    pub(crate) fn options(&self) -> PlanOptions {
        PlanOptions { id: self.id.clone(), bundle: self.directory.path().to_owned(), ..PlanOptions::default() }
    }

    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let spec = oci::parse_spec(self.spec.to_string().as_bytes()).unwrap();
        Plan::new(&spec, &self.host, &self.options())
    }

    pub(crate) fn create(&self, io: ProcessIo) -> Result<Container, Error> {
        self.create_from(Rootfs::Path(self.rootfs()), io)
    }

    pub(crate) fn create_from(&self, rootfs: Rootfs, io: ProcessIo) -> Result<Container, Error> {
        let plan = self.plan()?;
        wait(&mut Creating::begin(plan, &self.host, rootfs, io, None)?)
    }

    /// Creates, starts, waits and deletes.
    pub(crate) fn run(&self) -> Result<Outcome, Error> {
        let (io, output) = streams();
        let mut container = self.create(io)?;
        let started = container.start().and_then(|mut starting| wait(&mut starting));
        let status = reap(container.pidfd().try_clone_to_owned().unwrap());
        wait(&mut container.delete(false)?)?;
        started?;
        Ok(Outcome { status, output: read(output) })
    }

    /// The output of a program that must end well.
    pub(crate) fn output(&self) -> String {
        let outcome = self.run().unwrap_or_else(|error| panic!("{}", model::render(&error)));
        assert_eq!(outcome.status, 0, "{}", outcome.output);
        outcome.output
    }

    /// The text of the error that running it must give.
    pub(crate) fn error(&self) -> String {
        match self.run() {
            Ok(outcome) => panic!("no error: {outcome:?}"),
            Err(error) => model::render(&error),
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let path = cgroups::CgroupPath::new(&format!("/gantry-test-{}", std::process::id())).unwrap();
        if let Ok(cgroup) = cgroups::Cgroup::open(&self.host.cgroups, &path) {
            let _ = cgroup.delete();
        }
        let left = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = self.directory.path().to_str().unwrap();
        assert!(std::thread::panicking() || !left.contains(name), "a mount is left on the host:\n{left}");
    }
}

/// Standard streams with the output in a file.
pub(crate) fn streams() -> (ProcessIo, File) {
    let output = tempfile::tempfile().unwrap();
    let io = ProcessIo::Streams {
        stdin: File::open("/dev/null").unwrap().into(),
        stdout: output.try_clone().unwrap().into(),
        stderr: output.try_clone().unwrap().into(),
    };
    (io, output)
}

pub(crate) fn read(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end of a child and gives its exit status.
pub(crate) fn reap(pidfd: OwnedFd) -> u32 {
    let ended = sys::fs::poll_readable(pidfd.as_fd(), Some(std::time::Duration::from_secs(30))).unwrap();
    assert!(ended, "the container does not end");
    sys::process::wait(pidfd.as_fd()).unwrap().exit.status()
}

/// Runs another process in a container to its end.
pub(crate) fn exec(container: &Container, process: &Value) -> Result<Outcome, Error> {
    let (io, output) = streams();
    let process = oci::parse_process(process.to_string().as_bytes()).unwrap();
    let ExecProcess { pidfd, .. } = wait(&mut container.exec(&process, io, &ExecOptions::default())?)?;
    let status = reap(pidfd);
    Ok(Outcome { status, output: read(output) })
}

/// The document of a shell command for [`exec`].
pub(crate) fn document(script: &str) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"})
}

/// A container whose program runs.
pub(crate) fn running(bundle: &Bundle) -> Container {
    let (io, _) = streams();
    let mut container = bundle.create(io).unwrap_or_else(|error| panic!("{}", model::render(&error)));
    wait(&mut container.start().unwrap()).unwrap();
    container
}

/// Ends a container that still runs and removes it.
pub(crate) fn end(mut container: Container) {
    let pidfd = container.pidfd().try_clone_to_owned().unwrap();
    let mut deleting = container.delete(true).unwrap();
    reap(pidfd);
    wait(&mut deleting).unwrap();
}
