//! The directories of an overlay mount, and how they reach the kernel.
//!
//! The kernel takes at most 255 bytes per `fsconfig` string and one page per `mount(2)` data. Directories are given
//! one by one where the kernel can (`lowerdir+`); what is too long is opened and named by its descriptor.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use sys::fs::proc_path;

use crate::{Error, Result};

/// The longest string that `fsconfig(2)` takes.
pub(crate) const MAX_FSCONFIG_STRING: usize = 255;
/// The most that `mount(2)` takes, with its terminating NUL.
pub(crate) const MAX_MOUNT_DATA: usize = 4095;

/// The options of an overlay mount, the lower directories apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlay<'a> {
    /// From the top to the bottom, unescaped.
    pub(crate) lower: Vec<String>,
    /// Everything else.
    pub(crate) rest: Vec<&'a str>,
}

impl<'a> Overlay<'a> {
    /// Takes the options apart; `None` where there is no plain `lowerdir`, or where it names data-only layers (`::`),
    /// which only the kernel's own parser understands.
    pub(crate) fn parse(data: &'a [String]) -> Option<Self> {
        let mut overlay = Self::default();
        for option in data {
            match option.strip_prefix("lowerdir=") {
                Some(_) if !overlay.lower.is_empty() => return None,
                Some(list) => overlay.lower = split_lower(list)?,
                None if option.starts_with("lowerdir+=") || option.starts_with("datadir+=") => return None,
                None => overlay.rest.push(option),
            }
        }
        (!overlay.lower.is_empty()).then_some(overlay)
    }

    /// The lower directories as one value, with what separates them escaped.
    pub(crate) fn joined(lower: &[String]) -> String {
        let escaped: Vec<String> = lower.iter().map(|path| path.replace('\\', r"\\").replace(':', r"\:")).collect();
        escaped.join(":")
    }
}

/// Directories held open, and what names them meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Held {
    descriptors: Vec<OwnedFd>,
}

impl Held {
    /// Another name for the directory `path`, of at most 25 bytes, good as long as this value lives.
    pub(crate) fn short(&mut self, path: &str) -> Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|source| Error::Source { path: path.to_owned(), source })?;
        let name = proc_path(fd.as_fd());
        self.descriptors.push(fd);
        Ok(name)
    }
}

/// Splits at colons that are not escaped. `None` for an empty part, as `::` has one.
fn split_lower(list: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => parts.push(String::new()),
            '\\' => parts.last_mut()?.push(characters.next()?),
            other => parts.last_mut()?.push(other),
        }
    }
    parts.iter().all(|part| !part.is_empty()).then_some(parts)
}

/// The deepest directory above all of `paths`; `None` where that is the root, or a path is not absolute.
pub(crate) fn common_parent(paths: &[String]) -> Option<String> {
    let mut common: Vec<&str> = paths.first()?.split('/').collect();
    common.pop();
    for path in paths {
        if !path.starts_with('/') || path.split('/').any(|name| name == "..") {
            return None;
        }
        let same = common.iter().zip(path.split('/')).take_while(|(left, right)| *left == right).count();
        common.truncate(same);
    }
    (common.len() > 1).then(|| common.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn lower_directories_are_split_and_joined() {
        for (list, parts) in [
            ("/a", Some(&["/a"][..])),
            ("/a:/b", Some(&["/a", "/b"])),
            (r"/a\:b:/c\\d", Some(&["/a:b", r"/c\d"])),
            ("/a::/b", None),
            ("", None),
            ("/a:", None),
            (r"/a\", None),
        ] {
            let split = split_lower(list);
            assert_eq!(split, parts.map(strings), "{list}");
            if let Some(split) = split {
                assert_eq!(Overlay::joined(&split), list);
            }
        }
    }

    #[test]
    fn only_a_plain_overlay_is_taken_apart() {
        let data = strings(&["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "userxattr"]);
        let overlay = Overlay::parse(&data).unwrap();
        assert_eq!(overlay.lower, ["/a", "/b"]);
        assert_eq!(overlay.rest, ["upperdir=/u", "workdir=/w", "userxattr"]);
        for odd in [&["upperdir=/u"][..], &["lowerdir=/a::/d"], &["lowerdir=/a", "lowerdir=/b"], &["lowerdir+=/a"]] {
            assert_eq!(Overlay::parse(&strings(odd)), None);
        }
    }

    #[test]
    fn parents_in_common() {
        for (paths, parent) in [
            (&["/s/1/fs", "/s/2/fs"][..], Some("/s")),
            (&["/s/12/fs", "/s/1/fs"], Some("/s")),
            (&["/s/1/fs"], Some("/s/1")),
            (&["/a", "/b"], None),
            (&["/s/1", "relative"], None),
            (&["/s/../x/1", "/s/../x/2"], None),
            (&[], None),
        ] {
            assert_eq!(common_parent(&strings(paths)).as_deref(), parent, "{paths:?}");
        }
    }
}
