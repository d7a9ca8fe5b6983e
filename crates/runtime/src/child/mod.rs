//! What runs between clone and exec.
//!
//! The parent works out a [`Script`]: a list of [`Step`]s with every string, descriptor and table that they need. The
//! child goes through it. The only way it talks is [`Record`]s on its socket.
//!
//! **Invariant:** nothing in this module allocates, takes a lock or can panic: the child runs on a copy of the
//! parent's memory. (The functions of `rustix` and `sys` that are called here are bare system calls.)

mod copy;
mod creds;
mod devices;
mod ground;
mod home;
mod hooks;
mod mask;
mod mounts;
mod netdev;
mod path;
mod proc;
mod program;
mod scratch;
mod spaces;
mod step;

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ground::Ground;
use mounts::Site;
pub(crate) use netdev::{REQUEST_BYTES, outcome};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Resource, Rlimit};
use scratch::Scratch;
pub(crate) use step::{
    Awaited, Bind, Capabilities, Console, Device, DeviceKind, Filesystem, Hook, HookKind, IdMap, Legacy, Link,
    MountStep, NetDevice, Process, RootTree, Script, Stdio, Step, StringArray, What,
};
use sys::clone::exit_now;
use sys::mount::MountAttr;
use sys::undefended::{Defence, left_out};

/// What the child tells the parent. Sent whole, as one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Which message.
    pub(crate) kind: Kind,
    /// Number of the step that it is about.
    pub(crate) step: u32,
    /// Error number, 0 for none.
    pub(crate) errno: i32,
    /// A further number, by kind.
    pub(crate) value: i32,
}

/// The messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The step failed; the child is about to end.
    Failed = 1,
    /// The step failed and is not vital.
    Warning = 2,
    /// An intermediate process made the container's process; `value` is its pid.
    Forked = 3,
    /// The hooks of the host may run now; the child waits.
    HooksDue = 4,
    /// The descriptor with this packet is the master of the terminal.
    Console = 5,
    /// The program was not found or may not be executed; `value` tells a directory.
    Program = 6,
    /// Everything is set up; the child waits to be started.
    Ready = 7,
    /// The exec failed.
    Exec = 8,
    /// A hook in the container failed; `value` is its exit status or, negative, the signal that ended it. The end of
    /// what it said follows the record.
    Hook = 9,
    /// The filter is on and has a listener, which comes with this packet or has the number `value`; the child waits.
    Listener = 10,
    /// The container was started and has no process to run.
    NoProcess = 11,
}

/// Hierarchies of cgroup version 1 that a process can be sent into at once; the kernel has fewer controllers.
pub(crate) const ENTRANCES_MAX: usize = 32;

/// With fewer descriptors than this, those of mounts are in the way.
const FEW_DESCRIPTORS: u64 = 256;

pub(crate) const RECORD_BYTES: usize = 16;
/// A record with the longest text that may follow it; a pipe takes as much in one piece.
pub(crate) const MESSAGE_BYTES: usize = RECORD_BYTES + 1024;

impl Record {
    pub(crate) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let words = [self.kind as u32, self.step, self.errno.cast_unsigned(), self.value.cast_unsigned()];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Of the first bytes of a message.
    pub(crate) fn from_bytes(message: &[u8]) -> Option<Self> {
        let bytes = message.first_chunk::<RECORD_BYTES>()?;
        let mut words = [0_u32; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().ok()?);
        }
        let kind = match words[0] {
            1 => Kind::Failed,
            2 => Kind::Warning,
            3 => Kind::Forked,
            4 => Kind::HooksDue,
            5 => Kind::Console,
            6 => Kind::Program,
            7 => Kind::Ready,
            8 => Kind::Exec,
            9 => Kind::Hook,
            10 => Kind::Listener,
            11 => Kind::NoProcess,
            _ => return None,
        };
        Some(Self { kind, step: words[1], errno: words[2].cast_signed(), value: words[3].cast_signed() })
    }
}

/// The child's own state while it goes through the script.
struct Child<'script> {
    script: &'script Script,
    /// The socket to the parent.
    sync: BorrowedFd<'script>,
    /// Number of the step that runs.
    step: u32,
    /// The root file system, once attached.
    root: Root<'script>,
    /// Mounts of our own in which places need not be looked for.
    ground: Ground<'script>,
    /// What is open and of no use any more.
    scratch: Scratch,
    /// Our end of the terminal.
    terminal: Option<OwnedFd>,
    /// The empty read-only directory that masks others.
    mask: Option<OwnedFd>,
    /// The null device that masks files.
    mask_null: Option<OwnedFd>,
    /// Whether the parent's null device is attached somewhere.
    null_used: bool,
    /// The procfs of the container, as mounted.
    procfs: Option<OwnedFd>,
    /// Whether that one was made here and nothing is mounted below it.
    procfs_bare: bool,
    /// The procfs of the host, checked.
    host_procfs: Option<OwnedFd>,
    /// Whether nothing that is unmounted here is unmounted on the host.
    apart: bool,
    /// Whether `/proc/self/exe` names our program still, in a form that could be executed.
    own_program_in_reach: bool,
}

