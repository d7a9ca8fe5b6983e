//! How long compiling a system call filter takes.
//!
//! `cargo run --release -p runtime --features fuzzing --example seccomp -- [PROFILE.json]`
//!
//! The profile is the `linux.seccomp` of a specification, or a file in the format that Docker and podman ship
//! (`includes` and `excludes` are settled as for a container without added capabilities on x86-64). Without one: a
//! profile of the same size. Prints the best and the median of 1000 rounds.

#![expect(clippy::print_stdout, reason = "prints its result")]

use std::time::Instant;

use oci::runtime::LinuxSeccomp;
use serde_json::{Value, json};

const ROUNDS: usize = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let profile = match std::env::args().nth(1) {
        Some(path) => settled(&serde_json::from_slice(&std::fs::read(path)?)?),
        None => similar(),
    };
    let profile: LinuxSeccomp = serde_json::from_value(profile)?;
    let names: usize = profile.syscalls().iter().flatten().map(|entry| entry.names().len()).sum();
    let mut times = Vec::with_capacity(ROUNDS);
    let mut instructions = 0;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        instructions = runtime::fuzzing::compile_seccomp(&profile)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let (best, median) = (times[0], times[ROUNDS / 2]);
    println!("{names} names, {instructions} instructions: best {best:?}, median {median:?} of {ROUNDS}");
    Ok(())
}

/// The profile of a container with no capability added, for x86-64 and its 32-bit companions.
fn settled(shipped: &Value) -> Value {
    let has = |entry: &Value, part: &str, key: &str| entry[part][key].as_array().is_some_and(|list| !list.is_empty());
    let ours = |entry: &Value, part: &str| {
        let arches = entry[part]["arches"].as_array().into_iter().flatten();
        arches.filter_map(Value::as_str).any(|arch| ["amd64", "x86", "x32"].contains(&arch))
    };
    let mut syscalls = Vec::new();
    for entry in shipped["syscalls"].as_array().into_iter().flatten() {
        let included =
            !has(entry, "includes", "caps") && (!has(entry, "includes", "arches") || ours(entry, "includes"));
        if included && !ours(entry, "excludes") {
            let mut entry = entry.clone();
            if entry["args"].is_null() || entry["action"] != "SCMP_ACT_ERRNO" {
                let args = entry["args"].take();
                entry = json!({"names": entry["names"], "action": entry["action"], "errnoRet": entry["errnoRet"],
                    "args": if args.is_null() { json!([]) } else { args }});
            }
            syscalls.push(entry);
        }
    }
    json!({"defaultAction": shipped["defaultAction"], "defaultErrnoRet": shipped["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": syscalls})
}

/// Most calls are allowed, some by their arguments.
fn similar() -> Value {
    let known = (0..470_usize).filter_map(|number| syscalls::x86_64::Sysno::new(number).map(|call| call.name()));
    let plain: Vec<&str> =
        known.filter(|name| name.len() % 7 != 3 && !["clone", "personality"].contains(name)).collect();
    let equal = |value: u64| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let mut syscalls = vec![json!({"names": plain, "action": "SCMP_ACT_ALLOW"})];
    for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        syscalls.push(json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": equal(value)}));
    }
    syscalls.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
    syscalls.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": syscalls})
}
