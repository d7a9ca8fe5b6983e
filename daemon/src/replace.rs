//! Replacing the running daemon by the program that is installed now, in the same process.
//!
//! The listening socket goes over to the new program, so clients find somebody to connect to at any time: what they send
//! meanwhile waits in the socket. Requests that cannot end in the grace time are answered UNAVAILABLE, once. The process
//! keeps its id, so whoever supervises it need not know.
//!
//! **Invariant:** a program that cannot be executed, or does not understand our configuration, replaces nobody.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sys::process::Exit;
use sys::spawn::Command;
use tokio::signal::unix::SignalKind;

/// Tells the new program the number of the listening socket's descriptor.
const LISTENER: &str = "GANTRYD_LISTENER";

/// How long the new program may take to read the configuration.
const CHECK: Duration = Duration::from_secs(10);

/// Where this program's file is. Asked for at the start: the name belongs to the new program later.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program's file")
}

/// Has the program that is installed now read our configuration. Blocks until it has ended.
pub(crate) fn check(program: &Path) -> anyhow::Result<()> {
    let nowhere = || std::fs::File::options().write(true).open("/dev/null").map(OwnedFd::from);
    let child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["config", "dump"])
        .inherit_env()
        .fd(1, nowhere().context("open /dev/null")?)
        .spawn()
        .with_context(|| format!("execute {}", program.display()))?;
    let pidfd = child.pidfd.as_fd();
    if !sys::fs::poll_readable(pidfd, Some(CHECK)).context("wait for it")? {
        let _ = sys::process::pidfd_send_signal(pidfd, 9);
        let _ = sys::process::wait(pidfd);
        bail!("{} does not print the configuration within {CHECK:?}", program.display());
    }
    let ended = sys::process::wait(pidfd).context("wait for it")?;
    ensure!(
        ended.exit == Exit::Code(0),
        "{} cannot read the configuration: it ended with status {}",
        program.display(),
        ended.exit.status()
    );
    Ok(())
}

/// Executes `program` in this process, with our arguments and the socket. Returns only on an error.
pub(crate) fn replace(program: &Path, listener: &OwnedFd) -> anyhow::Result<Infallible> {
    // Not lost while nobody handles it; those that stop a daemon end the new one at once, which is what they ask for.
    sys::signal::block(&words()).context("block signals")?;
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut environment: Vec<OsString> = std::env::vars_os()
        .filter(|(name, _)| name != LISTENER)
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            variable
        })
        .collect();
    environment.push(format!("{LISTENER}={}", listener.as_raw_fd()).into());
    let replaced = sys::replace_process(program, &arguments, &environment, &[listener.as_fd()]);
    let Err(error) = replaced;
    tracing::error!(program = %program.display(), %error, "the new program cannot be executed; this one begins again");
    // The file may be gone; the kernel still has it.
    let own = Path::new("/proc/self/exe");
    sys::replace_process(own, &arguments, &environment, &[listener.as_fd()]).context("execute this program again")
}

/// The signals that say something to a running daemon.
fn words() -> [i32; 3] {
    [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::hangup()].map(|kind| kind.as_raw_value())
}

/// Once signals are handled: those that came while this program took the place of another are told now.
pub(crate) fn release_signals() {
    if let Err(error) = sys::signal::unblock(&words()) {
        tracing::warn!(%error, "cannot unblock signals");
    }
}

/// The socket that our predecessor listened on, if there was one and it listened at `address`.
pub(crate) fn inherited(address: &str) -> anyhow::Result<Option<UnixListener>> {
    let Some(number) = std::env::var_os(LISTENER) else { return Ok(None) };
    let number: RawFd = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{LISTENER}={} is no descriptor", number.display()))?;
    let listener = sys::take_inherited(number).with_context(|| format!("take over descriptor {number}"))?;
    let listener = UnixListener::from(listener);
    let bound = listener.local_addr().context("ask for the address of the socket that was handed over")?;
    match bound.as_pathname() {
        Some(path) if path == Path::new(address) => Ok(Some(listener)),
        // The configuration has changed; then the old socket is of no use to anybody.
        path => {
            if let Some(path) = path
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove the socket of the former address");
            }
            Ok(None)
        }
    }
}
