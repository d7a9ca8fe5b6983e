//! Documents that are good in their authors' eyes but not of the form that the types have.
//!
//! Runs only when a document was refused, so that one of the usual kind is parsed once. What may be left out or is
//! named otherwise elsewhere is put right; what is wrong becomes an error that names the field, which the types cannot.

use serde_json::{Map, Value, json};

use crate::Error;
use crate::runtime::Capability;

type Object = Map<String, Value>;

const CAPABILITY_SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];
const POLICIES: [&str; 7] =
    ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
/// As the specification has them, and as the types do.
const SCHEDULER_FLAGS: [(&str, &str); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_RECLAIM", "SCHED_FLAG_RECLAIM"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
    ("SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_POLICY"),
    ("SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_KEEP_PARAMS"),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MIN"),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", "SCHED_FLAG_UTIL_CLAMP_MAX"),
];
const IO_CLASSES: [&str; 3] = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];
const LIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];
const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];
const MEMORY_FLAGS: [&str; 3] = ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];
const DOMAINS: [&str; 2] = ["LINUX", "LINUX32"];
const NAMESPACES: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];

/// Repairs a whole specification. The result is what was left out, for the log.
pub(crate) fn spec(document: &mut Value) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let Some(root) = document.as_object_mut() else { return Ok(notes) };
    if let Some(process) = object(root, "process") {
        repair_process("process", process, &mut notes)?;
    }
    let Some(linux) = object(root, "linux") else { return Ok(notes) };
    if let Some(policy) = object(linux, "memoryPolicy") {
        one_of(policy.get("mode"), "linux.memoryPolicy.mode", "invalid memory policy mode", &MEMORY_MODES)?;
        for flag in list(policy.get("flags")) {
            one_of(Some(flag), "linux.memoryPolicy.flags", "invalid memory policy flag", &MEMORY_FLAGS)?;
        }
    }
    if let Some(personality) = object(linux, "personality") {
        let field = "linux.personality.domain";
        one_of(personality.get("domain"), field, "invalid personality domain", &DOMAINS)?;
    }
    for (index, namespace) in list(linux.get("namespaces")).iter().enumerate() {
        let field = format!("linux.namespaces[{index}].type");
        one_of(namespace.get("type"), &field, "no such namespace:", &NAMESPACES)?;
    }
    Ok(notes)
}

/// Repairs the document of a process.
pub(crate) fn process(document: &mut Value) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    if let Some(process) = document.as_object_mut() {
        repair_process("process", process, &mut notes)?;
    }
    Ok(notes)
}

fn repair_process(field: &str, process: &mut Object, notes: &mut Vec<String>) -> Result<(), Error> {
    if process.get("user").is_none_or(Value::is_null) {
        process.insert("user".to_owned(), json!({"uid": 0, "gid": 0}));
    }
    if let Some(sets) = object(process, "capabilities") {
        drop_unknown_capabilities(sets, notes);
    }
    if let Some(scheduler) = object(process, "scheduler") {
        let policy = format!("{field}.scheduler.policy");
        one_of(scheduler.get("policy"), &policy, "invalid scheduling policy", &POLICIES)?;
        for flag in scheduler.get_mut("flags").and_then(Value::as_array_mut).into_iter().flatten() {
            let known = |name: &&str| SCHEDULER_FLAGS.iter().find(|(ours, theirs)| [ours, theirs].contains(&name));
            match flag.as_str().as_ref().and_then(known) {
                Some((_, name)) => *flag = json!(name),
                None => return Err(Error::invalid(format!("{field}.scheduler.flags"), refusal("invalid flag", flag))),
            }
        }
    }
    if let Some(priority) = object(process, "ioPriority") {
        let class = format!("{field}.ioPriority.class");
        one_of(priority.get("class"), &class, "invalid ioPriority.Class:", &IO_CLASSES)?;
    }
    for (index, limit) in list(process.get("rlimits")).iter().enumerate() {
        let kind = format!("{field}.rlimits[{index}].type");
        one_of(limit.get("type"), &kind, "invalid rlimit type:", &LIMITS)?;
    }
    if let Some(affinity) = object(process, "execCPUAffinity") {
        for name in ["initial", "final"] {
            let Some(text) = affinity.get(name).and_then(Value::as_str) else { continue };
            // Blanks and surplus commas are allowed by others.
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let tidy = parts.collect::<Vec<_>>().join(",");
            let numeric = tidy.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte));
            if tidy.is_empty() || !numeric {
                let shown = refusal("invalid set of processors:", &json!(text));
                return Err(Error::invalid(format!("{field}.execCPUAffinity.{name}"), shown));
            }
            affinity.insert(name.to_owned(), json!(tidy));
        }
    }
    Ok(())
}

/// Runtimes may warn about capabilities that they do not know and go on (runtime-spec, config, "Linux Process").
fn drop_unknown_capabilities(sets: &mut Object, notes: &mut Vec<String>) {
    let mut unknown = std::collections::BTreeSet::new();
    for set in CAPABILITY_SETS {
        let Some(names) = sets.get_mut(set).and_then(Value::as_array_mut) else { continue };
        names.retain(|name| {
            let known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                unknown.insert(shown(name));
            }
            known
        });
    }
    if !unknown.is_empty() {
        let names = unknown.into_iter().collect::<Vec<_>>().join(" ");
        notes.push(format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
}

fn object<'a>(parent: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    parent.get_mut(name).and_then(Value::as_object_mut)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn one_of(value: Option<&Value>, field: &str, problem: &str, names: &[&str]) -> Result<(), Error> {
    let text = value.unwrap_or(&Value::Null);
    if text.as_str().is_some_and(|text| names.contains(&text)) {
        return Ok(());
    }
    Err(Error::invalid(field, refusal(problem, text)))
}

fn refusal(problem: &str, value: &Value) -> String {
    format!("{problem} {:?}", shown(value))
}

/// Hostile text, cut so that an error stays readable.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    };
    text.chars().take(40).collect()
}
