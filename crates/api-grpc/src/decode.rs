//! Wire types to model types. Everything decoded here is untrusted.

use prost::{Message, Name};

use crate::types;

/// A timestamp; an absent one is 1970, as Go reads it.
pub fn timestamp(time: Option<prost_types::Timestamp>) -> model::Timestamp {
    let time = time.unwrap_or_default();
    model::Timestamp { seconds: time.seconds, nanos: time.nanos }
}

/// A typed blob, byte for byte, without the optional `type.googleapis.com/` before its type.
pub fn any(any: prost_types::Any) -> model::Any {
    let type_url = match any.type_url.strip_prefix("type.googleapis.com/") {
        Some(name) => name.to_owned(),
        None => any.type_url,
    };
    model::Any { type_url, value: any.value }
}

/// A mount.
pub fn mount(mount: types::Mount) -> model::Mount {
    model::Mount { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
}

/// A list of mounts.
pub fn mounts(mounts: Vec<types::Mount>) -> Vec<model::Mount> {
    mounts.into_iter().map(mount).collect()
}

/// Why an Any could not be read as the message that was wanted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It is something else.
    #[error("want {want}, have {have:?}")]
    Type {
        /// Full name of the message wanted.
        want: String,
        /// The type URL found, shortened.
        have: String,
    },
    /// Its bytes are not that message.
    #[error("decode {want}")]
    Bytes {
        /// Full name of the message wanted.
        want: String,
        /// What is wrong with the bytes.
        #[source]
        source: prost::DecodeError,
    },
}

/// Reads the message of type `M` that `any` carries; everything before the last `/` of the type URL is ignored.
pub fn unpack<M: Message + Name + Default>(any: &model::Any) -> Result<M, UnpackError> {
    let want = M::full_name();
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != want {
        return Err(UnpackError::Type { want, have: any.type_url.chars().take(128).collect() });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Bytes { want, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runc_options::Options;

    #[test]
    fn unpack_checks_type_and_bytes() {
        let options = Options { binary_name: "runc".into(), ..Options::default() };
        let mut packed = crate::encode::pack(&options);
        assert_eq!(unpack::<Options>(&packed), Ok(options.clone()));
        packed.type_url.insert_str(0, "type.googleapis.com/");
        assert_eq!(unpack::<Options>(&packed), Ok(options));
        packed.value.push(0x0a);
        assert!(matches!(unpack::<Options>(&packed), Err(UnpackError::Bytes { .. })));
        packed.type_url = "x".repeat(5000);
        assert!(matches!(unpack::<Options>(&packed), Err(UnpackError::Type { have, .. }) if have.len() == 128));
    }

    #[test]
    fn any_loses_only_the_usual_prefix() {
        for (url, want) in [
            ("type.googleapis.com/a.B", "a.B"),
            (
                "types.containerd.io/opencontainers/runtime-spec/1/Spec",
                "types.containerd.io/opencontainers/runtime-spec/1/Spec",
            ),
        ] {
            assert_eq!(any(prost_types::Any { type_url: url.into(), value: vec![] }).type_url, want);
        }
    }
}
