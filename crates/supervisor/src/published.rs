//! What an earlier daemon has already told, read from the journal.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api_grpc::decode::unpack;
use api_grpc::events as wire;
use events::{Entry, Journal};
use model::Timestamp;

use crate::report::topic;

/// The events of every task that is not deleted, as far as the journal remembers.
#[derive(Debug, Default)]
pub(crate) struct Published {
    tasks: HashMap<(String, String), Told>,
    /// What happened before this may have been forgotten.
    oldest: Option<Timestamp>,
}

/// The events of one task.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) created: bool,
    pub(crate) started: bool,
    /// That memory ran out.
    pub(crate) oom: bool,
    /// The end of init.
    pub(crate) exit: Option<Arc<Entry>>,
    /// Additional processes whose end was told.
    pub(crate) exec_exits: HashSet<String>,
}

impl Published {
    /// Reads the journal.
    pub(crate) fn read(journal: &Journal) -> Result<Self, events::Error> {
        let mut published = Self::default();
        let entries = journal.recent(|envelope| {
            published.oldest.get_or_insert(envelope.timestamp);
            envelope.topic.starts_with("/tasks/")
        })?;
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
                    self.tasks.entry(key(event.container_id)).or_default().oom = true;
                }
            }
            topic::EXEC_ADDED => {
                if let Ok(event) = unpack::<wire::TaskExecAdded>(&envelope.event) {
                    // The name may be that of an earlier process that was deleted.
                    self.tasks.entry(key(event.container_id)).or_default().exec_exits.remove(&event.exec_id);
                }
            }
            topic::EXIT => {
                if let Ok(event) = unpack::<wire::TaskExit>(&envelope.event) {
                    let told = self.tasks.entry(key(event.container_id.clone())).or_default();
                    if event.id == event.container_id {
                        told.exit = Some(Arc::clone(entry));
                    } else {
                        told.exec_exits.insert(event.id);
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
        self.oldest.is_none_or(|oldest| time >= oldest)
    }
}
