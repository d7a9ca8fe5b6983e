use std::ffi::{CStr, CString, c_char};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::fs::Gid;
use rustix::process::{Resource, Rlimit};
use sys::OwnProgram;

use crate::seccomp::Filter;

/// All that the child does. The parent keeps its copy to say in words what a step number means.
#[derive(Debug)]
pub(crate) struct Script {
    /// The program's name, for errors.
    pub(crate) program: String,
    /// Done before [`Script::fork`], in a process that then ends.
    pub(crate) intermediate: Vec<Step>,
    /// Flags of the second clone; `None`: there is none.
    pub(crate) fork: Option<u64>,
    /// Done in the container's process.
    pub(crate) steps: Vec<Step>,
    /// The null device as a detached read-only mount, to mask files with.
    pub(crate) null: Option<OwnedFd>,
    /// Whether the limit of descriptors is too small to leave any open that is done with.
    pub(crate) few_descriptors: bool,
    /// Our own program, to let go of before anything of the container is looked at. Where that cannot be had, programs
    /// are looked at instead.
    pub(crate) own_program: Option<OwnProgram>,
}

impl Script {
    pub(crate) fn empty() -> Self {
        Self {
            program: String::new(),
            intermediate: Vec::new(),
            fork: None,
            steps: Vec::new(),
            null: None,
            few_descriptors: false,
            own_program: None,
        }
    }

    /// The filter that the program gets.
    pub(crate) fn filter(&self) -> Option<&Filter> {
        match self.steps.last() {
            Some(Step::Process(process)) => process.filter.as_ref(),
            _ => None,
        }
    }

    /// Whether the program's process says nothing before its exec.
    pub(crate) fn silence(&mut self, silent: bool) {
        if let Some(Step::Process(process)) = self.steps.last_mut() {
            process.silent = silent;
        }
    }

    /// Takes out the descriptors that only the child needs: of mounts, streams and the way to start.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        let mut taken = Vec::from_iter(self.null.take());
        taken.extend(self.own_program.take().into_iter().flat_map(OwnProgram::into_descriptors));
        for step in &mut self.steps {
            if let Step::Root(tree) = step
                && matches!(tree, RootTree::Detached { .. })
            {
                let nothing = RootTree::Path { directory: CString::default(), propagation: 0 };
                if let RootTree::Detached { mount, .. } = std::mem::replace(tree, nothing) {
                    taken.push(mount);
                }
            } else if let Step::Mount(step) = step
                && matches!(step.what, What::Detached(_))
            {
                if let What::Detached(mount) = std::mem::replace(&mut step.what, What::Taken) {
                    taken.push(mount);
                }
            } else if let Step::Process(process) = step {
                if let Stdio::Streams(streams) = std::mem::replace(&mut process.stdio, Stdio::Inherited) {
                    taken.extend(streams);
                }
                taken.extend(process.gate.take().into_iter().flat_map(|(start, report)| [start, report]));
            }
        }
        taken
    }

    /// Whether there are others: of namespaces, processes and roots.
    pub(crate) fn has_descriptors(&self) -> bool {
        let mapped = |step: &Step| matches!(step, Step::Mount(step) if matches!(&step.what, What::Bind(Bind { id_map: Some(_), .. })));
        let joins = |step: &Step| {
            matches!(step, Step::Join { .. } | Step::JoinDeferred(_) | Step::JoinProcess { .. } | Step::EnterRoot(_))
        };
        self.intermediate.iter().chain(&self.steps).any(|step| joins(step) || mapped(step))
    }

    /// A process that does nothing, until it is killed or its parent is gone.
    pub(crate) fn waiting() -> Self {
        Self { steps: vec![Step::Await(Awaited::Admission)], ..Self::empty() }
    }

    /// Only what is needed to tell how the exec failed.
    pub(crate) fn only_program(program: String) -> Self {
        Self { program, ..Self::empty() }
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// The id maps are written and the cgroup is joined.
    Admission,
}

