//! A runtime under attack, and bundles whose every path outside of the root file system is a sentinel of our own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};

/// What the file `secret` beside the root file system holds.
pub(crate) const SECRET: &str = "secret-of-the-host";
/// The variable by which the undefended build of gantry-oci is told what to leave out.
const UNDEFENDED: &str = "GANTRY_UNDEFENDED";
/// How long one command may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(15);

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const APPLETS: [&str; 20] = [
    "sh", "cat", "echo", "env", "grep", "head", "id", "ls", "mkdir", "pwd", "readlink", "sleep", "stat", "touch",
    "true", "tty", "hostname", "test", "wc", "mount",
];

/// A runtime.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// How the table calls it.
    pub(crate) label: String,
    /// The binary that is run: a copy, since some attacks overwrite it.
    pub(crate) program: PathBuf,
    /// Whether it is our build that can leave out a defence.
    pub(crate) undefended: bool,
}

/// Where one attack on one runtime takes place.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) subject: Subject,
    /// The defence that is left out, for the undefended build.
    pub(crate) without: Option<&'static str>,
    /// A directory that nobody else uses.
    pub(crate) scratch: PathBuf,
    /// Bounds of a race.
    pub(crate) rounds: u32,
    pub(crate) race_time: Duration,
}

/// How an attack ended.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// It did nothing; with what the runtime did instead.
    Stopped(String),
    /// It succeeded; with what was reached.
    Bites(String),
    /// It could not be mounted here.
    Skipped(String),
}

impl Verdict {
    /// Bites if something was reached.
    pub(crate) fn of(reached: Option<String>, otherwise: impl Into<String>) -> Self {
        reached.map_or_else(|| Self::Stopped(otherwise.into()), Self::Bites)
    }
}

/// How a command of the runtime ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// The exit code, if it exited.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Both streams.
    pub(crate) text: String,
    /// Whether it had to be killed.
    pub(crate) hung: bool,
    /// The largest resident set that was seen, KiB.
    pub(crate) peak_kib: u64,
    pub(crate) took: Duration,
}

impl Output {
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// The last line, shortened, for the table.
    pub(crate) fn said(&self) -> String {
        if self.hung {
            return "hung".to_owned();
        }
        let last = self.text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        let from = last.char_indices().rev().nth(89).map_or(0, |(at, _)| at);
        last[from..].replace('|', "/")
    }
}

/// A bundle, the host beside it, and the container made of it.
#[derive(Debug)]
pub(crate) struct Bundle {
    lab: Lab,
    pub(crate) directory: PathBuf,
    pub(crate) spec: Value,
    pub(crate) id: String,
    /// Words before the command, such as `setpriv`.
    pub(crate) wrapper: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Bundle {
    /// A container like Docker's that runs a shell command.
    pub(crate) fn new(lab: &Lab, script: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("a{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = lab.scratch.join(&id);
        let rootfs = directory.join("rootfs");
        for path in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(path)).expect("make a root file system");
        }
        fs::create_dir_all(directory.join("host")).expect("make the host's directory");
        fs::create_dir_all(directory.join("volume")).expect("make the volume");
        fs::write(directory.join("host/secret"), SECRET).expect("write the secret");
        fs::hard_link(lab.scratch.join("busybox"), rootfs.join("bin/busybox")).expect("link busybox");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("link an applet");
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("write passwd");
        let spec = spec(script, &id);
        Self { lab: lab.clone(), directory, spec, id, wrapper: Vec::new(), environment: Vec::new() }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// A directory of the host that no container is given.
    pub(crate) fn host(&self) -> PathBuf {
        self.directory.join("host")
    }

    /// A directory of the host that containers share and the attacker writes to.
    pub(crate) fn volume(&self) -> PathBuf {
        self.directory.join("volume")
    }

    /// Gives the volume to the container.
    pub(crate) fn share(&mut self, destination: &str) {
        let source = self.volume();
        self.mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"]}));
    }

    pub(crate) fn mount(&mut self, mount: Value) {
        self.spec["mounts"].as_array_mut().expect("mounts").push(mount);
    }

    /// Leaves out the mount at `destination`.
    pub(crate) fn unmount(&mut self, destination: &str) {
        self.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != destination);
    }

