//! Where errors and warnings go: standard error, and the file that `--log` names, which engines read.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::json;

use super::args::Global;

pub(crate) fn error(global: &Global, text: &str) {
    write(global, "error", text);
    // What a person at a terminal sees, and engines that do not ask for a log.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

pub(crate) fn warnings(global: &Global, list: &[String]) {
    for text in list {
        write(global, "warning", text);
    }
}

fn write(global: &Global, level: &str, text: &str) {
    let Some(path) = &global.log else { return };
    let time = super::show::now();
    let line = if global.json_log {
        json!({"level": level, "msg": text, "time": time}).to_string()
    } else {
        format!("time={time:?} level={level} msg={text:?}")
    };
    let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
    // Without a log the error is on standard error all the same.
    let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}
