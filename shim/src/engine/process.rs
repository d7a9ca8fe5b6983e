//! One process of a container: where it stands, and those who wait for its end.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use model::Timestamp;
use model::record::{ProcessIdentity, Status, StdioPaths};
use tokio::sync::Notify;

use crate::stdio::Stdio;

/// How a process ended, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 plus a signal.
    pub(crate) status: u32,
    /// When we learned of it; [`Timestamp::ZERO`] while it has not.
    pub(crate) at: Timestamp,
}

impl Exit {
    /// What clients see of a process that has not ended.
    pub(crate) const NONE: Self = Self { status: 0, at: Timestamp::ZERO };
}

/// The end of a process, to be waited for by any number of clients. It outlives the process's entry.
#[derive(Debug, Default)]
pub(crate) struct End {
    exit: OnceLock<Exit>,
    told: Notify,
}

impl End {
    /// Tells everybody. Only the first call counts.
    pub(crate) fn set(&self, exit: Exit) {
        if self.exit.set(exit).is_ok() {
            self.told.notify_waiters();
        }
    }

    /// The end, if it has come.
    pub(crate) fn get(&self) -> Option<Exit> {
        self.exit.get().copied()
    }

    /// Waits for the end. Cancel-safe.
    pub(crate) async fn wait(&self) -> Exit {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            // Registered before the look, so that an end between the two is not missed.
            told.as_mut().enable();
            if let Some(exit) = self.get() {
                return exit;
            }
            told.await;
        }
    }
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    /// The exec id; empty for init.
    pub(crate) exec_id: String,
    pub(crate) status: Status,
    /// Absent until an additional process is started.
    pub(crate) identity: Option<ProcessIdentity>,
    /// Of an additional process; the runtime holds init's.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) paths: StdioPaths,
    pub(crate) stdio: Stdio,
    pub(crate) end: Arc<End>,
    /// A start or a delete is under way. Meanwhile the process's end is left alone: a start event comes before an
    /// exit event even if the process lives for no time at all.
    pub(crate) busy: bool,
    /// The document of an additional process that was not started yet.
    pub(crate) spec: Vec<u8>,
    /// CloseIO came before Start.
    pub(crate) stdin_closed: bool,
}

impl Process {
    /// The first process of a container that was created.
    pub(crate) fn init(identity: ProcessIdentity, paths: StdioPaths, stdio: Stdio) -> Self {
        Self {
            exec_id: String::new(),
            status: Status::Created,
            identity: Some(identity),
            pidfd: None,
            paths,
            stdio,
            end: Arc::default(),
            busy: false,
            spec: Vec::new(),
            stdin_closed: false,
        }
    }

    /// The pid; 0 before the start.
    pub(crate) fn pid(&self) -> u32 {
        self.identity.map_or(0, |identity| identity.pid)
    }

    /// How it ended, or [`Exit::NONE`].
    pub(crate) fn exit(&self) -> Exit {
        self.end.get().unwrap_or(Exit::NONE)
    }

    /// Whether it exists, may have ended, and was not reaped.
    pub(crate) fn is_ours_to_reap(&self) -> bool {
        self.identity.is_some() && self.status != Status::Stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_is_told_once() {
        let end = Arc::new(End::default());
        let waiting = tokio::spawn({
            let end = Arc::clone(&end);
            async move { end.wait().await }
        });
        tokio::task::yield_now().await;
        let exit = Exit { status: 3, at: Timestamp::now() };
        end.set(exit);
        end.set(Exit::NONE);
        assert_eq!(waiting.await.unwrap(), exit);
        assert_eq!(end.wait().await, exit);
    }
}
