//! Events of tasks, as their clients know them.

use api_grpc::decode::unpack;
use api_grpc::encode::{self, pack};
use api_grpc::events as wire;
use events::Envelope;
use model::record::StdioPaths;
use model::{Any, Mount, Timestamp};

use crate::task::Exit;

/// Topics that the supervisor publishes under.
pub(crate) mod topic {
    pub(crate) const CREATE: &str = "/tasks/create";
    pub(crate) const START: &str = "/tasks/start";
    pub(crate) const EXIT: &str = "/tasks/exit";
    pub(crate) const DELETE: &str = "/tasks/delete";
    pub(crate) const EXEC_ADDED: &str = "/tasks/exec-added";
    pub(crate) const EXEC_STARTED: &str = "/tasks/exec-started";
    pub(crate) const PAUSED: &str = "/tasks/paused";
    pub(crate) const RESUMED: &str = "/tasks/resumed";
    pub(crate) const OOM: &str = "/tasks/oom";
}

/// Something that happened to a task.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    Create {
        bundle: String,
        rootfs: Vec<Mount>,
        stdio: StdioPaths,
        checkpoint: String,
        pid: u32,
    },
    Start {
        pid: u32,
    },
    /// The end of a process; an empty `exec_id` means init.
    Exit {
        exec_id: String,
        exit: Exit,
    },
    Delete {
        exit: Exit,
    },
    ExecAdded {
        exec_id: String,
    },
    ExecStarted {
        exec_id: String,
        pid: u32,
    },
    Paused,
    Resumed,
    /// The kernel killed something of the container for lack of memory.
    Oom,
}

/// What a foreign shim's own events tell that nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The kernel killed something for lack of memory.
    Oom,
    /// Init has ended; whatever the shim had to say before it has been heard.
    Exit,
}

impl Heard {
    /// Reads an event of a shim. `None` if it is not one of those that the supervisor publishes itself; otherwise the
    /// container, and what is news about it.
    pub(crate) fn of(envelope: &Envelope) -> Option<(String, Option<Self>)> {
        let event = &envelope.event;
        match envelope.topic.as_str() {
            topic::OOM => Some((unpack::<wire::TaskOom>(event).ok()?.container_id, Some(Self::Oom))),
            topic::EXIT => {
                let exit = unpack::<wire::TaskExit>(event).ok()?;
                let init = exit.id == exit.container_id;
                Some((exit.container_id, init.then_some(Self::Exit)))
            }
            topic::CREATE
            | topic::START
            | topic::DELETE
            | topic::EXEC_ADDED
            | topic::EXEC_STARTED
            | topic::PAUSED
            | topic::RESUMED => Some((String::new(), None)),
            _ => None,
        }
    }
}

impl Report {
    /// The event to publish, stamped with the present time.
    pub(crate) fn envelope(self, namespace: &str, id: &str) -> Envelope {
        let (topic, event) = self.event(id.to_owned());
        Envelope { timestamp: Timestamp::now(), namespace: namespace.to_owned(), topic: topic.to_owned(), event }
    }

    fn event(self, container_id: String) -> (&'static str, Any) {
        match self {
            Self::Create { bundle, rootfs, stdio, checkpoint, pid } => {
                let StdioPaths { stdin, stdout, stderr, terminal } = stdio;
                let io = Some(wire::TaskIo { stdin, stdout, stderr, terminal });
                let rootfs = encode::mounts(rootfs);
                (topic::CREATE, pack(&wire::TaskCreate { container_id, bundle, rootfs, io, checkpoint, pid }))
            }
            Self::Start { pid } => (topic::START, pack(&wire::TaskStart { container_id, pid })),
            Self::Exit { exec_id, exit } => {
                // Clients tell init by an id that equals the container's.
                let id = if exec_id.is_empty() { container_id.clone() } else { exec_id };
                let exited_at = encode::timestamp(exit.exited_at);
                (
                    topic::EXIT,
                    pack(&wire::TaskExit { container_id, id, pid: exit.pid, exit_status: exit.exit_status, exited_at }),
                )
            }
            Self::Delete { exit } => {
                let exited_at = encode::timestamp(exit.exited_at);
                let Exit { pid, exit_status, .. } = exit;
                (
                    topic::DELETE,
                    pack(&wire::TaskDelete { container_id, pid, exit_status, exited_at, id: String::new() }),
                )
            }
            Self::ExecAdded { exec_id } => (topic::EXEC_ADDED, pack(&wire::TaskExecAdded { container_id, exec_id })),
            Self::ExecStarted { exec_id, pid } => {
                (topic::EXEC_STARTED, pack(&wire::TaskExecStarted { container_id, exec_id, pid }))
            }
            Self::Paused => (topic::PAUSED, pack(&wire::TaskPaused { container_id })),
            Self::Resumed => (topic::RESUMED, pack(&wire::TaskResumed { container_id })),
            Self::Oom => (topic::OOM, pack(&wire::TaskOom { container_id })),
        }
    }
}
