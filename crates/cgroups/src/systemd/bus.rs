//! A connection to a systemd manager: over the message bus, or directly where there is no bus.
//!
//! Every operation has one deadline, from the connection to the end of the job that it waits for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use sys::Errno;

use super::Manager;
use super::wire::{self, FIXED_HEADER_BYTES, Kind, Message, Reader, Target, Value, Writer};
use crate::{Error, Result};

/// How long one operation may take, the end of its job included. runc waits as long.
const DEADLINE: Duration = Duration::from_secs(30);
/// Lines of the authentication are short.
const LINE_BYTES_MAX: usize = 1024;
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Where the managers listen themselves: for the system's root, and in the runtime directory of a user.
const SYSTEM_MANAGER: &str = "/run/systemd/private";
const USER_MANAGER: &str = "systemd/private";

const MANAGER: Target<'static> = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const BUS: Target<'static> =
    Target { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// A connection for one operation.
#[derive(Debug)]
pub(super) struct Bus {
    socket: OwnedFd,
    /// What the operation is, for errors.
    operation: String,
    deadline: Instant,
    serial: u32,
    input: Vec<u8>,
    /// Jobs that have ended: their path and result.
    ended: Vec<(String, String)>,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The manager refused it: name and text of the error.
    Refused { name: String, text: String },
    /// The connection is of no use any more.
    Broken(Errno),
}

impl Failure {
    pub(super) fn is(&self, short: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.rsplit('.').next() == Some(short))
    }
}

impl Bus {
    /// Connects to the bus of `manager`, or to the manager itself if there is no bus.
    pub(super) fn open(manager: Manager, operation: String) -> Result<Self> {
        let deadline = Instant::now() + DEADLINE;
        let failed = |operation: &str, source| Error::Bus { operation: operation.to_owned(), source };
        let mut reason = Errno::NOENT;
        for (address, direct) in addresses(manager) {
            match connect(&address, deadline) {
                Ok(socket) => return Self::over(socket, direct, operation, deadline),
                Err(errno) => reason = errno,
            }
        }
        Err(failed(&operation, reason))
    }

    /// Begins to talk over a socket that does not block.
    fn over(socket: OwnedFd, direct: bool, operation: String, deadline: Instant) -> Result<Self> {
        let (input, ended) = (Vec::new(), Vec::new());
        let mut bus = Self { socket, operation, deadline, serial: 0, input, ended };
        match bus.begin(direct) {
            Ok(()) => Ok(bus),
            Err(failure) => Err(bus.error(failure)),
        }
    }

