//! What a profile says about one call, read from the profile itself, call by call: slow and plain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::arch::{Abi, X86_64};
use super::interpret::Data;

const ENOSYS: u32 = 0x0005_0000 | 38;
const KILL_PROCESS: u32 = 0x8000_0000;

/// A profile, with what is looked for most often found beforehand.
pub(super) struct Reading<'profile> {
    seccomp: &'profile LinuxSeccomp,
    default: u32,
    /// The entries that name a call.
    entries: BTreeMap<&'profile str, BTreeSet<usize>>,
}

impl<'profile> Reading<'profile> {
    pub(super) fn new(seccomp: &'profile LinuxSeccomp) -> Self {
        let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
        let mut entries: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (index, entry) in seccomp.syscalls().iter().flatten().enumerate() {
            for name in entry.names() {
                entries.entry(name).or_default().insert(index);
            }
        }
        Self { seccomp, default, entries }
    }

    /// The entries that name a call and do not say what happens anyway, with their actions.
    fn named(&self, name: Option<&str>) -> Vec<(usize, &'profile LinuxSyscall, u32)> {
        let all = self.seccomp.syscalls().as_deref().unwrap_or_default();
        let indexes = name.and_then(|name| self.entries.get(name)).into_iter().flatten();
        let found = indexes.filter_map(|index| Some((*index, all.get(*index)?)));
        let told = found.map(|(index, entry)| (index, entry, entry.action().as_u32(entry.errno_ret())));
        told.filter(|(_, _, action)| *action != self.default).collect()
    }

    /// What a call gets whatever its arguments are.
    fn unconditional(&self, name: Option<&str>) -> Option<u32> {
        self.named(name).into_iter().find(|(_, entry, _)| always(entry)).map(|(_, _, action)| action)
    }

    /// The verdict, and how many rules with conditions there are for the call.
    pub(super) fn verdict(&self, data: &Data) -> (u32, usize) {
        let Some(machine) = X86_64.machines.iter().find(|machine| machine.audit_arch == data.arch) else {
            return (KILL_PROCESS, 0);
        };
        let bits = machine.bits();
        let other = bits != 0 && data.number >= bits;
        let listed =
            |abi: &Abi| abi.native || self.seccomp.architectures().iter().flatten().any(|listed| *listed == abi.name);
        let abi = machine.abis.iter().find(|abi| other == (abi.bit != 0));
        let Some(abi) = abi.filter(|abi| listed(abi)) else {
            let taken_back = data.number == u32::MAX && bits != 0;
            return (if taken_back { self.default } else { KILL_PROCESS }, 0);
        };
        let number = data.number & !abi.bit;
        let name = table(abi).get(&number).copied();
        let conditional = self.conditional(abi, name, data);
        let fitting = conditional.iter().find(|(_, fits, _)| *fits).map(|(_, _, action)| *action);
        let verdict = self.unconditional(name).or(fitting).unwrap_or_else(|| self.otherwise(abi, number));
        (verdict, conditional.len())
    }

    /// The rules with conditions for a call, in order: whether they hold, and their actions.
    fn conditional(&self, abi: &Abi, name: Option<&str>, data: &Data) -> Vec<(usize, bool, u32)> {
        let mut list = Vec::new();
        for (index, entry, action) in self.named(name).into_iter().filter(|(_, entry, _)| !always(entry)) {
            let (args, repeated) = conditions(entry);
            let parts = if repeated { args.len() } else { 1 };
            list.extend(vec![(index, holds(&args, repeated, abi, data), action); parts]);
        }
        // By a way around a rule holds with its conditions on the other arguments.
        let called = call(abi, name, data);
        for (index, entry, action) in self.named(called) {
            let (mut args, repeated) = conditions(entry);
            let first = args.iter().any(|given| given.index() == 0);
            args.retain(|given| given.index() != 0);
            let holds = args.is_empty() || (repeated && first) || holds(&args, repeated, abi, data);
            let whole = self.unconditional(called);
            list.push((index, whole.is_some() || holds, whole.unwrap_or(action)));
        }
        list
    }

    /// What a call gets that no rule is for.
    fn otherwise(&self, abi: &Abi, number: u32) -> u32 {
        let permissive = matches!(
            self.seccomp.default_action(),
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
        );
        let mut mentioned = table(abi).iter().rev().filter(|(_, name)| self.entries.contains_key(*name));
        match mentioned.next() {
            Some((highest, _)) if !permissive && *highest > 0 && number > *highest => ENOSYS,
            _ => self.default,
        }
    }
}

/// Whether an entry has no condition that says anything.
fn always(entry: &LinuxSyscall) -> bool {
    let (args, repeated) = conditions(entry);
    args.is_empty() || (repeated && args.iter().any(nothing))
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
