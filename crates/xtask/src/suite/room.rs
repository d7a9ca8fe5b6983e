use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// Where a foreign suite runs: it sees its own cgroup subtree as the root of every hierarchy, and its mounts are its
/// own. What is left in the subtree is removed at the end.
pub(super) struct Room {
    name: String,
    hierarchies: Vec<Hierarchy>,
    without_v2: bool,
}

/// A mounted hierarchy of cgroups.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    place: PathBuf,
    kind: String,
    options: String,
}

/// Enters the subtree and shows it as the root. Words: the mounts as `place kind options`, then the command; the
/// kind `none` stays unmounted.
const ENTER: &str = r#"
set -e
room=$1 count=$2; shift 2
index=0; while [ $index -lt $count ]; do
    eval "place=\${$((index * 3 + 1))}"; echo 0 > "$place/$room/cgroup.procs"; index=$((index + 1))
done
exec unshare --mount --cgroup --propagation private sh -c '
set -e
count=$1; shift
index=$((count - 1)); while [ $index -ge 0 ]; do
    eval "place=\${$((index * 3 + 1))}"; umount "$place"; index=$((index - 1))
done
while [ $count -gt 0 ]; do
    if [ "$2" = none ]; then :; elif [ -n "$3" ]; then mount -t "$2" -o "$3" "$2" "$1"; else mount -t "$2" "$2" "$1"; fi
    shift 3; count=$((count - 1))
done
exec "$@"' sh "$count" "$@"
"#;

impl Room {
    /// Makes the subtree. On a host with both versions of cgroups version 2 can be left out, for runtimes that
    /// refuse to work beside it (crun, if it has controllers).
    pub(super) fn new(suite: &str, without_v2: bool) -> Result<Self> {
        let name = format!("gantry-suite-{suite}-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts of this process")?;
        let hierarchies: Vec<Hierarchy> = mounts.lines().filter_map(hierarchy).collect();
        let hybrid = hierarchies.iter().any(|hierarchy| hierarchy.kind == "cgroup");
        let room = Self { name, hierarchies, without_v2: without_v2 && hybrid };
        for hierarchy in &room.hierarchies {
            let directory = hierarchy.place.join(&room.name);
            fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
            // Realtime is given by the parent; what is not to be had the suite does without.
            let _ = fs::write(directory.join("cpu.rt_runtime_us"), "600000");
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // Version 1 of cpuset lets nobody into a group without both.
                let (from, to) = (hierarchy.place.join(file), directory.join(file));
                if hierarchy.kind == "cgroup" && from.exists() {
                    fs::write(&to, fs::read(&from)?).with_context(|| format!("write {}", to.display()))?;
                }
            }
        }
        Ok(room)
    }

    /// A command that runs `program` in the room.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh", &self.name]).arg(self.hierarchies.len().to_string());
        for hierarchy in &self.hierarchies {
            let left_out = self.without_v2 && hierarchy.kind == "cgroup2";
            let kind = if left_out { "none" } else { &hierarchy.kind };
            command.arg(&hierarchy.place).args([kind, &hierarchy.options]);
        }
        command.arg(program);
        command
    }

    /// Kills what runs in groups that were made in the room: containers, not the suite itself.
    pub(super) fn kill_below(&self) {
        for hierarchy in &self.hierarchies {
            for directory in subdirectories(&hierarchy.place.join(&self.name)) {
                kill(&directory);
            }
        }
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn kill(directory: &Path) {
    for below in subdirectories(directory) {
        kill(&below);
    }
    for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for hierarchy in &self.hierarchies {
            remove(&hierarchy.place.join(&self.name));
        }
    }
}

/// Removes a cgroup with those below it; what still has processes stays, and the kernel says so.
fn remove(directory: &Path) {
    subdirectories(directory).iter().for_each(|below| remove(below));
    if let Err(error) = fs::remove_dir(directory) {
        eprintln!("xtask: removing {}: {error}", directory.display());
    }
}

/// The hierarchy that a line of mountinfo is of, if it is one.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let place = PathBuf::from(mount.split(' ').nth(4)?);
    if !place.starts_with("/sys/fs/cgroup") {
        // A view in some container that has no mount namespace of its own.
        return None;
    }
    let mut words = filesystem.split(' ');
    let (kind, given) = (words.next()?, words.nth(1)?);
    if kind == "cgroup2" {
        return Some(Hierarchy { place, kind: kind.to_owned(), options: String::new() });
    }
    if kind != "cgroup" {
        return None;
    }
    let flags = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
    let mut options: Vec<&str> =
        given.split(',').filter(|word| !flags.contains(word) && !word.starts_with("release_agent=")).collect();
    if options.iter().all(|word| word.starts_with("name=")) {
        options.insert(0, "none");
    }
    Some(Hierarchy { place, kind: kind.to_owned(), options: options.join(",") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let found = |line| hierarchy(line).map(|found| format!("{} {}", found.kind, found.options));
        for (line, want) in [
            ("30 25 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct", Some("cgroup cpu,cpuacct")),
            (
                "31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
                Some("cgroup none,name=systemd"),
            ),
            ("32 25 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate", Some("cgroup2 ")),
            ("33 25 0:29 / /proc rw - proc proc rw", None),
        ] {
            assert_eq!(found(line).as_deref(), want, "{line}");
        }
    }
}
