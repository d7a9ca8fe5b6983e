//! The socket on which a runtime hands over the terminal that it made.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::Error;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A listening socket in the bundle, which is private to its owner; removed with this value, or with the bundle.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    file: PathBuf,
    /// How others reach it: a bundle's path may be longer than a socket's address, its descriptor's in `/proc` is not.
    path: PathBuf,
    /// Keeps `path` alive.
    _directory: OwnedFd,
}

impl Console {
    pub(super) fn listen(bundle: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, bundle, flags, Mode::empty())
            .map_err(|errno| Error::file("open the bundle", bundle, errno))?;
        let name = format!("console-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = bundle.join(&name);
        // Left by a shim of the same pid that was killed.
        let _ = std::fs::remove_file(&file);
        let path = PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), directory.as_raw_fd()));
        let failed = |source| Error::file("listen on", &file, source);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, file, path, _directory: directory })
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
        let _ = std::fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_in_a_deep_bundle_is_reached_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let bundle = top.path().join("b".repeat(120));
        std::fs::create_dir(&bundle).unwrap();
        let console = Console::listen(&bundle).unwrap();
        UnixStream::connect(console.path()).unwrap();
        assert!(console.take().is_err(), "nothing was sent");
        assert_eq!(std::fs::read_dir(&bundle).unwrap().count(), 1);
        drop(console);
        assert_eq!(std::fs::read_dir(&bundle).unwrap().count(), 0);
    }
}
