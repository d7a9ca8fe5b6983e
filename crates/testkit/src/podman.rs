use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{Leaks, Output, eventually, run_with_input};

/// The image that [`Podman::start`] and [`crate::Dockerd::start`] make.
pub const ENGINE_IMAGE: &str = "localhost/busybox:test";

/// podman and conmon in a private root with an OCI runtime under test. Dropping it removes all containers and fails
/// the test if a mount, a process or a cgroup was left behind.
#[derive(Debug)]
pub struct Podman {
    directory: tempfile::TempDir,
    cgroup: String,
    runtime: String,
    leaks: Leaks,
}

impl Podman {
    /// A root of its own with a busybox image. `runtime` is a path, or the name that `program` is known by.
    pub fn start(name: &str, runtime: &str, program: &Path) -> Self {
        Self::prepare(name, runtime, program).unwrap_or_else(|error| panic!("prepare podman: {error:#}"))
    }

    fn prepare(name: &str, runtime: &str, program: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("gantry-podman-").tempdir()?;
        let cgroup = format!("/gantry-podman-{name}-{}", std::process::id());
        let leaks = Leaks::new(directory.path(), &cgroup);
        // The journal is not there without systemd, and the name of a runtime is looked up in this table.
        let config = format!(
            "[containers]\nlog_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [engine.runtimes]\n{:?} = [{program:?}]\n",
            program.file_name().unwrap_or_default().to_string_lossy()
        );
        fs::write(directory.path().join("containers.conf"), config)?;
        let podman = Self { directory, cgroup, runtime: runtime.to_owned(), leaks };
        let image = podman.directory().join("image.tar");
        crate::rootfs_tar(&image)?;
        let image = image.to_string_lossy().into_owned();
        podman.podman(&["import", "--change", "ENV PATH=/bin", &image, ENGINE_IMAGE]).ok();
        Ok(podman)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The cgroup below which its containers are.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Program and arguments of a call, for a terminal or a shell.
    pub fn words(&self, arguments: &[&str]) -> Vec<String> {
        let text = |name: &str| self.directory().join(name).to_string_lossy().into_owned();
        let mut words = vec!["env".to_owned(), format!("CONTAINERS_CONF={}", text("containers.conf")), "podman".into()];
        for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            words.extend([flag.to_owned(), text(name)]);
        }
        words.extend(["--storage-driver", "vfs", "--runtime", &self.runtime].map(str::to_owned));
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    /// The words of `podman run` (or `create`) in the scenario's cgroup and without a network. Limits are the host's if the
    /// flags name none: podman's own may exceed what a root without CAP_SYS_RESOURCE can set, and the runtime's warning may
    /// then join what the container says.
    pub fn run_words<'a>(&'a self, flags: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["run", "--network", "none", "--cgroup-parent", self.cgroup.as_str()];
        if !flags.contains(&"--ulimit") {
            words.extend(["--ulimit", "host"]);
        }
        words.extend_from_slice(flags);
        words.push(ENGINE_IMAGE);
        words.extend_from_slice(command);
        words
    }

    /// Runs podman.
    pub fn podman(&self, arguments: &[&str]) -> Output {
        self.podman_with_input(arguments, "")
    }

    /// Runs podman with text on its standard input.
    pub fn podman_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let words = self.words(arguments);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run_with_input(words[0], &words[1..], input).unwrap_or_else(|error| panic!("podman {arguments:?}: {error:#}"))
    }

    /// `podman run`.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.podman(&self.run_words(flags, command))
    }

    /// One field of `podman inspect`.
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.podman(&["inspect", "--format", format, container]).ok().stdout.trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        let left = || {
            // conmon is still on its way out, and its cgroup is podman's own.
            self.leaks.remove_cgroup("conmon");
            let found = self.leaks.find();
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        };
        if std::thread::panicking() {
            let _ = left();
        } else {
            assert_eq!(removed.code, 0, "{}", removed.text());
            eventually("nothing of podman is left behind", left);
        }
        self.leaks.remove_own_cgroup();
        self.leaks.remove_stand_ins();
    }
}

/// A link to `program` under another name in `directory`: engines treat runtimes by their names.
pub fn program_named(directory: &Path, name: &str, program: &Path) -> Result<PathBuf> {
    let link = directory.join(name);
    std::os::unix::fs::symlink(program, &link).with_context(|| format!("link {}", link.display()))?;
    Ok(link)
}
