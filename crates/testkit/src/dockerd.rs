use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::{ENGINE_IMAGE, Leaks, Output, eventually, run, run_with_input};

/// Debian's dockerd, with the containerd that it starts, in a private root and with an OCI runtime under test as its
/// default. Dropping it removes all containers, ends the daemon and fails the test if anything was left behind.
#[derive(Debug)]
pub struct Dockerd {
    directory: tempfile::TempDir,
    child: Child,
    leaks: Leaks,
}

impl Dockerd {
    /// Starts it and imports a busybox image.
    pub fn start(name: &str, runtime: &Path) -> Self {
        Self::launch(name, runtime).unwrap_or_else(|error| panic!("start dockerd: {error:#}"))
    }

    fn launch(name: &str, runtime: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("gantry-docker-").tempdir()?;
        let cgroup = format!("/gantry-docker-{name}-{}", std::process::id());
        let leaks = Leaks::new(directory.path(), &cgroup);
        let text = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        // Without a file of its own it would read that of the host.
        fs::write(text("daemon.json"), "{}")?;
        let log = File::create(text("dockerd.log"))?;
        let runtime = runtime.display();
        let child = Command::new("dockerd")
            .args(["--config-file", &text("daemon.json"), "--host", &format!("unix://{}", text("docker.sock"))])
            .args(["--data-root", &text("root"), "--exec-root", &text("exec"), "--pidfile", &text("pid")])
            .args(["--storage-driver", "vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false", "--cgroup-parent", &cgroup])
            .args([&format!("--add-runtime=gantry={runtime}"), "--default-runtime=gantry"])
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .context("start dockerd (package docker.io)")?;
        let docker = Self { directory, child, leaks };
        eventually("dockerd serves", || {
            let version = docker.docker(&["version"]);
            if version.code == 0 { Ok(()) } else { Err(format!("{}\n{}", version.text(), docker.log())) }
        });
        let image = docker.directory().join("image.tar");
        crate::rootfs_tar(&image)?;
        let image = image.to_string_lossy().into_owned();
        docker.docker(&["import", "--change", "ENV PATH=/bin", &image, ENGINE_IMAGE]).ok();
        Ok(docker)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory().join("dockerd.log")).unwrap_or_default()
    }

    /// Arguments of the docker client for a call, for a terminal.
    pub fn words(&self, arguments: &[&str]) -> Vec<String> {
        let socket = format!("unix://{}", self.directory().join("docker.sock").display());
        let mut words = vec!["--host".to_owned(), socket];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Runs the docker client.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.docker_with_input(arguments, "")
    }

    /// Runs the docker client with text on its standard input.
    pub fn docker_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let words = self.words(arguments);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run_with_input("docker", &words, input).unwrap_or_else(|error| panic!("docker {arguments:?}: {error:#}"))
    }

    /// `docker run` without a network.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        let mut words = vec!["run", "--network", "none"];
        words.extend_from_slice(flags);
        words.push(ENGINE_IMAGE);
        words.extend_from_slice(command);
        self.docker(&words)
    }

    /// One field of `docker inspect`.
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, container]).ok().stdout.trim().to_owned()
    }

    fn remove_containers(&self) -> Result<(), String> {
        let listed = self.docker(&["ps", "--all", "--quiet", "--no-trunc"]);
        let mut words = vec!["rm", "--force"];
        words.extend(listed.stdout.split_whitespace());
        let removed = if words.len() > 2 { self.docker(&words) } else { listed.clone() };
        if removed.code == 0 { Ok(()) } else { Err(removed.text()) }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let removed = self.remove_containers();
        // It ends its containerd itself.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        // The network namespace of containers on the host's network; dockerd keeps it for its next start.
        let _ = run("umount", &[&self.directory().join("exec/netns/default").to_string_lossy()]);
        let left = || {
            let found = self.leaks.find();
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        };
        if std::thread::panicking() {
            eprintln!("dockerd's log:\n{}", self.log());
        } else {
            assert_eq!(removed, Ok(()));
            eventually("nothing of dockerd is left behind", left);
        }
        self.leaks.remove_own_cgroup();
    }
}
