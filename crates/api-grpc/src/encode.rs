//! Model types to wire types.

use prost::{Message, Name};

use crate::types;

/// A timestamp as it must be sent: always present, with Go's zero time for "never happened". An absent timestamp would
/// be read as 1970 by Go clients.
pub fn timestamp(time: model::Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos })
}

/// A typed blob, byte for byte.
pub fn any(any: model::Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value }
}

/// A mount.
pub fn mount(mount: model::Mount) -> types::Mount {
    types::Mount { r#type: mount.kind, source: mount.source, target: mount.target, options: mount.options }
}

/// A list of mounts.
pub fn mounts(mounts: Vec<model::Mount>) -> Vec<types::Mount> {
    mounts.into_iter().map(mount).collect()
}

/// Packs a message under its bare full name, as containerd names its types.
pub fn pack<M: Message + Name>(message: &M) -> model::Any {
    model::Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_type_urls() {
        let packed = pack(&crate::events::TaskOom { container_id: "x".into() });
        assert_eq!((packed.type_url.as_str(), packed.value.len()), ("containerd.events.TaskOOM", 3));
        let image = pack(&crate::services::images::ImageCreate::default());
        assert_eq!(image.type_url, "containerd.services.images.v1.ImageCreate");
        assert_eq!(pack(&crate::cgroups_v2::Metrics::default()).type_url, "io.containerd.cgroups.v2.Metrics");
    }

    #[test]
    fn zero_time_is_sent() {
        let never = timestamp(model::Timestamp::ZERO);
        assert_eq!(never.map(|t| t.seconds), Some(-62_135_596_800));
    }
}
