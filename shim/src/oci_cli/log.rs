//! Where errors, warnings and debug lines go: the file that `--log` names, else standard error, in the two forms that
//! engines read (those of logrus: `time="…" level=… msg="…"`, or one JSON object per line).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::json;

use super::args::Global;

/// Tells why a command failed; with a log also on standard error, for a person and for engines that do not read logs.
pub(crate) fn error(global: &Global, text: &str) {
    write(global, "error", text);
    if global.log.is_some() {
        plain(text);
    }
}

/// A line on standard error without form.
pub(crate) fn plain(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

pub(crate) fn warnings(global: &Global, list: &[String]) {
    for text in list {
        write(global, "warning", text);
    }
}

/// A line for `--debug`.
pub(crate) fn debug(global: &Global, text: impl FnOnce() -> String) {
    if global.debug {
        write(global, "debug", &text());
    }
}

fn write(global: &Global, level: &str, text: &str) {
    let time = model::Timestamp { nanos: 0, ..model::Timestamp::now() }.to_string();
    let line = if global.json_log {
        json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time={time:?} level={level} msg={text:?}")
    };
    let Some(path) = &global.log else { return plain(&line) };
    let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
    // Without a log the error is on standard error all the same.
    let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}
