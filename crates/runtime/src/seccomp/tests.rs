use std::collections::HashMap;

use serde_json::{Value, json};

use super::arch::{AARCH64, Family, X86_64};
use super::interpret::Data;
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;
const X86_64_ARCH: u32 = 0xc000_003e;

fn parse(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn program(value: Value, family: &Family) -> Vec<Instruction> {
    let seccomp = parse(value);
    compile_for(&seccomp, &rules::Profile::new(&seccomp).unwrap(), family).unwrap()
}

fn run(program: &[Instruction], data: &Data) -> (u32, usize) {
    interpret::run(program, data).unwrap()
}

fn call(number: u32, arguments: [u64; 6]) -> Data {
    Data { number, arch: X86_64_ARCH, arguments }
}

#[test]
fn every_operator_on_both_halves() {
    const M: u64 = u64::MAX;
    let interesting = [0, 1, 2, 3, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x7_0000_0003, M - 1, M];
    type Truth = fn(u64, u64, u64) -> bool;
    let operators: [(&str, Truth); 7] = [
        ("SCMP_CMP_NE", |a, v, _| a != v),
        ("SCMP_CMP_LT", |a, v, _| a < v),
        ("SCMP_CMP_LE", |a, v, _| a <= v),
        ("SCMP_CMP_EQ", |a, v, _| a == v),
        ("SCMP_CMP_GE", |a, v, _| a >= v),
        ("SCMP_CMP_GT", |a, v, _| a > v),
        ("SCMP_CMP_MASKED_EQ", |a, mask, v| a & mask == v & mask),
    ];
    for (operator, truth) in operators {
        for value in interesting {
            for two in [0, 1, 0x1_0000_0000, M] {
                let program = program(
                    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
                        {"names": ["close"], "action": "SCMP_ACT_ALLOW",
                         "args": [{"index": 5, "op": operator, "value": value, "valueTwo": two}]}]}),
                    &X86_64,
                );
                for argument in interesting {
                    let want = if truth(argument, value, two) { ALLOW } else { ERRNO | 38 };
                    let data = call(3, [0, 0, 0, 0, 0, argument]);
                    assert_eq!(run(&program, &data).0, want, "{argument:#x} {operator} {value:#x} {two:#x}");
                }
            }
        }
    }
}

#[test]
fn narrow_machines_compare_the_low_half() {
    let program = program(
        json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 7}]}]}),
        &X86_64,
    );
    let data = Data { number: 6, arch: 0x4000_0003, arguments: [7, 0, 0, 0, 0, 0] };
    assert_eq!(run(&program, &data).0, ALLOW);
    assert_eq!(run(&program, &Data { arguments: [8, 0, 0, 0, 0, 0], ..data }).0, KILL);
}

#[test]
fn actions() {
    for (action, errno, want) in [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, KILL),
        ("SCMP_ACT_TRAP", None, 0x0003_0000),
        ("SCMP_ACT_ERRNO", None, ERRNO | 1),
        ("SCMP_ACT_ERRNO", Some(95), ERRNO | 95),
        ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
        ("SCMP_ACT_LOG", None, 0x7ffc_0000),
    ] {
        let mut rule = json!({"names": ["read"], "action": action});
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        let program = program(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}), &X86_64);
        assert_eq!(run(&program, &call(0, [0; 6])).0, want, "{action}");
        assert_eq!(run(&program, &call(1, [0; 6])).0, ALLOW);
    }
    let notify = parse(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    assert!(compile(&notify).is_err());
    let large = parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}));
    assert!(compile(&large).is_err());
}

#[test]
fn tables_and_architectures_are_told_apart() {
    let rules = json!([{"names": ["read", "ioctl"], "action": "SCMP_ACT_ALLOW"}]);
    let alone = program(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}), &X86_64);
    let all = program(
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules,
               "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_X86"]}),
        &X86_64,
    );
    let x32 = |number: u32| number | 0x4000_0000;
    for (arch, number, alone_wants, all_wants) in [
        (X86_64_ARCH, 0, ALLOW, ALLOW),
        (X86_64_ARCH, 16, ALLOW, ALLOW),
        (X86_64_ARCH, 1, ERRNO | 1, ERRNO | 1),
        (X86_64_ARCH, 17, ERRNO | 38, ERRNO | 38),
        (X86_64_ARCH, x32(0), KILL, ALLOW),
        (X86_64_ARCH, x32(514), KILL, ALLOW),
        (X86_64_ARCH, x32(16), KILL, ALLOW),
        (X86_64_ARCH, x32(1), KILL, ERRNO | 1),
        (0x4000_0003, 3, KILL, ALLOW),
        (0x4000_0003, 54, KILL, ALLOW),
        (0x4000_0003, 0, KILL, ERRNO | 1),
        (0xc000_00b7, 63, KILL, KILL),
    ] {
        let data = Data { number, arch, arguments: [0; 6] };
        let want_x32_ioctl = number == x32(16);
        assert_eq!(run(&alone, &data).0, alone_wants, "{arch:#x} {number:#x}");
        // On x32 `ioctl` is 514 only.
        let all_wants = if want_x32_ioctl { ERRNO | 1 } else { all_wants };
        assert_eq!(run(&all, &data).0, all_wants, "{arch:#x} {number:#x}");
    }
}

