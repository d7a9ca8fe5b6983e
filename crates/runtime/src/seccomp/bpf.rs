//! Ranges become instructions.

use oci::runtime::LinuxSeccompOperator;
use sys::seccomp::Instruction;

use super::rules::{Condition, Fate, Range, Rule};

/// `BPF_LD | BPF_W | BPF_ABS`
const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
const JUMP_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`
const JUMP_GREATER_EQUAL: u16 = 0x35;
/// `BPF_RET | BPF_K`
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`, little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What happens to calls of an architecture or table that the profile does not list.
const KILL_PROCESS: u32 = 0x8000_0000;

/// A machine with its tables.
pub(super) struct Section {
    pub(super) audit_arch: u32,
    /// What happens to numbers that no rule is for.
    pub(super) default: u32,
    /// The bits that tell tables apart, listed by the profile or not.
    pub(super) bits: u32,
    pub(super) abis: Vec<Abi>,
}

/// A table with the fates of its numbers.
pub(super) struct Abi {
    pub(super) bit: u32,
    pub(super) ranges: Vec<Range>,
    pub(super) narrow: bool,
}

fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

fn branch(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

/// The program: by architecture, then by table, then by number.
pub(super) fn assemble(sections: &[Section]) -> Vec<Instruction> {
    let mut program = vec![instruction(LOAD, ARCH)];
    for section in sections {
        let body = section_body(section);
        program.push(branch(JUMP_EQUAL, section.audit_arch, 1, 0));
        program.push(instruction(JUMP, length(&body)));
        program.extend(body);
    }
    program.push(instruction(RETURN, KILL_PROCESS));
    program
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

fn section_body(section: &Section) -> Vec<Instruction> {
    let mut body = vec![instruction(LOAD, NUMBER)];
    for abi in section.abis.iter().filter(|abi| abi.bit != 0) {
        let search = search(&abi.ranges, abi);
        body.push(branch(JUMP_GREATER_EQUAL, abi.bit, 1, 0));
        body.push(instruction(JUMP, length(&search)));
        body.extend(search);
    }
    let unlisted = section.bits != 0 && section.abis.iter().all(|abi| abi.bit == 0);
    if unlisted {
        body.push(branch(JUMP_GREATER_EQUAL, section.bits, 0, 3));
        // A tracer that takes a call back makes its number -1, which is of no table.
        body.push(branch(JUMP_EQUAL, u32::MAX, 0, 1));
        body.push(instruction(RETURN, section.default));
        body.push(instruction(RETURN, KILL_PROCESS));
    }
    match section.abis.iter().find(|abi| abi.bit == 0) {
        Some(abi) => body.extend(search(&abi.ranges, abi)),
        None => body.push(instruction(RETURN, KILL_PROCESS)),
    }
    body
}

/// Finds the range of the number in the accumulator by halving.
fn search(ranges: &[Range], abi: &Abi) -> Vec<Instruction> {
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let Some(middle) = right.first() else { return vec![instruction(RETURN, KILL_PROCESS)] };
    if left.is_empty() {
        return fate(&middle.fate, abi.narrow);
    }
    let (below, above) = (search(left, abi), search(right, abi));
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    let first = middle.first | abi.bit;
    match u8::try_from(below.len()) {
        Ok(distance) => code.push(branch(JUMP_GREATER_EQUAL, first, distance, 0)),
        Err(_) => {
            code.push(branch(JUMP_GREATER_EQUAL, first, 0, 1));
            code.push(instruction(JUMP, length(&below)));
        }
    }
    code.extend(below);
    code.extend(above);
    code
}

fn fate(fate: &Fate, narrow: bool) -> Vec<Instruction> {
    match fate {
        Fate::Return(action) => vec![instruction(RETURN, *action)],
        Fate::Rules(rules, otherwise) => {
            let mut code = Vec::new();
            for rule in rules.iter() {
                code.extend(rule_code(rule, narrow));
            }
            code.push(instruction(RETURN, *otherwise));
            code
        }
    }
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds: behind its code.
    Holds,
    /// It does not: behind the rule.
    Fails,
}

/// All conditions, then the action; falls off the end if one fails.
fn rule_code(rule: &Rule, narrow: bool) -> Vec<Instruction> {
    let parts: Vec<_> = rule.conditions.iter().map(|condition| condition_code(*condition, narrow)).collect();
    let mut left: usize = parts.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(left);
    for part in parts {
        let size = part.len();
        for (index, (mut step, yes, no)) in part.into_iter().enumerate() {
            // Distances from behind this instruction. Six conditions of at most six instructions: they fit.
            let distance = |to: To| match to {
                To::Next => 0,
                To::Holds => size - index - 1,
                To::Fails => left - index - 1,
            };
            step.jump_true = u8::try_from(distance(yes)).unwrap_or(u8::MAX);
            step.jump_false = u8::try_from(distance(no)).unwrap_or(u8::MAX);
            code.push(step);
        }
        left -= size;
    }
    code.push(instruction(RETURN, rule.action));
    code
}

type Draft = (Instruction, To, To);

fn plain(code: u16, operand: u32) -> Draft {
    (instruction(code, operand), To::Next, To::Next)
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, (value & 0xffff_ffff) as u32)
}

fn condition_code(condition: Condition, narrow: bool) -> Vec<Draft> {
    use LinuxSeccompOperator as Operator;
    use To::{Fails, Holds, Next};
    let low_at = ARGUMENTS + 8 * condition.argument;
    let high_at = low_at + 4;
    let (high, low) = halves(condition.value);
    // Whether the comparison is turned round: the one of the other outcome is made.
    let (yes, no) = match condition.operator {
        Operator::ScmpCmpNe | Operator::ScmpCmpLt | Operator::ScmpCmpLe => (Fails, Holds),
        Operator::ScmpCmpEq | Operator::ScmpCmpGe | Operator::ScmpCmpGt | Operator::ScmpCmpMaskedEq => (Holds, Fails),
    };
    let jump = |code, operand, yes, no| (instruction(code, operand), yes, no);
    match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpNe if narrow => {
            vec![plain(LOAD, low_at), jump(JUMP_EQUAL, low, yes, no)]
        }
        Operator::ScmpCmpEq | Operator::ScmpCmpNe => vec![
            plain(LOAD, high_at),
            jump(JUMP_EQUAL, high, Next, no),
            plain(LOAD, low_at),
            jump(JUMP_EQUAL, low, yes, no),
        ],
        Operator::ScmpCmpGe | Operator::ScmpCmpLt | Operator::ScmpCmpGt | Operator::ScmpCmpLe => {
            let strict = matches!(condition.operator, Operator::ScmpCmpGt | Operator::ScmpCmpLe);
            let last = if strict { JUMP_GREATER } else { JUMP_GREATER_EQUAL };
            let mut code = Vec::with_capacity(5);
            if !narrow {
                code.push(plain(LOAD, high_at));
                code.push(jump(JUMP_GREATER, high, yes, Next));
                code.push(jump(JUMP_EQUAL, high, Next, no));
            }
            code.push(plain(LOAD, low_at));
            code.push(jump(last, low, yes, no));
            code
        }
        Operator::ScmpCmpMaskedEq => {
            let (want_high, want_low) = halves(condition.value_two & condition.value);
            let mut code = Vec::with_capacity(6);
            if !narrow {
                code.push(plain(LOAD, high_at));
                code.push(plain(AND, high));
                code.push(jump(JUMP_EQUAL, want_high, Next, no));
            }
            code.push(plain(LOAD, low_at));
            code.push(plain(AND, low));
            code.push(jump(JUMP_EQUAL, want_low, yes, no));
            code
        }
    }
}
