//! Names of scopes and slices, and what `linux.cgroupsPath` means with systemd: `slice:prefix:name`.

use crate::{CgroupPath, Error, Result};

use super::Manager;

/// A unit's name may be this long (systemd, `UNIT_NAME_MAX`).
const UNIT_NAME_BYTES_MAX: usize = 255;

/// Where a container's scope goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScopeName {
    /// `system.slice`
    pub(super) slice: String,
    /// `prefix-name.scope`
    pub(super) unit: String,
}

impl ScopeName {
    /// Reads `slice:prefix:name`. Nothing at all is the scope `gantry-<id>` in the usual slice; so is an empty slice.
    /// A name that itself ends in `.slice`, which runc makes a slice of, is refused: a container has a scope.
    pub(super) fn parse(cgroups_path: &str, id: &str, manager: Manager) -> Result<Self> {
        let refuse = |reason| Err(Error::ScopePath { path: cgroups_path.chars().take(200).collect(), reason });
        let parts: Vec<&str> = cgroups_path.split(':').collect();
        let (slice, prefix, name) = match parts.as_slice() {
            [""] => ("", "gantry", id),
            [slice, prefix, name] => (*slice, *prefix, *name),
            _ => return refuse("has not three parts"),
        };
        let slice = if slice.is_empty() { manager.usual_slice() } else { slice };
        if slice_path(slice).is_none() {
            return refuse("has no valid slice");
        }
        if name.is_empty() {
            return refuse("has an empty name");
        }
        if name.ends_with(".slice") {
            return refuse("names a slice where a scope is needed");
        }
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if !is_unit_name(&unit) {
            return refuse("does not give a valid unit name");
        }
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// Where the group of the scope is below that of its manager.
    pub(super) fn path(&self) -> Result<CgroupPath> {
        CgroupPath::new(&format!("{}/{}", slice_path(&self.slice).unwrap_or_default(), self.unit))
    }
}

/// Whether this may be a unit's name: the characters are those of systemd (`VALID_CHARS`).
pub(super) fn is_unit_name(name: &str) -> bool {
    name.len() <= UNIT_NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.@\\".contains(&byte))
}

/// The directories of a slice: `a-b.slice` is in `a.slice/a-b.slice`. `None`: the name is not that of a slice.
fn slice_path(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if !is_unit_name(slice) {
        return None;
    }
    if stem == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        let part = &stem[..end];
        if part.is_empty() || part.ends_with('-') {
            return None;
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
        path.push_str(".slice");
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_nested_by_their_dashes() {
        for (slice, path) in [
            ("system.slice", Some("system.slice")),
            ("a-b-c.slice", Some("a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a-.slice", None),
            (".slice", None),
            ("slice", None),
            ("a/b.slice", None),
            ("a b.slice", None),
            ("../x.slice", None),
        ] {
            assert_eq!(slice_path(slice).as_deref(), path, "{slice}");
        }
    }

    #[test]
    fn paths_name_scopes() {
        for (path, slice, unit, group) in [
            ("", "system.slice", "gantry-id.scope", "system.slice/gantry-id.scope"),
            ("machine.slice:libpod:abc", "machine.slice", "libpod-abc.scope", "machine.slice/libpod-abc.scope"),
            (":runc:x", "system.slice", "runc-x.scope", "system.slice/runc-x.scope"),
            ("a-b.slice::x", "a-b.slice", "x.scope", "a.slice/a-b.slice/x.scope"),
            ("-.slice:p:x", "-.slice", "p-x.scope", "p-x.scope"),
        ] {
            let name = ScopeName::parse(path, "id", Manager::System).unwrap();
            assert_eq!((name.slice.as_str(), name.unit.as_str()), (slice, unit), "{path}");
            assert_eq!(name.path().unwrap().as_str(), group, "{path}");
        }
        assert_eq!(ScopeName::parse("", "id", Manager::User).unwrap().slice, "user.slice");
        let long = format!("system.slice:runc:{}", "x".repeat(250));
        for path in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "nope:p:n",
            "system.slice:p:",
            "system.slice:p:x.slice",
            "system.slice:p:a/b",
            "system.slice:p:../x",
            "../system.slice:p:x",
            "system.slice:p:a b",
            "system.slice:p:a\nb",
            &long,
        ] {
            let error = ScopeName::parse(path, "id", Manager::System).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(r#"expected cgroupsPath to be of format "slice:prefix:name""#), "{text}");
        }
    }
}
