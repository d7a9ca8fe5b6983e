//! What an earlier daemon has already told, read from the journal.

use std::collections::HashMap;
use std::sync::Arc;

use api_grpc::decode::{self, unpack};
use api_grpc::events as wire;
use events::{Entry, Journal};
use model::Timestamp;

use crate::report::topic;
use crate::task::Exit;

/// The events of every task that is not deleted, as far as the journal remembers.
#[derive(Debug, Default)]
pub(crate) struct Published {
    tasks: HashMap<(String, String), Told>,
    /// What happened before this may have been forgotten; `None` where nothing was.
    complete_since: Option<Timestamp>,
}

/// The events of one task.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) created: bool,
    pub(crate) started: bool,
    /// That it was frozen, and not that it was thawed.
    pub(crate) paused: bool,
    /// How often it was told that memory ran out.
    pub(crate) ooms: u64,
    /// The end of init.
    pub(crate) exit: Option<Arc<Entry>>,
    /// Additional processes that were added, the last one of each name.
    pub(crate) execs: HashMap<String, ToldExec>,
}

/// The events of an additional process.
#[derive(Clone, Debug, Default)]
pub(crate) struct ToldExec {
    /// The pid that it was started with.
    pub(crate) started: Option<u32>,
    pub(crate) exit: Option<Exit>,
}

impl Published {
    /// Reads the journal.
    pub(crate) fn read(journal: &Journal) -> Result<Self, events::Error> {
        let mut published = Self { complete_since: journal.complete_since(), ..Self::default() };
        let entries = journal.recent(|envelope| envelope.topic.starts_with("/tasks/"))?;
        for entry in entries {
            published.add(&entry);
        }
        Ok(published)
    }

    fn add(&mut self, entry: &Arc<Entry>) {
        let envelope = &entry.envelope;
        let key = |id: String| (envelope.namespace.clone(), id);
        match envelope.topic.as_str() {
            topic::CREATE => {
                if let Ok(event) = unpack::<wire::TaskCreate>(&envelope.event) {
                    self.tasks.insert(key(event.container_id), Told { created: true, ..Told::default() });
                }
            }
            topic::START => {
                if let Ok(event) = unpack::<wire::TaskStart>(&envelope.event) {
                    self.tasks.entry(key(event.container_id)).or_default().started = true;
                }
            }
            topic::OOM => {
                if let Ok(event) = unpack::<wire::TaskOom>(&envelope.event) {
                    self.tasks.entry(key(event.container_id)).or_default().ooms += 1;
                }
            }
            topic::EXEC_ADDED => {
                if let Ok(event) = unpack::<wire::TaskExecAdded>(&envelope.event) {
                    // The name may be that of an earlier process that was deleted.
                    let told = self.tasks.entry(key(event.container_id)).or_default();
                    told.execs.insert(event.exec_id, ToldExec::default());
                }
            }
            topic::EXEC_STARTED => {
                if let Ok(event) = unpack::<wire::TaskExecStarted>(&envelope.event) {
                    let told = self.tasks.entry(key(event.container_id)).or_default();
                    told.execs.entry(event.exec_id).or_default().started = Some(event.pid);
                }
            }
            topic::PAUSED => {
                if let Ok(event) = unpack::<wire::TaskPaused>(&envelope.event) {
                    self.tasks.entry(key(event.container_id)).or_default().paused = true;
                }
            }
            topic::RESUMED => {
                if let Ok(event) = unpack::<wire::TaskResumed>(&envelope.event) {
                    self.tasks.entry(key(event.container_id)).or_default().paused = false;
                }
            }
            topic::EXIT => {
                if let Ok(event) = unpack::<wire::TaskExit>(&envelope.event) {
                    let told = self.tasks.entry(key(event.container_id.clone())).or_default();
                    if event.id == event.container_id {
                        told.exit = Some(Arc::clone(entry));
                    } else {
                        let exited_at = decode::timestamp(event.exited_at);
                        let exit = Exit { pid: event.pid, exit_status: event.exit_status, exited_at };
                        told.execs.entry(event.id).or_default().exit = Some(exit);
                    }
                }
            }
            topic::DELETE => {
                if let Ok(event) = unpack::<wire::TaskDelete>(&envelope.event) {
                    self.tasks.remove(&key(event.container_id));
                }
            }
            _ => {}
        }
    }

    /// Takes out what was told about a task.
    pub(crate) fn take(&mut self, namespace: &str, id: &str) -> Told {
        self.tasks.remove(&(namespace.to_owned(), id.to_owned())).unwrap_or_default()
    }

    /// What is left: tasks that were told of and of which no bundle remains.
    pub(crate) fn rest(self) -> impl Iterator<Item = ((String, String), Told)> {
        self.tasks.into_iter()
    }

    /// Whether an event of this time would still be in the journal, had it been published.
    pub(crate) fn covers(&self, time: Timestamp) -> bool {
        self.complete_since.is_none_or(|since| time >= since)
    }
}
