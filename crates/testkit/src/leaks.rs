use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a scenario could leave behind, looked up by the names it used.
#[derive(Debug)]
pub struct Leaks {
    /// Its directory: mounts below it and processes that name it belong to it.
    directory: PathBuf,
    /// Its cgroup path below every hierarchy.
    cgroup: String,
}

impl Leaks {
    /// A check for everything that names `directory`, and for the cgroups at or below `cgroup`.
    pub fn new(directory: &Path, cgroup: &str) -> Self {
        Self { directory: directory.to_owned(), cgroup: cgroup.to_owned() }
    }

    /// One line per thing that is still there.
    pub fn find(&self) -> Vec<String> {
        let mut found = Vec::new();
        let directory = self.directory.to_string_lossy();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            if line.split(' ').nth(4).is_some_and(|point| point.starts_with(directory.as_ref())) {
                found.push(format!("mount {line}"));
            }
        }
        for (pid, command) in processes_naming(&directory) {
            found.push(format!("process {pid}: {command}"));
        }
        for path in self.cgroups() {
            found.push(format!("cgroup {}", path.display()));
        }
        found
    }

    /// Removes the empty top cgroup that a scenario named; it belongs to the scenario, not to the daemon under test.
    pub fn remove_own_cgroup(&self) {
        for hierarchy in hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(self.cgroup.trim_start_matches('/')));
        }
    }

    /// Removes an empty cgroup of this name below the scenario's own one: some clients leave their own there.
    pub fn remove_cgroup(&self, name: &str) {
        for hierarchy in hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(self.cgroup.trim_start_matches('/')).join(name));
        }
    }

    /// Removes what stands for the scenario's cgroup where no hierarchy is mounted: podman makes ordinary directories and
    /// files below `/sys/fs/cgroup` for the controllers of cgroup v1 that the host lacks.
    pub fn remove_stand_ins(&self) {
        let mounted = hierarchies();
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || mounted.contains(&entry.path()) {
                continue;
            }
            let _ = fs::remove_dir_all(entry.path().join(self.cgroup.trim_start_matches('/')));
        }
    }

    /// Cgroups strictly below the scenario's own one.
    fn cgroups(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for hierarchy in hierarchies() {
            let top = hierarchy.join(self.cgroup.trim_start_matches('/'));
            for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    found.insert(entry.path());
                }
            }
        }
        found
    }
}

/// The processes whose command line names `text`, with that line; not this one.
pub fn processes_naming(text: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(raw) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if line.contains(text) && u32::try_from(pid) != Ok(std::process::id()) {
            found.push((pid, line.trim_end().to_owned()));
        }
    }
    found
}

/// The mount points of all cgroup hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup").then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or("/")))
        })
        .collect()
}
