//! A network device that has come into the container's namespace gets its addresses back and is taken up.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::NetDevice;

/// The longest prepared request.
pub(crate) const REQUEST_BYTES: usize = 128;
/// Where the index of the device goes in each: behind the header and what comes before it in `struct ifinfomsg` and
/// `struct ifaddrmsg` alike.
const INDEX_AT: usize = 20;

/// What the error number of an answer means: 0 or a negative one. Anything else is none of the kernel's.
pub(crate) fn outcome(number: i32) -> Result<(), Errno> {
    const MAX_ERRNO: i32 = 4095;
    match number.checked_neg() {
        Some(0) => Ok(()),
        Some(errno @ 1..=MAX_ERRNO) => Err(Errno::from_raw_os_error(errno)),
        _ => Err(Errno::PROTO),
    }
}

pub(super) fn configure(device: &NetDevice, up: &[u8]) -> Result<(), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let index = rustix::net::netdevice::name_to_index(&socket, &device.name)?;
    for request in &device.addresses {
        ask(&socket, request, index)?;
    }
    ask(&socket, up, index)
}

/// Sends a prepared request with the index in it and waits for the answer.
fn ask(socket: impl AsFd, request: &[u8], index: u32) -> Result<(), Errno> {
    let mut bytes = [0_u8; REQUEST_BYTES];
    let message = bytes.get_mut(..request.len()).ok_or(Errno::MSGSIZE)?;
    message.copy_from_slice(request);
    message.get_mut(INDEX_AT..INDEX_AT + 4).ok_or(Errno::MSGSIZE)?.copy_from_slice(&index.to_ne_bytes());
    rustix::net::send(&socket, message, SendFlags::empty())?;
    // Header, error number, and the request once more.
    let mut answer = [0_u8; 1024];
    let length = loop {
        match rustix::io::read(&socket, &mut answer) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let number = answer.get(16..20).filter(|_| length >= 20).and_then(<[u8]>::first_chunk).ok_or(Errno::PROTO)?;
    outcome(i32::from_ne_bytes(*number))
}
