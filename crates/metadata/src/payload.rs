//! The payloads of the metadata's events (`containerd.events`).

use api_grpc::encode::{any, pack};
use api_grpc::{events, services::images};
use model::{Any, Labels};

use crate::Container;

pub(crate) fn container_create(container: &Container) -> Any {
    pack(&events::ContainerCreate {
        id: container.id.clone(),
        image: container.image.clone(),
        runtime: Some(events::container_create::Runtime {
            name: container.runtime.clone(),
            options: container.runtime_options.clone().map(any),
        }),
    })
}

pub(crate) fn container_update(container: &Container) -> Any {
    pack(&events::ContainerUpdate {
        id: container.id.clone(),
        image: container.image.clone(),
        labels: container.labels.clone(),
        snapshot_key: container.snapshot_key.clone(),
    })
}

pub(crate) fn container_delete(id: &str) -> Any {
    pack(&events::ContainerDelete { id: id.to_owned() })
}

pub(crate) fn image_create(name: &str, labels: &Labels) -> Any {
    pack(&images::ImageCreate { name: name.to_owned(), labels: labels.clone() })
}

pub(crate) fn image_update(name: &str, labels: &Labels) -> Any {
    pack(&images::ImageUpdate { name: name.to_owned(), labels: labels.clone() })
}

pub(crate) fn image_delete(name: &str) -> Any {
    pack(&images::ImageDelete { name: name.to_owned() })
}

pub(crate) fn content_create(digest: &str, size: u64) -> Any {
    pack(&events::ContentCreate {
        digest: digest.to_owned(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        media_type: String::new(),
    })
}

pub(crate) fn content_delete(digest: &str) -> Any {
    pack(&events::ContentDelete { digest: digest.to_owned() })
}

pub(crate) fn namespace_create(name: &str, labels: &Labels) -> Any {
    pack(&events::NamespaceCreate { name: name.to_owned(), labels: labels.clone() })
}

pub(crate) fn namespace_update(name: &str, labels: &Labels) -> Any {
    pack(&events::NamespaceUpdate { name: name.to_owned(), labels: labels.clone() })
}

pub(crate) fn namespace_delete(name: &str) -> Any {
    pack(&events::NamespaceDelete { name: name.to_owned() })
}

pub(crate) fn snapshot_prepare(snapshotter: &str, key: &str, parent: &str) -> Any {
    pack(&events::SnapshotPrepare {
        key: key.to_owned(),
        parent: parent.to_owned(),
        snapshotter: snapshotter.to_owned(),
    })
}

pub(crate) fn snapshot_commit(snapshotter: &str, key: &str, name: &str) -> Any {
    pack(&events::SnapshotCommit { key: key.to_owned(), name: name.to_owned(), snapshotter: snapshotter.to_owned() })
}

pub(crate) fn snapshot_remove(snapshotter: &str, key: &str) -> Any {
    pack(&events::SnapshotRemove { key: key.to_owned(), snapshotter: snapshotter.to_owned() })
}
