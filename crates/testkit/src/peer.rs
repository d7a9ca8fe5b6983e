use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::{Output, eventually, run};

/// Debian's containerd in a private root, the peer that benchmarks compare with and that our shim serves under.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    search: String,
    child: Child,
}

impl Containerd {
    /// Starts it in `directory`, with `path` put before `PATH` so that it finds other shims; CRI is switched off.
    pub fn start(directory: &Path, path: Option<&Path>) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let text = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            text("root"),
            text("state"),
            text("containerd.sock")
        );
        fs::write(directory.join("config.toml"), config)?;
        let search = std::env::var("PATH").unwrap_or_default();
        let search = path.map_or(search.clone(), |first| format!("{}:{search}", first.display()));
        let child = launch(directory, &search)?;
        let peer = Self { directory: directory.to_owned(), search, child };
        peer.ready();
        Ok(peer)
    }

    /// Ends it without a warning; its shims and containers stay. [`Containerd::launch`] comes next.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Containerd::kill`].
    pub fn launch(&mut self) -> Result<()> {
        self.child = launch(&self.directory, &self.search)?;
        self.ready();
        Ok(())
    }

    fn ready(&self) {
        eventually("containerd serves", || {
            let version = self.ctr(&["version"]);
            if version.code == 0 { Ok(()) } else { Err(version.text()) }
        });
    }

    /// Its gRPC socket.
    pub fn address(&self) -> String {
        self.directory.join("containerd.sock").to_string_lossy().into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs `ctr` against it.
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let address = self.address();
        let mut words = vec!["--address", address.as_str()];
        words.extend_from_slice(arguments);
        run("ctr", &words).unwrap_or_else(|error| Output {
            code: 255,
            stdout: String::new(),
            stderr: format!("{error:#}"),
        })
    }
}

fn launch(directory: &Path, search: &str) -> Result<Child> {
    let log = File::options().append(true).create(true).open(directory.join("containerd.log"))?;
    Command::new("containerd")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .env("PATH", search)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .spawn()
        .context("start containerd (package containerd)")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
