//! Real containers on the real kernel, from a root file system made of a static busybox.
//!
//! Without the standard harness, because the runtime must run in a process with one thread. Arguments are substrings
//! of the names of the cases to run.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a check that fails panics; without the harness this is no test to clippy"
)]

mod basic;
mod fixture;
mod hooks;
mod process;
mod resources;
mod rootfs;
mod spaces;

use std::io::Write as _;
use std::process::ExitCode;

/// A named check.
pub(crate) type Case = (&'static str, fn());

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut out = std::io::stdout();
    if let Some(reason) = fixture::missing() {
        let _ = writeln!(out, "SKIP containers: {reason}");
        return ExitCode::SUCCESS;
    }
    let cases = [basic::CASES, spaces::CASES, rootfs::CASES, process::CASES, hooks::CASES, resources::CASES].concat();
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begin = std::time::Instant::now();
        let result = std::panic::catch_unwind(case);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        let _ = writeln!(out, "case {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        if result.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        let _ = writeln!(out, "failed: {failed:?}");
        ExitCode::FAILURE
    }
}
