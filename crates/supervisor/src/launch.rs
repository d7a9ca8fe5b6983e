//! Our own launch path: one exec with the listening socket inherited (architecture, rule 9).
//!
//! **Invariant:** the shim gets standard streams, the socket as descriptor 3 and nothing else. Everything here blocks,
//! for file system calls and one exec; it is called from a blocking thread.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sys::crash::{daemon as crash, point};
use sys::process::Exited;
use sys::spawn::{Child, Command};

use crate::bundle::Layout;
use crate::{Config, Error};

/// Name of the shim's log in the bundle.
pub(crate) const LOG: &str = "shim.log";

/// Where a socket's path may be longer than a socket address, it is reached through its directory's descriptor.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Variables that tell the daemon something about itself.
const OWN_VARIABLES: [&str; 9] = [
    "GANTRYD_LISTENER",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
    "INVOCATION_ID",
];

/// A running shim and a connection to it.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) bundle: PathBuf,
    pub(crate) child: Child,
    pub(crate) stream: UnixStream,
}

/// Makes the bundle, executes the shim and connects. On an error nothing is left.
pub(crate) fn launch(
    layout: &Layout,
    config: &Config,
    namespace: &str,
    id: &str,
    spec: &[u8],
    shim: &Path,
) -> Result<Launched, Error> {
    let bundle = layout.make(namespace, id, spec, shim)?;
    point(crash::BUNDLE_MADE);
    let started = start(layout, config, namespace, id, shim, &bundle);
    point(crash::SHIM_SPAWNED);
    match started {
        Ok((child, stream)) => Ok(Launched { bundle, child, stream }),
        Err(error) => {
            if let Err(cleanup) = layout.remove(namespace, id) {
                tracing::warn!(namespace, id, error = %model::render(&cleanup), "a bundle stays until the next start");
            }
            Err(error)
        }
    }
}

fn start(
    layout: &Layout,
    config: &Config,
    namespace: &str,
    id: &str,
    shim: &Path,
    bundle: &Path,
) -> Result<(Child, UnixStream), Error> {
    let socket = layout.socket(namespace, id);
    let listener =
        listen(&socket).map_err(|source| Error::Launch { operation: "listen on", path: socket.clone(), source })?;
    // Connected before there is a shim: the backlog of the socket holds the connection until one accepts it.
    let stream = connect(&socket).map_err(|source| Error::Launch { operation: "connect to", path: socket, source })?;
    let log = bundle.join(LOG);
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&log).map_err(|source| Error::Launch {
        operation: "open",
        path: log,
        source,
    })?;
    let child = command(config, namespace, shim)
        .args(["-namespace", namespace, "-id", id, "-address", &config.grpc_address, "serve"])
        .cwd(bundle)
        .fd(2, OwnedFd::from(log))
        .fd(3, OwnedFd::from(listener))
        .spawn()
        .map_err(|errno| Error::Launch { operation: "execute", path: shim.to_owned(), source: errno.into() })?;
    Ok((child, stream))
}

/// Runs `<shim> delete` for a shim that died: it kills what is left of the container and undoes its mounts and cgroup.
/// Blocks until it has ended, for `limit` at most.
pub(crate) fn delete(
    config: &Config,
    namespace: &str,
    id: &str,
    shim: &Path,
    bundle: &Path,
    limit: Duration,
) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Launch { operation: "run delete of", path: shim.to_owned(), source };
    let mut command = command(config, namespace, shim)
        .args(["-namespace", namespace, "-id", id, "-address", &config.grpc_address, "-bundle"])
        .arg(bundle)
        .arg("delete")
        .cwd(bundle);
    if let Ok(log) = OpenOptions::new().append(true).create(true).mode(0o600).open(bundle.join(LOG)) {
        command = command.fd(2, OwnedFd::from(log));
    }
    let child = command.spawn().map_err(|errno| failed(errno.into()))?;
    let pidfd = std::os::fd::AsFd::as_fd(&child.pidfd);
    if !sys::fs::poll_readable(pidfd, Some(limit)).map_err(|errno| failed(errno.into()))? {
        end(&child);
        return Err(failed(io::ErrorKind::TimedOut.into()));
    }
    match sys::process::wait(pidfd).map_err(|errno| failed(errno.into()))? {
        Exited { exit: sys::process::Exit::Code(0), .. } => Ok(()),
        Exited { exit, .. } => Err(failed(io::Error::other(format!("it ended with status {}", exit.status())))),
    }
}

fn command(config: &Config, namespace: &str, shim: &Path) -> Command {
    let told = [
        ("GRPC_ADDRESS", config.grpc_address.as_str()),
        ("TTRPC_ADDRESS", &config.ttrpc_address),
        ("NAMESPACE", namespace),
    ];
    let inherited = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_none_or(|name| !OWN_VARIABLES.contains(&name) && told.iter().all(|(other, _)| *other != name))
    });
    let command = inherited.fold(Command::new(shim), |command, (name, value)| command.env(name, value));
    told.into_iter().fold(command, |command, (name, value)| command.env(name, value))
}

/// Kills and reaps a child that nobody has been told of.
fn end(child: &Child) {
    let pidfd = std::os::fd::AsFd::as_fd(&child.pidfd);
    let killed = sys::process::pidfd_send_signal(pidfd, 9).and_then(|()| sys::process::wait(pidfd));
    if let Err(errno) = killed {
        tracing::warn!(pid = child.pid, %errno, "cannot end a shim");
    }
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    let listener = at(socket, |path| UnixListener::bind(path))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to a shim's socket. Blocks where the backlog is full.
pub(crate) fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = at(socket, |path| UnixStream::connect(path))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Calls `call` with a path of a socket that fits an address.
fn at<T>(socket: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if socket.as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return call(socket);
    }
    let (Some(directory), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    let directory = fs::File::open(directory)?;
    call(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// The end of a shim's log, for an error text.
pub(crate) fn log_tail(bundle: &Path) -> String {
    const TAIL_BYTES: usize = 1024;
    let text = fs::read(bundle.join(LOG)).unwrap_or_default();
    let tail = text.get(text.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
    let tail = String::from_utf8_lossy(tail);
    let tail = tail.trim();
    if tail.is_empty() { "its log is empty".to_owned() } else { tail.to_owned() }
}
