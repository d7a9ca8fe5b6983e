//! OCI runtimes that are programs: runc, crun, whatever a client names, or a script around one.
//!
//! ```text
//!  engine ─▶ Runtime::create/start/exec/…  ── exec, --log, --pid-file ─▶ <runtime> create ── forks ─▶ init
//!                    ▲ its end, by pidfd ────────────────────────────────────┘ ends           │ becomes ours:
//!                    └ what went wrong, from its log                                          ▼ we are its reaper
//! ```
//!
//! A bare name of [`EMBEDDED`] means the runtime inside this program instead: daemons name `runc` without meaning a file.
//!
//! **Invariant:** the loop never waits for a runtime: its process is awaited by pidfd, has a deadline, and is reaped by
//! the call that started it.

mod console;
mod container;
mod log;

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_shim::messages::Options;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use sys::spawn::Command;

use crate::error::Error;
use crate::watch::watch_readable;
pub(crate) use container::{Calls, Container};

/// Names that mean the runtime in this program.
const EMBEDDED: [&str; 3] = ["", "runc", "gantry-oci"];

/// Where runtimes keep their state unless the client says otherwise: containerd's place.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// Files of containerd's runc shim in the bundle, which tell its `delete`, and ours, what to clean up with.
const RUNTIME_FILE: &str = "runtime";
const OPTIONS_FILE: &str = "options.json";

/// More of what a runtime prints is not read.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;

/// How long a runtime may take for anything that involves hooks, and for anything else.
pub(crate) const LONG: Duration = Duration::from_secs(30);
pub(crate) const SHORT: Duration = Duration::from_secs(10);

/// Whether a client means another runtime than the one in this program.
pub(crate) fn is_foreign(options: &Options) -> bool {
    !EMBEDDED.contains(&options.binary_name.as_str())
}

/// How to call a runtime for one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Runtime {
    /// As the client named it.
    #[serde(rename = "binary_name")]
    name: String,
    /// Where it keeps its state.
    root: PathBuf,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    #[serde(skip)]
    program: PathBuf,
    #[serde(skip)]
    bundle: PathBuf,
}

/// The standard streams of a runtime's process.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Those of the process that it is to make.
    Process { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// Text to read; what it prints is collected.
    Text(Vec<u8>),
}

impl Runtime {
    /// The runtime that the options name. Its file must exist.
    pub(crate) fn new(options: &Options, namespace: &str, bundle: &Path) -> Result<Self, Error> {
        let root = if options.root.is_empty() { DEFAULT_ROOT } else { &options.root };
        Ok(Self {
            program: find(&options.binary_name)?,
            name: options.binary_name.clone(),
            root: Path::new(root).join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            bundle: bundle.to_owned(),
        })
    }

    /// The runtime that [`Runtime::keep`] noted in a bundle; `None` for the embedded one.
    pub(crate) fn of_bundle(bundle: &Path) -> Option<Self> {
        let json = std::fs::read(bundle.join(OPTIONS_FILE)).ok()?;
        let kept: Self = serde_json::from_slice(&json).ok()?;
        let program = find(&kept.name).ok()?;
        Some(Self { program, bundle: bundle.to_owned(), ..kept })
    }

    /// Notes in the bundle which runtime has the container, for a `delete` after our death.
    pub(crate) fn keep(&self) -> Result<(), Error> {
        let failed = |name: &str, source: std::io::Error| Error::file("write", self.bundle.join(name), source);
        let json = serde_json::to_vec(self).map_err(|error| failed(OPTIONS_FILE, error.into()))?;
        let dir = std::fs::File::open(&self.bundle).map_err(|source| Error::file("open", &self.bundle, source))?;
        for (name, bytes) in [(OPTIONS_FILE, json.as_slice()), (RUNTIME_FILE, self.name.as_bytes())] {
            sys::fs::write_atomic(dir.as_fd(), name, bytes, 0o600).map_err(|errno| failed(name, errno.into()))?;
        }
        Ok(())
    }

