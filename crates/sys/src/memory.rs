//! The memory of a small, long-lived process.

#![expect(unsafe_code, reason = "glibc's tuning calls have no wrapper, and mappings are given by address")]

use rustix::fs::CWD;

use crate::{Result, fs};

/// Makes glibc's allocator keep little: one arena, and free memory at the end of the heap goes back at once. Call it
/// before the first large allocation. Without effect on other C libraries.
pub fn keep_little_in_process() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, 64 * 1024), (libc::M_TOP_PAD, 16 * 1024)]
    {
        // SAFETY: takes two integers; an unknown parameter is refused.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives whole free pages back to the kernel, those in the middle of the heap too. Takes some ten microseconds with a
/// heap of one megabyte.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of the program's own code and constants from the calling process. They stay in the page cache,
/// which all processes of the same program share, and come back one by one when they are used: a process that has
/// done its work and now waits then counts only for what its waiting needs. Takes some fifty microseconds.
pub fn release_program_pages() -> Result<()> {
    let program = rustix::fs::readlinkat(CWD, "/proc/self/exe", Vec::new())?;
    let program = program.to_string_lossy();
    for line in fs::read_small(CWD, "/proc/self/maps")?.lines() {
        let Some((start, end)) = clean_range(line, &program) else { continue };
        // SAFETY: the range is a private mapping of a file that nobody has written to through it (see `clean_range`),
        // so dropping its pages changes no byte: the next access reads them from the file again.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// The addresses of a line of `/proc/<pid>/maps`, if it is a mapping of `program` that no relocation writes to: its
/// code, or its first segment of constants. Data that is read-only only after relocation starts further in the file.
fn clean_range(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, mode, offset) = (fields.next()?, fields.next()?, fields.next()?);
    if fields.nth(2) != Some(program) {
        return None;
    }
    let clean = mode == "r-xp" || (mode == "r--p" && offset.bytes().all(|digit| digit == b'0'));
    let (start, end) = range.split_once('-').filter(|_| clean)?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_constants_are_let_go() {
        for (line, want) in [
            ("00200000-002fb000 r--p 00000000 fe:00 77   /bin/x", Some((0x20_0000, 0x2f_b000))),
            ("002fb000-00589000 r-xp 000fa000 fe:00 77   /bin/x", Some((0x2f_b000, 0x58_9000))),
            ("00589000-0058e000 r--p 00387000 fe:00 77   /bin/x", None),
            ("0058e000-00592000 rw-p 0038b000 fe:00 77   /bin/x", None),
            ("002fb000-00589000 r-xp 000fa000 fe:00 77   /bin/other", None),
            ("7f00-7f01 r-xp 00000000 00:00 0   [vdso]", None),
            ("garbage", None),
        ] {
            assert_eq!(clean_range(line, "/bin/x"), want, "{line}");
        }
    }

    #[test]
    fn the_program_goes_on() {
        let constants = include_bytes!("memory.rs");
        let before: usize = constants.iter().map(|&byte| usize::from(byte)).sum();
        keep_little_in_process();
        trim();
        release_program_pages().unwrap();
        assert_eq!(constants.iter().map(|&byte| usize::from(byte)).sum::<usize>(), before);
    }
}
