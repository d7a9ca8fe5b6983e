use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::repair;
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

/// Parses, and if that fails once more after a repair, whose notes come with the result.
fn parse_noting<T: DeserializeOwned>(
    document: &'static str,
    json: &[u8],
    repair: fn(&mut Value) -> Result<Vec<String>, Error>,
) -> Result<(T, Vec<String>), Error> {
    let error = match parse(document, json) {
        Ok(parsed) => return Ok((parsed, Vec::new())),
        Err(error @ Error::TooLarge { .. }) => return Err(error),
        Err(error) => error,
    };
    let Ok(original) = serde_json::from_slice::<Value>(json) else { return Err(error) };
    let mut repaired = original.clone();
    let notes = repair(&mut repaired)?;
    // The place of the first error is lost by a repair, and worth keeping if it changes nothing.
    if repaired == original { Err(error) } else { Ok((parse(document, repaired.to_string().as_bytes())?, notes)) }
}

/// Parses and validates a `config.json`.
///
/// Any 1.x version is accepted, whatever its minor number: fields that we do not know are ignored by the rule of the
/// specification (runtime-spec, config, "Extensibility").
pub fn parse_spec(json: &[u8]) -> Result<Spec, Error> {
    parse_spec_noting(json).map(|(spec, _)| spec)
}

/// As [`parse_spec`], with what was left out of it because it is unknown and may be: for the log.
pub fn parse_spec_noting(json: &[u8]) -> Result<(Spec, Vec<String>), Error> {
    let (mut spec, notes): (Spec, _) = parse_noting("runtime spec", json, repair::spec)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if resources.is_some_and(|resources| says_nothing_of_pids(resources, json, "/linux/resources/pids/limit"))
        && let Some(linux) = spec.linux_mut()
        && let Some(resources) = linux.resources_mut()
    {
        resources.set_pids(None);
    }
    validate_spec(&spec)?;
    Ok((spec, notes))
}

/// Parses and validates the document of an additional process (`process.json`, the spec of an exec).
pub fn parse_process(json: &[u8]) -> Result<Process, Error> {
    parse_process_noting(json).map(|(process, _)| process)
}

/// As [`parse_process`], with what was left out of it because it is unknown and may be: for the log.
pub fn parse_process_noting(json: &[u8]) -> Result<(Process, Vec<String>), Error> {
    let (process, notes) = parse_noting("process document", json, repair::process)?;
    validate_process("process", &process)?;
    Ok((process, notes))
}

/// Parses the resources of an update.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, Error> {
    let mut resources: LinuxResources = parse("linux resources", json)?;
    if says_nothing_of_pids(&resources, json, "/pids/limit") {
        resources.set_pids(None);
    }
    Ok(resources)
}

/// Whether `pids` stands there without its `limit`, which is optional since runtime-spec 1.3: the type cannot tell that
/// from a limit of 0. The document is looked at once more only for this rare case.
fn says_nothing_of_pids(resources: &LinuxResources, json: &[u8], pointer: &str) -> bool {
    resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0)
        && serde_json::from_slice::<Value>(json).is_ok_and(|value| value.pointer(pointer).is_none())
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
    fn what_others_accept_is_accepted() {
        let with = |member: &str| MINIMAL.replace(r#""cwd":"/""#, &format!(r#""cwd":"/",{member}"#));
        let sets = r#""capabilities":{"bounding":["CAP_UNKNOWN","CAP_KILL","UNKNOWN_CAP"],"ambient":null}"#;
        let (spec, notes) = parse_spec_noting(with(sets).as_bytes()).unwrap();
        assert_eq!(notes, ["ignoring unknown or unavailable capabilities: [CAP_UNKNOWN UNKNOWN_CAP]"]);
        let process = spec.process().clone().unwrap();
        assert_eq!(process.capabilities().clone().unwrap().bounding().clone().unwrap().len(), 1);
        let flags =
            r#""scheduler":{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN"]}"#;
        let spec = parse_spec(with(flags).as_bytes()).unwrap();
        // What is written by our own types is read again.
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(parse_spec(text.as_bytes()).unwrap(), spec);
        let spaced = r#""execCPUAffinity":{"initial":" 0-1,, 3","final":"2"}"#;
        let spec = parse_spec(with(spaced).as_bytes()).unwrap();
        let affinity = spec.process().clone().unwrap().exec_cpu_affinity().clone().unwrap();
        assert_eq!(affinity.initial().as_deref(), Some("0-1,3"));
        let process = parse_process(br#"{"args":["true"],"cwd":"/"}"#).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        assert!(parse_spec(MINIMAL.replace(r#"["true"]"#, "null").as_bytes()).is_err());
    }

    #[test]
    fn unknown_words_name_the_field() {
        let with = |member: &str| MINIMAL.replace(r#""cwd":"/""#, &format!(r#""cwd":"/",{member}"#));
        let linux = |member: &str| MINIMAL.replace(r#""root":"#, &format!(r#""linux":{{{member}}},"root":"#));
        for (json, want) in [
            (with(r#""scheduler":{"nice":1}"#), "process.scheduler.policy: invalid scheduling policy \"\""),
            (
                with(r#""scheduler":{"policy":"SCHED_IDLE","flags":["X"]}"#),
                "process.scheduler.flags: invalid flag \"X\"",
            ),
            (with(r#""ioPriority":{"class":"X"}"#), "process.ioPriority.class: invalid ioPriority.Class: \"X\""),
            (with(r#""rlimits":[{"type":"X"}]"#), "process.rlimits[0].type: invalid rlimit type: \"X\""),
            (with(r#""execCPUAffinity":{"final":"a"}"#), "process.execCPUAffinity.final: invalid set"),
            (linux(r#""memoryPolicy":{}"#), "linux.memoryPolicy.mode: invalid memory policy mode \"\""),
            (
                linux(r#""memoryPolicy":{"mode":"MPOL_LOCAL","flags":["X"]}"#),
                "linux.memoryPolicy.flags: invalid memory policy flag \"X\"",
            ),
            (linux(r#""personality":{"domain":"X"}"#), "linux.personality.domain: invalid personality domain \"X\""),
            (linux(r#""namespaces":[{"type":"X"}]"#), "linux.namespaces[0].type: no such namespace: \"X\""),
        ] {
            let text = parse_spec(json.as_bytes()).unwrap_err().to_string();
            assert!(text.starts_with(want), "{json}: {text}");
        }
    }

    #[test]
    fn a_limit_of_processes_that_is_not_there_is_not_0() {
        for (pids, expected) in [("{}", None), (r#"{"limit":0}"#, Some(0)), (r#"{"limit":7}"#, Some(7))] {
            let limit = |resources: &LinuxResources| resources.pids().as_ref().map(|pids| pids.limit());
            let resources = format!(r#"{{"pids":{pids}}}"#);
            assert_eq!(limit(&parse_resources(resources.as_bytes()).unwrap()), expected, "{pids}");
            let to = format!(r#""cwd":"/"}},"linux":{{"resources":{resources}}}}}"#);
            let spec = parse_spec(MINIMAL.replace(r#""cwd":"/"}}"#, &to).as_bytes()).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(limit(linux.resources().as_ref().unwrap()), expected, "{pids}");
        }
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
