//! What a profile says about one call, read from the profile itself, call by call: slow and plain.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::arch::{Abi, X86_64};
use super::interpret::Data;

const ENOSYS: u32 = 0x0005_0000 | 38;
const KILL_PROCESS: u32 = 0x8000_0000;

/// The verdict, and how many rules with conditions there are for the call.
pub(super) fn verdict(seccomp: &LinuxSeccomp, data: &Data) -> (u32, usize) {
    let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
    let Some(machine) = X86_64.machines.iter().find(|machine| machine.audit_arch == data.arch) else {
        return (KILL_PROCESS, 0);
    };
    let listed = |abi: &Abi| abi.native || seccomp.architectures().iter().flatten().any(|listed| *listed == abi.name);
    let fits =
        |abi: &&Abi| if data.number >= machine.bits() && machine.bits() != 0 { abi.bit != 0 } else { abi.bit == 0 };
    let Some(abi) = machine.abis.iter().find(fits).filter(|abi| listed(abi)) else {
        let taken_back = data.number == u32::MAX && machine.bits() != 0;
        return (if taken_back { default } else { KILL_PROCESS }, 0);
    };
    let number = data.number & !abi.bit;
    let table = table(abi);
    let name = table.get(&number).copied();
    let called = call(abi, name, data);
    let mut unconditional = None;
    let mut conditional = Vec::new();
    for (entry, action) in with_other_action(seccomp, default) {
        let named = |wanted: Option<&str>| entry.names().iter().any(|entry_name| Some(entry_name.as_str()) == wanted);
        let (args, repeated) = conditions(entry);
        if named(name) {
            if args.is_empty() || (repeated && args.iter().any(nothing)) {
                unconditional = unconditional.or(Some(action));
            } else {
                let parts = if repeated { args.len() } else { 1 };
                conditional.extend(vec![(holds(&args, repeated, abi, data), action); parts]);
            }
        }
        // By a way around: the rule holds with its conditions on the other arguments.
        if called.is_some() && named(called) {
            let others = args.iter().filter(|given| repeated || given.index() != 0).copied().collect::<Vec<_>>();
            let direct = args.iter().any(|given| given.index() == 0);
            let fits = if repeated {
                direct || args.iter().any(|given| holds(&[*given], false, abi, data))
            } else {
                others.is_empty() || holds(&others, false, abi, data)
            };
            let first = unconditional_for(seccomp, default, called);
            conditional.push((first.is_some() || fits, first.unwrap_or(action)));
        }
    }
    let rules = conditional.len();
    if let Some(action) = unconditional {
        return (action, rules);
    }
    if let Some((_, action)) = conditional.iter().find(|(fits, _)| *fits) {
        return (*action, rules);
    }
    let highest = || table.iter().filter(|(_, name)| mentioned(seccomp, name)).map(|(number, _)| *number).max();
    let stub = !matches!(
        seccomp.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    let newer = stub && highest().is_some_and(|highest| highest > 0 && number > highest);
    (if newer { ENOSYS } else { default }, rules)
}

/// The names by their numbers, made once.
fn table(abi: &Abi) -> &'static BTreeMap<u32, &'static str> {
    static TABLES: [OnceLock<BTreeMap<u32, &'static str>>; 3] = [const { OnceLock::new() }; 3];
    let [native, x32, narrow] = &TABLES;
    let table = if abi.native {
        native
    } else if abi.bit != 0 {
        x32
    } else {
        narrow
    };
    table.get_or_init(|| (abi.table)().into_iter().map(|(name, number)| (number, name)).collect())
}

/// Which call of a multiplexer is meant.
fn call(abi: &Abi, name: Option<&str>, data: &Data) -> Option<&'static str> {
    let multiplexer = abi.multiplexers.iter().find(|multiplexer| Some(multiplexer.name) == name)?;
    let selector = data.arguments.first()? & 0xffff_ffff;
    multiplexer.calls.iter().find(|(_, value)| u64::from(*value) == selector).map(|(name, _)| *name)
}

fn with_other_action(seccomp: &LinuxSeccomp, default: u32) -> impl Iterator<Item = (&LinuxSyscall, u32)> {
    let entries = seccomp.syscalls().iter().flatten();
    entries.map(|entry| (entry, entry.action().as_u32(entry.errno_ret()))).filter(move |(_, action)| *action != default)
}

fn unconditional_for(seccomp: &LinuxSeccomp, default: u32, name: Option<&str>) -> Option<u32> {
    with_other_action(seccomp, default).find_map(|(entry, action)| {
        let (args, repeated) = conditions(entry);
        let always = args.is_empty() || (repeated && args.iter().any(nothing));
        (always && entry.names().iter().any(|known| Some(known.as_str()) == name)).then_some(action)
    })
}

fn mentioned(seccomp: &LinuxSeccomp, name: &str) -> bool {
    seccomp.syscalls().iter().flatten().any(|entry| entry.names().iter().any(|known| known == name))
}

/// The conditions that say something, and whether each is a rule of its own.
fn conditions(entry: &LinuxSyscall) -> (Vec<LinuxSeccompArg>, bool) {
    let all: Vec<LinuxSeccompArg> = entry.args().iter().flatten().copied().collect();
    let repeated = (0..6).any(|index| all.iter().filter(|given| given.index() == index).count() > 1);
    let telling = all.iter().filter(|given| repeated || !nothing(given)).copied().collect();
    (telling, repeated)
}

fn nothing(given: &LinuxSeccompArg) -> bool {
    given.op() == LinuxSeccompOperator::ScmpCmpMaskedEq && given.value() == 0
}

fn holds(args: &[LinuxSeccompArg], any: bool, abi: &Abi, data: &Data) -> bool {
    let one = |given: &LinuxSeccompArg| {
        let width = if abi.narrow { 0xffff_ffff } else { u64::MAX };
        let argument = data.arguments.get(given.index()).copied().unwrap_or(0) & width;
        let (value, two) = (given.value() & width, given.value_two().unwrap_or(0) & width);
        match given.op() {
            LinuxSeccompOperator::ScmpCmpNe => argument != value,
            LinuxSeccompOperator::ScmpCmpLt => argument < value,
            LinuxSeccompOperator::ScmpCmpLe => argument <= value,
            LinuxSeccompOperator::ScmpCmpEq => argument == value,
            LinuxSeccompOperator::ScmpCmpGe => argument >= value,
            LinuxSeccompOperator::ScmpCmpGt => argument > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == two & value,
        }
    };
    if any { args.iter().any(one) } else { args.iter().all(one) }
}
