//! Network devices that move into the container: found, described and moved by the parent, by netlink.
//!
//! A device loses its addresses when it changes its namespace (and is taken down), so those that somebody gave it for
//! good are read before, and set again by the container's process, which is in the new namespace already.
//!
//! **Invariant:** what the kernel sends is read with bounds: a length that does not fit ends the reading (the class of
//! CVE-2021-43784).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::Error;
use crate::child::NetDevice;

/// `struct nlmsghdr`, `struct ifinfomsg` and `struct ifaddrmsg`.
const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// `IFLA_*` and `IFA_*`.
const LINK_NAME: u16 = 3;
const LINK_NAMESPACE_PID: u16 = 19;
const LINK_NAMESPACE_FD: u16 = 28;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const ADDRESS_FLAGS: u16 = 8;
/// `IFA_F_PERMANENT`: somebody gave the address, it does not run out.
const PERMANENT: u32 = 0x80;
/// Packets that one answer may have, and addresses that one device may bring.
const MAX_PACKETS: usize = 4096;
const MAX_ADDRESSES: usize = 1024;
const PACKET_BYTES: usize = 1 << 16;

/// Where devices go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'fd> {
    /// The network namespace of this process, as the caller sees its pid.
    Process(u32),
    Namespace(BorrowedFd<'fd>),
}

/// A device to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// On the host.
    pub(crate) name: String,
    /// In the container.
    pub(crate) new_name: String,
}

/// Whether the kernel takes this as the name of a device.
pub(crate) fn is_name(name: &str) -> bool {
    const MAX_BYTES: usize = 15;
    (1..=MAX_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| byte.is_ascii_whitespace() || b"/:\0\x0b".contains(&byte))
}

/// What the container's process has to do for a device once it is there.
pub(crate) fn describe(wanted: &Wanted) -> Result<NetDevice, Error> {
    let failed = |errno| Error::host(format!("reading the addresses of network device {}", wanted.name), errno);
    let socket = open().map_err(failed)?;
    let index = find(&socket, &wanted.name)?;
    let mut request = Message::new(GET_ADDRESS, REQUEST | DUMP);
    request.bytes.extend([0; ADDRESS_BYTES]);
    request.send(&socket).map_err(failed)?;
    let mut addresses = Vec::new();
    receive(&socket, |kind, payload| {
        if kind == NEW_ADDRESS
            && let Some(message) = carried_over(payload, index)
            && addresses.len() < MAX_ADDRESSES
        {
            addresses.push(message);
        }
    })
    .map_err(failed)?;
    Ok(NetDevice { name: wanted.new_name.clone(), addresses })
}

/// Moves a device and gives it its new name, at once.
pub(crate) fn move_to(wanted: &Wanted, target: Target<'_>) -> Result<(), Error> {
    let failed = |errno| Error::host(format!("linux.netDevices: moving network device {}", wanted.name), errno);
    let socket = open().map_err(failed)?;
    let index = find(&socket, &wanted.name)?;
    let mut request = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE);
    request.bytes.extend([0; 4]);
    request.bytes.extend(index.to_ne_bytes());
    request.bytes.extend([0; 8]);
    request.attribute(LINK_NAME, &[wanted.new_name.as_bytes(), b"\0"].concat());
    match target {
        Target::Process(pid) => request.attribute(LINK_NAMESPACE_PID, &pid.to_ne_bytes()),
        Target::Namespace(fd) => request.attribute(LINK_NAMESPACE_FD, &fd.as_raw_fd().to_ne_bytes()),
    }
    request.send(&socket).and_then(|()| receive(&socket, |_, _| {})).map_err(failed)
}

fn open() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
}

fn find(socket: &OwnedFd, name: &str) -> Result<u32, Error> {
    rustix::net::netdevice::name_to_index(socket, name).map_err(|errno| {
        Error::host(format!("linux.netDevices: link not found for interface {name} on runtime namespace"), errno)
    })
}

/// A request in the making.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // The sequence number is always 1: a socket is used for one request at a time.
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).to_ne_bytes();
        for (to, from) in self.bytes.iter_mut().zip(length) {
            *to = from;
        }
        self.bytes
    }

    fn send(self, socket: &OwnedFd) -> Result<(), Errno> {
        rustix::net::send(socket, &self.finish(), SendFlags::empty()).map(drop)
    }
}

/// Reads the answer to a request to its end.
fn receive(socket: impl AsFd, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
    let mut buffer = vec![0; PACKET_BYTES];
    for _ in 0..MAX_PACKETS {
        let length = match rustix::io::read(&socket, buffer.as_mut_slice()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        for message in Messages(buffer.get(..length).unwrap_or_default()) {
            let (kind, payload) = message?;
            match kind {
                DONE => return Ok(()),
                ERROR => return acknowledged(payload),
                _ => each(kind, payload),
            }
        }
    }
    Err(Errno::OVERFLOW)
}

/// An error message begins with a negative error number, or 0 for none.
fn acknowledged(payload: &[u8]) -> Result<(), Errno> {
    let number = payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::PROTO)?;
    crate::child::outcome(number)
}

/// The messages of a packet: kind and payload. One whose length does not fit ends the iteration with an error.
struct Messages<'bytes>(&'bytes [u8]);

