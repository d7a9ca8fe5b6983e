//! A limit as a list of writes.
//!
//! What to write, and in which order, is decided by a pure function per version ([`crate::v1::limits`],
//! [`crate::v2::limits`]); here the list is carried out.

use std::borrow::Cow;

use sys::Errno;

use crate::dir::Dir;
use crate::{Error, Result};

type Text = Cow<'static, str>;

/// One limit to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// The controller that owns the file.
    pub(crate) controller: Text,
    /// What is limited, for errors.
    pub(crate) limit: Text,
    /// The file and its value. The first file that exists is written: kernels differ in their names.
    pub(crate) choices: Vec<(Text, String)>,
    /// A file that is missing is fine: the value says no more than what holds without it.
    pub(crate) optional: bool,
    /// EINVAL may only mean that another write of the list has to come first: try once more at the end.
    pub(crate) retry: bool,
    /// It comes from `unified`, whose errors have words of their own.
    pub(crate) unified: bool,
}

impl Write {
    pub(crate) fn new(
        controller: &'static str,
        limit: &'static str,
        file: impl Into<Text>,
        value: impl ToString,
    ) -> Self {
        Self {
            controller: controller.into(),
            limit: limit.into(),
            choices: vec![(file.into(), value.to_string())],
            optional: false,
            retry: false,
            unified: false,
        }
    }

    /// Another file to write if the ones before do not exist.
    pub(crate) fn or(mut self, file: impl Into<Text>, value: impl ToString) -> Self {
        self.choices.push((file.into(), value.to_string()));
        self
    }

    pub(crate) fn optional_if(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }

    pub(crate) fn retried(mut self) -> Self {
        self.retry = true;
        self
    }

    /// Carries the write out in the directory of its controller. `Ok(false)`: it wants to be tried again at the end.
    fn perform(&self, dir: &Dir, last_chance: bool) -> Result<bool> {
        for (file, value) in &self.choices {
            match dir.try_write(file, value) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(Errno::INVAL) if self.retry && !last_chance => return Ok(false),
                Err(source) => return Err(dir.write_error(file, value, source)),
            }
        }
        if self.optional {
            return Ok(true);
        }
        if !dir.exists() {
            return Err(Error::Gone { path: dir.shown() });
        }
        let file = self.choices.first().map_or_else(String::new, |(file, _)| file.to_string());
        if self.unified {
            return Err(Error::Unified { file, reason: "can't be set: this kernel has no such file".to_owned() });
        }
        Err(Error::NoFile { limit: self.limit.to_string(), file })
    }
}

/// Carries out the writes in order. `find` gives the directory of a controller, or nothing if the host lacks it.
pub(crate) fn perform<'dir>(writes: &[Write], find: impl Fn(&str) -> Option<&'dir Dir>) -> Result<()> {
    // All controllers are there, or nothing is written.
    for write in writes.iter().filter(|write| !write.optional) {
        if find(&write.controller).is_none() {
            if write.unified {
                let reason = format!("can't be set: controller {:?} not available", write.controller);
                return Err(Error::Unified { file: write.limit.to_string(), reason });
            }
            let (limit, controller) = (write.limit.to_string(), write.controller.to_string());
            return Err(Error::NoController { limit, controller });
        }
    }
    let mut again = Vec::new();
    for write in writes {
        if let Some(dir) = find(&write.controller)
            && !write.perform(dir, false)?
        {
            again.push((write, dir));
        }
    }
    for (write, dir) in again {
        write.perform(dir, true)?;
    }
    Ok(())
}

/// A limit that makes no sense.
pub(crate) fn refuse<T>(limit: &str, value: impl ToString, reason: &'static str) -> Result<T> {
    Err(Error::Limit { limit: limit.to_owned(), value: value.to_string(), reason })
}

/// A page size as it stands in the names of control files: `2MB`.
pub(crate) fn check_page_size(size: &str) -> Result<()> {
    let digits = size.trim_end_matches(|character: char| !character.is_ascii_digit());
    let valid = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(&size[digits.len()..], "KB" | "MB" | "GB");
    if valid { Ok(()) } else { refuse("hugepageLimits", size, "is not a page size such as 2MB") }
}

/// A name that goes into a line with other words.
pub(crate) fn check_word(limit: &str, word: &str) -> Result<()> {
    let valid =
        !word.is_empty() && !word.contains(|character: char| character.is_whitespace() || character.is_control());
    if valid { Ok(()) } else { refuse(limit, word.escape_default(), "is not a name") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[&str]) -> (tempfile::TempDir, Dir) {
        let top = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["cgroup.procs"]) {
            std::fs::write(top.path().join(file), "before").unwrap();
        }
        let dir = Dir::open(top.path().to_owned()).unwrap();
        (top, dir)
    }

    #[test]
    fn the_bytes_are_those_of_the_list() {
        let (_top, dir) = dir(&["a", "new", "c"]);
        let writes = [
            Write::new("x", "a", "a", 17),
            Write::new("x", "b", "old", "1").or("new", "2"),
            Write::new("x", "none", "none", "max").optional_if(true),
            Write::new("missing", "none", "none", "max").optional_if(true),
            Write::new("x", "c", "c", "max 100000"),
        ];
        perform(&writes, |controller| (controller == "x").then_some(&dir)).unwrap();
        assert_eq!(dir.read("a").unwrap(), "17");
        assert_eq!(dir.read("new").unwrap(), "2");
        assert_eq!(dir.read("c").unwrap(), "max 100000");
        assert!(!dir.has("none") && !dir.has("old"));
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_written_before() {
        let (_top, dir) = dir(&["a"]);
        let find = |controller: &str| (controller == "x").then_some(&dir);
        let missing = [Write::new("x", "a", "a", 1), Write::new("rdma", "rdma", "rdma.max", "m")];
        let error = perform(&missing, find).unwrap_err();
        assert_eq!(error.to_string(), r#"rdma cannot be limited: cgroup controller "rdma" is not available"#);
        assert_eq!(dir.read("a").unwrap(), "before");
        let error = perform(&[Write::new("x", "burst", "cpu.burst", 1)], find).unwrap_err();
        assert_eq!(error.to_string(), "burst cannot be limited: this kernel has no cpu.burst");
    }

    #[test]
    fn page_sizes_and_words() {
        for good in ["2MB", "1GB", "64KB"] {
            check_page_size(good).unwrap();
        }
        for bad in ["", "MB", "2", "2TB", "../2MB", "2MB/..", "2 MB", "-2MB"] {
            check_page_size(bad).unwrap_err();
        }
        check_word("x", "eth0").unwrap();
        for bad in ["", "a b", "a\nb"] {
            check_word("x", bad).unwrap_err();
        }
    }
}
