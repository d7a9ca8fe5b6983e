//! Cache and memory bandwidth by the resctrl file system (`linux.intelRdt`).
//!
//! A group is a directory: of the class that the document names, which belongs to whoever runs the host and is left
//! alone at the end, or of the container, which goes with it. Nothing is undone that was not made here.

use std::io;
use std::path::{Path, PathBuf};

use oci::runtime::{Linux, LinuxIntelRdt};

use crate::Error;

/// What a document asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The class; `None`: one of the container's own.
    pub(crate) class: Option<String>,
    /// Lines of `schemata`.
    pub(crate) schemata: String,
    pub(crate) cache: bool,
    pub(crate) bandwidth: bool,
    /// A monitoring group of the container's own.
    pub(crate) monitoring: bool,
}

/// The longest line that is written; real ones have a few dozen bytes.
const LINE_BYTES: usize = 4096;
const MOUNT_POINT: &str = "/sys/fs/resctrl";
const MAGIC: u32 = 0x0765_5821;

impl Wanted {
    pub(crate) fn new(linux: Option<&Linux>) -> Result<Option<Self>, Error> {
        linux.and_then(|linux| linux.intel_rdt().as_ref()).map(Self::of).transpose()
    }

    fn of(given: &LinuxIntelRdt) -> Result<Self, Error> {
        let invalid = |name: &str, problem: String| Error::invalid(format!("linux.intelRdt.{name}"), problem);
        let class = given.clos_id().clone().filter(|class| !class.is_empty());
        if let Some(name) = &class {
            // "/" is the root's group.
            let good = name == "/" || !(name == "." || name == ".." || name.contains(['/', '\n', '\0']));
            if !good || name.len() > 255 {
                return Err(invalid("closID", format!("invalid intelRdt.ClosID {name:?}")));
            }
        }
        let mut schemata = String::new();
        let lines = [("l3CacheSchema", given.l3_cache_schema()), ("memBwSchema", given.mem_bw_schema())];
        let lines = lines.into_iter().flat_map(|(name, line)| line.iter().map(move |line| (name, line)));
        let lines = lines.chain(given.schemata().iter().flatten().map(|line| ("schemata", line)));
        for (name, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let several = name == "schemata" && line.contains('\n');
            if several || line.contains('\0') || line.len() > LINE_BYTES || schemata.len() > 16 * LINE_BYTES {
                return Err(invalid(name, format!("must be one line of at most {LINE_BYTES} bytes")));
            }
            schemata.push_str(line);
            schemata.push('\n');
        }
        let set = |line: &Option<String>| line.as_ref().is_some_and(|line| !line.is_empty());
        Ok(Self {
            class,
            schemata,
            cache: set(given.l3_cache_schema()),
            bandwidth: set(given.mem_bw_schema()),
            monitoring: given.enable_monitoring().unwrap_or(false),
        })
    }

    /// Where the file system is. An error names the field if this host has none, or not what the document needs.
    pub(crate) fn root(&self) -> Result<PathBuf, Error> {
        let refuse = |field: &str, reason: &str| Error::unsupported(field, reason);
        let root = mounted().ok_or_else(|| {
            refuse("linux.intelRdt", "is specified in config, but Intel RDT is not supported or not enabled")
        })?;
        if self.cache && !root.join("info/L3").exists() {
            let reason = "is specified in config, but Intel RDT/CAT is not enabled";
            return Err(refuse("linux.intelRdt.l3CacheSchema", reason));
        }
        if self.bandwidth && !root.join("info/MB").exists() {
            let reason = "is specified in config, but Intel RDT/MBA is not enabled";
            return Err(refuse("linux.intelRdt.memBwSchema", reason));
        }
        Ok(root)
    }

    /// Puts a process into its groups. What was made is added to `made`, also before an error.
    pub(crate) fn apply(&self, root: &Path, id: &str, pid: u32, made: &mut Vec<PathBuf>) -> Result<(), Error> {
        let group = self.group(root, id);
        if self.class.is_some() && self.schemata.is_empty() && !group.is_dir() {
            let problem = "clos dir not accessible (must be pre-created when schemata, l3CacheSchema and memBwSchema \
                           are empty)";
            return Err(Error::invalid("linux.intelRdt.closID", problem));
        }
        let new = make(&group).map_err(|source| failed(root, "making", &group, source))?;
        if new && self.class.is_none() {
            made.push(group.clone());
        }
        if !self.schemata.is_empty() {
            write(root, &group.join("schemata"), &self.schemata)?;
        }
        if self.monitoring {
            let monitored = group.join("mon_groups").join(id);
            if make(&monitored).map_err(|source| failed(root, "making", &monitored, source))? {
                made.push(monitored);
            }
        }
        self.join(root, id, pid)
    }

    /// Puts a process into the groups that there are.
    pub(crate) fn join(&self, root: &Path, id: &str, pid: u32) -> Result<(), Error> {
        let group = self.group(root, id);
        write(root, &group.join("tasks"), &pid.to_string())?;
        if self.monitoring {
            write(root, &group.join("mon_groups").join(id).join("tasks"), &pid.to_string())?;
        }
        Ok(())
    }

    fn group(&self, root: &Path, id: &str) -> PathBuf {
        let class = self.class.as_deref().unwrap_or(id);
        if class == "/" { root.to_owned() } else { root.join(class) }
    }
}