/// The root file system.
enum Root<'script> {
    None,
    /// The parent's mount, which is attached.
    Mount(&'script OwnedFd),
    Opened(OwnedFd),
}

/// Ends the process if the script fails; otherwise it becomes the program.
pub(crate) fn run(script: &Script, sync: BorrowedFd<'_>) -> ! {
    // SAFETY: this is the child of a fork in a process of one thread; it ends by exec or _exit and drops nothing.
    #[expect(unsafe_code, reason = "the child goes on with other mappings of the same program")]
    let left = script.own_program.as_ref().is_some_and(|program| unsafe { program.leave() }.is_ok());
    let mut child = Child {
        script,
        sync,
        step: 0,
        root: Root::None,
        ground: Ground::default(),
        scratch: Scratch::new(script.few_descriptors),
        terminal: None,
        mask: None,
        mask_null: None,
        null_used: false,
        procfs: None,
        procfs_bare: false,
        host_procfs: None,
        apart: false,
        own_program_in_reach: !left,
    };
    // Modes are meant as they are said.
    rustix::process::umask(rustix::fs::Mode::empty());
    child.run_steps(&script.intermediate, 0);
    let base = script.intermediate.len();
    if script.fork.is_some() {
        child.step = u32::try_from(base).unwrap_or(u32::MAX);
        child.fork();
    }
    child.run_steps(&script.steps, base);
    exit_now(0)
}

impl<'script> Child<'script> {
    fn run_steps(&mut self, steps: &'script [Step], base: usize) {
        for (index, step) in steps.iter().enumerate() {
            self.step = u32::try_from(base + index).unwrap_or(u32::MAX);
            if let Err(errno) = self.run_step(step) {
                self.fail(Kind::Failed, errno.raw_os_error(), 0);
            }
        }
    }

    /// Goes on in a new process; this one, which has joined what only descendants can be in, ends.
    fn fork(&mut self) {
        let Some(flags) = self.script.fork else { return };
        // SAFETY: the parent has one thread, hence this process too; the new one goes on with this script.
        #[expect(unsafe_code, reason = "the one place where the child makes a process")]
        let forked = unsafe { sys::clone::fork(flags, None) };
        match forked {
            Ok(sys::clone::Forked::Child) => {}
            Ok(sys::clone::Forked::Parent { pid, .. }) => {
                self.send(Kind::Forked, 0, pid.cast_signed());
                exit_now(0)
            }
            Err(errno) => self.fail(Kind::Failed, errno.raw_os_error(), 0),
        }
    }

