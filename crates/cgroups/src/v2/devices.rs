//! Rules for devices as a program of version 2.
//!
//! The kernel calls the program for every open and mknod of a device with its type, numbers and the access wanted, and
//! does what it returns. The rules are read from the last to the first; each takes the kinds of access that it names
//! off what is still open, until nothing is left (allowed) or a rule denies. That is what a list with "the last match
//! wins" means when one access asks for reading and writing, and different rules speak about each.

use oci::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::os::fd::AsFd;
use sys::bpf::Instruction;

use crate::dir::Dir;
use crate::{Error, Result};

/// `BPF_DEVCG_ACC_*`
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// A rule that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    /// Block or character devices; both if absent.
    pub(crate) kind: Option<LinuxDeviceType>,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    access: u8,
}

impl Rule {
    pub(crate) fn parse(rule: &LinuxDeviceCgroup) -> Result<Self> {
        let refuse = |reason| Err(Error::DeviceRule { rule: describe(rule), reason });
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(LinuxDeviceType::B),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(LinuxDeviceType::C),
            Some(LinuxDeviceType::P) => return refuse("a FIFO is no device"),
        };
        let number = |number: Option<i64>| match number {
            // Docker writes -1 for any.
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some),
        };
        let (Ok(major), Ok(minor)) = (number(rule.major()), number(rule.minor())) else {
            return refuse("a device number is out of range");
        };
        let letters = rule.access().as_deref().unwrap_or_default();
        // Documents exist that deny with `a` for all access; runc takes them. It grants nothing.
        let letters = if rule.allow() { letters.to_owned() } else { letters.replace('a', "rwm") };
        let Some(access) = Self::access_bits(&letters) else {
            return refuse("access is written with the letters r, w and m");
        };
        // Nothing named is everything meant.
        let access = if access == 0 { ALL } else { access };
        Ok(Self { allow: rule.allow(), kind, major, minor, access })
    }

    pub(crate) fn is_all_access(&self) -> bool {
        self.access == ALL
    }

    pub(crate) fn access(&self) -> u8 {
        self.access
    }

    pub(crate) fn access_text(&self) -> String {
        Self::access_letters(self.access)
    }

    /// The letters for kinds of access, in the kernel's order.
    pub(crate) fn access_letters(access: u8) -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| access & bit != 0)
            .map(|(_, letter)| *letter)
            .collect()
    }

    /// The kinds of access that letters stand for.
    pub(crate) fn access_bits(letters: &str) -> Option<u8> {
        letters.chars().try_fold(0, |access, letter| {
            Some(
                access
                    | match letter {
                        'r' => READ,
                        'w' => WRITE,
                        'm' => MKNOD,
                        _ => return None,
                    },
            )
        })
    }

    fn matches_every_device(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none()
    }

    /// Whether nothing that stands before this rule can matter.
    pub(crate) fn matches_everything(&self) -> bool {
        self.matches_every_device() && self.is_all_access()
    }

    /// Whether all that the other one decides is decided by this one.
    fn covers(&self, other: &Self) -> bool {
        let holds = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        (self.kind.is_none() || self.kind == other.kind)
            && holds(self.major, other.major)
            && holds(self.minor, other.minor)
            && other.access & !self.access == 0
    }

    /// Whether some access to some device matches both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        (self.kind.is_none() || other.kind.is_none() || self.kind == other.kind)
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
            && self.access & other.access != 0
    }
}

fn describe(rule: &LinuxDeviceCgroup) -> String {
    let number = |number: Option<i64>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    format!(
        "{} {} {}:{} {}",
        if rule.allow() { "allow" } else { "deny" },
        rule.typ().as_ref().map_or("a", LinuxDeviceType::as_str),
        number(rule.major()),
        number(rule.minor()),
        rule.access().as_deref().unwrap_or_default().escape_default(),
    )
}

/// Registers: what the kernel passes, what is returned, and what the program keeps.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The kinds of access that no rule has decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_*`
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// How many rules each is compared with: a list may be long, and what stays in it that decides nothing does no harm.
const COMPARED: usize = 64;

