//! One view of the control groups: all variants, all subjects, in turns.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::Options;
use crate::spec::{self, VARIANTS, Variant};
use crate::subject::{Server, Subject, calls, memory, timed, words};
use crate::table::{Row, line, print};

/// Rounds before the figures: they make directories and warm caches.
const WARMING: usize = 3;

struct View<'options> {
    options: &'options Options,
    v1: bool,
    subjects: Vec<Subject>,
    floor: PathBuf,
    seccomp: Value,
    /// Above all groups of this measurement, relative to the hierarchies.
    cgroup: String,
    /// Mount points of the hierarchies.
    hierarchies: Vec<String>,
}

pub(crate) fn view(name: &str, options: &Options) -> Result<()> {
    let v1 = name == "v1";
    sys::process::set_subreaper()?;
    let scratch = options.scratch.join(name);
    std::fs::create_dir(&scratch)?;
    let mut programs = vec![options.bin.join("gantry-oci")];
    programs.extend(options.runtimes.iter().cloned());
    let subjects = programs.iter().enumerate().map(|(number, path)| Subject::new(path, &scratch, number));
    let view = View {
        options,
        v1,
        subjects: subjects.collect::<Result<_>>()?,
        floor: options.bin.join("bench-floor"),
        seccomp: spec::seccomp(options.seccomp.as_deref())?,
        cgroup: format!("gantry-bench-{}", std::process::id()),
        hierarchies: if v1 { hierarchies()? } else { vec!["/sys/fs/cgroup".to_owned()] },
    };
    let what = if v1 { "cgroup v1" } else { "cgroup v2, pure view" };
    line(&format!("\n## {what}: {} rounds in turns, ms\n", options.rounds));
    for subject in &view.subjects {
        line(&format!("- {}", subject.version));
    }
    let outcome = view.measure(&scratch);
    view.remove_cgroups();
    outcome
}

/// Where version 1 is mounted.
fn hierarchies() -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = table.lines().filter(|line| line.contains(" - cgroup ")).filter_map(|line| line.split(' ').nth(4));
    Ok(places.map(str::to_owned).collect())
}

