//! Namespaces, id maps, time offsets and sysctls.

use std::fmt::Write as _;
use std::path::PathBuf;

use oci::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use sys::clone::flags;
use sys::undefended::{Defence, left_out};

use crate::Error;

/// The namespaces of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spaces {
    /// `CLONE_NEW*` of those to make.
    pub(crate) new: u64,
    /// Those to join: kind and path.
    pub(crate) joined: Vec<(u64, PathBuf)>,
    /// Content of `uid_map`.
    pub(crate) uid_map: String,
    /// Content of `gid_map`.
    pub(crate) gid_map: String,
    /// Content of `timens_offsets`.
    pub(crate) time_offsets: String,
}

/// The `CLONE_NEW*` flag of a namespace type.
fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => flags::NEWNS,
        LinuxNamespaceType::Cgroup => flags::NEWCGROUP,
        LinuxNamespaceType::Uts => flags::NEWUTS,
        LinuxNamespaceType::Ipc => flags::NEWIPC,
        LinuxNamespaceType::User => flags::NEWUSER,
        LinuxNamespaceType::Pid => flags::NEWPID,
        LinuxNamespaceType::Network => flags::NEWNET,
        LinuxNamespaceType::Time => flags::NEWTIME,
    }
}

impl Spaces {
    pub(crate) fn new(linux: Option<&Linux>) -> Result<Self, Error> {
        let mut spaces = Self::default();
        for namespace in linux.into_iter().flat_map(|linux| linux.namespaces().iter().flatten()) {
            let kind = flag(namespace.typ());
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => spaces.new |= kind,
                Some(path) if !path.is_absolute() => {
                    return Err(Error::invalid("linux.namespaces", format!("{} is not absolute", path.display())));
                }
                Some(path) => spaces.joined.push((kind, path.clone())),
            }
        }
        let Some(linux) = linux else { return Ok(spaces) };
        if spaces.new & flags::NEWUSER != 0 {
            spaces.uid_map = map_text("linux.uidMappings", linux.uid_mappings())?;
            spaces.gid_map = map_text("linux.gidMappings", linux.gid_mappings())?;
        }
        spaces.time_offsets = offsets(linux, &spaces)?;
        Ok(spaces)
    }

    /// Whether the container has a namespace of this kind that is not the runtime's.
    pub(crate) fn has(&self, kind: u64) -> bool {
        self.new & kind != 0 || self.joins(kind)
    }

    pub(crate) fn joins(&self, kind: u64) -> bool {
        self.joined.iter().any(|(joined, _)| *joined == kind)
    }

    /// Whether the mount namespace is the container's own, made for it. Otherwise others see its mounts, and its root
    /// is changed for its processes only.
    pub(crate) fn own_mounts(&self) -> bool {
        self.new & flags::NEWNS != 0
    }

    /// All kinds, for an exec to enter.
    pub(crate) fn kinds(&self) -> u64 {
        self.joined.iter().fold(self.new, |kinds, (kind, _)| kinds | kind)
    }

    /// Whether a process in between is needed: only descendants can be in a joined pid namespace; a joined user
    /// namespace must be entered before the new namespaces are made, for it to own them; and namespaces of somebody
    /// else must be joined before a new user namespace takes the right away.
    pub(crate) fn needs_intermediate(&self) -> bool {
        self.joins(flags::NEWPID)
            || self.joins(flags::NEWUSER)
            || (self.new & flags::NEWUSER != 0 && !self.joined.is_empty())
    }
}

fn map_text(field: &str, mappings: &Option<Vec<LinuxIdMapping>>) -> Result<String, Error> {
    let mut text = String::new();
    for mapping in mappings.iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", mapping.container_id(), mapping.host_id(), mapping.size());
    }
    if text.is_empty() {
        return Err(Error::invalid(field, "a new user namespace needs mappings"));
    }
    if text.len() >= 4096 {
        if left_out(Defence::Lengths) {
            // What a field of twelve bits for the length makes of it.
            let cut = text.get(..text.len() % 4096).and_then(|text| text.rfind('\n')).map_or(0, |end| end + 1);
            text.truncate(cut);
            return Ok(text);
        }
        return Err(Error::invalid(field, "is longer than the kernel takes"));
    }
    Ok(text)
}

fn offsets(linux: &Linux, spaces: &Spaces) -> Result<String, Error> {
    let mut text = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::invalid("linux.timeOffsets", format!("{clock:?} is no clock of a time namespace")));
        }
        let _ = writeln!(text, "{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
    }
    if !text.is_empty() && spaces.joins(flags::NEWTIME) {
        return Err(Error::invalid(
            "linux.timeOffsets",
            "cannot be set in a time namespace that is joined by its path",
        ));
    }
    if !text.is_empty() && spaces.new & flags::NEWTIME == 0 {
        return Err(Error::invalid("linux.timeOffsets", "needs a new time namespace"));
    }
    Ok(text)
}
