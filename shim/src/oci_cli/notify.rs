//! Readiness between a container and the service manager that started us: the container gets a socket of its own under
//! `/run/notify`, and what it says there goes on to the socket in `NOTIFY_SOCKET` (sd_notify(3)).

use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci::Spec;
use oci::runtime::MountBuilder;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::Error;

const INSIDE: &str = "/run/notify";
const SOCKET: &str = "notify.sock";
/// How long the service manager may take to say that it has read everything.
const BARRIER: Duration = Duration::from_secs(30);

/// The container's socket and the way to the service manager.
#[derive(Debug)]
pub(crate) struct Notify {
    host: SocketAddr,
    directory: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Notify {
    /// For the container whose state is in `state`, if a service manager waits for readiness.
    pub(crate) fn wanted(state: &Path) -> Result<Option<Self>, Error> {
        let Some(host) = std::env::var_os("NOTIFY_SOCKET").filter(|host| !host.is_empty()) else { return Ok(None) };
        let address = match host.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&host),
        };
        let host = address.map_err(|source| Error::io("NOTIFY_SOCKET", source))?;
        Ok(Some(Self { host, directory: state.join("notify"), socket: None }))
    }

    /// Adds the socket's directory and its name to a specification.
    pub(crate) fn amend(&self, spec: &mut Spec) -> Result<(), Error> {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
        let mount = MountBuilder::default().destination(INSIDE).source(&self.directory).options(options).build();
        let mount = mount.map_err(|error| Error::Usage(error.to_string()))?;
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        add_environment(spec, format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
        Ok(())
    }

    /// Makes the directory that is mounted into the container.
    pub(crate) fn make_directory(&self) -> Result<(), Error> {
        std::fs::create_dir(&self.directory)
            .map_err(|source| Error::io(format!("making {}", self.directory.display()), source))
    }

    /// Makes the socket, before the program runs. Any user of the container may write to it.
    pub(crate) fn bind(&mut self) -> Result<(), Error> {
        let path = self.directory.join(SOCKET);
        let bind = || {
            let socket = UnixDatagram::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        self.socket =
            Some(bind().map_err(|source: io::Error| Error::io(format!("making {}", path.display()), source))?);
        Ok(())
    }

    /// Waits until the container is ready, or has ended, and says so with `main` as the main process.
    pub(crate) fn wait(&self, container: BorrowedFd<'_>, main: u32) -> Result<(), Error> {
        let Some(socket) = &self.socket else { return Ok(()) };
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(container, PollFlags::IN),
            ];
            match rustix::event::poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("waiting for readiness", errno)),
            }
            let ended = !polled[1].revents().is_empty();
            if self.pass_on(main)? || ended {
                return Ok(());
            }
        }
    }

    /// Reads what the container says; true once it is ready and the service manager knows.
    pub(crate) fn pass_on(&self, main: u32) -> Result<bool, Error> {
        let Some(socket) = &self.socket else { return Ok(true) };
        let failed = |source: io::Error| Error::io("telling the service manager", source);
        let mut buffer = [0; 4096];
        loop {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(failed(error)),
            };
            let said = &buffer[..length];
            let Some(ready) = said.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY=")) else {
                continue;
            };
            let manager = UnixDatagram::unbound().map_err(failed)?;
            manager.connect_addr(&self.host).map_err(failed)?;
            manager.send(&[ready, b"\n"].concat()).map_err(failed)?;
            manager.send(format!("MAINPID={main}\n").as_bytes()).map_err(failed)?;
            barrier(&manager).map_err(failed)?;
            return Ok(true);
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Some(socket) => socket.as_fd(),
            None => rustix::fs::CWD,
        }
    }
}

/// Waits until the service manager has closed a pipe that goes with the last message, or does not for long.
fn barrier(manager: &UnixDatagram) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [writer.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(manager, &[io::IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::NOSIGNAL)?;
    drop(writer);
    if sys::fs::poll_readable(reader.as_fd(), Some(BARRIER))? {
        let _ = (&reader).read(&mut [0]);
    }
    Ok(())
}

/// Adds a variable to the environment of a specification's process.
pub(crate) fn add_environment(spec: &mut Spec, entry: String) {
    if let Some(process) = spec.process_mut() {
        let mut environment = process.env().clone().unwrap_or_default();
        environment.push(entry);
        process.set_env(Some(environment));
    }
}
