//! From a runtime's name to a shim that answers.
//!
//! | shim | is started by |
//! |---|---|
//! | our own | one exec with the listening socket inherited (architecture, rule 9) |
//! | a foreign one, and our own for a container of a group | its `start` command: see [`crate::start`] |
//!
//! **Invariant:** our own shim gets standard streams, the socket as descriptor 3 and nothing else.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_grpc::shim_task::DeleteResponse;
use prost::Message as _;
use sys::crash::{daemon as crash, point};
use sys::spawn::{Child, Command};
use tokio::net::unix::pipe::Receiver;

use crate::bootstrap::Endpoint;
use crate::bundle::{self, Layout};
use crate::manager::Context;
use crate::pidfd::Pidfd;
use crate::program::{self, Errors};
use crate::runtimes::Program;
use crate::shim::ShimClient;
use crate::task::{CreateTask, Exit};
use crate::{Config, Error, remove, start};

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

/// A shim that was started and is connected.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) bundle: PathBuf,
    pub(crate) client: ShimClient,
    /// The shim's process. A foreign one may not say who it is before it has a container.
    pub(crate) shim: Option<Arc<Pidfd>>,
    /// What the shim logs, if it does so by a FIFO.
    pub(crate) log: Option<Receiver>,
    /// Whether the shim leaves the task's records to us.
    pub(crate) foreign: bool,
}

/// Makes the bundle, starts the shim and connects. On an error nothing is left.
pub(crate) async fn launch(
    context: &Arc<Context>,
    namespace: &str,
    request: &CreateTask,
    program: &Program,
) -> Result<Launched, Error> {
    if !program.own || bundle::grouped(&request.spec) {
        return start::start(context, namespace, request, program).await;
    }
    let stopping = || Error::Stopping(request.id.clone());
    let _launching = context.launching.acquire().await.map_err(|_| stopping())?;
    let (shared, names, path) = (Arc::clone(context), (namespace.to_owned(), request.id.clone()), program.path.clone());
    let spec = request.spec.clone();
    let launching = tokio::task::spawn_blocking(move || {
        launch_own(&shared.layout, &shared.config, &names.0, &names.1, &spec, &path)
    });
    let (bundle, child, stream) = launching.await.map_err(|_| stopping())??;
    let endpoint = Endpoint::Path(context.layout.socket(namespace, &request.id));
    let client = ShimClient::new(namespace.to_owned(), request.id.clone(), endpoint, context.config.timeouts);
    let shim = Arc::new(Pidfd::new(child.pid, child.pidfd)?);
    if let Err(error) = client.attach(stream) {
        let shim = Some(shim.as_ref());
        return Err(remove::undo(context, namespace, &request.id, &program.path, &bundle, &client, shim, error).await);
    }
    Ok(Launched { bundle, client, shim: Some(shim), log: None, foreign: false })
}

/// Makes the bundle, executes our shim and connects. On an error nothing is left. Blocks.
fn launch_own(
    layout: &Layout,
    config: &Config,
    namespace: &str,
    id: &str,
    spec: &[u8],
    shim: &Path,
) -> Result<(PathBuf, Child, UnixStream), Error> {
    let bundle = layout.make(namespace, id, spec, shim)?;
    point(crash::BUNDLE_MADE);
    let executed = execute(layout, config, namespace, id, shim, &bundle);
    point(crash::SHIM_SPAWNED);
    match executed {
        Ok((child, stream)) => Ok((bundle, child, stream)),
        Err(error) => {
            if let Err(cleanup) = layout.remove(namespace, id) {
                tracing::warn!(namespace, id, error = %model::render(&cleanup), "a bundle stays until the next start");
            }
            Err(error)
        }
    }
}

fn execute(
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
    let stream = connect(&Endpoint::Path(socket.clone())).map_err(|source| Error::Launch {
        operation: "connect to",
        path: socket,
        source,
    })?;
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
/// Returns how the task ended, if the shim knows.
pub(crate) async fn delete(
    config: &Config,
    namespace: &str,
    id: &str,
    shim: &Path,
    bundle: &Path,
) -> Result<Option<Exit>, Error> {
    let failed = |source: io::Error| Error::Launch { operation: "run delete of", path: shim.to_owned(), source };
    let command = arguments(command(config, namespace, shim), config, namespace, id).arg("-bundle").arg(bundle);
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(bundle.join(LOG));
    let errors = Errors::File(log.ok().map(OwnedFd::from));
    let command = command.arg("delete").cwd(bundle);
    let finished = program::run(command, Vec::new(), errors, config.timeouts.request).await.map_err(failed)?;
    if finished.status != 0 {
        return Err(failed(io::Error::other(format!("it ended with status {}", finished.status))));
    }
    let answer = DeleteResponse::decode(finished.output.as_slice()).ok();
    Ok(answer.filter(|answer| answer.exited_at.is_some()).map(|answer| Exit {
        pid: answer.pid,
        exit_status: answer.exit_status,
        exited_at: api_grpc::decode::timestamp(answer.exited_at),
    }))
}

/// Removes the socket of a shim that has ended, if it is one that the shim made and nobody listens there any more.
pub(crate) fn remove_stale(endpoint: &Endpoint) {
    if let Endpoint::Path(path) = endpoint
        && connect(endpoint).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        // Somebody else's removal is as good.
        let _ = fs::remove_file(path);
    }
}

/// The flags that every command of a shim takes, without the command itself.
pub(crate) fn arguments(command: Command, config: &Config, namespace: &str, id: &str) -> Command {
    let daemon = std::env::current_exe().unwrap_or_default();
    let command = command.args(["-namespace", namespace, "-address", &config.grpc_address, "-publish-binary"]);
    let command = command.arg(daemon).args(["-id", id]);
    if config.debug { command.arg("-debug") } else { command }
}

/// A command of a shim, with the environment that the protocol prescribes.
pub(crate) fn command(config: &Config, namespace: &str, shim: &Path) -> Command {
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

fn listen(socket: &Path) -> io::Result<UnixListener> {
    let listener = at(socket, |path| UnixListener::bind(path))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to a shim's socket. Blocks where the backlog is full.
pub(crate) fn connect(endpoint: &Endpoint) -> io::Result<UnixStream> {
    let stream = match endpoint {
        Endpoint::Path(path) => at(path, |path| UnixStream::connect(path))?,
        Endpoint::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?,
    };
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
