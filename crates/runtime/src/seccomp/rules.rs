//! What a profile does with each system call number.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

use super::arch::Abi;
use crate::Error;

const ENOSYS: u32 = 38;
const EPERM: u32 = 1;
const RET_ERRNO: u32 = 0x0005_0000;

/// `seccomp_data` has six arguments.
const ARGUMENTS: usize = 6;

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) operator: LinuxSeccompOperator,
    /// The mask of a masked comparison.
    pub(super) value: u64,
    /// What the masked argument is compared with.
    pub(super) value_two: u64,
}

/// All conditions hold: this action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// What happens to a range of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Return(u32),
    /// The first rule that fits, else the action behind.
    Rules(Arc<[Rule]>, u32),
}

/// Numbers from `first` on, up to the next range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) fate: Fate,
}

/// A profile by name.
#[derive(Debug)]
pub(super) struct Profile<'spec> {
    default: u32,
    /// Whether unknown newer calls should look missing rather than forbidden.
    stub: bool,
    fates: HashMap<&'spec str, Fate>,
}

/// The `SECCOMP_RET_*` of an action.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let data = errno.unwrap_or(EPERM);
    let limit = 4095;
    if data > limit {
        return Err(Error::invalid("linux.seccomp", format!("errnoRet {data} exceeds {limit}")));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | data,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::unsupported("linux.seccomp", "SCMP_ACT_NOTIFY is not supported"));
        }
    })
}

fn permissive(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    )
}

fn condition(given: &LinuxSeccompArg) -> Result<Condition, Error> {
    let argument = u32::try_from(given.index()).ok().filter(|_| given.index() < ARGUMENTS);
    let argument =
        argument.ok_or_else(|| Error::invalid("linux.seccomp", format!("there is no argument {}", given.index())))?;
    Ok(Condition { argument, operator: given.op(), value: given.value(), value_two: given.value_two().unwrap_or(0) })
}

impl<'spec> Profile<'spec> {
    pub(super) fn new(seccomp: &'spec LinuxSeccomp) -> Result<Self, Error> {
        let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
        let mut fates = HashMap::new();
        for entry in seccomp.syscalls().iter().flatten() {
            let action = action(entry.action(), entry.errno_ret())?;
            let given = entry.args().as_deref().unwrap_or_default();
            let conditions = given.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
            let twice = |index: usize| {
                conditions.iter().skip(index + 1).any(|other| other.argument == conditions[index].argument)
            };
            // Several conditions on one argument never were meant to hold at once: each is a rule of its own.
            let rules: Vec<Rule> = if (0..conditions.len()).any(twice) {
                conditions.iter().map(|one| Rule { conditions: vec![*one], action }).collect()
            } else if conditions.is_empty() {
                Vec::new()
            } else {
                vec![Rule { conditions, action }]
            };
            for name in entry.names() {
                merge(fates.entry(name.as_str()), &rules, action, default);
            }
        }
        let stub = !permissive(seccomp.default_action()) && default != RET_ERRNO | ENOSYS;
        Ok(Self { default, stub, fates })
    }

    /// The fates of all numbers of a table, ascending; the first range starts at 0.
    pub(super) fn ranges(&self, abi: &Abi) -> Vec<Range> {
        let table = (abi.table)();
        let named = table.into_iter().filter_map(|(name, number)| Some((number, self.fates.get(name)?)));
        let default = Fate::Return(self.default);
        let mut ranges: Vec<Range> = Vec::new();
        let mut push = |first: u32, fate: &Fate| {
            if ranges.last().is_none_or(|last| last.fate != *fate) {
                ranges.push(Range { first, fate: fate.clone() });
            }
        };
        let mut next = 0;
        for (number, fate) in named {
            if number > next {
                push(next, &default);
            }
            push(number, fate);
            next = number + 1;
        }
        push(next, if self.stub { &Fate::Return(RET_ERRNO | ENOSYS) } else { &default });
        ranges
    }
}

fn merge(entry: Entry<'_, &str, Fate>, rules: &[Rule], action: u32, default: u32) {
    match entry {
        Entry::Vacant(vacant) if rules.is_empty() => {
            vacant.insert(Fate::Return(action));
        }
        Entry::Vacant(vacant) => {
            vacant.insert(Fate::Rules(Arc::from(rules), default));
        }
        Entry::Occupied(mut occupied) => match occupied.get_mut() {
            Fate::Return(_) => {}
            fate @ Fate::Rules(..) if rules.is_empty() => *fate = Fate::Return(action),
            Fate::Rules(known, _) => {
                let joined: Vec<Rule> = known.iter().chain(rules).cloned().collect();
                *known = Arc::from(joined);
            }
        },
    }
}
