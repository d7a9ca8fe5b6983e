use serde::de::DeserializeOwned;

use crate::validate::{validate_process, validate_spec};
use crate::{Error, LinuxResources, Process, Spec};

/// The largest document that is parsed. Docker's is about 20 KiB with its seccomp profile; gRPC messages end at 16 MiB.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

fn parse<T: DeserializeOwned>(document: &'static str, json: &[u8]) -> Result<T, Error> {
    if json.len() > MAX_DOCUMENT_BYTES {
        return Err(Error::TooLarge { document, bytes: json.len(), limit: MAX_DOCUMENT_BYTES });
    }
    serde_json::from_slice(json).map_err(|source| Error::Malformed { document, source })
}

/// Parses and validates a `config.json`.
///
/// Any 1.x version is accepted, whatever its minor number: fields that we do not know are ignored by the rule of the
/// specification (runtime-spec, config, "Extensibility").
pub fn parse_spec(json: &[u8]) -> Result<Spec, Error> {
    let spec: Spec = parse("runtime spec", json)?;
    validate_spec(&spec)?;
    Ok(spec)
}

/// Parses and validates the document of an additional process (`process.json`, the spec of an exec).
pub fn parse_process(json: &[u8]) -> Result<Process, Error> {
    let process: Process = parse("process document", json)?;
    validate_process("process", &process)?;
    Ok(process)
}

/// Parses the resources of an update.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, Error> {
    parse("linux resources", json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Code, Coded as _};

    const MINIMAL: &str = r#"{"ociVersion":"1.3.0","root":{"path":"rootfs"},
        "process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/"}}"#;

    #[test]
    fn versions() {
        for version in ["1.0.0", "1.0.2-dev", "1.3.0", "1.99.7+x"] {
            let json = MINIMAL.replace("1.3.0", version);
            assert!(parse_spec(json.as_bytes()).is_ok(), "{version}");
        }
        for version in ["", "0.9.0", "2.0.0", "1", "1.x", "one"] {
            let json = MINIMAL.replace("1.3.0", version);
            assert!(parse_spec(json.as_bytes()).is_err(), "{version}");
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "[".repeat(100_000);
        let big = vec![b' '; MAX_DOCUMENT_BYTES + 1];
        let cases: &[&[u8]] = &[b"", b"null", b"[]", b"{}", b"{\"ociVersion\":7}", deep.as_bytes(), &big, b"\xff"];
        for case in cases {
            let error = parse_spec(case).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
        }
        assert!(parse_process(b"{}").is_err());
        assert!(parse_resources(b"{\"memory\":{\"limit\":\"x\"}}").is_err());
        assert!(parse_resources(b"{}").is_ok());
    }

    #[test]
    fn rules_name_the_field() {
        let cases = [
            (r#""cwd":"/""#, r#""cwd":"etc""#, "process.cwd"),
            (r#""cwd":"/""#, "\"cwd\":\"/a\\u0000b\"", "process.cwd"),
            (r#"["true"]"#, r#"[]"#, "process.args"),
            (r#"["true"]"#, r#"[""]"#, "process.args"),
            (r#"["true"]"#, "[\"a\\u0000\"]", "process.args"),
            (r#""cwd":"/""#, r#""cwd":"/","rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]"#, "process.rlimits"),
            (r#""path":"rootfs""#, r#""path":"""#, "root.path"),
            (r#""path":"rootfs"}"#, r#""path":"rootfs"},"mounts":[{"destination":""}]"#, "mounts[0].destination"),
            (
                r#""path":"rootfs"}"#,
                r#""path":"rootfs"},"linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#,
                "linux.namespaces",
            ),
        ];
        for (from, to, field) in cases {
            let json = MINIMAL.replace(from, to);
            assert_ne!(json, MINIMAL);
            let text = parse_spec(json.as_bytes()).unwrap_err().to_string();
            assert!(text.starts_with(field), "{to}: {text}");
        }
    }
}
