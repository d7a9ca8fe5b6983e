//! Our filter of a profile beside libseccomp's and beside a plain reading of the profile (`reference`): every number of
//! every table, with arguments around the values that the profile compares with.
//!
//! Known differences to libseccomp, which are left out here:
//! - Several rules with conditions for one call: libseccomp joins them to a tree, in which it refuses some (EEXIST),
//!   orders others by argument and operator, and gets comparisons of order with 64-bit values wrong (2.5.4: of
//!   `arg > 0x100000000` and `arg < 8` one holds for 8). Ours takes the first that fits; only the plain reading is
//!   asked then.
//! - Calls that libseccomp's version does not know, and tables in which a number has another name: see
//!   `differential`.
//! - runc does not count direct socket and ipc calls of i386 when it looks for the highest number that a profile names,
//!   because libseccomp gives them pseudo numbers: a profile that names nothing higher would lose them. [`compared`]
//!   adds a high number.
//! - What other architectures and tables get: libseccomp kills the thread, ours the process.

use oci::runtime::{Arch, LinuxSeccomp, LinuxSyscall};
use serde_json::{Value, json};

use super::arch::X86_64;
use super::interpret::{Data, run};
use super::oracle::{Library, Refused};
use super::{compile_for, reference, rules};

const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const X86_64_ARCH: u32 = 0xc000_003e;
const I386_ARCH: u32 = 0x4000_0003;
const RISCV64_ARCH: u32 = 0xc000_00f3;
const X32_BIT: u32 = 0x4000_0000;
/// A number of every table, above those of the calls that runc does not count.
const HIGH: &str = "epoll_pwait2";

/// How a comparison ended, when there was no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// So many verdicts were the same, so many others of libseccomp were different and disputed.
    Same(usize, usize),
    /// Ours refused the profile.
    Refused,
    /// libseccomp refused it.
    Conflict,
}

/// Choices from bytes; zeros when they are used up.
#[derive(Debug)]
pub(crate) struct Choices<'bytes>(pub(crate) &'bytes [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        list.get(number % list.len().max(1)).copied()
    }

    fn value(&mut self) -> u64 {
        const VALUES: [u64; 12] =
            [0, 1, 2, 8, 40, 0x7e02_0000, 0xffff_fffe, 0xffff_ffff, 1 << 32, (1 << 32) + 1, u64::MAX - 1, u64::MAX];
        let choice = self.byte();
        match VALUES.get(usize::from(choice & 15)) {
            Some(value) => *value,
            None => u64::from(choice >> 4) << (self.byte() & 63),
        }
    }
}

/// A profile out of bytes. All rules with conditions have one action.
pub(crate) fn profile(choices: &mut Choices<'_>) -> Value {
    const ACTIONS: [&str; 8] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
    ];
    const OPERATORS: [&str; 7] = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_NE",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
    ];
    let names = names();
    let action = |choices: &mut Choices<'_>, list: &[&str]| {
        let action = choices.of(list).unwrap_or_default().to_owned();
        let errno = (action == "SCMP_ACT_ERRNO" || action == "SCMP_ACT_TRACE").then(|| choices.byte());
        (action, errno)
    };
    let (default, default_errno) = action(choices, &ACTIONS[..7]);
    let (conditional, conditional_errno) = action(choices, &ACTIONS);
    let mut architectures = Vec::new();
    for (bit, arch) in [(1, "SCMP_ARCH_X86_64"), (2, "SCMP_ARCH_X86"), (4, "SCMP_ARCH_X32"), (8, "SCMP_ARCH_AARCH64")] {
        if choices.byte() & bit != 0 {
            architectures.push(arch);
        }
    }
    let mut syscalls = Vec::new();
    for _ in 0..choices.byte() % 24 {
        let many = choices.byte();
        let (mut action, mut errno) = action(choices, &ACTIONS);
        let mut list: Vec<&str> = (0..=many % 32).filter_map(|_| choices.of(&names)).collect();
        let count = if many & 0x80 == 0 { 0 } else { 1 + (many >> 5 & 3) };
        let args: Vec<Value> = (0..count)
            .map(|_| {
                let index = choices.byte() % 6;
                let operator = choices.of(&OPERATORS);
                json!({"index": index, "value": choices.value(), "valueTwo": choices.value(), "op": operator})
            })
            .collect();
        if !args.is_empty() {
            (action, errno) = (conditional.clone(), conditional_errno);
            list.retain(|name| !["socketcall", "ipc"].contains(name));
        }
        if action == "SCMP_ACT_NOTIFY" {
            list.retain(|name| *name != "write");
        }
        let mut entry = json!({"names": list, "action": action, "args": args});
        if let Some(errno) = errno {
            entry["errnoRet"] = json!(errno);
        }
        syscalls.push(entry);
    }
    let mut profile = json!({"defaultAction": default, "architectures": architectures, "syscalls": syscalls});
    if let Some(errno) = default_errno {
        profile["defaultErrnoRet"] = json!(errno);
    }
    profile
}

/// Every name of our tables, and one that is in none.
pub(crate) fn names() -> Vec<&'static str> {
    let tables = X86_64.machines.iter().flat_map(|machine| machine.abis).flat_map(|abi| (abi.table)());
    let calls = X86_64.machines.iter().flat_map(|machine| machine.abis).flat_map(|abi| abi.multiplexers);
    let mut names: Vec<&str> = tables.map(|(name, _)| name).collect();
    names.extend(calls.flat_map(|multiplexer| multiplexer.calls).map(|(name, _)| *name));
    names.push("no_such_call");
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether both know a name alike in every table.
pub(crate) fn agreed(library: &Library, name: &str) -> bool {
    X86_64.machines.iter().flat_map(|machine| machine.abis).all(|abi| {
        let ours = (abi.table)().into_iter().find(|(known, _)| *known == name).map(|(_, number)| number | abi.bit);
        let pseudo = abi.multiplexers.iter().flat_map(|m| m.calls).any(|(known, _)| *known == name);
        let theirs = library.number(abi.name, name);
        pseudo || ours == theirs.and_then(|number| u32::try_from(number).ok())
    })
}