    fn run_step(&mut self, step: &'script Step) -> Result<(), Errno> {
        match step {
            Step::Await(Awaited::Admission) => self.enter_cgroup(),
            Step::HooksDue => {
                self.ground.give_up();
                self.send(Kind::HooksDue, 0, 0);
                self.wait_for_parent()
            }
            Step::NewSession => rustix::process::setsid().map(drop),
            Step::Join { namespace, kind, .. } => spaces::join(namespace.as_fd(), *kind),
            Step::JoinDeferred(list) => spaces::join_deferred(list),
            Step::JoinProcess { pidfd, kinds } => spaces::join(pidfd.as_fd(), *kinds),
            Step::Unshare(kinds) => spaces::unshare(*kinds),
            Step::TimeOffsets(text) => spaces::time_offsets(|| {
                if text.is_empty() { Ok(()) } else { self.write_proc(c"self/timens_offsets", text) }
            }),
            Step::BecomeRoot => creds::become_root(),
            Step::Hide => creds::hide(),
            Step::Hostname(name) => spaces::set_hostname(name),
            Step::Domainname(name) => spaces::set_domainname(name),
            Step::Loopback => spaces::loopback_up(&self.scratch),
            Step::Propagation(flags) => {
                self.apart = flags & libc::MS_REC != 0 && flags & (libc::MS_SLAVE | libc::MS_PRIVATE) != 0;
                mounts::propagate(*flags)
            }
            Step::Root(tree) => {
                self.root = match (mounts::attach_root(tree)?, tree) {
                    (Some(opened), _) => Root::Opened(opened),
                    (None, RootTree::Detached { mount, .. }) => Root::Mount(mount),
                    (None, RootTree::Path { .. }) => return Err(Errno::BADF),
                };
                Ok(())
            }
            Step::Mount(mount) => self.mount(mount),
            Step::ReadOnlyMount { path } => mounts::make_read_only(self.root()?, path),
            Step::Seal { path, set, propagation } => self.seal(path, *set, propagation),
            Step::Devices { parent, devices } => devices::make_devices(self.site()?, parent, devices),
            Step::Links { parent, links } => devices::make_links(self.site()?, parent, links),
            Step::Console(console) => self.open_console(console),
            Step::Hook(hook) => {
                self.ground.give_up();
                self.run_hook(hook)
            }
            Step::Sysctl { path, value } if left_out(Defence::ProcWrites) => {
                spaces::write_below(self.root()?, path, value)
            }
            Step::Sysctl { path, value } => self.write_proc(path, value),
            Step::Label { path, otherwise, value, .. } => match (self.write_proc(path, value), otherwise) {
                (Err(Errno::NOENT), Some(otherwise)) => self.write_proc(otherwise, value),
                (result, _) => result,
            },
            Step::OomScore(score) => match self.write_proc(c"self/oom_score_adj", score) {
                Err(errno @ (Errno::PERM | Errno::ACCESS)) => {
                    self.warn(errno);
                    Ok(())
                }
                result => result,
            },
            Step::WorkingDirectory { .. } if left_out(Defence::Cwd) => Ok(()),
            // The root itself is there.
            Step::WorkingDirectory { path } if path.is_empty() => Ok(()),
            Step::WorkingDirectory { path } => path::directory(self.root()?, path).map(drop),
            Step::Pivot { by_move } => {
                self.host_procfs = None;
                if let (Some(program), None) = (&self.script.own_program, by_move) {
                    // It goes away with the old root then. If it cannot be, its last holder takes it down.
                    let _ = program.attach(c"/dev/null");
                }
                mounts::change_root(self.root()?, by_move.as_deref(), self.apart)
            }
            Step::Chroot => {
                self.host_procfs = None;
                mounts::chroot(self.root()?)
            }
            Step::EnterRoot(root) => {
                mounts::chroot(root.as_fd())?;
                self.root = Root::Mount(root);
                Ok(())
            }
            Step::RootReadOnly => mounts::root_read_only(self.root()?),
            Step::RootPropagation(flags) => mounts::propagate(*flags),
            Step::Mask { path } => self.mask_path(path),
            Step::ReadOnly { path } => self.read_only(path),
            Step::OwnRoot => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                self.root = Root::Opened(rustix::fs::open(c"/", flags, rustix::fs::Mode::empty())?);
                Ok(())
            }
            Step::NetDevice { device, up } => netdev::configure(device, up),
            Step::Limits { limits, vital } => self.set_limits(limits, *vital),
            Step::Scheduler { attributes, .. } => sys::sched::set_attributes(attributes),
            Step::IoPriority(value) => sys::sched::set_io_priority(*value),
            Step::Affinity { mask, vital } => match sys::sched::set_affinity(mask) {
                Err(errno) if !*vital => {
                    self.warn(errno);
                    Ok(())
                }
                result => result,
            },
            Step::Personality(domain) => sys::sched::set_personality(*domain),
            Step::MemoryPolicy { mode, nodes } => sys::sched::set_memory_policy(*mode, nodes),
            Step::Process(process) => self.become_program(process),
        }
    }

    /// Raising needs CAP_SYS_RESOURCE, which the host may lack.
    fn set_limits(&self, limits: &[(Resource, Rlimit)], vital: bool) -> Result<(), Errno> {
        for (resource, limit) in limits {
            if *resource == Resource::Nofile && limit.current.is_some_and(|number| number < FEW_DESCRIPTORS) {
                self.close_mounts();
                self.scratch.empty();
            }
            match rustix::process::setrlimit(*resource, *limit) {
                Err(errno @ Errno::PERM) if !vital => self.warn(errno),
                result => result?,
            }
        }
        Ok(())
    }

    /// Closes the mounts that the parent made, which are attached by now: under a small limit they would leave no
    /// number for what is still to be opened.
    fn close_mounts(&self) {
        for step in &self.script.steps {
            if let Step::Mount(mount) = step
                && let What::Detached(tree) = &mount.what
            {
                // SAFETY: nothing uses the descriptor after its step, and this process never drops the script: it
                // executes the program or exits.
                #[expect(unsafe_code, reason = "the script owns the descriptor and is shared")]
                unsafe {
                    rustix::io::close(tree.as_raw_fd());
                }
            }
        }
    }

    fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        match &self.root {
            Root::None => Err(Errno::BADF),
            Root::Mount(mount) => Ok(mount.as_fd()),
            Root::Opened(root) => Ok(root.as_fd()),
        }
    }

    /// What mounts and devices are made with.
    fn site(&self) -> Result<Site<'_>, Errno> {
        Ok(Site { root: self.root()?, ground: &self.ground, scratch: &self.scratch })
    }

    /// Writes to the host's procfs.
    fn write_proc(&mut self, path: &CStr, value: &[u8]) -> Result<(), Errno> {
        let root = match &self.host_procfs {
            Some(root) => root,
            None => self.host_procfs.insert(proc::root()?),
        };
        let file = proc::open(root.as_fd(), path, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, value)?;
        self.scratch.put(file);
        if written == value.len() { Ok(()) } else { Err(Errno::IO) }
    }

    /// Changes attributes of a mount of our own making and of all mounts below it.
    fn seal(&self, path: &CStr, set: u64, propagation: &[u64]) -> Result<(), Errno> {
        let mount = self.ground.own_directory(path).ok_or(Errno::BADF)?;
        let (first, rest) = propagation.split_first().map_or((0, propagation), |(first, rest)| (*first, rest));
        let change = MountAttr { set, propagation: first & !libc::MS_REC, ..MountAttr::default() };
        sys::mount::mount_setattr(mount, c"", true, &change)?;
        for flags in rest {
            let change = MountAttr { propagation: flags & !libc::MS_REC, ..MountAttr::default() };
            sys::mount::mount_setattr(mount, c"", true, &change)?;
        }
        Ok(())
    }

    /// Waits to be admitted. The descriptors that come with the byte lead into the container's cgroups; the byte is one
    /// more than their number. If the kernel drops some of them (no descriptor is free), the process must not go on: it
    /// would run outside of its limits.
    fn enter_cgroup(&self) -> Result<(), Errno> {
        let mut byte = [0_u8; 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ENTRANCES_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut byte)];
            match rustix::net::recvmsg(self.sync, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match received {
            Ok(message) if message.bytes > 0 => {}
            Ok(_) | Err(Errno::CONNRESET) => exit_now(1),
            Err(errno) => return Err(errno),
        }
        let mut missing = byte[0].saturating_sub(1);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(entrances) = message {
                for entrance in entrances {
                    // 0 is the writer itself, whatever its pid is in its own namespace.
                    rustix::io::write(&entrance, b"0")?;
                    self.scratch.put(entrance);
                    missing = missing.saturating_sub(1);
                }
            }
        }
        if missing == 0 { Ok(()) } else { Err(Errno::MFILE) }
    }

    /// Waits for one byte of the parent. If the parent is gone there is nothing to go on for.
    fn wait_for_parent(&self) -> Result<(), Errno> {
        wait_for_byte(self.sync)
    }

    fn warn(&self, errno: Errno) {
        self.send(Kind::Warning, errno.raw_os_error(), 0);
    }

    fn fail(&self, kind: Kind, errno: i32, value: i32) -> ! {
        self.send(kind, errno, value);
        exit_now(1)
    }

    fn send(&self, kind: Kind, errno: i32, value: i32) {
        send(self.sync, self.record(kind, errno, value));
    }

    fn record(&self, kind: Kind, errno: i32, value: i32) -> Record {
        Record { kind, step: self.step, errno, value }
    }

    /// Passes a descriptor to the parent.
    fn send_descriptor(&self, kind: Kind, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        let bytes = self.record(kind, 0, 0).to_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Errno::NOBUFS);
        }
        rustix::net::sendmsg(self.sync, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
    }
}

/// Reads one byte; the end of the file ends the process.
fn wait_for_byte(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(fd, &mut byte) {
            Ok(0) | Err(Errno::CONNRESET) => exit_now(1),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Nobody may be there to listen any more; then it does not matter.
fn send(fd: BorrowedFd<'_>, record: Record) {
    while rustix::io::write(fd, &record.to_bytes()) == Err(Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_socket() {
        for kind in [Kind::Failed, Kind::Hook, Kind::Ready, Kind::Listener] {
            let record = Record { kind, step: 7, errno: -1, value: i32::MIN };
            assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
        }
        assert_eq!(Record::from_bytes(&[0; RECORD_BYTES]), None);
        assert_eq!(Record::from_bytes(&[1; 3]), None);
    }
}
