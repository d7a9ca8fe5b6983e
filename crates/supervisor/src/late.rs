//! Events that the journal could not take, because its file system is full for instance.
//!
//! Meanwhile requests that would make further events are refused; ends of processes cannot be.
//!
//! **Invariant:** what is late is published before anything that happened after it, as soon as the journal takes it.
//! It is kept in memory only: a daemon that dies meanwhile finds it again in the records of the bundles.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use events::{Entry, Envelope, Journal};
use model::{Code, Coded as _};

/// How often the journal is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Events that are kept; beyond that the newest is lost, and logged.
const LATE_MAX: usize = 65_536;

/// The way to the journal.
#[derive(Debug)]
pub(crate) struct Publisher {
    journal: Journal,
    late: Mutex<VecDeque<Envelope>>,
}

impl Publisher {
    pub(crate) fn new(journal: Journal) -> Arc<Self> {
        Arc::new(Self { journal, late: Mutex::new(VecDeque::new()) })
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    fn late(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are events that are not in the journal: no more must come, and nothing that tells of them may go.
    pub(crate) fn is_late(&self) -> bool {
        !self.late().is_empty()
    }

    /// Publishes an event, now or as soon as possible. A late one is returned with the sequence number 0. Needs a tokio
    /// runtime.
    pub(crate) fn publish(self: &Arc<Self>, envelope: Envelope) -> Arc<Entry> {
        let mut late = self.late();
        if late.is_empty() {
            match self.journal.publish(envelope.clone()) {
                Ok(entry) => return entry,
                Err(error) => {
                    let (namespace, topic) = (&envelope.namespace, &envelope.topic);
                    tracing::error!(namespace, topic, error = %model::render(&error), "an event cannot be published");
                    // Refused for what it is, it would be refused for ever.
                    if error.code() != Code::InvalidArgument {
                        late.push_back(envelope.clone());
                        tokio::spawn(Arc::clone(self).retry());
                    }
                }
            }
        } else if late.len() < LATE_MAX {
            late.push_back(envelope.clone());
        } else {
            tracing::error!(namespace = envelope.namespace, topic = envelope.topic, "an event is lost");
        }
        Arc::new(Entry { sequence: 0, envelope })
    }

    async fn retry(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RETRY).await;
            let mut late = self.late();
            while let Some(envelope) = late.front() {
                match self.journal.publish(envelope.clone()) {
                    Ok(_) => {}
                    // It would stop those behind it, and every request, for ever.
                    Err(error) if error.code() == Code::InvalidArgument => {
                        let (namespace, topic) = (&envelope.namespace, &envelope.topic);
                        tracing::error!(namespace, topic, error = %model::render(&error), "an event is lost");
                    }
                    Err(_) => break,
                }
                late.pop_front();
            }
            if late.is_empty() {
                tracing::info!("all late events are published");
                return;
            }
        }
    }
}
