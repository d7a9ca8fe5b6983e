use std::time::Duration;

use model::{Any, Timestamp, check_identifier};

use crate::Error;

/// An event with its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// When it happened.
    pub timestamp: Timestamp,
    /// The namespace that it happened in.
    pub namespace: String,
    /// What it is about, `/tasks/exit` for instance.
    pub topic: String,
    /// The encoded event; the journal never decodes it.
    pub event: Any,
}

/// An envelope that has its place in the order of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: 1 for the first of a journal, then dense. 0 marks an entry that was never published: one that the
    /// supervisor made up from an exit record whose event the journal has forgotten.
    pub sequence: u64,
    /// The event.
    pub envelope: Envelope,
}

/// No event can be larger than a message of the API.
pub(crate) const EVENT_BYTES_MAX: usize = 16 << 20;

/// How long after the loss of a stream a new one may be its successor (gRPC clients back off for at most 120 s).
pub(crate) const RECONNECT: Duration = Duration::from_secs(120);

impl Envelope {
    /// Checks the rules of publication: the namespace and every component of the topic is an identifier, and the topic
    /// starts with `/` (containerd's events service).
    pub fn check(&self) -> Result<(), Error> {
        check_identifier(&self.namespace).map_err(Error::Namespace)?;
        check_topic(&self.topic)?;
        if self.bytes() > EVENT_BYTES_MAX {
            return Err(Error::TooLarge { bytes: self.bytes() });
        }
        Ok(())
    }

    /// Bytes that this event is accounted with.
    pub(crate) fn bytes(&self) -> usize {
        64 + self.namespace.len() + self.topic.len() + self.event.type_url.len() + self.event.value.len()
    }
}

/// Checks that a topic is `/` and identifiers with single slashes between them.
pub fn check_topic(topic: &str) -> Result<(), Error> {
    let short = || topic.chars().take(128).collect::<String>();
    let Some(path) = topic.strip_prefix('/') else {
        return Err(Error::TopicStart { topic: short() });
    };
    for component in path.split('/') {
        check_identifier(component).map_err(|source| Error::Topic { topic: short(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_rule() {
        for good in ["/tasks/exit", "/a", "/a/b/c-d"] {
            assert!(check_topic(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "tasks/exit", "/tasks//exit", "/tasks/exit/", "/tasks/ex it", "/ä"] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }
}