impl<'bytes> Iterator for Messages<'bytes> {
    type Item = Result<(u16, &'bytes [u8]), Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = self.0.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).and_then(|n| usize::try_from(n).ok());
        let kind = self.0.get(4..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_ne_bytes(*bytes));
        let (Some(length), Some(kind)) = (length, kind) else { return self.broken() };
        let Some(payload) = self.0.get(HEADER_BYTES..length) else { return self.broken() };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, payload)))
    }
}

impl<'bytes> Messages<'bytes> {
    fn broken(&mut self) -> Option<Result<(u16, &'bytes [u8]), Errno>> {
        self.0 = &[];
        Some(Err(Errno::PROTO))
    }
}

/// The attributes of a message: kind and value. One whose length does not fit ends the iteration.
struct Attributes<'bytes>(&'bytes [u8]);

impl<'bytes> Iterator for Attributes<'bytes> {
    type Item = (u16, &'bytes [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The request that gives an address to a device again, if it is one of this device that moves with it: given for
/// good, and of global scope. The index of the device is left to be filled in.
fn carried_over(payload: &[u8], index: u32) -> Option<Vec<u8>> {
    const UNIVERSE: u8 = 0;
    let (head, rest) = payload.split_at_checked(ADDRESS_BYTES)?;
    let [family, prefix, flags, scope, number @ ..] = head else { return None };
    if u32::from_ne_bytes(number.try_into().ok()?) != index || *scope != UNIVERSE {
        return None;
    }
    let all_flags = Attributes(rest)
        .find(|(kind, _)| *kind == ADDRESS_FLAGS)
        .and_then(|(_, value)| value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)));
    if all_flags.unwrap_or(u32::from(*flags)) & PERMANENT == 0 {
        return None;
    }
    let mut request = Message::new(NEW_ADDRESS, REQUEST | ACKNOWLEDGE | CREATE | EXCLUSIVE);
    request.bytes.extend([*family, *prefix, 0, *scope, 0, 0, 0, 0]);
    for (kind, value) in Attributes(rest) {
        if matches!(kind, ADDRESS | LOCAL | BROADCAST) && matches!(value.len(), 4 | 16) {
            request.attribute(kind, value);
        }
    }
    let bytes = request.finish();
    (bytes.len() <= crate::child::REQUEST_BYTES).then_some(bytes)
}

/// What takes a device up, with the index to be filled in.
pub(crate) fn up() -> Vec<u8> {
    const UP: u32 = 1;
    let mut request = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE);
    request.bytes.extend([0; LINK_BYTES - 8]);
    request.bytes.extend(UP.to_ne_bytes());
    request.bytes.extend(UP.to_ne_bytes());
    request.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["eth0", "a", "123456789012345", "eth0.100", "\u{e9}"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "1234567890123456", "a/b", "a:b", "a b", "a\tb", "a\nb", "a\0"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    fn address(index: u32, scope: u8, flags: u32) -> Vec<u8> {
        let mut message = Message { bytes: vec![2, 24, 0, scope] };
        message.bytes.extend(index.to_ne_bytes());
        message.attribute(ADDRESS, &[10, 0, 0, 1]);
        message.attribute(LOCAL, &[10, 0, 0, 1]);
        message.attribute(3, b"label\0");
        message.attribute(ADDRESS_FLAGS, &flags.to_ne_bytes());
        message.bytes
    }

    #[test]
    fn only_lasting_global_addresses_of_the_device_move() {
        let request = carried_over(&address(7, 0, PERMANENT), 7).unwrap();
        let (kind, payload) = Messages(&request).next().unwrap().unwrap();
        assert_eq!((kind, &payload[..8]), (NEW_ADDRESS, &[2, 24, 0, 0, 0, 0, 0, 0][..]));
        let kinds: Vec<u16> = Attributes(&payload[8..]).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [ADDRESS, LOCAL]);
        assert!(carried_over(&address(8, 0, PERMANENT), 7).is_none());
        assert!(carried_over(&address(7, 253, PERMANENT), 7).is_none());
        assert!(carried_over(&address(7, 0, 0), 7).is_none());
    }

    /// Every cut and every changed byte of a good answer: nothing panics, nothing is read beyond its end.
    #[test]
    fn broken_answers() {
        let mut good = carried_over(&address(7, 0, PERMANENT), 7).unwrap();
        good.extend(up());
        let walk = |bytes: &[u8]| {
            for message in Messages(bytes).take(1000) {
                let Ok((_, payload)) = message else { break };
                let _ = Attributes(payload.get(8..).unwrap_or_default()).take(1000).count();
                let _ = carried_over(payload, 0);
                let _ = acknowledged(payload);
            }
        };
        for length in 0..good.len() {
            walk(&good[..length]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 3, 4, 15, 16, 17, 0x7f, 0x80, 0xff] {
                let mut changed = good.clone();
                changed[at] = value;
                walk(&changed);
            }
        }
        assert!(Messages(&[0; 16]).next().unwrap().is_err(), "an empty message would never end");
        assert!(Messages(&[0xff; 64]).next().unwrap().is_err());
        assert_eq!(acknowledged(&[]), Err(Errno::PROTO));
        assert_eq!(acknowledged(&i32::MIN.to_ne_bytes()), Err(Errno::PROTO));
        assert_eq!(acknowledged(&(-libc::EPERM).to_ne_bytes()), Err(Errno::PERM));
    }
}
