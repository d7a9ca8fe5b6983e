//! A classic BPF machine, as the kernel has one for seccomp: the other half of the tests.

use sys::seccomp::Instruction;

/// What the kernel shows a filter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Data {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.arch),
            16..64 => {
                let argument = self.arguments.get((offset as usize - 16) / 8)?;
                Some(if offset.is_multiple_of(8) { *argument as u32 } else { (*argument >> 32) as u32 })
            }
            _ => None,
        }
    }
}

/// The return value, and how many instructions it took. `None`: the kernel would not have taken the program.
pub(super) fn run(program: &[Instruction], data: &Data) -> Option<(u32, usize)> {
    let (mut at, mut accumulator, mut count) = (0, 0_u32, 0);
    loop {
        let step = program.get(at)?;
        count += 1;
        at += 1;
        let taken = match step.code {
            0x20 => {
                accumulator = data.word(step.operand)?;
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
            0x06 => return Some((step.operand, count)),
            0x15 => accumulator == step.operand,
            0x25 => accumulator > step.operand,
            0x35 => accumulator >= step.operand,
            0x45 => accumulator & step.operand != 0,
            _ => return None,
        };
        at += usize::from(if taken { step.jump_true } else { step.jump_false });
    }
}
