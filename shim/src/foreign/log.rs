//! The file in which a runtime says what went wrong: one JSON object per line.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Name of the file in the bundle, which is containerd's.
pub(super) const FILE: &str = "log.json";

/// More than this of one call's lines is not read.
const READ_MAX_BYTES: u64 = 1 << 20;

/// The lines of one call.
pub(super) struct Log {
    path: PathBuf,
    /// How long the file was before.
    begin: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl Log {
    /// What is written to `path` from now on.
    pub(super) fn at(path: PathBuf) -> Self {
        let begin = path.metadata().map_or(0, |metadata| metadata.len());
        Self { path, begin }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The last error; `None` if there is none.
    pub(super) fn last_error(&self) -> Option<String> {
        let mut file = std::fs::File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.begin)).ok()?;
        let mut bytes = Vec::new();
        file.take(READ_MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        // crun calls an error "error" as runc does; others may have only one level.
        let mut errors = lines.filter(|line| line.level == "error" && !line.msg.is_empty());
        errors.next_back().map(|line| line.msg)
    }
}
