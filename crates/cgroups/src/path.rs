//! Where a group is in its hierarchy.

use std::fmt;

use sys::undefended::{Defence, left_out};

use crate::{Error, Result};

/// The path of a group, relative to the root of every hierarchy: no `..`, no empty part, no NUL, at most 4096 bytes.
///
/// A leading `/` is of no meaning: `cgroupsPath` of the specification is relative to the hierarchy's root either way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Checks and normalises a path. The root of the hierarchy itself (`/` or nothing) is refused: it can neither be
    /// limited nor removed.
    pub fn new(path: &str) -> Result<Self> {
        let normal = Self::normalise(path)?;
        if normal.is_empty() {
            return Err(Error::Path { path: path.to_owned(), reason: "is the root of the hierarchy" });
        }
        Ok(Self(normal))
    }

    /// The path without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This path with further names below.
    pub fn join(&self, below: &str) -> Result<Self> {
        Self::new(&format!("{}/{below}", self.0))
    }

    pub(crate) fn normalise(path: &str) -> Result<String> {
        let refuse = |reason| Err(Error::Path { path: path.chars().take(200).collect(), reason });
        if path.len() > 4096 {
            return refuse("is longer than 4096 bytes");
        }
        if path.contains(['\0', '\n']) {
            return refuse("has a byte that no cgroup name may have");
        }
        let mut normal = String::with_capacity(path.len());
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if name == ".." && !left_out(Defence::CgroupPath) {
                return refuse("has a part `..`");
            }
            if name.len() > 255 {
                return refuse("has a name longer than 255 bytes");
            }
            if !normal.is_empty() {
                normal.push('/');
            }
            normal.push_str(name);
        }
        Ok(normal)
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_or_refused() {
        for (path, normal) in [
            ("/a/b", "a/b"),
            ("a/b", "a/b"),
            ("//a/./b//", "a/b"),
            ("/a..b/...", "a..b/..."),
            ("/system.slice/x y", "system.slice/x y"),
        ] {
            assert_eq!(CgroupPath::new(path).unwrap().as_str(), normal);
        }
        let long = "x/".repeat(2100);
        let name = "x".repeat(256);
        for path in ["", "/", "//.", "..", "/..", "/a/../b", "a/..", "../../x", "a\0b", "a\nb", &long, &name] {
            assert!(matches!(CgroupPath::new(path).unwrap_err(), Error::Path { .. }), "{path:?}");
        }
        let path = CgroupPath::new("/a").unwrap();
        assert_eq!(path.join("b").unwrap().to_string(), "/a/b");
        assert!(path.join("../b").is_err());
    }
}
