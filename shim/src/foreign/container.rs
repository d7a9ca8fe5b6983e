//! A container that a foreign runtime made, and what is asked of the runtime about it.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use model::record::ProcessIdentity;
use runtime::ProcessIo;

use super::console::Console;
use super::{LONG, Runtime, SHORT, Streams};
use crate::error::Error;
use crate::stdio::Stdio;

/// A container of a foreign runtime.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) calls: Calls,
    identity: ProcessIdentity,
    pidfd: OwnedFd,
    /// As `/proc` showed it when the container was made. A runtime that leaves us none gets none of what needs it.
    cgroup: Option<cgroups::Cgroup>,
}

/// What a runtime is asked about one container; cheap to clone, so that no lock is held while it answers.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    runtime: Arc<Runtime>,
    id: String,
}

/// A process that a runtime made, by its pid file.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) identity: ProcessIdentity,
    pub(crate) pidfd: OwnedFd,
    pub(crate) console: Option<OwnedFd>,
}

impl Container {
    pub(crate) fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn cgroup(&self) -> Option<&cgroups::Cgroup> {
        self.cgroup.as_ref()
    }

    /// Kills the first process without the runtime's help; one that has ended is killed.
    pub(crate) fn kill_init(&self) -> Result<(), Error> {
        match sys::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL.as_raw()) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::system("kill a container", errno)),
        }
    }
}

impl Calls {
    pub(crate) fn new(runtime: Arc<Runtime>, id: String) -> Self {
        Self { runtime, id }
    }

    /// Makes the container. On an error nothing of it is left.
    pub(crate) async fn create(&self, io: ProcessIo, stdio: &mut Stdio) -> Result<Container, Error> {
        let runtime = &self.runtime;
        let pid_file = runtime.bundle.join("init.pid");
        let mut words: Vec<OsString> = vec!["create".into(), "--bundle".into(), runtime.bundle.clone().into()];
        words.extend(["--pid-file".into(), pid_file.clone().into()]);
        if runtime.no_pivot_root {
            words.push("--no-pivot".into());
        }
        if runtime.no_new_keyring {
            words.push("--no-new-keyring".into());
        }
        let made = self.make("create", words, io, &pid_file).await?;
        let undo = async |error| {
            // Nobody else knows of it.
            let _ = self.delete().await;
            Err(error)
        };
        if let Some(master) = made.console
            && let Err(error) = stdio.attach(master)
        {
            return undo(error).await;
        }
        let cgroup = cgroups::Host::detect().and_then(|host| cgroups::Cgroup::of_pid(&host, made.identity.pid)).ok();
        Ok(Container { calls: self.clone(), identity: made.identity, pidfd: made.pidfd, cgroup })
    }

    /// Starts an additional process; `process` is its document.
    pub(crate) async fn exec(&self, exec_id: &str, process: &[u8], io: ProcessIo) -> Result<Exec, Error> {
        let pid_file = self.runtime.bundle.join(format!("{exec_id}.pid"));
        let document = self.runtime.bundle.join(format!("{exec_id}.process.json"));
        std::fs::write(&document, process).map_err(|source| Error::file("write", &document, source))?;
        let mut words: Vec<OsString> = vec!["exec".into(), "--process".into(), document.clone().into()];
        words.extend(["--detach".into(), "--pid-file".into(), pid_file.clone().into()]);
        let made = self.make("exec", words, io, &pid_file).await;
        for file in [&document, &pid_file] {
            // What stays goes with the bundle.
            let _ = std::fs::remove_file(file);
        }
        made
    }

