//! What a profile does with each system call number.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::quality::RandomState;
use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::arch::{Abi, Multiplexer};
use crate::Error;

const ENOSYS: u32 = 38;
const EPERM: u32 = 1;
/// `MAX_ERRNO` of the kernel.
const MAX_ERRNO: u32 = 4095;
/// `SECCOMP_RET_DATA`, the bits that go with an action.
const RET_DATA: u32 = 0xffff;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

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
    pub(super) default: u32,
    /// Whether unknown newer calls should look missing rather than forbidden.
    stub: bool,
    /// Whether a rule asks an agent.
    notifies: bool,
    fates: HashMap<&'spec str, Fate, RandomState>,
}

/// Which action, as `SECCOMP_RET_*` without data.
fn kind(action: LinuxSeccompAction) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO,
        LinuxSeccompAction::ScmpActNotify => RET_NOTIFY,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
    }
}

/// The `SECCOMP_RET_*` of an action. `field` is the one of the error number.
///
/// Of an error number for an action that has none the specification says that the runtime must fail (runtime-spec,
/// config-linux, "Seccomp", `errnoRet`).
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<u32, Error> {
    let limit = match action {
        LinuxSeccompAction::ScmpActErrno => MAX_ERRNO,
        LinuxSeccompAction::ScmpActTrace => RET_DATA,
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActNotify
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActAllow => {
            return match errno {
                Some(_) => Err(Error::invalid(field, format!("{action} takes no error number"))),
                None => Ok(kind(action)),
            };
        }
    };
    let data = errno.unwrap_or(EPERM);
    if data > limit {
        return Err(Error::invalid(field, format!("{data} exceeds {limit}")));
    }
    Ok(kind(action) | data)
}

fn permissive(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    )
}

fn condition(given: &LinuxSeccompArg, field: &str) -> Result<Condition, Error> {
    let argument = u32::try_from(given.index()).ok().filter(|_| given.index() < ARGUMENTS);
    let argument = argument
        .ok_or_else(|| Error::invalid(format!("{field}.args"), format!("there is no argument {}", given.index())))?;
    Ok(Condition { argument, operator: given.op(), value: given.value(), value_two: given.value_two().unwrap_or(0) })
}

/// What an entry of the profile adds to each of its names; empty: its action without conditions.
fn rules(entry: &LinuxSyscall, action: u32, field: &str) -> Result<Vec<Rule>, Error> {
    let given = entry.args().as_deref().unwrap_or_default();
    let mut conditions = given.iter().map(|given| condition(given, field)).collect::<Result<Vec<_>, _>>()?;
    let twice =
        |index: usize| conditions.iter().skip(index + 1).any(|other| other.argument == conditions[index].argument);
    // Several conditions on one argument never were meant to hold at once: each is a rule of its own.
    if (0..conditions.len()).any(twice) {
        if conditions.iter().any(always) {
            return Ok(Vec::new());
        }
        return Ok(conditions.iter().map(|one| Rule { conditions: vec![*one], action }).collect());
    }
    conditions.retain(|condition| !always(condition));
    Ok(if conditions.is_empty() { Vec::new() } else { vec![Rule { conditions, action }] })
}

/// Whether a condition says nothing.
fn always(condition: &Condition) -> bool {
    condition.operator == LinuxSeccompOperator::ScmpCmpMaskedEq && condition.value == 0
}

