//! `start`: the protocol of daemons that do not know our launch path.
//!
//! ```text
//!  daemon ── exec, cwd = bundle ─▶ start ── socket as descriptor 3 ─▶ serve (detached)
//!         ◀─ address on stdout ──────┘ ends
//! ```
//! **Invariant:** nothing but the reply reaches standard output or standard error of a start that succeeds, and the
//! shim holds neither: a daemon waits for the end of both.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use sys::spawn;

use crate::args::Arguments;
use crate::bootstrap::Bootstrap;
use crate::error::Error;
use crate::serve::SOCKET_FD;

const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";
/// Annotations that put several containers under one shim, the stronger first.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// Where daemons up to 1.6 look for the address after a restart.
pub(super) const ADDRESS_FILE: &str = "address";

/// Starts a shim, or finds the one of the same group, and prints its address.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let input = super::read_input()?;
    let bootstrap = Bootstrap::parse(&input, &arguments.id);
    let bundle = std::env::current_dir().map_err(|source| Error::System { operation: "find the bundle", source })?;
    let group = group(&bundle).unwrap_or_else(|| arguments.id.clone());
    let dir = if bootstrap.socket_dir.is_empty() { DEFAULT_SOCKET_DIR } else { &bootstrap.socket_dir };
    let socket = Path::new(dir).join(socket_name(&arguments.address, &arguments.namespace, &group));
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        let spawned = spawn_server(arguments, &bootstrap, listener);
        if spawned.is_err() {
            let _ = std::fs::remove_file(&socket);
        }
        spawned?;
    }
    write_address(&bundle, &address)?;
    super::print(bootstrap.reply(&address).as_bytes())
}

/// The name of a socket: what a daemon, or a test of one, computes too.
fn socket_name(address: &str, namespace: &str, group: &str) -> String {
    use std::fmt::Write as _;
    // Go joins paths lexically clean; all three parts are clean except for what may stand before the first.
    let joined = PathBuf::from(address).join(namespace).join(group);
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(joined.as_os_str().as_encoded_bytes()) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The group that the container's annotations name.
fn group(bundle: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    let json = std::fs::read(bundle.join("config.json")).ok()?;
    let annotations = serde_json::from_slice::<Annotated>(&json).ok()?.annotations?;
    GROUP_ANNOTATIONS.iter().find_map(|name| annotations.get(*name)).filter(|group| !group.is_empty()).cloned()
}

/// A new listening socket; `None` if a shim listens there already.
fn listen(socket: &Path) -> Result<Option<OwnedFd>, Error> {
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| Error::file("make", dir, source))?;
    }
    if UnixStream::connect(socket).is_ok() {
        return Ok(None);
    }
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::file("remove the stale socket", socket, source)),
    }
    match UnixListener::bind(socket) {
        Ok(listener) => {
            std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
                .map_err(|source| Error::file("set the mode of", socket, source))?;
            Ok(Some(listener.into()))
        }
        // Somebody else started the shim of our group at the same time.
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && UnixStream::connect(socket).is_ok() => Ok(None),
        Err(source) => Err(Error::file("listen on", socket, source)),
    }
}

fn spawn_server(arguments: &Arguments, bootstrap: &Bootstrap, listener: OwnedFd) -> Result<(), Error> {
    let own = std::env::current_exe().map_err(|source| Error::System { operation: "find this program", source })?;
    let ttrpc_address = if bootstrap.ttrpc_address.is_empty() {
        // Set by every daemon since 1.2; its convention otherwise.
        std::env::var("TTRPC_ADDRESS").unwrap_or_else(|_| format!("{}.ttrpc", arguments.address))
    } else {
        bootstrap.ttrpc_address.clone()
    };
    let child = spawn::Command::new(&own)
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id, "-address", &arguments.address])
        .args(["-ttrpc-address", &ttrpc_address, "serve"])
        .inherit_env()
        .fd(SOCKET_FD, listener)
        .new_session()
        .spawn()
        .map_err(|errno| Error::file("execute", &own, errno))?;
    let cgroup = bootstrap.options.as_ref().map_or("", |options| options.shim_cgroup.as_str());
    if !cgroup.is_empty() {
        crate::cgroup::enter(cgroup, child.pid)?;
    }
    Ok(())
}

fn write_address(bundle: &Path, address: &str) -> Result<(), Error> {
    use std::os::fd::AsFd as _;
    let dir = std::fs::File::open(bundle).map_err(|source| Error::file("open", bundle, source))?;
    sys::fs::write_atomic(dir.as_fd(), ADDRESS_FILE, address.as_bytes(), 0o644)
        .map_err(|errno| Error::file("write", bundle.join(ADDRESS_FILE), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_daemons_compute() {
        // printf /run/containerd/containerd.sock/default/a | sha256sum
        assert_eq!(
            socket_name("/run/containerd/containerd.sock", "default", "a"),
            "82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6"
        );
    }

    #[test]
    fn groups_come_from_annotations() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(group(dir.path()), None);
        for (annotations, want) in [
            (serde_json::json!(null), None),
            (serde_json::json!({}), None),
            (serde_json::json!({"io.kubernetes.cri.sandbox-id": "pod"}), Some("pod")),
            (
                serde_json::json!({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "mine"}),
                Some("mine"),
            ),
        ] {
            let json = serde_json::json!({"ociVersion": "1.0.2", "annotations": annotations});
            std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
            assert_eq!(group(dir.path()).as_deref(), want);
        }
    }

    #[test]
    fn a_live_socket_is_found_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/s");
        let listener = listen(&path).unwrap();
        assert!(listener.is_some());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap().is_none());
        drop(listener);
        assert!(listen(&path).unwrap().is_some());
    }
}
