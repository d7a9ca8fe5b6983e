//! A classic BPF machine, as the kernel has one for seccomp: the other half of the tests.

use sys::seccomp::Instruction;

/// What the kernel shows a filter.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Data {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 => {
                let argument = self.arguments[((offset - 16) / 8) as usize];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
            _ => panic!("load of offset {offset}"),
        }
    }
}

/// The return value, and how many instructions it took.
pub(super) fn run(program: &[Instruction], data: &Data) -> (u32, usize) {
    let (mut at, mut accumulator, mut count) = (0, 0_u32, 0);
    loop {
        let step = program[at];
        count += 1;
        at += 1;
        let taken = match step.code {
            0x20 => {
                accumulator = data.word(step.operand);
                continue;
            }
            0x54 => {
                accumulator &= step.operand;
                continue;
            }
            0x05 => {
                at += step.operand as usize;
                continue;
            }
            0x06 => return (step.operand, count),
            0x15 => accumulator == step.operand,
            0x25 => accumulator > step.operand,
            0x35 => accumulator >= step.operand,
            code => panic!("instruction {code:#x}"),
        };
        at += usize::from(if taken { step.jump_true } else { step.jump_false });
    }
}
