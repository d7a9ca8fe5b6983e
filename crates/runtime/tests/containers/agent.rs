//! A seccomp agent in the test's own thread: it takes what runtimes send and answers notifications while an operation
//! or a container is waited for.

#![expect(unsafe_code, reason = "the ioctls of notifications have no wrapper")]

use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use runtime::{Error, Operation};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::Value;

const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    pointer: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Listens in a directory of its own.
pub(crate) struct Agent {
    pub(crate) directory: tempfile::TempDir,
    listener: UnixListener,
    /// What runtimes told, oldest first.
    pub(crate) documents: Vec<Value>,
    /// Numbers of the calls that were asked about.
    pub(crate) asked: Vec<i64>,
    /// Whose filters it answers for.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Calls that it refuses with ENOSPC; others go on.
    refused: Vec<i64>,
}

impl Agent {
    pub(crate) fn new(refused: &[i64]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let refused = refused.to_vec();
        Self { directory, listener, documents: Vec::new(), asked: Vec::new(), descriptors: Vec::new(), refused }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// Drives an operation to its end.
    pub(crate) fn drive<O: Operation>(&mut self, operation: &mut O) -> Result<O::Output, Error> {
        loop {
            if let Some(output) = operation.advance()? {
                self.serve();
                return Ok(output);
            }
            self.wait(operation.poll_fd());
        }
    }

    /// Serves until a process has ended.
    pub(crate) fn until_end(&mut self, pidfd: BorrowedFd<'_>) {
        while !sys::fs::poll_readable(pidfd, Some(std::time::Duration::ZERO)).unwrap() {
            self.wait(pidfd);
        }
    }

    fn wait(&mut self, other: BorrowedFd<'_>) {
        let mut list = vec![PollFd::from_borrowed_fd(other, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        list.extend(self.descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)));
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_ne!(rustix::event::poll(&mut list, Some(&limit)).unwrap(), 0, "nothing happens");
        self.serve();
    }

    /// Takes and answers what there is.
    pub(crate) fn serve(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.take(stream);
        }
        // One whose processes are all gone stays readable and has no more to say.
        self.descriptors.retain(|descriptor| {
            let mut poll = [PollFd::new(descriptor, PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&Timespec::default())).unwrap();
            !poll[0].revents().contains(PollFlags::HUP)
        });
        for index in 0..self.descriptors.len() {
            while sys::fs::poll_readable(self.descriptors[index].as_fd(), Some(std::time::Duration::ZERO)).unwrap() {
                if !self.answer(index) {
                    break;
                }
            }
        }
    }

    fn take(&mut self, stream: UnixStream) {
        let mut bytes = [0; 65536];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let length = rustix::net::recvmsg(&stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        let mut text = bytes[..length].to_vec();
        (&stream).read_to_end(&mut text).unwrap();
        self.documents.push(serde_json::from_slice(&text).unwrap());
        let before = self.descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        assert_eq!(self.descriptors.len(), before + 1, "one descriptor per message");
    }

    fn answer(&mut self, index: usize) -> bool {
        let descriptor = self.descriptors[index].as_raw_fd();
        let mut asked = Notification::default();
        // SAFETY: the kernel fills in a whole struct seccomp_notif, which `asked` is.
        if unsafe { libc::ioctl(descriptor, RECEIVE as _, &raw mut asked) } != 0 {
            return false;
        }
        let number = i64::from(asked.number);
        self.asked.push(number);
        let refused = self.refused.contains(&number);
        let (error, flags) = if refused { (-libc::ENOSPC, 0) } else { (0, CONTINUE) };
        let answer = Answer { id: asked.id, value: 0, error, flags };
        // SAFETY: the kernel reads a whole struct seccomp_notif_resp. It fails if the process is gone meanwhile.
        unsafe { libc::ioctl(descriptor, SEND as _, &raw const answer) };
        true
    }
}
