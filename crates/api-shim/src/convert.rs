//! Between the generated messages and `model`.

use crate::messages;

/// A point in time as a message field. "Never" must be passed as [`model::Timestamp::ZERO`]: an absent field reads as
/// 1970 in Go.
pub fn timestamp(at: model::Timestamp) -> protobuf::MessageField<messages::Timestamp> {
    let mut message = messages::Timestamp::new();
    message.seconds = at.seconds;
    message.nanos = at.nanos;
    protobuf::MessageField::some(message)
}

/// A typed blob as a message field.
pub fn any(type_url: &str, value: Vec<u8>) -> protobuf::MessageField<messages::Any> {
    let mut message = messages::Any::new();
    message.type_url = type_url.to_owned();
    message.value = value;
    protobuf::MessageField::some(message)
}

/// A mount of a request. Its fields are untrusted.
pub fn mount(message: messages::Mount) -> model::Mount {
    model::Mount { kind: message.type_, source: message.source, target: message.target, options: message.options }
}

/// A mount for an event.
pub fn mount_message(mount: &model::Mount) -> messages::Mount {
    let mut message = messages::Mount::new();
    message.type_.clone_from(&mount.kind);
    message.source.clone_from(&mount.source);
    message.target.clone_from(&mount.target);
    message.options.clone_from(&mount.options);
    message
}

/// The last path component of a type URL: the full name of a protobuf message, whatever prefix a client put before it.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_survive_the_round_trip() {
        let before = model::Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec!["lowerdir=/a".to_owned()],
        };
        assert_eq!(mount(mount_message(&before)), before);
    }

    #[test]
    fn type_names() {
        for (url, name) in [
            ("containerd.runc.v1.Options", "containerd.runc.v1.Options"),
            ("type.googleapis.com/containerd.runc.v1.Options", "containerd.runc.v1.Options"),
            ("", ""),
        ] {
            assert_eq!(type_name(url), name);
        }
    }
}