    /// Runs one command of the runtime to its end and returns what it printed.
    ///
    /// Cancelled, it is killed. The caller counts it as an operation, so that nobody else reaps what it leaves.
    async fn call(
        &self,
        operation: &'static str,
        words: Vec<OsString>,
        streams: Streams,
        limit: Duration,
    ) -> Result<String, Error> {
        let failed = |source: std::io::Error| Error::file("execute", &self.program, source);
        let log = log::Log::at(self.bundle.join(log::FILE));
        let printed = memfd().map_err(failed)?;
        let mut command = self.command(log.path(), words).inherit_env();
        command = match streams {
            Streams::Process { stdin, stdout, stderr } => command.fd(0, stdin).fd(1, stdout).fd(2, stderr),
            Streams::Text(input) => {
                let stdin = memfd().map_err(failed)?;
                write_all(&stdin, &input).map_err(failed)?;
                let copy = |command: Command, number| command.borrow_fd(number, printed.as_fd());
                copy(copy(command.fd(0, stdin), 1).map_err(|errno| failed(errno.into()))?, 2)
                    .map_err(|errno| failed(errno.into()))?
            }
        };
        let mut child = Running { child: command.spawn().map_err(|errno| failed(errno.into()))?, ended: false };
        let watched = watch_readable(&child.child.pidfd).map_err(failed)?;
        match tokio::time::timeout(limit, watched.readable()).await {
            Ok(readable) => drop(readable.map_err(failed)?),
            Err(_) => return Err(Error::Deadline { operation, seconds: limit.as_secs() }),
        }
        let status = child.reap().map_err(failed)?;
        let printed = read_all(printed).map_err(failed)?;
        if status == 0 {
            return Ok(printed);
        }
        let message = log.last_error().unwrap_or_else(|| {
            let printed = printed.trim();
            let tail = printed.lines().last().unwrap_or("it said nothing");
            format!("{} {operation} ended with status {status}: {tail}", self.name)
        });
        Err(Error::Foreign { operation, message })
    }

    /// The program with its global flags and `words`.
    fn command(&self, log: &Path, words: Vec<OsString>) -> Command {
        let mut command = Command::new(&self.program).arg("--root").arg(&self.root).arg("--log").arg(log);
        command = command.args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command = command.arg("--systemd-cgroup");
        }
        command.args(words).cwd(&self.bundle)
    }

    /// Removes a container of which only its runtime's state is left, for the command `delete`. Blocks.
    pub(crate) fn delete_now(&self, id: &str) -> Result<(), Error> {
        let words = ["delete", "--force", id].map(OsString::from).to_vec();
        // Its status says no more than its log: what is left is looked for by the caller.
        self.call_now("delete", self.command(&self.bundle.join(log::FILE), words)).map(drop)
    }

    /// What the runtime can do, JSON, for the command `-info`. Blocks.
    pub(crate) fn features_now(&self) -> Result<String, Error> {
        let (status, printed) = self.call_now("features", Command::new(&self.program).arg("features"))?;
        if status != 0 || serde_json::from_str::<serde_json::Value>(&printed).is_err() {
            let message = format!("{} features ended with status {status} and printed no JSON", self.name);
            return Err(Error::Foreign { operation: "features", message });
        }
        Ok(printed)
    }

    /// Runs one command to its end, for a program that does nothing else. Answers status and output.
    fn call_now(&self, operation: &'static str, command: Command) -> Result<(u32, String), Error> {
        let failed = |source: std::io::Error| Error::file("execute", &self.program, source);
        let printed = memfd().map_err(failed)?;
        let command = command.inherit_env().borrow_fd(1, printed.as_fd()).map_err(|errno| failed(errno.into()))?;
        let mut child = Running { child: command.spawn().map_err(|errno| failed(errno.into()))?, ended: false };
        let waited = sys::fs::poll_readable(child.child.pidfd.as_fd(), Some(SHORT));
        if !waited.map_err(|errno| Error::system("wait for the runtime", errno))? {
            return Err(Error::Deadline { operation, seconds: SHORT.as_secs() });
        }
        let status = child.reap().map_err(failed)?;
        Ok((status, read_all(printed).map_err(failed)?))
    }
}

/// A runtime's process. Dropped before its end it is killed and reaped.
struct Running {
    child: sys::spawn::Child,
    ended: bool,
}