/// The rules from the last to the first, without those that decide nothing: what a later one decides in any case, and
/// denials before which nothing is allowed.
fn effective(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>>>()?;
    let mut list: Vec<Rule> = Vec::new();
    for rule in parsed.into_iter().rev() {
        if !list.iter().take(COMPARED).any(|later| later.covers(&rule)) {
            list.push(rule);
        }
    }
    let useful = list.iter().rposition(|rule| rule.allow).map_or(0, |last| last + 1);
    // A denial of everything ends the program as well as its end does.
    list.truncate(useful);
    Ok(list)
}

/// Minor numbers that one word has bits for.
const WORD_BITS: u32 = 32;

/// Neighbours that are decided in one step: all access to devices that differ in small minor numbers only; and what holds
/// for block and for character devices becomes one rule. The kernel's look at a program takes time that grows with the
/// square of its branches, so this is worth a tenth of a container's birth.
fn together(rules: Vec<Rule>) -> Vec<Vec<Rule>> {
    let small = |rule: &Rule| rule.is_all_access() && rule.minor.is_some_and(|minor| minor < WORD_BITS);
    let mut groups: Vec<Vec<Rule>> = Vec::new();
    for rule in rules {
        match groups.last_mut().map(Vec::as_mut_slice) {
            Some([first, ..])
                if small(first)
                    && small(&rule)
                    && (first.allow, first.kind, first.major) == (rule.allow, rule.kind, rule.major) =>
            {
                groups.last_mut().into_iter().for_each(|group| group.push(rule));
            }
            Some([only]) if only.kind.is_some() && rule.kind.is_some() && Rule { kind: only.kind, ..rule } == *only => {
                only.kind = None;
            }
            _ => groups.push(vec![rule]),
        }
    }
    groups
}

/// The program for a list of rules. A device that no rule matches is denied.
pub(crate) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>> {
    let mut assembler = Assembler::default();
    // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | type */; u32 major; u32 minor; }
    assembler.load(KIND, 0);
    assembler.push(MOVE_REGISTER, OPEN, KIND, 0, 0);
    assembler.push(AND, KIND, 0, 0, 0xffff);
    assembler.push(SHIFT_RIGHT, OPEN, 0, 0, 16);
    assembler.load(MAJOR, 4);
    assembler.load(MINOR, 8);
    for rules in together(effective(rules)?) {
        let Some(rule) = rules.first() else { continue };
        assembler.rules(&rules);
        if rule.matches_everything() {
            // Nothing before it can matter, and the kernel refuses code that is never reached.
            return Ok(assembler.code);
        }
    }
    assembler.finish(false);
    Ok(assembler.code)
}