/// One thing to do. Paths of containers are relative to the root file system, without a leading slash.
#[derive(Debug)]
pub(crate) enum Step {
    Await(Awaited),
    HooksDue,
    NewSession,
    Join {
        namespace: OwnedFd,
        kind: u64,
        path: String,
    },
    /// Joins in an order that user namespace ownership allows: what can be joined before, the user namespace, the rest.
    JoinDeferred(Vec<(OwnedFd, u64)>),
    JoinProcess {
        pidfd: OwnedFd,
        kinds: u64,
    },
    Unshare(u64),
    TimeOffsets(Vec<u8>),
    BecomeRoot,
    Hide,
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    Loopback,
    Propagation(u64),
    Root(RootTree),
    Mount(Box<MountStep>),
    ReadOnlyMount {
        path: CString,
    },
    /// Attributes and propagation for a mount that this process has made, and for all below it.
    Seal {
        path: CString,
        /// `MOUNT_ATTR_*`.
        set: u64,
        /// `MS_SLAVE` and its kin.
        propagation: Vec<u64>,
    },
    Devices {
        parent: CString,
        devices: Vec<Device>,
    },
    Links {
        parent: CString,
        links: Vec<Link>,
    },
    Console(Console),
    Hook(Hook),
    Sysctl {
        path: CString,
        value: Vec<u8>,
    },
    /// What a security module is told about the next exec.
    Label {
        field: &'static str,
        /// Below `/proc`.
        path: CString,
        /// For kernels that do not have the first.
        otherwise: Option<CString>,
        value: Vec<u8>,
    },
    /// Not vital: lowering needs CAP_SYS_RESOURCE.
    OomScore(Vec<u8>),
    WorkingDirectory {
        path: CString,
    },
    Pivot {
        /// `Some`: by moving it; with the places in the old one that must not stay visible.
        by_move: Option<Vec<CString>>,
    },
    RootReadOnly,
    RootPropagation(u64),
    Mask {
        path: CString,
    },
    ReadOnly {
        path: CString,
    },
    /// A device that the parent has moved here.
    NetDevice {
        device: NetDevice,
        /// The request that takes it up.
        up: Vec<u8>,
    },
    /// Changes the root of this process only.
    Chroot,
    /// In an exec: the root that the container has.
    OwnRoot,
    /// In an exec: the root of the container's first process, where that is not the root of its mount namespace.
    EnterRoot(OwnedFd),
    Limits {
        limits: Vec<(Resource, Rlimit)>,
        /// Whether it is an error that one cannot be raised.
        vital: bool,
    },
    Scheduler {
        attributes: sys::sched::Attributes,
        /// Only to explain an error.
        limited_processors: bool,
    },
    IoPriority(u32),
    /// One bit per processor.
    Affinity {
        mask: Vec<u64>,
        vital: bool,
    },
    Personality(u32),
    MemoryPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
    Process(Box<Process>),
}

/// The root file system.
#[derive(Debug)]
pub(crate) enum RootTree {
    /// A detached mount.
    Detached {
        mount: OwnedFd,
        /// Where the host has it, and the container's namespace until the root is changed: hooks and the sources of
        /// binds name it so. Without it, and where a user namespace hides the path, it is attached over the old root.
        place: Option<CString>,
    },
    /// A directory of the host that is bound onto itself: for kernels without detached mounts, for users without the
    /// right to make them on the host, and in a mount namespace that others use.
    Path {
        directory: CString,
        /// `MS_PRIVATE`, with `MS_REC` where the mounts below are shared with others.
        propagation: u64,
    },
}

/// A mount below the root.
#[derive(Debug)]
pub(crate) struct MountStep {
    /// What is mounted.
    pub(crate) what: What,
    /// Where.
    pub(crate) target: CString,
    /// The same for people.
    pub(crate) shown: String,
    /// Whether the place is a directory.
    pub(crate) directory: bool,
    /// `MS_SHARED` and its kin, with `MS_REC`.
    pub(crate) propagation: Vec<u64>,
    /// What to mount if the kernel refuses the file system with EPERM: cgroup2 without a cgroup namespace of one's
    /// own, procfs and sysfs in a user namespace that does not own the pid or network namespace.
    pub(crate) instead: Option<What>,
    /// Whether no link may lead to the place: a procfs or sysfs must be where later steps and programs look for it.
    pub(crate) ordinary: bool,
    /// Copy what the mount covers into it.
    pub(crate) copy_up: bool,
    /// Give the root of the file system the mode of the directory that it covers.
    pub(crate) copy_mode: bool,
}

/// What a [`MountStep`] mounts.
#[derive(Debug)]
pub(crate) enum What {
    /// Made by the parent, with all attributes.
    Detached(OwnedFd),
    /// As `Detached`, where the parent has no right to make it.
    Bind(Bind),
    /// A file system of the container's namespaces.
    Filesystem(Filesystem),
    /// By `mount(2)`.
    Legacy(Legacy),
    /// In the parent, which has given its descriptor to the child.
    Taken,
}

/// A bind, made detached by the child in its own mount namespace.
#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) source: CString,
    pub(crate) recursive: bool,
    /// Whether it is in the container's root: only what was mounted before shows what it is.
    pub(crate) inside: bool,
    /// Whose ids it gets.
    pub(crate) id_map: Option<IdMap>,
    /// `MOUNT_ATTR_*` that must not stay set: those whose opposite the options name.
    pub(crate) refused: u64,
    /// `MOUNT_ATTR_*` to set and to clear, of this mount, then of all below it.
    pub(crate) attributes: [(u64, u64); 2],
    /// `MS_SLAVE` and its kin, with `MS_REC`, set before it is attached.
    pub(crate) propagation: Vec<u64>,
}

