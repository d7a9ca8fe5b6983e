//! The socket of the API.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use services::AnyAuthority;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};

use crate::config::Grpc;
use crate::replace;

/// How long the daemon waits after a connection that it could not accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the socket of a killed daemon may seem to be served.
const LINGER: Duration = Duration::from_millis(500);

/// Between two looks at it.
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// Listens at the configured address. A socket that nobody serves is replaced; one that somebody serves is not.
/// Where our predecessor has handed its own over, that is taken.
pub(crate) async fn listen(grpc: &Grpc) -> anyhow::Result<UnixListener> {
    let path = Path::new(&grpc.address);
    if let Some(listener) = replace::inherited(&grpc.address)? {
        listener.set_nonblocking(true).context("prepare the socket that was handed over")?;
        return UnixListener::from_std(listener).context("watch the socket that was handed over");
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o770)
            .create(parent)
            .with_context(|| format!("make directory {}", parent.display()))?;
        chown(parent, Some(grpc.uid), Some(grpc.gid))
            .with_context(|| format!("set the owner of {}", parent.display()))?;
    }
    remove_stale(path).await?;
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    // Until here the umask has kept others out: without write permission nobody can connect.
    chown(path, Some(grpc.uid), Some(grpc.gid)).with_context(|| format!("set the owner of {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o660))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

/// The connections that come in. One that cannot be accepted, for lack of descriptors mostly, is waited for a little,
/// because the listener would report it again at once.
pub(crate) fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<AnyAuthority<UnixStream>>> {
    UnixListenerStream::new(listener).then(|accepted| async {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted.map(AnyAuthority::new)
    })
}

/// Takes the socket away, so that clients see at once that nobody serves.
pub(crate) fn remove(grpc: &Grpc) {
    if let Err(error) = fs::remove_file(&grpc.address) {
        tracing::warn!(address = grpc.address, %error, "cannot remove the socket");
    }
}

async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("examine {}", path.display())),
        Ok(metadata) => {
            ensure!(metadata.file_type().is_socket(), "{} is in the way: it is no socket", path.display());
        }
    }
    // A daemon that was killed while it started a shim leaves a process that has its socket until it executes the shim.
    let until = Instant::now() + LINGER;
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        if Instant::now() > until {
            bail!("another daemon serves {}; stop it, or choose another --address", path.display());
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    fs::remove_file(path).with_context(|| format!("remove the stale socket {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn grpc(path: &Path) -> Grpc {
        Grpc { address: path.to_str().unwrap().to_owned(), ..crate::config::Config::default().grpc }
    }

    #[tokio::test]
    async fn stale_is_replaced_and_live_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/api.sock");
        let first = listen(&grpc(&path)).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o770 & !umask()));
        let refused = listen(&grpc(&path)).await.unwrap_err();
        assert!(refused.to_string().contains("another daemon serves"), "{refused}");
        drop(first);
        drop(listen(&grpc(&path)).await.unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let refused = listen(&grpc(&path)).await.unwrap_err();
        assert!(refused.to_string().contains("no socket"), "{refused}");
    }

    /// The umask as /proc tells it: asking the kernel for it would set it.
    fn umask() -> u32 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
        u32::from_str_radix(line.trim(), 8).unwrap()
    }
}
