//! The socket on which a runtime hands over the terminal that it made.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::Error;

/// A bundle's path may be longer than a socket's address.
const PARENT: &str = "/tmp";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A listening socket in a directory of its own, removed with this value.
#[derive(Debug)]
pub(super) struct Console {
    directory: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    pub(super) fn listen() -> Result<Self, Error> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(PARENT).join(format!("gantry-pty-{}-{number}", std::process::id()));
        // Left by a shim of the same pid that was killed; a directory of a stranger is not empty or not ours to remove.
        let _ = std::fs::remove_file(directory.join("s"));
        let _ = std::fs::remove_dir(&directory);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|source| Error::file("make", &directory, source))?;
        let path = directory.join("s");
        let listener = UnixListener::bind(&path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match listener {
            Ok(listener) => Ok(Self { directory, path, listener }),
            Err(source) => {
                let _ = std::fs::remove_dir(&directory);
                Err(Error::file("listen on", path, source))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master. The runtime has ended, so whatever it sent is there.
    pub(super) fn take(&self) -> Result<OwnedFd, Error> {
        let failed = |source: std::io::Error| Error::System { operation: "receive the terminal", source };
        let (connection, _) = self.listener.accept().map_err(failed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut buffers = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&connection, &mut buffers, &mut ancillary, flags).map_err(|errno| failed(errno.into()))?;
        let received = ancillary.drain().find_map(|message| {
            let RecvAncillaryMessage::ScmRights(mut descriptors) = message else { return None };
            descriptors.next()
        });
        received.ok_or_else(|| failed(std::io::Error::other("the runtime sent none")))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(&self.directory);
    }
}