impl View<'_> {
    fn measure(&self, scratch: &Path) -> Result<()> {
        for (number, variant) in VARIANTS.iter().enumerate() {
            let place = scratch.join(format!("variant-{number}"));
            if self.options.wants("run") {
                self.runs(&place, *variant)?;
            }
            if self.options.wants("engine") {
                self.engine(&place, *variant)?;
            }
        }
        let widest = VARIANTS[VARIANTS.len() - 1];
        if self.options.wants("life") { self.lives(&scratch.join("life"), widest) } else { Ok(()) }
    }

    /// The bundle of a subject.
    fn bundle(&self, place: &Path, name: &str, variant: Variant, command: &[&str]) -> Result<PathBuf> {
        let bundle = place.join(name);
        spec::rootfs(&bundle.join("rootfs"))?;
        let hosts = bundle.join("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n")?;
        let cgroup = format!("/{}/{name}", self.cgroup);
        let document = spec::document(variant, command, &hosts, &cgroup, &self.seccomp);
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&document)?)?;
        Ok(bundle)
    }

    /// The floor's words for a container of its own.
    fn floor_words(&self, mode: &str, place: &Path, variant: Variant) -> Result<Vec<String>> {
        let bundle = self.bundle(place, &format!("floor-{mode}"), variant, &["true"])?;
        let shown = |name: &str| bundle.join(name).display().to_string();
        let mut list = words(&[&self.floor.display().to_string(), mode, &variant.words(self.v1)]);
        list.extend([shown("rootfs"), shown("hosts")]);
        for hierarchy in &self.hierarchies {
            let parent = format!("{hierarchy}/{}", self.cgroup);
            std::fs::create_dir_all(&parent)?;
            // As a runtime does: a new cpuset group has nothing, and refuses processes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(text) = std::fs::read_to_string(format!("{hierarchy}/{file}")) {
                    std::fs::write(format!("{parent}/{file}"), text)?;
                }
            }
            let _ = std::fs::write(format!("{parent}/cgroup.clone_children"), "1");
            list.push(format!("{parent}/floor"));
        }
        Ok(list)
    }

    /// `run` of every subject, and the floor as a program.
    fn runs(&self, place: &Path, variant: Variant) -> Result<()> {
        let mut all = Vec::new();
        for (number, subject) in self.subjects.iter().enumerate() {
            let bundle = self.bundle(place, &format!("s{number}"), variant, &["true"])?;
            all.push((Row::new(&subject.name), subject.run(&bundle, &format!("bench-{number}"))));
        }
        all.push((Row::new("floor"), self.floor_words("once", place, variant)?));
        for round in 0..self.options.rounds + WARMING {
            for (row, command) in &mut all {
                let took = timed(command)?;
                if round >= WARMING {
                    row.samples.push(took);
                }
            }
        }
        for (row, command) in &mut all {
            row.memory = Some(memory(&self.floor, place, command)?);
            row.calls = Some(calls(place, command)?);
        }
        let rows: Vec<Row> = all.into_iter().map(|(row, _)| row).collect();
        print(&format!("run, {}", variant.name), &rows);
        Ok(())
    }

    /// Create, start and exit in one process, beside the floor in one.
    fn engine(&self, place: &Path, variant: Variant) -> Result<()> {
        let bundle = self.bundle(place, "engine", variant, &["true"])?;
        let engine =
            words(&[self.options.bin.join("bench-engine").display().to_string(), bundle.display().to_string()]);
        let mut all = [
            (Row::new("engine"), Server::start("engine", &engine)?),
            (Row::new("floor"), Server::start("floor", &self.floor_words("serve", place, variant)?)?),
        ];
        for round in 0..self.options.rounds + WARMING {
            for (row, server) in &mut all {
                let took = server.life()?;
                if round >= WARMING {
                    row.samples.push(took);
                }
            }
        }
        let mut rows = Vec::new();
        for (row, server) in all {
            server.end()?;
            rows.push(row);
        }
        print(&format!("in process, create + start + exit, {}", variant.name), &rows);
        Ok(())
    }

    /// The commands of one life.
    fn lives(&self, place: &Path, variant: Variant) -> Result<()> {
        let names = ["create", "start", "exec", "delete"];
        let mut rows: Vec<Vec<Row>> = names.iter().map(|_| Vec::new()).collect();
        let mut bundles = Vec::new();
        for (number, subject) in self.subjects.iter().enumerate() {
            bundles.push(self.bundle(place, &format!("s{number}"), variant, &["sleep", "1000"])?);
            rows.iter_mut().for_each(|rows| rows.push(Row::new(&subject.name)));
        }
        for round in 0..self.options.rounds + WARMING {
            for (number, subject) in self.subjects.iter().enumerate() {
                let took = life(subject, &bundles[number], |_, command| timed(command))?;
                if round >= WARMING {
                    rows.iter_mut().zip(took).for_each(|(rows, took)| rows[number].samples.push(took));
                }
            }
        }
        for (number, subject) in self.subjects.iter().enumerate() {
            let most = life(subject, &bundles[number], |_, command| memory(&self.floor, place, command))?;
            // A tracer would follow the container that create leaves, and not end before it.
            let count = life(subject, &bundles[number], |name, command| match name {
                "create" => timed(command).map(|_| None),
                _ => calls(place, command).map(Some),
            })?;
            for ((rows, most), count) in rows.iter_mut().zip(most).zip(count) {
                (rows[number].memory, rows[number].calls) = (Some(most), count);
            }
        }
        for (name, rows) in names.iter().zip(&rows) {
            print(&format!("{name}, {}", variant.name), rows);
        }
        Ok(())
    }

    /// What the subjects left above their containers' groups.
    fn remove_cgroups(&self) {
        for hierarchy in &self.hierarchies {
            let parent = PathBuf::from(hierarchy).join(&self.cgroup);
            for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            let _ = std::fs::remove_dir(&parent);
        }
    }
}

/// Create, start, exec and delete of one container, each as `measure` sees it.
fn life<T>(subject: &Subject, bundle: &Path, measure: impl Fn(&str, &[String]) -> Result<T>) -> Result<[T; 4]> {
    let id = "bench-life";
    let pid_file = bundle.join("pid");
    let (shown, pid_shown) = (bundle.display().to_string(), pid_file.display().to_string());
    let create = measure("create", &subject.command(&["create", "--bundle", &shown, "--pid-file", &pid_shown, id]))?;
    let pid: u32 = std::fs::read_to_string(&pid_file)?.trim().parse()?;
    let pidfd = sys::process::pidfd_open(pid)?;
    let start = measure("start", &subject.command(&["start", id]))?;
    let exec = measure("exec", &subject.command(&["exec", id, "/bin/true"]))?;
    sys::process::pidfd_send_signal(&pidfd, 9)?;
    let ended = sys::fs::poll_readable(pidfd.as_fd(), Some(Duration::from_secs(30)))?;
    ensure!(ended, "{}: its container does not end", subject.name);
    // An orphan of the runtime is ours to reap.
    sys::process::wait(pidfd.as_fd()).context("reaping the container")?;
    let delete = measure("delete", &subject.command(&["delete", id]))?;
    Ok([create, start, exec, delete])
}