    /// Puts this program into the root file system as `/attack`, with the libraries that it needs.
    pub(crate) fn add_payload(&self) {
        let rootfs = self.rootfs();
        fs::copy("/proc/self/exe", rootfs.join("attack")).expect("copy the payload");
        let maps = fs::read_to_string("/proc/self/maps").expect("read the maps");
        let mut libraries: Vec<&str> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .filter(|path| path.contains(".so"))
            .collect();
        libraries.dedup();
        // A runtime that is run inside may want more than the payload: it is to get as far as it can.
        let more: Vec<PathBuf> = libraries
            .iter()
            .filter(|path| path.contains("/libc.so"))
            .flat_map(|path| ["libm.so.6", "libgcc_s.so.1"].map(|name| Path::new(path).with_file_name(name)))
            .filter(|path| path.exists())
            .collect();
        libraries.extend(more.iter().filter_map(|path| path.to_str()));
        for library in libraries {
            let name = Path::new(library).file_name().expect("a library has a name");
            let mut places = vec![rootfs.join(library.trim_start_matches('/')), rootfs.join("lib").join(name)];
            if name.to_string_lossy().starts_with("ld-") {
                places.push(rootfs.join("lib64").join(name));
            }
            for place in places {
                fs::create_dir_all(place.parent().expect("a place has a parent")).expect("make a directory");
                fs::copy(library, place).expect("copy a library");
            }
        }
    }

    /// Writes `config.json`.
    pub(crate) fn save(&self) {
        fs::write(self.directory.join("config.json"), self.spec.to_string()).expect("write config.json");
    }

    /// Runs the container to its end.
    pub(crate) fn run(&self) -> Output {
        self.save();
        let output = self.saved_run();
        self.delete();
        output
    }

    /// As [`Bundle::run`], on what is saved.
    pub(crate) fn saved_run(&self) -> Output {
        let bundle = self.directory.to_string_lossy().into_owned();
        self.command(&["run", "--bundle", &bundle, &self.id])
    }

    /// Creates and starts the container and leaves it running; what went wrong otherwise.
    pub(crate) fn start(&self) -> Result<(), Output> {
        self.save();
        let bundle = self.directory.to_string_lossy().into_owned();
        for words in [&["create", "--bundle", &bundle, &self.id][..], &["start", &self.id]] {
            let output = self.command(words);
            if !output.ok() {
                return Err(output);
            }
        }
        Ok(())
    }

    /// Runs another process in the container.
    pub(crate) fn exec(&self, words: &[&str]) -> Output {
        let mut all = vec!["exec"];
        let (options, command) = words.split_at(words.iter().take_while(|word| word.starts_with('-')).count());
        all.extend(options);
        all.push(&self.id);
        all.extend(command);
        self.command(&all)
    }

    pub(crate) fn delete(&self) {
        self.command(&["delete", "--force", &self.id]);
    }

    /// Where the runtime keeps its state.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Runs a command of the runtime.
    pub(crate) fn command(&self, words: &[&str]) -> Output {
        let output = File::create(self.directory.join("output")).expect("make a file for the output");
        let mut command = match self.wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&self.lab.subject.program);
                command
            }
            None => Command::new(&self.lab.subject.program),
        };
        command.arg("--root").arg(self.state()).args(words).current_dir(&self.directory).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(without) = self.lab.without {
            command.env(UNDEFENDED, without);
        }
        command.stdout(output.try_clone().expect("copy a descriptor")).stderr(output);
        let child = loop {
            match command.spawn() {
                // Somebody inside has the binary open for writing: that is what an attack is about.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                result => break result.expect("start the runtime"),
            }
        };
        let mut output = finish(child);
        output.text =
            String::from_utf8_lossy(&fs::read(self.directory.join("output")).unwrap_or_default()).into_owned();
        output
    }

    /// Device and inode of the runtime's binary.
    pub(crate) fn program_inode(&self) -> (u64, u64) {
        let found = fs::metadata(&self.lab.subject.program).expect("look at the runtime");
        (found.dev(), found.ino())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.wrapper.clear();
        self.delete();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Waits for the end of a command, and kills it when it takes too long.
fn finish(mut child: Child) -> Output {
    let began = Instant::now();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("open a pidfd");
    let mut output = Output::default();
    loop {
        output.peak_kib = output.peak_kib.max(peak_kib(child.id()));
        let mut poll = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        if rustix::event::poll(&mut poll, Some(&pause)).unwrap_or(0) > 0 {
            break;
        }
        if began.elapsed() > PATIENCE {
            output.hung = true;
            let _ = child.kill();
            break;
        }
    }
    let status = child.wait().expect("wait for the runtime");
    (output.code, output.signal, output.took) = (status.code(), status.signal(), began.elapsed());
    output
}

fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A specification that every runtime of the last years understands.
fn spec(script: &str, id: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "cgroupsPath": format!("/gantry-attacks-{}/{id}", std::process::id()),
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Makes what all bundles share.
pub(crate) fn prepare(scratch: &Path) {
    let place = scratch.join("busybox");
    fs::copy("/bin/busybox", &place).expect("copy busybox");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("make busybox executable");
}