    /// Authenticates by the credentials of the socket, which also holds in a user namespace, where our own id is not
    /// the one that the bus knows. A bus wants to be greeted; a manager does not.
    fn begin(&mut self, direct: bool) -> std::result::Result<(), Failure> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\n").map_err(Failure::Broken)?;
        loop {
            let line = self.line().map_err(Failure::Broken)?;
            match line.split(' ').next() {
                Some("OK") => break,
                Some("DATA") => {}
                _ => {
                    let name = "org.freedesktop.DBus.Error.AuthFailed".to_owned();
                    return Err(Failure::Refused { name, text: line });
                }
            }
        }
        self.send(b"BEGIN\r\n").map_err(Failure::Broken)?;
        if !direct {
            self.call(BUS, "Hello", "", Vec::new())?;
            let mut rule = Writer::default();
            rule.text(&format!(
                "type='signal',sender='{}',path='{}',interface='{}',member='JobRemoved'",
                MANAGER.destination, MANAGER.path, MANAGER.interface
            ));
            self.call(BUS, "AddMatch", "s", rule.into_bytes())?;
        }
        Ok(())
    }

    /// The version of the manager, its first number; 0 if it says nothing that can be read.
    pub(super) fn version(&mut self) -> std::result::Result<u32, Failure> {
        let target = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
        let mut body = Writer::default();
        body.text(MANAGER.interface);
        body.text("Version");
        let reply = self.call(target, "Get", "ss", body.into_bytes())?;
        Ok(reply.body().variant_text().map_or(0, version_number))
    }

    /// Calls a method of the manager.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        fill: impl FnOnce(&mut Writer),
    ) -> std::result::Result<Message, Failure> {
        let mut body = Writer::default();
        fill(&mut body);
        self.call(MANAGER, member, signature, body.into_bytes())
    }

    /// Calls a method that makes a job, and waits for its end; gives its result, `done` if all is well.
    pub(super) fn job(
        &mut self,
        member: &str,
        signature: &str,
        fill: impl FnOnce(&mut Writer),
    ) -> std::result::Result<String, Failure> {
        let reply = self.manager(member, signature, fill)?;
        let job = reply.body().text().ok_or(Failure::Broken(Errno::PROTO))?.to_owned();
        loop {
            if let Some(at) = self.ended.iter().position(|(path, _)| *path == job) {
                return Ok(self.ended.swap_remove(at).1);
            }
            self.receive().map_err(Failure::Broken)?;
        }
    }

    /// The error to hand out for a failure.
    pub(super) fn error(&self, failure: Failure) -> Error {
        let operation = self.operation.clone();
        match failure {
            Failure::Refused { name, text } => Error::Systemd { operation, name, text },
            Failure::Broken(source) => Error::Bus { operation, source },
        }
    }

    fn call(
        &mut self,
        target: Target<'_>,
        member: &str,
        signature: &str,
        body: Vec<u8>,
    ) -> std::result::Result<Message, Failure> {
        self.serial += 1;
        let serial = self.serial;
        let bytes = wire::call(serial, target, member, signature, &body);
        if bytes.len() > wire::MESSAGE_BYTES_MAX {
            return Err(Failure::Broken(Errno::TOOBIG));
        }
        self.send(&bytes).map_err(Failure::Broken)?;
        loop {
            let Some(message) = self.receive().map_err(Failure::Broken)? else { continue };
            if message.reply_to != serial {
                continue;
            }
            if message.kind == Kind::Failure {
                let text = message.body().text().unwrap_or_default().to_owned();
                return Err(Failure::Refused { name: message.error, text });
            }
            return Ok(message);
        }
    }

    /// The next message that is not about a job; `None` after one that is.
    fn receive(&mut self) -> sys::Result<Option<Message>> {
        while self.input.len() < FIXED_HEADER_BYTES {
            self.fill()?;
        }
        let head = self.input.first_chunk::<FIXED_HEADER_BYTES>().ok_or(Errno::PROTO)?;
        let length = wire::length(head).ok_or(Errno::PROTO)?;
        while self.input.len() < length {
            self.fill()?;
        }
        let message = Message::parse(&self.input[..length]).ok_or(Errno::PROTO)?;
        self.input.drain(..length);
        if message.kind == Kind::Signal {
            if message.member == "JobRemoved" {
                self.ended.extend(removed(&mut message.body()));
            }
            return Ok(None);
        }
        Ok(Some(message))
    }

    fn line(&mut self) -> sys::Result<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|bytes| bytes == b"\r\n") {
                let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
                self.input.drain(..end + 2);
                return Ok(line);
            }
            if self.input.len() > LINE_BYTES_MAX {
                return Err(Errno::PROTO);
            }
            self.fill()?;
        }
    }

    /// Reads what is there, waiting for it if there is nothing.
    fn fill(&mut self) -> sys::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.socket, &mut buffer[..]) {
                Ok(0) => return Err(Errno::CONNRESET),
                Ok(count) => {
                    self.input.extend(&buffer[..count]);
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> sys::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags) -> sys::Result<()> {
        let rest = self.deadline.saturating_duration_since(Instant::now());
        let rest = Timespec::try_from(rest).map_err(|_| Errno::RANGE)?;
        let mut poll = [PollFd::from_borrowed_fd(self.socket.as_fd(), what)];
        match rustix::event::poll(&mut poll, Some(&rest)) {
            Ok(0) => Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Writes properties as the methods for units take them: `a(sv)`.
pub(super) fn properties(writer: &mut Writer, list: &[super::Property]) {
    writer.array(8, |writer| {
        for property in list {
            writer.structure(|writer| {
                writer.text(&property.name);
                writer.variant(&property.value);
            });
        }
    });
}

/// `JobRemoved(u id, o job, s unit, s result)`.
fn removed(body: &mut Reader<'_>) -> Option<(String, String)> {
    body.u32()?;
    let job = body.text()?.to_owned();
    body.text()?;
    Some((job, body.text()?.to_owned()))
}

/// `252.39-1~deb12u1`, `v245`.
fn version_number(text: &str) -> u32 {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// A place to connect to.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

/// Where to try, in order, and whether that is the manager itself.
fn addresses(manager: Manager) -> Vec<(Address, bool)> {
    let given = |variable: &str| std::env::var(variable).ok().filter(|text| !text.is_empty());
    let mut list = Vec::new();
    let (variable, bus, own) = match manager {
        Manager::System => ("DBUS_SYSTEM_BUS_ADDRESS", PathBuf::from(SYSTEM_BUS), PathBuf::from(SYSTEM_MANAGER)),
        Manager::User => {
            let runtime =
                given("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{}", rustix::process::getuid().as_raw()));
            let runtime = PathBuf::from(runtime);
            ("DBUS_SESSION_BUS_ADDRESS", runtime.join("bus"), runtime.join(USER_MANAGER))
        }
    };
    match given(variable) {
        Some(text) => list.extend(parse_addresses(&text).into_iter().map(|address| (address, false))),
        None => list.push((Address::Path(bus), false)),
    }
    list.push((Address::Path(own), true));
    list
}

/// The unix sockets of a list of bus addresses: `unix:path=/run/user/1000/bus,guid=…;unix:abstract=/tmp/x`.
fn parse_addresses(text: &str) -> Vec<Address> {
    let mut list = Vec::new();
    for entry in text.split(';') {
        for pair in entry.strip_prefix("unix:").into_iter().flat_map(|pairs| pairs.split(',')) {
            match pair.split_once('=') {
                Some(("path", value)) => {
                    list.extend(String::from_utf8(unescape(value)).ok().map(|path| Address::Path(path.into())));
                }
                Some(("abstract", value)) => list.push(Address::Abstract(unescape(value))),
                _ => {}
            }
        }
    }
    list
}

/// `%2f` for a byte.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// A listener whose queue is full says so at once; it is asked again until the deadline.
fn connect(address: &Address, deadline: Instant) -> sys::Result<OwnedFd> {
    let address = match address {
        Address::Path(path) => SocketAddrUnix::new(path.as_path())?,
        Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut pause = Duration::from_millis(5);
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                crate::tree::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A property by a fixed name.
pub(super) fn property(name: &'static str, value: Value) -> super::Property {
    super::Property { name: name.into(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, number) in [("252.39-1~deb12u1", 252), ("v245", 245), ("245", 245), ("", 0), ("x", 0)] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn bus_addresses() {
        let path = |path: &str| Address::Path(path.into());
        for (text, expected) in [
            ("unix:path=/run/user/1000/bus", vec![path("/run/user/1000/bus")]),
            ("unix:path=/a%20b%3d,guid=12;tcp:host=x", vec![path("/a b=")]),
            ("tcp:host=x;unix:abstract=/tmp/y;unix:path=/z", vec![Address::Abstract(b"/tmp/y".to_vec()), path("/z")]),
            ("unixexec:path=ssh", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse_addresses(text), expected, "{text}");
        }
        assert_eq!(unescape("%"), b"%");
        assert_eq!(unescape("%zz%4"), b"%zz%4");
    }

    /// What is answered to a call, by its number.
    type Answer = fn(u32) -> Vec<u8>;

    /// A bus or manager that plays `scene`: for each call its member and what to answer.
    fn played(
        direct: bool,
        patience: Duration,
        scene: Vec<(&'static str, Answer)>,
    ) -> (Result<Bus>, std::thread::JoinHandle<()>) {
        use std::io::{Read as _, Write as _};
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let player = std::thread::spawn(move || {
            let mut hello = vec![0; b"\0AUTH EXTERNAL\r\nDATA\r\n".len()];
            theirs.read_exact(&mut hello).unwrap();
            assert!(hello.starts_with(b"\0AUTH EXTERNAL\r\n"));
            theirs.write_all(b"DATA\r\nOK 0123\r\n").unwrap();
            let mut begin = [0; 7];
            theirs.read_exact(&mut begin).unwrap();
            assert_eq!(&begin, b"BEGIN\r\n");
            for (member, answer) in scene {
                let mut head = [0; FIXED_HEADER_BYTES];
                theirs.read_exact(&mut head).unwrap();
                let mut bytes = head.to_vec();
                bytes.resize(wire::length(&head).unwrap(), 0);
                theirs.read_exact(&mut bytes[FIXED_HEADER_BYTES..]).unwrap();
                let call = Message::parse(&bytes).unwrap();
                assert_eq!((call.kind, call.member.as_str()), (Kind::Call, member));
                // In two parts, as a stream may bring them.
                let answer = answer(u32::from_le_bytes(head[8..12].try_into().unwrap()));
                let (first, second) = answer.split_at(answer.len() / 2);
                theirs.write_all(first).unwrap();
                theirs.write_all(second).unwrap();
            }
        });
        let deadline = Instant::now() + patience;
        (Bus::over(ours.into(), direct, "testing".to_owned(), deadline), player)
    }

    fn fine(serial: u32) -> Vec<u8> {
        wire::answer(Kind::Return, serial, "", "", &[])
    }

    fn job(path: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(path);
        body.into_bytes()
    }

    fn job_removed(path: &str, result: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.u32(7);
        for text in [path, "x.scope", result] {
            body.text(text);
        }
        wire::answer(Kind::Signal, 0, "JobRemoved", "uoss", &body.into_bytes())
    }

    #[test]
    fn a_job_is_waited_for_whenever_its_end_is_told() {
        // The end before the answer, with the end of another job around it.
        let early = |serial| {
            let answer = wire::answer(Kind::Return, serial, "", "o", &job("/job/7"));
            [job_removed("/job/6", "failed"), job_removed("/job/7", "done"), answer].concat()
        };
        let late = |serial| {
            let answer = wire::answer(Kind::Return, serial, "", "o", &job("/job/8"));
            [answer, job_removed("/job/9", "done"), job_removed("/job/8", "canceled")].concat()
        };
        let greeted: [(&str, Answer); 3] = [("Hello", fine), ("AddMatch", fine), ("StopUnit", early)];
        let (bus, player) = played(false, DEADLINE, greeted.to_vec());
        let result = bus.unwrap().job("StopUnit", "s", |writer| writer.text("x.scope"));
        assert_eq!(result.unwrap(), "done");
        player.join().unwrap();
        let (bus, player) = played(true, DEADLINE, vec![("StopUnit", late)]);
        let result = bus.unwrap().job("StopUnit", "s", |writer| writer.text("x.scope"));
        assert_eq!(result.unwrap(), "canceled");
        player.join().unwrap();
    }

    #[test]
    fn refusals_and_lost_connections_are_told_apart() {
        let refused = |serial| {
            let name = "org.freedesktop.systemd1.NoSuchUnit";
            wire::answer(Kind::Failure, serial, name, "s", &job("Unit x.scope not loaded."))
        };
        let (bus, player) = played(true, DEADLINE, vec![("StopUnit", refused)]);
        let mut bus = bus.unwrap();
        let failure = bus.job("StopUnit", "s", |writer| writer.text("x.scope")).unwrap_err();
        assert!(failure.is("NoSuchUnit") && !failure.is("Unit"));
        let text = "systemd, testing: Unit x.scope not loaded. (org.freedesktop.systemd1.NoSuchUnit)";
        assert_eq!(bus.error(failure).to_string(), text);
        player.join().unwrap();
        // The other side is gone now.
        let failure = bus.manager("Get", "", |_| {}).unwrap_err();
        assert!(matches!(failure, Failure::Broken(Errno::CONNRESET | Errno::PIPE)), "{failure:?}");
    }

    #[test]
    fn nobody_is_waited_for_beyond_the_deadline_and_nonsense_is_no_message() {
        let silent = |_| Vec::new();
        let (bus, player) = played(true, Duration::from_millis(300), vec![("Get", silent), ("Never", silent)]);
        let mut bus = bus.unwrap();
        let failure = bus.manager("Get", "", |_| {}).unwrap_err();
        assert!(matches!(failure, Failure::Broken(Errno::TIMEDOUT)), "{failure:?}");
        drop(bus);
        assert!(player.join().is_err(), "the scene was not played to its end");
        let nonsense = |_| vec![0xff; FIXED_HEADER_BYTES];
        let (bus, player) = played(true, DEADLINE, vec![("Get", nonsense)]);
        let failure = bus.unwrap().manager("Get", "", |_| {}).unwrap_err();
        assert!(matches!(failure, Failure::Broken(Errno::PROTO)), "{failure:?}");
        player.join().unwrap();
    }
}