/// Loads the program and attaches it in the place of those that are attached to the group now; to a `new` one none is.
pub(crate) fn install(dir: &Dir, program: &[Instruction], new_group: bool) -> Result<()> {
    let failed = |source| Error::DeviceProgram { path: dir.shown(), log: String::new(), source };
    let new = sys::bpf::load_device_program(program).map_err(|error| Error::DeviceProgram {
        path: dir.shown(),
        log: if error.log.is_empty() { String::new() } else { format!(" ({})", error.log) },
        source: error.errno,
    })?;
    let group = dir.fd().map_err(failed)?;
    if new_group {
        return sys::bpf::attach_device_program(group, new.as_fd(), None).map_err(failed);
    }
    let old = sys::bpf::attached_device_programs(group).map_err(failed)?;
    if let [only] = old.as_slice() {
        // In one step: at no moment does neither hold.
        return sys::bpf::attach_device_program(group, new.as_fd(), Some(only.as_fd())).map_err(failed);
    }
    sys::bpf::attach_device_program(group, new.as_fd(), None).map_err(failed)?;
    // All attached programs must allow an access, so the old ones have to go.
    for program in &old {
        sys::bpf::detach_device_program(group, program.as_fd()).map_err(failed)?;
    }
    Ok(())
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_GREATER: u8 = 0x26;
const JUMP_IF_BITS: u8 = 0x46;
const MOVE_WORD: u8 = 0xb4;
const SHIFT_RIGHT_BY: u8 = 0x7c;
const EXIT: u8 = 0x95;

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to | from << 4, offset, immediate });
    }

    fn load(&mut self, to: u8, offset: i16) {
        self.push(LOAD_WORD, to, CONTEXT, offset, 0);
    }

    fn finish(&mut self, allow: bool) {
        self.push(MOVE, RESULT, 0, 0, i32::from(allow));
        self.push(EXIT, 0, 0, 0, 0);
    }

    /// Rules that belong together: see [`together`].
    fn rules(&mut self, rules: &[Rule]) {
        let Some(rule) = rules.first() else { return };
        let mut action = Self::default();
        if rules.len() > 1 {
            let word = rules.iter().filter_map(|rule| rule.minor).fold(0_u32, |word, minor| word | 1 << minor);
            action.push(MOVE_WORD, RESULT, 0, 0, word.cast_signed());
            action.push(SHIFT_RIGHT_BY, RESULT, MINOR, 0, 0);
            action.push(AND, RESULT, 0, 0, 1);
            action.push(JUMP_IF_EQUAL, RESULT, 0, 2, 0);
        }
        action.decide(rule);
        let kind = rule.kind.map(|kind| if kind == LinuxDeviceType::B { BLOCK } else { CHARACTER });
        let minor = match rules {
            [only] => only.minor.map(|minor| (JUMP_IF_NOT_EQUAL, MINOR, minor.cast_signed())),
            _ => Some((JUMP_IF_GREATER, MINOR, WORD_BITS.cast_signed() - 1)),
        };
        let conditions: Vec<(u8, u8, i32)> = [
            kind.map(|kind| (JUMP_IF_NOT_EQUAL, KIND, kind)),
            // The comparison is of 32 bits, so the sign does not matter.
            rule.major.map(|major| (JUMP_IF_NOT_EQUAL, MAJOR, major.cast_signed())),
            minor,
        ]
        .into_iter()
        .flatten()
        .collect();
        for (position, (jump, register, value)) in conditions.iter().enumerate() {
            // Over the other conditions and the action; both are a handful of instructions.
            let skipped = conditions.len() - position - 1 + action.code.len();
            let skipped = i16::try_from(skipped).unwrap_or(i16::MAX);
            self.push(*jump, *register, 0, skipped, *value);
        }
        self.code.append(&mut action.code);
    }

    /// What happens to an access to a device that the rule matches.
    fn decide(&mut self, rule: &Rule) {
        let access = i32::from(rule.access);
        match (rule.allow, rule.is_all_access()) {
            // Whatever is open is decided.
            (allow, true) => self.finish(allow),
            (false, false) => {
                self.push(JUMP_IF_BITS, OPEN, 0, 1, access);
                self.push(JUMP, 0, 0, 2, 0);
                self.finish(false);
            }
            (true, false) => {
                self.push(AND, OPEN, 0, 0, !access);
                self.push(JUMP_IF_NOT_EQUAL, OPEN, 0, 2, 0);
                self.finish(true);
            }
        }
    }
}

