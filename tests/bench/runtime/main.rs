//! The runtime beside its peers: `cargo xtask bench runtime [--rounds N] [--runtime PATH]... [--seccomp PATH]`.
//!
//! gantry-oci and every runc-compatible program that is given or found take turns over the variants, on the control
//! groups as the host has them and in a view of a pure version 2 hierarchy; both in a mount and cgroup namespace of
//! their own. Minimum and p10 are the trustworthy columns: what else the machine does only ever adds.

mod measure;
mod subject;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use bench_runtime::spec;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Options {
    rounds: usize,
    runtimes: Vec<PathBuf>,
    seccomp: Option<PathBuf>,
    /// The only view to measure; the driver calls itself with it in namespaces of its own.
    view: Option<String>,
    /// Parts to leave out or in: `run`, `life`, `engine`.
    parts: Vec<String>,
    scratch: PathBuf,
    /// Where the programs are that were built with this one.
    bin: PathBuf,
}

fn main() -> Result<()> {
    let mut options = Options::parse(std::env::args().skip(1))?;
    match options.view.clone() {
        Some(view) => {
            if view == "v2" {
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount(c"cgroup2", c"/sys/fs/cgroup", c"cgroup2", flags, None)
                    .context("mounting version 2 over /sys/fs/cgroup")?;
            } else {
                // crun refuses a host on which version 2 has controllers beside version 1.
                let hide = rustix::mount::UnmountFlags::DETACH;
                let _ = rustix::mount::unmount(c"/sys/fs/cgroup/unified", hide);
            }
            measure::view(&view, &options)
        }
        None => {
            options.scratch = std::env::temp_dir().join(format!("gantry-bench-{}", std::process::id()));
            std::fs::create_dir(&options.scratch)?;
            let outcome = ["v1", "v2"].iter().try_for_each(|view| in_view(view, &options));
            std::fs::remove_dir_all(&options.scratch).context("removing the scratch directory")?;
            outcome
        }
    }
}

/// Calls itself in a mount and cgroup namespace.
fn in_view(view: &str, options: &Options) -> Result<()> {
    if view == "v1" && Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        table::line("SKIP v1: this host has version 2 only");
        return Ok(());
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--cgroup", "--"]).arg(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).args(["--view", view, "--scratch"]).arg(&options.scratch);
    let status = command.status().context("running unshare")?;
    ensure!(status.success(), "the view {view}: {status}");
    Ok(())
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut options = Self {
            rounds: 60,
            runtimes: Vec::new(),
            seccomp: None,
            view: None,
            parts: Vec::new(),
            scratch: PathBuf::new(),
            bin: own.parent().context("a program without a directory")?.to_owned(),
        };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => options.rounds = value.parse().context("--rounds takes a number")?,
                "--runtime" => options.runtimes.push(std::path::absolute(value)?),
                "--seccomp" => options.seccomp = Some(std::path::absolute(value)?),
                "--part" => options.parts.push(value),
                "--view" => options.view = Some(value),
                "--scratch" => options.scratch = value.into(),
                _ => bail!("unknown option {word}"),
            }
        }
        if options.runtimes.is_empty() {
            options.runtimes = ["runc", "crun"].iter().filter_map(|name| find(name)).collect();
        }
        Ok(options)
    }

    /// Whether a part is wanted; without a list all are.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