impl Running {
    fn reap(&mut self) -> std::io::Result<u32> {
        self.ended = true;
        Ok(sys::process::wait(self.child.pidfd.as_fd())?.exit.status())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // A killed process ends at once, unless the kernel itself is stuck with it.
            let _ = sys::process::pidfd_send_signal(&self.child.pidfd, rustix::process::Signal::KILL.as_raw());
            let _ = sys::process::wait(self.child.pidfd.as_fd());
        }
    }
}

/// The file that a name means: an absolute path as it is, a bare name by `PATH`.
fn find(name: &str) -> Result<PathBuf, Error> {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let path = PathBuf::from(name);
    if path.is_absolute() {
        return if executable(&path) { Ok(path) } else { Err(Error::NoRuntime { name: name.to_owned(), path: true }) };
    }
    if name.contains('/') {
        return Err(Error::InvalidRequest(format!("runtime binary {name:?} must be a bare name or an absolute path")));
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| executable(path))
        .ok_or_else(|| Error::NoRuntime { name: name.to_owned(), path: false })
}

fn memfd() -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create("runtime", MemfdFlags::CLOEXEC)?)
}

/// Fills a file without moving its position, from which a child will read.
fn write_all(file: &OwnedFd, bytes: &[u8]) -> std::io::Result<()> {
    let mut at = 0;
    while let Some(left) = bytes.get(at..).filter(|left| !left.is_empty()) {
        at += rustix::io::pwrite(file, left, at as u64)?;
    }
    Ok(())
}

fn read_all(file: OwnedFd) -> std::io::Result<String> {
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options {
        let mut options = Options::new();
        options.binary_name = name.to_owned();
        options
    }

    #[test]
    fn bare_names_are_the_embedded_runtime() {
        for (name, foreign) in [
            ("", false),
            ("runc", false),
            ("gantry-oci", false),
            ("crun", true),
            ("/usr/sbin/runc", true),
            ("no-runc", true),
        ] {
            assert_eq!(is_foreign(&options(name)), foreign, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_executed_is_named() {
        for (name, text) in [
            ("no-runc", "exec: \"no-runc\": executable file not found in $PATH"),
            ("/no/runc", "exec: \"/no/runc\": no such file"),
            ("./runc", "must be a bare name or an absolute path"),
            ("/etc/passwd", "exec: \"/etc/passwd\""),
        ] {
            let error = Runtime::new(&options(name), "ns", Path::new("/b")).map(drop).unwrap_err();
            assert!(model::render(&error).contains(text), "{}", model::render(&error));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_and_its_failures() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        let script = r#"#!/bin/sh
[ "$1 $3 $5 $6" = "--root --log --log-format json" ] || exit 9
log=$4; shift 6
case $1 in
    cat) cat ;;
    log) echo '{"level":"error","msg":"old"}' >> "$log"; echo '{"level":"error","msg":"the reason"}' >> "$log"; exit 1 ;;
    say) echo out; echo "last words" >&2; exit 3 ;;
    hang) exec sleep 1000 ;;
esac
"#;
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = Runtime::new(&options(program.to_str().unwrap()), "ns", dir.path()).unwrap();
        let call = |word: &str, limit| {
            let words = vec![OsString::from(word)];
            let runtime = runtime.clone();
            async move { runtime.call("test", words, Streams::Text(b"in".to_vec()), limit).await }
        };
        assert_eq!(call("cat", LONG).await.unwrap(), "in");
        let failure = |error: Error| model::render(&error);
        assert_eq!(failure(call("log", LONG).await.unwrap_err()), "OCI runtime test failed: the reason");
        let said = failure(call("say", LONG).await.unwrap_err());
        assert!(said.ends_with("test ended with status 3: last words"), "{said}");
        assert!(matches!(call("hang", Duration::ZERO).await, Err(Error::Deadline { .. })));
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Runtime::of_bundle(dir.path()).is_none());
        let mut wanted = options("/bin/true");
        wanted.root = "/r".to_owned();
        wanted.systemd_cgroup = true;
        Runtime::new(&wanted, "ns", dir.path()).unwrap().keep().unwrap();
        let found = Runtime::of_bundle(dir.path()).unwrap();
        assert_eq!((found.root.as_path(), found.systemd_cgroup), (Path::new("/r/ns"), true));
        assert_eq!(std::fs::read_to_string(dir.path().join(RUNTIME_FILE)).unwrap(), "/bin/true");
    }
}