#[test]
fn arm_has_its_own_numbers() {
    let program = program(
        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_ARM"], "syscalls": [
            {"names": ["read", "set_tls"], "action": "SCMP_ACT_ALLOW"}]}),
        &AARCH64,
    );
    for (arch, number, want) in
        [(0xc000_00b7, 63, ALLOW), (0xc000_00b7, 3, ERRNO | 1), (0x4000_0028, 3, ALLOW), (0x4000_0028, 0xf_0005, ALLOW)]
    {
        assert_eq!(run(&program, &Data { number, arch, arguments: [0; 6] }).0, want, "{arch:#x} {number}");
    }
}

#[test]
fn precedence() {
    let read = |rules: Value, argument: u64| {
        let program = program(json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules}), &X86_64);
        run(&program, &call(0, [argument, 0, 0, 0, 0, 0])).0
    };
    let equal = |value: u64, action: &str, errno: u32| {
        json!({"names": ["read"], "action": action, "errnoRet": errno,
               "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": value}]})
    };
    let always = json!({"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"});
    // Without conditions wins, wherever it stands.
    assert_eq!(read(json!([equal(1, "SCMP_ACT_ERRNO", 5), always]), 1), ALLOW);
    assert_eq!(read(json!([always, equal(1, "SCMP_ACT_ERRNO", 5)]), 1), ALLOW);
    // The first that fits, else the default.
    let two = json!([equal(1, "SCMP_ACT_ERRNO", 5), equal(1, "SCMP_ACT_ERRNO", 6), equal(2, "SCMP_ACT_ERRNO", 7)]);
    assert_eq!(read(two.clone(), 1), ERRNO | 5);
    assert_eq!(read(two.clone(), 2), ERRNO | 7);
    assert_eq!(read(two, 3), 0x7ffc_0000);
    // Two conditions on one argument: either. On two arguments: both.
    let either = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}, {"index": 0, "op": "SCMP_CMP_EQ", "value": 2}]}]);
    assert_eq!(read(either.clone(), 1), ALLOW);
    assert_eq!(read(either, 2), ALLOW);
    let both = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}, {"index": 1, "op": "SCMP_CMP_EQ", "value": 2}]}]);
    assert_eq!(read(both, 1), 0x7ffc_0000);
    let sixth = parse(json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ", "value": 1}]}]}));
    assert!(compile(&sixth).is_err());
}

/// A profile of Docker's shape: a few hundred names, some with conditions.
pub(super) fn large_profile() -> Value {
    let all: Vec<&str> =
        (0..470_usize).filter_map(|n| syscalls::x86_64::Sysno::new(n).map(|call| call.name())).collect();
    let plain: Vec<&str> =
        all.iter().copied().filter(|name| name.len() % 7 != 3 && !["clone", "personality"].contains(name)).collect();
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": plain, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288_u64, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]})
}

#[test]
fn every_number_has_the_fate_that_its_name_has() {
    let profile = large_profile();
    let plain: Vec<String> = serde_json::from_value(profile["syscalls"][0]["names"].clone()).unwrap();
    let program = program(profile, &X86_64);
    assert!(program.len() < 1500, "{}", program.len());
    let names: HashMap<u32, &str> =
        (0..600).filter_map(|n: u32| Some((n, syscalls::x86_64::Sysno::new(n as usize)?.name()))).collect();
    let last = *names.iter().filter(|(_, name)| plain.iter().any(|p| p == *name)).map(|(n, _)| n).max().unwrap();
    let mut longest = 0;
    for number in 0..600 {
        let (got, steps) = run(&program, &call(number, [0; 6]));
        longest = longest.max(steps);
        let want = match names.get(&number) {
            Some(&"clone3") if !plain.iter().any(|p| p == "clone3") => ERRNO | 38,
            Some(&("clone" | "personality")) => ALLOW,
            Some(name) if plain.iter().any(|p| p == name) => ALLOW,
            _ if number > last => ERRNO | 38,
            _ => ERRNO | 1,
        };
        assert_eq!(got, want, "{number} {:?}", names.get(&number));
    }
    assert!(longest < 25, "{longest} instructions for one call");
    assert_eq!(run(&program, &call(56, [0x1000_0000, 0, 0, 0, 0, 0])).0, ERRNO | 1, "clone with a new user namespace");
}

#[test]
fn flags() {
    let with = |list: Value| parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": list}));
    assert_eq!(filter_flags(&parse(json!({"defaultAction": "SCMP_ACT_ERRNO"})), false).unwrap(), flags::SPEC_ALLOW);
    assert_eq!(filter_flags(&with(json!([])), false).unwrap(), 0);
    let all = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]);
    assert_eq!(filter_flags(&with(all), false).unwrap(), 6);
    let killable = with(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]));
    assert!(filter_flags(&killable, false).unwrap_err().to_string().contains("WAIT_KILLABLE_RECV"));
    assert_eq!(filter_flags(&killable, true).unwrap(), 40);
    assert!(compile(&parse(json!({"defaultAction": "SCMP_ACT_ALLOW"}))).unwrap().is_none());
}

/// Prints the time for a profile of Docker's size; the limit is generous because machines and builds differ.
#[test]
fn compiling_is_quick() {
    let profile = parse(large_profile());
    let mut best = std::time::Duration::MAX;
    for _ in 0..50 {
        let begin = std::time::Instant::now();
        let filter = compile(&profile).unwrap().unwrap();
        best = best.min(begin.elapsed());
        assert!(!filter.program.is_empty());
    }
    eprintln!("best of 50: {best:?}");
    assert!(best < std::time::Duration::from_millis(20), "{best:?}");
}
