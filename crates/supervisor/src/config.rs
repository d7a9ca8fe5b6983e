use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Where a supervisor keeps its things and what it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The daemon's state directory; bundles are made below it.
    pub state: PathBuf,
    /// The daemon's root directory; the tasks' `work` directories are made below it.
    pub root: PathBuf,
    /// Our own shim.
    pub shim: PathBuf,
    /// Further runtime names and the shim that each means. `io.containerd.gantry.v2` and `io.containerd.runc.v2` mean
    /// [`Config::shim`] unless they are named here.
    pub runtimes: Runtimes,
    /// Path of the daemon's gRPC socket, told to shims.
    pub grpc_address: String,
    /// Path of the daemon's ttrpc socket, told to shims.
    pub ttrpc_address: String,
    /// Whether shims shall log what only helps to find faults.
    pub debug: bool,
    /// How long the supervisor waits for others.
    pub timeouts: Timeouts,
}

impl Config {
    /// A configuration with the default time limits and no further runtimes; the ttrpc address is the gRPC address with
    /// `.ttrpc` behind it.
    pub fn new(state: PathBuf, root: PathBuf, shim: PathBuf, grpc_address: String) -> Self {
        let ttrpc_address = format!("{grpc_address}.ttrpc");
        Self {
            state,
            root,
            shim,
            runtimes: Runtimes::default(),
            grpc_address,
            ttrpc_address,
            debug: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// Names of runtimes and their shims, which may change at any time. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(Arc<RwLock<BTreeMap<String, PathBuf>>>);

impl From<BTreeMap<String, PathBuf>> for Runtimes {
    fn from(paths: BTreeMap<String, PathBuf>) -> Self {
        Self(Arc::new(RwLock::new(paths)))
    }
}

impl Runtimes {
    /// The shim of a name.
    pub(crate) fn get(&self, name: &str) -> Option<PathBuf> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// From now on it is these.
    pub(crate) fn replace(&self, paths: BTreeMap<String, PathBuf>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = paths;
    }
}

/// How long the supervisor waits for a shim before it gives an error to the caller. A silent shim is not judged dead.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For `Create` and `Start`, which run hooks: longer than the 30 s that a shim gives to those and to streams.
    pub create: Duration,
    /// For every other request but `Wait`, which has no limit. A request that changes the task is carried out even if
    /// its caller has been told that it took too long.
    pub request: Duration,
    /// More, for a `Delete`: the shim waits so long for the end of streams that a grandchild holds open.
    pub streams: Duration,
    /// For a `Kill` with SIGKILL; then the supervisor delivers the signal itself.
    pub sigkill: Duration,
    /// For a shim to end after `Shutdown`; then it is killed.
    pub shutdown: Duration,
    /// For a shim to report an exit after its process has become a zombie; then the kernel's word is taken.
    pub exit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            create: Duration::from_secs(40),
            request: Duration::from_secs(10),
            streams: Duration::from_secs(10),
            sigkill: Duration::from_secs(1),
            shutdown: Duration::from_secs(3),
            exit: Duration::from_secs(1),
        }
    }
}