/// An id map for a bind.
#[derive(Debug)]
pub(crate) struct IdMap {
    /// The user namespace that has it.
    pub(crate) namespace: OwnedFd,
    pub(crate) recursive: bool,
}

#[derive(Debug)]
pub(crate) struct Filesystem {
    pub(crate) kind: CString,
    pub(crate) source: CString,
    /// Key and value; a key alone is a flag.
    pub(crate) parameters: Vec<(CString, Option<CString>)>,
    /// `MOUNT_ATTR_*`.
    pub(crate) attributes: u32,
}

#[derive(Debug)]
pub(crate) struct Legacy {
    /// `None` for a bind.
    pub(crate) kind: Option<CString>,
    pub(crate) source: CString,
    pub(crate) data: CString,
    /// `MS_*` of the first call.
    pub(crate) flags: u64,
    /// `MS_*` of a second call that remounts, where one is needed.
    pub(crate) remount: Option<u64>,
}

/// A network device.
#[derive(Clone, Debug)]
pub(crate) struct NetDevice {
    /// In the container.
    pub(crate) name: String,
    /// Netlink requests that give it its addresses, with the index to be filled in.
    pub(crate) addresses: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Character,
    Block,
    Fifo,
}

#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) name: CString,
    pub(crate) kind: DeviceKind,
    pub(crate) number: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: CString,
    pub(crate) target: CString,
}

#[derive(Debug)]
pub(crate) struct Console {
    /// Rows and columns.
    pub(crate) size: Option<(u16, u16)>,
    /// Whether `/dev/console` is to be it.
    pub(crate) device: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookKind {
    CreateContainer,
    StartContainer,
}

/// A hook that runs in the container.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) kind: HookKind,
    pub(crate) index: usize,
    pub(crate) path: CString,
    pub(crate) arguments: StringArray,
    pub(crate) environment: StringArray,
    pub(crate) timeout_ms: Option<i32>,
    /// The container's state around its pid.
    pub(crate) state: (Vec<u8>, Vec<u8>),
}

#[derive(Debug)]
pub(crate) enum Stdio {
    Streams([OwnedFd; 3]),
    /// Those of the process that made this one.
    Inherited,
    Terminal,
}

/// The program and what it runs as.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) stdio: Stdio,
    pub(crate) working_directory: CString,
    /// Places to look for the program, in order.
    pub(crate) candidates: Vec<CString>,
    /// Whether they came from `PATH`.
    pub(crate) searched: bool,
    pub(crate) arguments: StringArray,
    pub(crate) environment: StringArray,
    /// Whether `HOME` has to be looked up in the container's `/etc/passwd`.
    pub(crate) find_home: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<Gid>,
    /// Whether the process has these ids already, all of them, and always had.
    pub(crate) same_ids: bool,
    pub(crate) umask: u32,
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privileges: bool,
    pub(crate) filter: Option<Filter>,
    pub(crate) keyring: Option<CString>,
    pub(crate) preserve_fds: u32,
    /// The highest descriptor that may be open, where `close_range` is missing.
    pub(crate) descriptor_limit: u32,
    /// Device and inode of our own program, which must never be executed in a container.
    pub(crate) own_program: (u64, u64),
    /// Where the byte comes from that starts the program, and where its errors go; `None`: both are the socket.
    pub(crate) gate: Option<(OwnedFd, OwnedFd)>,
    /// Do not wait: an exec runs at once.
    pub(crate) at_once: bool,
    /// Do not tell when everything is set up: whoever waits hears of the program.
    pub(crate) silent: bool,
    pub(crate) start_hooks: Vec<Hook>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
    /// How many capabilities the kernel knows.
    pub(crate) known: u32,
}

/// Strings as `execve` takes them.
#[derive(Debug, Default)]
pub(crate) struct StringArray {
    /// Owns what the pointers point at.
    strings: Vec<CString>,
    /// Atomic, because the child may put in one more and the parent's copy may move between threads.
    pointers: Vec<AtomicPtr<c_char>>,
}

impl StringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        // The bytes of a CString stay where they are when it moves. There is room for one more, and the end.
        let spare = [std::ptr::null_mut(), std::ptr::null_mut()];
        let pointers = strings.iter().map(|text| text.as_ptr().cast_mut()).chain(spare).map(AtomicPtr::new).collect();
        Self { strings, pointers }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Null-terminated; valid as long as `self`.
    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        // An atomic pointer has the representation of a pointer.
        self.pointers.as_ptr().cast()
    }

    /// Adds one more string, which must live until the exec. Once only.
    pub(crate) fn add(&self, text: &CStr) {
        if let Some(spare) = self.pointers.iter().rev().nth(1) {
            spare.store(text.as_ptr().cast_mut(), Ordering::Relaxed);
        }
    }
}
