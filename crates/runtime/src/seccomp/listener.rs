//! The agent that answers notifications gets the filter's descriptor (runtime-spec, config-linux, "Seccomp",
//! `listenerPath` and "The container process state").

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use oci::runtime::LinuxSeccomp;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde_json::json;

use super::rules::Profile;
use crate::Error;

/// The name of the descriptor in the document.
const DESCRIPTOR_NAME: &str = "seccompFd";

/// Who answers for the kernel.
#[derive(Debug)]
pub(crate) struct Listener {
    /// A unix socket on the host; with `@` in front an abstract one.
    path: PathBuf,
    metadata: String,
    /// Whether the filtered process may still send its descriptor by `sendmsg`.
    sendmsg: bool,
}

/// What a process that has a filter with a listener says of it.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The descriptor's number in that process.
    pub(crate) number: i32,
    /// The descriptor itself, when it came with the message.
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Listener {
    /// Checks that the process can hand its descriptor over while the filter is on it already.
    pub(super) fn new(seccomp: &LinuxSeccomp, profile: &Profile<'_>) -> Result<Self, Error> {
        let path = seccomp.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
        let field = "linux.seccomp.listenerPath";
        let path =
            path.ok_or_else(|| Error::invalid(field, "seccomp listenerPath is not set, SCMP_ACT_NOTIFY needs it"))?;
        if path.as_os_str().as_bytes().contains(&0) {
            return Err(Error::invalid(field, "must not contain a NUL byte"));
        }
        for (name, notified) in [("write", false), ("read", true)] {
            if !profile.allows(name, notified) {
                let problem = format!("a profile with SCMP_ACT_NOTIFY must allow the {name} syscall");
                return Err(Error::invalid("linux.seccomp.syscalls", problem));
            }
        }
        Ok(Self {
            path,
            metadata: seccomp.listener_metadata().clone().unwrap_or_default(),
            sendmsg: profile.allows("sendmsg", false) && !profile.may_notify("sendmsg"),
        })
    }

    /// Whether the process can send the descriptor; if not it must be taken.
    pub(crate) fn sendable(&self) -> bool {
        self.sendmsg
    }

    /// Sends the descriptor to the agent, with what the agent is to know: the process that it belongs to, as the
    /// runtime sees it, and the state document of its container. Does not wait for an agent that is busy.
    pub(crate) fn pass(&self, descriptor: BorrowedFd<'_>, pid: u32, state: &[u8]) -> Result<(), Error> {
        let state: serde_json::Value = serde_json::from_slice(state)
            .map_err(|source| Error::host("describing the container to the seccomp agent", source))?;
        let document = json!({
            "ociVersion": oci::RUNTIME_SPEC_VERSION,
            "fds": [DESCRIPTOR_NAME],
            "pid": pid,
            "metadata": self.metadata,
            "state": state,
        })
        .to_string();
        let shown = self.path.display();
        let failed = |errno: Errno| {
            Error::host(
                format!("failed to connect with seccomp agent specified in the seccomp profile: dial unix {shown}"),
                errno,
            )
        };
        let socket = self.connect().map_err(failed)?;
        send(socket.as_fd(), descriptor, document.as_bytes())
            .map_err(|errno| Error::host(format!("sending the seccomp descriptor to {shown}"), errno))
    }

    fn connect(&self) -> Result<OwnedFd, Errno> {
        let bytes = self.path.as_os_str().as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(&self.path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Err(Errno::INTR) => {}
                result => return result.map(|()| socket),
            }
        }
    }
}

/// One message with the descriptor; what does not fit into it follows.
fn send(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>, document: &[u8]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let mut sent = loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(document)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    while let Some(left) = document.get(sent..).filter(|left| !left.is_empty()) {
        match rustix::net::send(socket, left, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => sent += result?,
        }
    }
    Ok(())
}
