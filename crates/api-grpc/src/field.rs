use std::collections::BTreeMap;

use model::Any;
use prost::{Message, Name};

use crate::decode::unpack;
use crate::services::images::{ImageCreate, ImageDelete, ImageUpdate};
use crate::{events, types};

/// The value of a field of an event's payload, for filters such as `event.container_id==x`.
///
/// `path` is the field path behind `event`. Text fields count as absent when empty, flags when false; labels are looked
/// up by the rest of the path joined with dots. Numbers, timestamps and repeated fields cannot be filtered on and are
/// always absent, as with containerd. Payloads of unknown types have no fields.
pub fn event_field(event: &Any, path: &[&str]) -> Option<String> {
    let name = event.type_url.rsplit('/').next().unwrap_or_default();
    let decoder = DECODERS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    (DECODERS[decoder].1)(event, path)
}

type Decoder = fn(&Any, &[&str]) -> Option<String>;

fn decode<M: Fields + Message + Name + Default>(event: &Any, path: &[&str]) -> Option<String> {
    unpack::<M>(event).ok()?.field(path)
}

/// Access to the fields of a message by their names on the wire.
trait Fields {
    fn field(&self, path: &[&str]) -> Option<String>;
}

impl Fields for String {
    fn field(&self, path: &[&str]) -> Option<String> {
        (path.is_empty() && !self.is_empty()).then(|| self.clone())
    }
}

impl Fields for bool {
    fn field(&self, path: &[&str]) -> Option<String> {
        (path.is_empty() && *self).then(|| "true".to_owned())
    }
}

impl Fields for BTreeMap<String, String> {
    fn field(&self, path: &[&str]) -> Option<String> {
        self.get(&path.join(".")).cloned()
    }
}

impl<M: Fields> Fields for Option<M> {
    fn field(&self, path: &[&str]) -> Option<String> {
        self.as_ref()?.field(path)
    }
}

impl Fields for prost_types::Any {
    fn field(&self, path: &[&str]) -> Option<String> {
        event_field(&Any { type_url: self.type_url.clone(), value: self.value.clone() }, path)
    }
}

macro_rules! fields {
    ($($message:path { $($name:literal => $field:ident),* })*) => {
        $(impl Fields for $message {
            fn field(&self, path: &[&str]) -> Option<String> {
                let (first, rest) = path.split_first()?;
                match *first {
                    $($name => self.$field.field(rest),)*
                    _ => None,
                }
            }
        })*
    };
}

fields! {
    events::ContainerCreate { "id" => id, "image" => image, "runtime" => runtime }
    events::container_create::Runtime { "name" => name, "options" => options }
    events::ContainerUpdate { "id" => id, "image" => image, "labels" => labels, "snapshot_key" => snapshot_key }
    events::ContainerDelete { "id" => id }
    events::ContentCreate { "digest" => digest, "mediaType" => media_type }
    events::ContentDelete { "digest" => digest }
    events::NamespaceCreate { "name" => name, "labels" => labels }
    events::NamespaceUpdate { "name" => name, "labels" => labels }
    events::NamespaceDelete { "name" => name }
    events::SnapshotPrepare { "key" => key, "parent" => parent, "snapshotter" => snapshotter }
    events::SnapshotCommit { "key" => key, "name" => name, "snapshotter" => snapshotter }
    events::SnapshotRemove { "key" => key, "snapshotter" => snapshotter }
    events::SandboxCreate { "sandbox_id" => sandbox_id }
    events::SandboxStart { "sandbox_id" => sandbox_id }
    events::SandboxExit { "sandbox_id" => sandbox_id }
    events::TaskCreate { "container_id" => container_id, "bundle" => bundle, "io" => io, "checkpoint" => checkpoint }
    events::TaskIo { "stdin" => stdin, "stdout" => stdout, "stderr" => stderr, "terminal" => terminal }
    events::TaskStart { "container_id" => container_id }
    events::TaskDelete { "container_id" => container_id, "id" => id }
    events::TaskExit { "container_id" => container_id, "id" => id }
    events::TaskOom { "container_id" => container_id }
    events::TaskExecAdded { "container_id" => container_id, "exec_id" => exec_id }
    events::TaskExecStarted { "container_id" => container_id, "exec_id" => exec_id }
    events::TaskPaused { "container_id" => container_id }
    events::TaskResumed { "container_id" => container_id }
    events::TaskCheckpointed { "container_id" => container_id, "checkpoint" => checkpoint }
    ImageCreate { "name" => name, "labels" => labels }
    ImageUpdate { "name" => name, "labels" => labels }
    ImageDelete { "name" => name }
    types::Envelope { "namespace" => namespace, "topic" => topic, "event" => event }
}