/// `BPF_JA`
const JUMP: u8 = 0x05;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(documents: &[&str]) -> Vec<LinuxDeviceCgroup> {
        documents.iter().map(|document| serde_json::from_str(document).unwrap()).collect()
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let word = registers[to] as u32;
            at += 1;
            let mut jump = |condition: bool| {
                if condition {
                    at = at.checked_add_signed(offset.into()).unwrap();
                }
            };
            match code {
                LOAD_WORD => registers[to] = context[usize::try_from(offset / 4).unwrap()].into(),
                MOVE_REGISTER => registers[to] = u64::from(registers[from] as u32),
                MOVE => registers[to] = i64::from(immediate).cast_unsigned(),
                AND => registers[to] = (word & immediate.cast_unsigned()).into(),
                SHIFT_RIGHT => registers[to] = (word >> immediate).into(),
                MOVE_WORD => registers[to] = immediate.cast_unsigned().into(),
                SHIFT_RIGHT_BY => registers[to] = (word >> (registers[from] as u32 & 31)).into(),
                JUMP_IF_EQUAL => jump(word == immediate.cast_unsigned()),
                JUMP_IF_GREATER => jump(word > immediate.cast_unsigned()),
                JUMP_IF_NOT_EQUAL => jump(word != immediate.cast_unsigned()),
                JUMP_IF_BITS => jump(word & immediate.cast_unsigned() != 0),
                JUMP => jump(true),
                EXIT => return registers[0] == 1,
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    /// The meaning of a list, the slow way: each kind of access on its own, the last match wins.
    fn oracle(list: &[LinuxDeviceCgroup], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        [MKNOD, READ, WRITE].iter().filter(|bit| access & u32::from(**bit) != 0).all(|bit| {
            let mut matching = list.iter().map(|rule| Rule::parse(rule).unwrap()).filter(|rule| {
                rule.kind.is_none_or(|only| (only == LinuxDeviceType::B) == (kind == 1))
                    && rule.major.is_none_or(|only| only == major)
                    && rule.minor.is_none_or(|only| only == minor)
                    && rule.access & bit != 0
            });
            matching.next_back().is_some_and(|rule| rule.allow)
        })
    }

    fn lists() -> Vec<Vec<LinuxDeviceCgroup>> {
        vec![
            rules(&[r#"{"allow":false}"#]),
            rules(&[r#"{"allow":true}"#]),
            rules(&[
                r#"{"allow":false,"access":"rwm"}"#,
                r#"{"allow":true,"type":"c","access":"m"}"#,
                r#"{"allow":true,"type":"b","access":"m"}"#,
                r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#,
                r#"{"allow":true,"type":"c","major":5,"minor":0,"access":"r"}"#,
                r#"{"allow":true,"type":"c","major":5,"minor":0,"access":"w"}"#,
                r#"{"allow":true,"type":"c","major":136,"access":"rwm"}"#,
            ]),
            rules(&[
                r#"{"allow":true}"#,
                r#"{"allow":false,"type":"b","access":"w"}"#,
                r#"{"allow":true,"type":"b","major":8,"access":"w"}"#,
                r#"{"allow":false,"major":8,"minor":1}"#,
                r#"{"allow":false,"access":"m"}"#,
            ]),
            // Neighbours that are decided together, and some that look like it.
            rules(&[
                r#"{"allow":false}"#,
                r#"{"allow":true,"type":"c","major":1,"minor":0}"#,
                r#"{"allow":true,"type":"c","major":1,"minor":3}"#,
                r#"{"allow":true,"type":"c","major":1,"minor":31}"#,
                r#"{"allow":true,"type":"c","major":1,"minor":32}"#,
                r#"{"allow":true,"type":"b","major":1,"minor":1}"#,
                r#"{"allow":false,"type":"c","major":5,"minor":1}"#,
                r#"{"allow":false,"type":"c","major":5,"minor":3}"#,
                r#"{"allow":true,"major":8,"minor":1,"access":"r"}"#,
                r#"{"allow":true,"type":"c","major":136,"access":"rw"}"#,
                r#"{"allow":true,"type":"b","major":136,"access":"rw"}"#,
                r#"{"allow":true,"type":"b","access":"m"}"#,
                r#"{"allow":true,"type":"c","access":"m"}"#,
            ]),
            rules(&[
                r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#,
                r#"{"allow":true}"#,
                r#"{"allow":false,"type":"c","major":4294967295,"minor":3000000000,"access":"r"}"#,
            ]),
        ]
    }

    #[test]
    fn programs_do_what_lists_mean() {
        for list in lists() {
            let program = program(&list).unwrap();
            for kind in [1, 2] {
                for major in [1, 5, 8, 136, u32::MAX] {
                    for minor in [0, 1, 3, 31, 32, 35, 3_000_000_000] {
                        for access in 1..8 {
                            let expected = oracle(&list, kind, major, minor, access);
                            let found = run(&program, kind, major, minor, access);
                            assert_eq!(found, expected, "{list:?}: {kind} {major}:{minor} {access}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_programs() {
        for list in lists().into_iter().chain([Vec::new()]) {
            sys::bpf::load_device_program(&program(&list).unwrap()).unwrap();
        }
        let many: Vec<_> = (0..500)
            .map(|number| {
                serde_json::from_str(&format!(r#"{{"allow":true,"type":"c","major":{number},"access":"rw"}}"#)).unwrap()
            })
            .collect();
        sys::bpf::load_device_program(&program(&many).unwrap()).unwrap();
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for document in [
            r#"{"allow":true,"type":"p"}"#,
            r#"{"allow":true,"major":-2}"#,
            r#"{"allow":true,"minor":4294967296}"#,
            r#"{"allow":true,"access":"rx"}"#,
        ] {
            let error = program(&rules(&[document])).unwrap_err();
            assert!(matches!(error, Error::DeviceRule { .. }), "{document}: {error}");
        }
    }
}
