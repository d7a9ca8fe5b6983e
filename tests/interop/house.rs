//! A daemon with a shim and a runtime: the cell of the matrix that a scenario runs in.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::{Containerd, Daemon, Leaks, Output, Pty, eventually};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// The daemon, and how its clients name the shim.
pub struct House {
    daemon: Host,
    directory: PathBuf,
    /// Runtimes keep their state by namespace and id in one place for the whole host.
    namespace: String,
    cgroup: String,
    flags: Vec<String>,
}

enum Host {
    Gantry(Box<Daemon>),
    Debian(Option<Containerd>, tempfile::TempDir),
}

impl House {
    /// gantryd; `flags` are those of `ctr run` that choose shim and runtime.
    pub fn gantry(daemon: Daemon, flags: &[&str]) -> Self {
        let (directory, cgroup) = (daemon.directory().to_owned(), daemon.cgroup().to_owned());
        Self::open(Host::Gantry(Box::new(daemon)), directory, cgroup, flags)
    }

    /// Debian's containerd, which finds our shim too.
    pub fn debian(name: &str, flags: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("gantry-{name}-")).tempdir().unwrap();
        let shim = testkit::binary("containerd-shim-gantry-v2");
        let daemon = Containerd::start(&directory.path().join("d"), shim.parent()).unwrap();
        let path = directory.path().to_owned();
        let cgroup = format!("/{}", path.file_name().unwrap().to_string_lossy());
        Self::open(Host::Debian(Some(daemon), directory), path, cgroup, flags)
    }

    fn open(daemon: Host, directory: PathBuf, cgroup: String, flags: &[&str]) -> Self {
        let namespace = cgroup.trim_start_matches('/').to_owned();
        let house = Self { daemon, directory, namespace, cgroup, flags: own(flags) };
        let tar = house.directory.join("busybox.tar");
        testkit::busybox_image(&tar, IMAGE).unwrap();
        house.ctr(&["image", "import", &tar.to_string_lossy()]).ok();
        house
    }

    /// Whether the daemon is ours, which loses nothing.
    pub fn is_gantry(&self) -> bool {
        matches!(self.daemon, Host::Gantry(_))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut words = vec!["--namespace", self.namespace.as_str()];
        words.extend(arguments);
        match &self.daemon {
            Host::Gantry(daemon) => daemon.ctr(&words),
            Host::Debian(Some(daemon), _) => daemon.ctr(&words),
            Host::Debian(None, _) => unreachable!("it is taken when the house is dropped"),
        }
    }

    fn words(&self, id: &str, flags: &[&str], command: &[&str]) -> Vec<String> {
        let fifo = self.directory.join("fifo").to_string_lossy().into_owned();
        let mut words = own(&["run"]);
        words.extend(self.flags.iter().cloned());
        words.extend(["--cgroup".into(), format!("{}/{id}", self.cgroup), "--fifo-dir".into(), fifo]);
        words.extend(own(flags));
        words.extend(own(&[IMAGE, id]));
        words.extend(own(command));
        words
    }

    /// `ctr run`.
    pub fn run(&self, id: &str, flags: &[&str], command: &[&str]) -> Output {
        let words = self.words(id, flags, command);
        self.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `ctr run --tty` on a terminal.
    pub fn run_on_terminal(&self, id: &str, command: &[&str]) -> Pty {
        let address = match &self.daemon {
            Host::Gantry(daemon) => daemon.address(),
            Host::Debian(daemon, _) => daemon.as_ref().unwrap().address(),
        };
        let mut words = vec!["--address".to_owned(), address, "--namespace".to_owned(), self.namespace.clone()];
        words.extend(self.words(id, &["--rm", "--tty"], command));
        Pty::spawn("ctr", &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    }

    /// Kills the daemon without a warning.
    pub fn kill_daemon(&mut self) {
        match &mut self.daemon {
            Host::Gantry(daemon) => daemon.kill(),
            Host::Debian(daemon, _) => daemon.as_mut().unwrap().kill(),
        }
    }

    /// Starts it again.
    pub fn launch_daemon(&mut self) {
        match &mut self.daemon {
            Host::Gantry(daemon) => drop(daemon.launch().unwrap()),
            Host::Debian(daemon, _) => daemon.as_mut().unwrap().launch().unwrap(),
        }
    }

    /// Pid and status of a task; `None` if there is no such task.
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let listed = self.ctr(&["task", "ls"]).ok().stdout;
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(id))?;
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    }

    /// Waits for a status.
    pub fn until(&self, id: &str, status: &str) {
        eventually(&format!("{id} is {status}"), || match self.task(id) {
            Some((_, found)) if found == status => Ok(()),
            found => Err(format!("{found:?}")),
        });
    }

    /// Removes a stopped task and its container, and returns how the task had ended: ctr tells it in a warning.
    pub fn remove(&self, id: &str) -> u32 {
        let removed = self.ctr(&["task", "rm", id]);
        let text = removed.text();
        let told = text.split("non-zero exit code ").nth(1).map(|rest| rest.trim().trim_end_matches('"').parse());
        assert!(removed.code == 0 || told.is_some(), "{text}");
        self.ctr(&["container", "rm", id]).ok();
        told.map_or(0, Result::unwrap)
    }

    /// The shims of this daemon, by pid.
    pub fn shims(&self) -> Vec<i32> {
        let named = testkit::processes_naming(&self.directory.to_string_lossy());
        let shims = named
            .into_iter()
            .filter(|(_, line)| line.split(' ').next().is_some_and(|program| program.contains("containerd-shim-")));
        shims.map(|(pid, _)| pid).collect()
    }

    /// The socket of a task's shim, as the shim itself notes it.
    pub fn socket(&self, id: &str) -> Option<PathBuf> {
        let state = match &self.daemon {
            Host::Gantry(_) => self.directory.join("state"),
            Host::Debian(..) => self.directory.join("d/state"),
        };
        let bundle = state.join("io.containerd.runtime.v2.task").join(&self.namespace).join(id);
        let address = fs::read_to_string(bundle.join("address")).ok()?;
        address.strip_prefix("unix://").map(PathBuf::from)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // gantryd's own testkit looks for what it left.
        let Host::Debian(daemon, directory) = &mut self.daemon else { return };
        let leaks = Leaks::new(directory.path(), &self.cgroup);
        drop(daemon.take());
        if !std::thread::panicking() {
            eventually("nothing is left behind", || {
                let found = leaks.find();
                if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
            });
        }
        leaks.remove_own_cgroup();
    }
}

fn own(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