    /// Runs a command that makes a process.
    async fn make(
        &self,
        operation: &'static str,
        mut words: Vec<OsString>,
        io: ProcessIo,
        pid_file: &Path,
    ) -> Result<Exec, Error> {
        let (streams, console) = match io {
            ProcessIo::Streams { stdin, stdout, stderr } => (Streams::Process { stdin, stdout, stderr }, None),
            ProcessIo::Inherited => (Streams::Text(Vec::new()), None),
            ProcessIo::Console { .. } => {
                let console = Console::listen(&self.runtime.bundle)?;
                words.extend(["--console-socket".into(), console.path().into()]);
                (Streams::Text(Vec::new()), Some(console))
            }
        };
        // The pid of an earlier process of this name would be taken for the new one's.
        let _ = std::fs::remove_file(pid_file);
        words.push(self.id.clone().into());
        self.runtime.call(operation, words, streams, LONG).await?;
        let text = std::fs::read_to_string(pid_file).map_err(|source| Error::file("read", pid_file, source))?;
        let pid: u32 = text.trim().parse().map_err(|_| Error::Foreign {
            operation,
            message: format!("its pid file holds {:?}", text.chars().take(32).collect::<String>()),
        })?;
        // It is our child by now, dead or alive, and nobody but us reaps it.
        let pidfd = sys::process::pidfd_open(pid).map_err(|errno| Error::system("watch a process", errno))?;
        let identity = crate::record::identity(pid)?;
        let console = console.map(|console| console.take()).transpose()?;
        Ok(Exec { identity, pidfd, console })
    }

    async fn plain(&self, operation: &'static str, flags: &[&str]) -> Result<String, Error> {
        let words = std::iter::once(operation).chain(flags.iter().copied()).chain([self.id.as_str()]);
        let words = words.map(OsString::from).collect();
        self.runtime.call(operation, words, Streams::Text(Vec::new()), SHORT).await
    }

    /// Starts the container's program.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        let words = vec!["start".into(), self.id.clone().into()];
        self.runtime.call("start", words, Streams::Text(Vec::new()), LONG).await.map(drop)
    }

    /// Freezes the container.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.plain("pause", &[]).await.map(drop)
    }

    /// Thaws the container.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.plain("resume", &[]).await.map(drop)
    }

    /// Sends a signal to the first process, or with `all` to every one.
    pub(crate) async fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        let mut words: Vec<OsString> = vec!["kill".into()];
        if all {
            words.push("--all".into());
        }
        words.extend([self.id.clone().into(), signal.to_string().into()]);
        match self.runtime.call("kill", words, Streams::Text(Vec::new()), SHORT).await {
            Err(Error::Foreign { message, .. }) if is_finished(&message) => Err(Error::Finished),
            Err(Error::Foreign { message, .. }) if is_absent(&message) => Err(Error::NoContainer),
            other => other.map(drop),
        }
    }

    /// Pids of the container's processes.
    pub(crate) async fn pids(&self) -> Result<Vec<u32>, Error> {
        let printed = self.plain("ps", &["--format", "json"]).await?;
        let pids = serde_json::from_str::<Option<Vec<u32>>>(printed.trim()).map_err(|error| Error::Foreign {
            operation: "ps",
            message: format!("it printed no list of pids: {error}"),
        })?;
        Ok(pids.unwrap_or_default())
    }

    /// Changes limits; `resources` is JSON.
    pub(crate) async fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let words = ["update", "--resources", "-", self.id.as_str()].map(OsString::from).to_vec();
        self.runtime.call("update", words, Streams::Text(resources.to_vec()), SHORT).await.map(drop)
    }

    /// Removes the container and what is left of its processes. One that is gone is removed.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        let words = ["delete", "--force", self.id.as_str()].map(OsString::from).to_vec();
        match self.runtime.call("delete", words, Streams::Text(Vec::new()), LONG).await {
            Err(Error::Foreign { message, .. }) if is_absent(&message) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The words of runc and crun for a process that has ended.
fn is_finished(message: &str) -> bool {
    let message = message.to_lowercase();
    ["process already finished", "container not running", "no such process", "is not running"]
        .iter()
        .any(|words| message.contains(words))
}

/// Their words for a container that they do not know.
fn is_absent(message: &str) -> bool {
    message.contains("does not exist") || message.contains("error opening file `") && message.contains("status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_runtimes() {
        for (message, finished, absent) in [
            ("container not running", true, false),
            ("os: process already finished", true, false),
            ("kill container: No such process", true, false),
            ("container \"x\" does not exist", false, true),
            ("container does not exist", false, true),
            ("error opening file `/run/crun/x/status`: No such file or directory", false, true),
            ("permission denied", false, false),
        ] {
            assert_eq!((is_finished(message), is_absent(message)), (finished, absent), "{message}");
        }
    }
}
