//! Our compiler against libseccomp: hand-made and random profiles.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::compare::{Choices, Compared, agreed, compared, names, profile};
use super::oracle::Library;
use super::tests::large_profile;

/// The library, or a line that says why the comparison is left out.
fn library(name: &str) -> Option<Library> {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIP {name}: compares the tables of x86-64");
        return None;
    }
    match Library::load() {
        Ok(library) => Some(library),
        Err(reason) => {
            eprintln!("SKIP {name}: {reason}");
            None
        }
    }
}

/// The tables are those of libseccomp, but for calls newer than it (16 with 2.5.4 of Debian 12).
#[test]
fn tables_agree_with_libseccomp() {
    let Some(library) = library("tables_agree_with_libseccomp") else { return };
    let differ: BTreeSet<&str> = names().into_iter().filter(|name| !agreed(&library, name)).collect();
    eprintln!("{} of {} names differ: {differ:?}", differ.len(), names().len());
    for name in ["read", "clone3", "openat2", "socket", "semget", "rt_sigaction", "ioctl", "umount2", "mmap", "select"]
    {
        assert!(!differ.contains(name), "{name}");
    }
    assert!(differ.len() < 30, "{differ:?}");
}

#[test]
fn hand_made_profiles_mean_what_libseccomp_makes_of_them() {
    let Some(library) = library("hand_made_profiles_mean_what_libseccomp_makes_of_them") else { return };
    let all = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let with = |default: &str, rules: Value| json!({"defaultAction": default, "architectures": all, "syscalls": rules});
    let equal = |index: u32, value: u64| json!({"index": index, "op": "SCMP_CMP_EQ", "value": value});
    let profiles = [
        large_profile(),
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}),
        with("SCMP_ACT_ALLOW", json!([{"names": ["socket", "semop", "shmat"], "action": "SCMP_ACT_ERRNO"}])),
        // A direct call and its way through socketcall.
        with(
            "SCMP_ACT_ERRNO",
            json!([{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 1), equal(1, 5)]},
                   {"names": ["bind", "accept", "accept4"], "action": "SCMP_ACT_ALLOW"}]),
        ),
        with(
            "SCMP_ACT_ERRNO",
            json!([{"names": ["socket"], "action": "SCMP_ACT_ALLOW"}, {"names": ["socketcall"], "action": "SCMP_ACT_LOG"}]),
        ),
        // A rule with the default action is none.
        with(
            "SCMP_ACT_ALLOW",
            json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                   {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [equal(0, 1)]}]),
        ),
        // A mask of nothing always fits.
        with(
            "SCMP_ACT_ALLOW",
            json!([{"names": ["read"], "action": "SCMP_ACT_TRAP",
                    "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0, "valueTwo": 3}]}]),
        ),
        // Several conditions on one argument are rules of their own.
        with(
            "SCMP_ACT_KILL_PROCESS",
            json!([{"names": ["read", "personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [equal(0, 1), equal(0, 0xffff_ffff_ffff_ffff), equal(2, 1 << 32)]}]),
        ),
        with("SCMP_ACT_ALLOW", json!([{"names": ["mkdir", "mkdirat", "ipc"], "action": "SCMP_ACT_NOTIFY"}])),
        with("SCMP_ACT_TRACE", json!([{"names": ["exit"], "action": "SCMP_ACT_ALLOW"}])),
        with("SCMP_ACT_KILL", json!([{"names": ["no_such_call"], "action": "SCMP_ACT_ALLOW"}])),
    ];
    for profile in profiles {
        match compared(&library, &profile, |name| agreed(&library, name)) {
            Ok(Compared::Same(count, 0)) => assert!(count > 1000),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn random_profiles_mean_what_libseccomp_makes_of_them() {
    let Some(library) = library("random_profiles_mean_what_libseccomp_makes_of_them") else { return };
    let known: BTreeSet<&str> = names().into_iter().filter(|name| agreed(&library, name)).collect();
    // xorshift64
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let (mut same, mut conflicts, mut verdicts, mut disputed) = (0, 0, 0, 0);
    for _ in 0..8 {
        let bytes: Vec<u8> = (0..128).flat_map(|_| random()).collect();
        match compared(&library, &profile(&mut Choices(&bytes)), |name| known.contains(name)) {
            Ok(Compared::Same(alike, other)) => {
                (same, verdicts, disputed) = (same + 1, verdicts + alike, disputed + other);
            }
            Ok(Compared::Conflict) => conflicts += 1,
            other => panic!("{other:?}"),
        }
    }
    eprintln!(
        "{same} profiles: {verdicts} verdicts alike, {disputed} disputed; {conflicts} profiles refused by libseccomp"
    );
    assert!(same > 4 && disputed < verdicts / 20, "{same} {disputed}");
}
