//! `HOME` for programs that were not given one, from the container's own `/etc/passwd`.
//!
//! Read by the child and not by the parent: the file may lie on a file system that the container serves itself, and
//! wait for ever.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sys::undefended::{Defence, left_out};

use super::path::Text;

/// What is read of the file; real ones are far smaller.
const READ_BYTES: usize = 1 << 20;

/// Writes `HOME=<directory>` of the user with this number to `text`; `/` if nobody says another. Numbers only: a
/// name is never looked up. The root is the container's already.
pub(super) fn find(uid: u32, text: &mut Text) -> Result<(), Errno> {
    text.set(b"HOME=/")?;
    let Ok(file) = open() else { return Ok(()) };
    let plain = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
    if !plain && !left_out(Defence::Passwd) {
        return Ok(());
    }
    let mut buffer = [0_u8; 4096];
    let (mut filled, mut total) = (0, 0);
    loop {
        let space = buffer.get_mut(filled..).unwrap_or_default();
        if space.is_empty() {
            // A line longer than the buffer describes nobody.
            return Ok(());
        }
        let read = match rustix::io::read(&file, space) {
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(_) => return Ok(()),
        };
        filled += read;
        total += read;
        let known = buffer.get(..filled).unwrap_or_default();
        let complete =
            if read == 0 { filled } else { known.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) };
        for line in known.get(..complete).unwrap_or_default().split(|byte| *byte == b'\n') {
            if let Some(home) = home_of(line, uid) {
                text.set(b"HOME=")?;
                return text.append(home);
            }
        }
        if read == 0 || total > READ_BYTES {
            return Ok(());
        }
        buffer.copy_within(complete..filled, 0);
        filled -= complete;
    }
}

fn open() -> Result<std::os::fd::OwnedFd, Errno> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    flags.set(OFlags::NONBLOCK, !left_out(Defence::Passwd));
    if sys::features().openat2 {
        let resolve = ResolveFlags::NO_MAGICLINKS;
        return rustix::fs::openat2(rustix::fs::CWD, c"/etc/passwd", flags, Mode::empty(), resolve);
    }
    rustix::fs::open(c"/etc/passwd", flags, Mode::empty())
}

/// The sixth field of a line whose third is `uid`.
fn home_of(line: &[u8], uid: u32) -> Option<&[u8]> {
    let mut fields = line.split(|byte| *byte == b':');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?;
    if number.parse() != Ok(uid) || number.starts_with('+') {
        return None;
    }
    fields.nth(2).filter(|home| home.starts_with(b"/") || left_out(Defence::Home))
}

#[cfg(test)]
mod tests {
    use super::home_of;

    #[test]
    fn fields() {
        for (line, want) in [
            ("root:x:0:0:root:/root:/bin/sh", Some("/root")),
            ("a:x:0:0::/home/a:", Some("/home/a")),
            ("a:x:0:0::/home/a", Some("/home/a")),
            ("a:x:1:0::/home/a:", None),
            ("a:x:+0:0::/home/a:", None),
            ("a:x:0:0::relative:", None),
            ("a:x:0", None),
            ("", None),
        ] {
            assert_eq!(home_of(line.as_bytes(), 0), want.map(str::as_bytes), "{line}");
        }
    }
}