impl<'spec> Profile<'spec> {
    pub(super) fn new(seccomp: &'spec LinuxSeccomp) -> Result<Self, Error> {
        if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
            return Err(Error::invalid(
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY cannot be used as default action",
            ));
        }
        let field = "linux.seccomp.defaultErrnoRet";
        let default = action(seccomp.default_action(), seccomp.default_errno_ret(), field)?;
        let names = seccomp.syscalls().iter().flatten().map(|entry| entry.names().len()).sum();
        let mut profile = Self {
            default,
            stub: !permissive(seccomp.default_action()),
            notifies: false,
            fates: HashMap::with_capacity_and_hasher(names, RandomState::default()),
        };
        profile.stub &= default != RET_ERRNO | ENOSYS;
        for (index, entry) in seccomp.syscalls().iter().flatten().enumerate() {
            profile.add(entry, &format!("linux.seccomp.syscalls[{index}]"))?;
        }
        Ok(profile)
    }

    fn add(&mut self, entry: &'spec LinuxSyscall, field: &str) -> Result<(), Error> {
        let action = action(entry.action(), entry.errno_ret(), &format!("{field}.errnoRet"))?;
        let rules = rules(entry, action, field)?;
        for name in entry.names() {
            if name.is_empty() {
                return Err(Error::invalid(format!("{field}.names"), "empty string is not a valid syscall"));
            }
            if action == RET_NOTIFY && name == "write" {
                // The process tells its parent of the listener with it.
                let problem = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
                return Err(Error::invalid(format!("{field}.action"), problem));
            }
            merge(self.fates.entry(name.as_str()), &rules, action, self.default);
        }
        self.notifies |= action == RET_NOTIFY && !entry.names().is_empty();
        Ok(())
    }

    /// Whether anything is to be told to an agent.
    pub(super) fn notifies(&self) -> bool {
        self.notifies
    }

    /// Whether the call runs, at least when no condition on its arguments holds; with `notified` also after a question
    /// to the agent.
    pub(super) fn allows(&self, name: &str, notified: bool) -> bool {
        let action = match self.fates.get(name) {
            Some(Fate::Return(action) | Fate::Rules(_, action)) => *action,
            None => self.default,
        };
        matches!(action, RET_ALLOW | RET_LOG) || (notified && action == RET_NOTIFY)
    }

    /// Whether any rule for the call asks the agent.
    pub(super) fn may_notify(&self, name: &str) -> bool {
        match self.fates.get(name) {
            Some(Fate::Return(action)) => *action == RET_NOTIFY,
            Some(Fate::Rules(rules, _)) => rules.iter().any(|rule| rule.action == RET_NOTIFY),
            None => false,
        }
    }

    /// The fates of all numbers of a table, ascending; the first range starts at 0.
    pub(super) fn ranges(&self, abi: &Abi) -> Vec<Range> {
        let default = Fate::Return(self.default);
        let mut ranges: Vec<Range> = Vec::new();
        let mut push = |first: u32, fate: &Fate| {
            if ranges.last().is_none_or(|last| last.fate != *fate) {
                ranges.push(Range { first, fate: fate.clone() });
            }
        };
        // Behind the last number with a fate, and behind the last that the profile names.
        let (mut next, mut named) = (0, 0);
        for (name, number) in (abi.table)() {
            let known = self.fates.get(name);
            if known.is_some() {
                named = number + 1;
            }
            let multiplexer = abi.multiplexers.iter().find(|multiplexer| multiplexer.name == name);
            let joined = multiplexer.and_then(|multiplexer| self.multiplexed(multiplexer, known));
            let Some(fate) = joined.as_ref().or(known) else { continue };
            if number > next {
                push(next, &default);
            }
            match fate {
                Fate::Rules(rules, otherwise) if rules.is_empty() => push(number, &Fate::Return(*otherwise)),
                Fate::Rules(..) | Fate::Return(_) => push(number, fate),
            }
            next = number + 1;
        }
        // A profile that names nothing of this table says nothing about its age.
        if self.stub && named > 1 {
            if named > next {
                push(next, &default);
            }
            push(named.max(next), &Fate::Return(RET_ERRNO | ENOSYS));
        } else {
            push(next, &default);
        }
        ranges
    }

    /// The fate of a call that stands for several others by its first argument. A rule for one of these holds for this
    /// way to it too, with its conditions on other arguments, as libseccomp has it. `None`: no rule does.
    fn multiplexed(&self, multiplexer: &Multiplexer, known: Option<&Fate>) -> Option<Fate> {
        let mut joined = match known {
            None => Vec::new(),
            Some(Fate::Return(_)) => return None,
            Some(Fate::Rules(rules, _)) => rules.to_vec(),
        };
        let before = joined.len();
        for (name, call) in multiplexer.calls {
            let selector = Condition {
                argument: 0,
                operator: LinuxSeccompOperator::ScmpCmpEq,
                value: u64::from(*call),
                value_two: 0,
            };
            match self.fates.get(name) {
                None => {}
                Some(Fate::Return(action)) => joined.push(Rule { conditions: vec![selector], action: *action }),
                Some(Fate::Rules(rules, _)) => joined.extend(rules.iter().map(|rule| {
                    let others = rule.conditions.iter().filter(|condition| condition.argument != 0).copied();
                    Rule { conditions: std::iter::once(selector).chain(others).collect(), action: rule.action }
                })),
            }
        }
        (joined.len() > before).then(|| Fate::Rules(Arc::from(joined), self.default))
    }
}

fn merge(entry: Entry<'_, &str, Fate>, rules: &[Rule], action: u32, default: u32) {
    let fate = entry.or_insert_with(|| Fate::Rules(Arc::from([]), default));
    // A rule that says what happens anyway is none (and does not win over others); its name is known all the same.
    if action == default {
        return;
    }
    match fate {
        Fate::Return(_) => {}
        Fate::Rules(..) if rules.is_empty() => *fate = Fate::Return(action),
        Fate::Rules(known, _) => {
            let joined: Vec<Rule> = known.iter().chain(rules).cloned().collect();
            *known = Arc::from(joined);
        }
    }
}
