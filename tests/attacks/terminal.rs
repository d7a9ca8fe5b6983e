//! The other end of `--console-socket`.

use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Takes the terminal of one container and reads all that it says.
pub(crate) fn receive(listener: &UnixListener) -> String {
    let Ok((stream, _)) = listener.accept() else { return String::new() };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let flags = RecvFlags::CMSG_CLOEXEC;
    if rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, flags).is_err() {
        return String::new();
    }
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let Some(master) = master else { return String::new() };
    let mut text = Vec::new();
    // The end of a terminal is an error.
    let _ = std::fs::File::from(master).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