/// Removes what was made for a container, the last first. What is gone already is fine.
pub(crate) fn remove(made: &[PathBuf]) -> Result<(), Error> {
    for group in made.iter().rev() {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::host(format!("removing {}", group.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mounted() -> Option<PathBuf> {
    // Mounted elsewhere only by hand; the kernel makes the directory where the processor has the feature.
    let found = rustix::fs::statfs(MOUNT_POINT).ok()?;
    (found.f_type as u32 == MAGIC).then(|| PathBuf::from(MOUNT_POINT))
}

/// True if the directory is new.
fn make(group: &Path) -> io::Result<bool> {
    match std::fs::create_dir(group) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// One write, which the kernel takes as a whole.
fn write(root: &Path, file: &Path, text: &str) -> Result<(), Error> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| failed(root, "writing", file, source))
}

/// The error with what the kernel has to say about it.
fn failed(root: &Path, doing: &str, what: &Path, source: io::Error) -> Error {
    let status = std::fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
    let status = match status.trim() {
        "" | "ok" => String::new(),
        status => format!(" (last_cmd_status: {status})"),
    };
    Error::host(format!("linux.intelRdt: {doing} {}{status}", what.display()), source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn wanted(document: Value) -> Result<Wanted, Error> {
        let linux: Linux = serde_json::from_value(json!({"intelRdt": document})).unwrap();
        Wanted::new(Some(&linux)).map(Option::unwrap)
    }

    /// A tree with the files that the kernel would have.
    fn tree(groups: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for group in groups {
            let group = root.path().join(group);
            std::fs::create_dir_all(group.join("mon_groups")).unwrap();
            for file in ["schemata", "tasks"] {
                std::fs::write(group.join(file), "").unwrap();
            }
        }
        root
    }

    fn read(root: &tempfile::TempDir, file: &str) -> String {
        std::fs::read_to_string(root.path().join(file)).unwrap()
    }

    #[test]
    fn what_is_written_to_a_class() {
        let root = tree(&["class"]);
        let wanted = wanted(json!({"closID": "class", "l3CacheSchema": "L3:0=7f0;1=1f", "memBwSchema": "MB:0=20;1=70",
            "schemata": ["L2:0=f", "", "MB:0=30"]}));
        let mut made = Vec::new();
        wanted.unwrap().apply(root.path(), "id", 42, &mut made).unwrap();
        assert_eq!(read(&root, "class/schemata"), "L3:0=7f0;1=1f\nMB:0=20;1=70\nL2:0=f\nMB:0=30\n");
        assert_eq!(read(&root, "class/tasks"), "42");
        assert!(made.is_empty(), "a class belongs to the host");
    }

    #[test]
    fn what_is_made_is_removed() {
        let root = tree(&[]);
        let mut made = Vec::new();
        // The kernel would have put the files there.
        let error = wanted(json!({"l3CacheSchema": "L3:0=1"})).unwrap().apply(root.path(), "id", 1, &mut made);
        assert!(error.unwrap_err().to_string().contains("id/schemata"));
        assert_eq!(made, [root.path().join("id")]);
        remove(&made).unwrap();
        remove(&made).unwrap();
        assert!(!root.path().join("id").exists());
    }

    #[test]
    fn monitoring_has_a_group_of_its_own() {
        let root = tree(&["class", "class/mon_groups/id"]);
        let mut made = Vec::new();
        let wanted = wanted(json!({"closID": "class", "enableMonitoring": true})).unwrap();
        wanted.apply(root.path(), "id", 7, &mut made).unwrap();
        assert_eq!(read(&root, "class/mon_groups/id/tasks"), "7");
        assert!(made.is_empty(), "it was there before");
        let other = wanted.apply(root.path(), "other", 7, &mut made).unwrap_err();
        assert!(other.to_string().contains("mon_groups/other/tasks"));
        assert_eq!(made, [root.path().join("class/mon_groups/other")]);
    }

    #[test]
    fn the_root_group_and_missing_classes() {
        let root = tree(&[""]);
        let mut made = Vec::new();
        wanted(json!({"closID": "/"})).unwrap().apply(root.path(), "id", 9, &mut made).unwrap();
        assert_eq!(read(&root, "tasks"), "9");
        let error = wanted(json!({"closID": "none"})).unwrap().apply(root.path(), "id", 9, &mut made).unwrap_err();
        assert!(error.to_string().starts_with("linux.intelRdt.closID: clos dir"), "{error}");
        std::fs::create_dir(root.path().join("info")).unwrap();
        std::fs::write(root.path().join("info/last_cmd_status"), "No free CLOSIDs\n").unwrap();
        let wanted = wanted(json!({"l3CacheSchema": "L3:0=1"})).unwrap();
        let error = wanted.apply(root.path(), "a", 9, &mut made).unwrap_err().to_string();
        assert!(error.contains("(last_cmd_status: No free CLOSIDs)"), "{error}");
    }

    #[test]
    fn hostile_values() {
        let long = "x".repeat(5000);
        for document in [
            json!({"closID": ".."}),
            json!({"closID": "."}),
            json!({"closID": "a/../../b"}),
            json!({"closID": "/etc"}),
            json!({"closID": "a\0"}),
            json!({"closID": long}),
            json!({"l3CacheSchema": long}),
            json!({"memBwSchema": "a\0"}),
            json!({"schemata": ["a\nb"]}),
        ] {
            let error = wanted(document.clone()).unwrap_err().to_string();
            assert!(error.starts_with("linux.intelRdt."), "{document}: {error}");
        }
    }
}
