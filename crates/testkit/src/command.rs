use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How a command ended and what it printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 plus the signal where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The output of a command that must have succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Both streams, for messages.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// One of the binaries that `cargo xtask dist` made: `GANTRY_BIN_DIR`, or `dist/bin` of this workspace.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("GANTRY_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).join("dist/bin"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo xtask dist` first", path.display());
    path
}

/// Runs a command to its end, at most two minutes.
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<Output> {
    run_with_input(program, arguments, "")
}

/// As [`run`], with text on standard input.
pub fn run_with_input(program: impl AsRef<OsStr>, arguments: &[&str], input: &str) -> Result<Output> {
    let program = program.as_ref();
    // `timeout` is in coreutils, so a hanging client fails its scenario instead of the whole run.
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes the pipe; that is its choice.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {}", program.display()))?;
    let code = output.status.code().unwrap_or(137);
    if code == 124 {
        bail!("{} {arguments:?} did not end within {:?}", program.display(), Duration::from_secs(120));
    }
    Ok(Output {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