/// Compares the verdicts of both filters; the text tells the first difference.
pub(crate) fn compared(library: &Library, profile: &Value, known: impl Fn(&str) -> bool) -> Result<Compared, String> {
    let mut profile = profile.clone();
    for entry in profile["syscalls"].as_array_mut().into_iter().flatten() {
        if let Some(names) = entry["names"].as_array_mut() {
            names.retain(|name| name.as_str().is_none_or(&known));
        }
    }
    if let Some(list) = profile["syscalls"].as_array_mut() {
        list.push(json!({"names": [HIGH], "action": "SCMP_ACT_ALLOW"}));
    }
    let seccomp: LinuxSeccomp = serde_json::from_value(profile.clone()).map_err(|error| error.to_string())?;
    let Ok(rules) = rules::Profile::new(&seccomp) else { return Ok(Compared::Refused) };
    let Ok(ours) = compile_for(&seccomp, &rules, &X86_64) else { return Ok(Compared::Refused) };
    let theirs = match library.compile(&seccomp) {
        Ok(theirs) => theirs,
        Err(Refused::Conflict) => return Ok(Compared::Conflict),
        Err(refused) => return Err(format!("libseccomp refuses ({refused:?}) {profile}")),
    };
    let reading = reference::Reading::new(&seccomp);
    let (mut count, mut disputed) = (0, 0);
    for data in questions(&seccomp) {
        let our = run(&ours, &data).map(|(verdict, _)| verdict);
        let (want, rules) = reading.verdict(&data);
        if our != Some(want) {
            return Err(format!("{data:#x?}: ours {our:#x?}, wanted {want:#x}, profile {profile}"));
        }
        let their = theirs.verdict(&data);
        if our != their && rules > 1 {
            disputed += 1;
            continue;
        }
        let killed = our == Some(KILL_PROCESS) && their == Some(KILL_THREAD) && foreign(&seccomp, &data);
        if our.is_none() || (our != their && !killed) {
            return Err(format!("{data:#x?}: ours {our:#x?}, libseccomp {their:#x?}, profile {profile}"));
        }
        count += 1;
    }
    Ok(Compared::Same(count, disputed))
}

/// Whether the profile does not cover the table of a call.
fn foreign(seccomp: &LinuxSeccomp, data: &Data) -> bool {
    let listed = |arch| seccomp.architectures().iter().flatten().any(|listed| *listed == arch);
    match data.arch {
        X86_64_ARCH => data.number & X32_BIT != 0 && !listed(Arch::ScmpArchX32),
        I386_ARCH => !listed(Arch::ScmpArchX86),
        _ => true,
    }
}

/// Every number once, and those with conditions with many arguments.
fn questions(seccomp: &LinuxSeccomp) -> Vec<Data> {
    let entries: Vec<&LinuxSyscall> = seccomp.syscalls().iter().flatten().collect();
    let arguments = arguments(&entries);
    let conditional = |name: &str| {
        let multiplexer = name == "socketcall" || name == "ipc";
        let has = |entry: &&LinuxSyscall| entry.args().as_ref().is_some_and(|args| !args.is_empty());
        multiplexer || entries.iter().filter(|entry| has(entry)).any(|entry| entry.names().iter().any(|n| n == name))
    };
    let mut list = Vec::new();
    for machine in X86_64.machines {
        for abi in machine.abis {
            for (name, number) in (abi.table)() {
                if !conditional(name) {
                    continue;
                }
                for given in &arguments {
                    // The kernel shows 32-bit calls of i386 with the upper halves empty.
                    let narrow = machine.audit_arch == I386_ARCH;
                    let arguments = given.map(|value| if narrow { value & 0xffff_ffff } else { value });
                    list.push(Data { number: number | abi.bit, arch: machine.audit_arch, arguments });
                }
            }
        }
    }
    let numbers = (0..600).flat_map(|number| [number, number | X32_BIT]).chain([0x3fff_ffff, 0x7fff_ffff, u32::MAX]);
    for number in numbers {
        for arch in [X86_64_ARCH, I386_ARCH, RISCV64_ARCH] {
            list.push(Data { number, arch, arguments: [0; 6] });
        }
    }
    list
}

/// Arguments on, below and above what rules compare with, alone and together.
fn arguments(entries: &[&LinuxSyscall]) -> Vec<[u64; 6]> {
    let mut list = vec![[0; 6], [u64::MAX; 6]];
    // The selectors of socketcall and ipc.
    list.extend((1..25).map(|selector| [selector, 0, 0, 0, 0, 0]));
    for entry in entries {
        let (mut together, mut beside) = ([0; 6], [u64::MAX; 6]);
        for condition in entry.args().iter().flatten() {
            let (value, two) = (condition.value(), condition.value_two().unwrap_or(0));
            let index = condition.index().min(5);
            together[index] = value;
            beside[index] = two;
            for near in [value.wrapping_sub(1), value, value.wrapping_add(1), value ^ (1 << 32), two] {
                let mut one = if near & 1 == 0 { [0; 6] } else { [u64::MAX; 6] };
                one[index] = near;
                list.push(one);
            }
        }
        list.extend([together, beside]);
    }
    list.sort_unstable();
    list.dedup();
    list
}