/// Sorted by type.
const DECODERS: &[(&str, Decoder)] = &[
    ("containerd.events.ContainerCreate", decode::<events::ContainerCreate>),
    ("containerd.events.ContainerDelete", decode::<events::ContainerDelete>),
    ("containerd.events.ContainerUpdate", decode::<events::ContainerUpdate>),
    ("containerd.events.ContentCreate", decode::<events::ContentCreate>),
    ("containerd.events.ContentDelete", decode::<events::ContentDelete>),
    ("containerd.events.NamespaceCreate", decode::<events::NamespaceCreate>),
    ("containerd.events.NamespaceDelete", decode::<events::NamespaceDelete>),
    ("containerd.events.NamespaceUpdate", decode::<events::NamespaceUpdate>),
    ("containerd.events.SandboxCreate", decode::<events::SandboxCreate>),
    ("containerd.events.SandboxExit", decode::<events::SandboxExit>),
    ("containerd.events.SandboxStart", decode::<events::SandboxStart>),
    ("containerd.events.SnapshotCommit", decode::<events::SnapshotCommit>),
    ("containerd.events.SnapshotPrepare", decode::<events::SnapshotPrepare>),
    ("containerd.events.SnapshotRemove", decode::<events::SnapshotRemove>),
    ("containerd.events.TaskCheckpointed", decode::<events::TaskCheckpointed>),
    ("containerd.events.TaskCreate", decode::<events::TaskCreate>),
    ("containerd.events.TaskDelete", decode::<events::TaskDelete>),
    ("containerd.events.TaskExecAdded", decode::<events::TaskExecAdded>),
    ("containerd.events.TaskExecStarted", decode::<events::TaskExecStarted>),
    ("containerd.events.TaskExit", decode::<events::TaskExit>),
    ("containerd.events.TaskOOM", decode::<events::TaskOom>),
    ("containerd.events.TaskPaused", decode::<events::TaskPaused>),
    ("containerd.events.TaskResumed", decode::<events::TaskResumed>),
    ("containerd.events.TaskStart", decode::<events::TaskStart>),
    ("containerd.services.images.v1.ImageCreate", decode::<ImageCreate>),
    ("containerd.services.images.v1.ImageDelete", decode::<ImageDelete>),
    ("containerd.services.images.v1.ImageUpdate", decode::<ImageUpdate>),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::pack;

    #[test]
    fn table_is_sorted_and_complete() {
        assert!(DECODERS.is_sorted_by(|a, b| a.0 < b.0));
        for (name, decoder) in DECODERS {
            // A decoder under the wrong name would refuse its own type.
            let event = Any { type_url: (*name).to_owned(), value: Vec::new() };
            assert_eq!(decoder(&event, &[]), None);
            assert_eq!(decoder(&event, &["no_such_field"]), None);
        }
    }

    #[test]
    fn fields_of_payloads() {
        let exit = pack(&events::TaskExit { container_id: "c".into(), pid: 7, ..events::TaskExit::default() });
        let update = pack(&events::ContainerUpdate {
            labels: BTreeMap::from([("a.b/c".to_owned(), "d".to_owned())]),
            ..events::ContainerUpdate::default()
        });
        let create = pack(&events::ContainerCreate {
            runtime: Some(events::container_create::Runtime { name: "r".into(), options: None }),
            ..events::ContainerCreate::default()
        });
        let task = pack(&events::TaskCreate {
            io: Some(events::TaskIo { terminal: true, ..events::TaskIo::default() }),
            ..events::TaskCreate::default()
        });
        let cases: [(&Any, &[&str], Option<&str>); 9] = [
            (&exit, &["container_id"], Some("c")),
            (&exit, &["container_id", "x"], None),
            (&exit, &["id"], None),
            (&exit, &["pid"], None),
            (&update, &["labels", "a", "b/c"], Some("d")),
            (&update, &["labels", "a.b/c"], Some("d")),
            (&create, &["runtime", "name"], Some("r")),
            (&create, &["runtime", "options", "x"], None),
            (&task, &["io", "terminal"], Some("true")),
        ];
        for (event, path, want) in cases {
            assert_eq!(event_field(event, path).as_deref(), want, "{path:?}");
        }
        let broken = Any { type_url: "containerd.events.TaskExit".into(), value: vec![0xff; 3] };
        assert_eq!(event_field(&broken, &["container_id"]), None);
    }
}
