//! What a bind's options change of the flags that its source has.
//!
//! A bind without flags keeps those of its source. One with any gets exactly what it names, the time of access aside,
//! which stays where no option is about it (runc 1.2's reading of mount(8)). In a user namespace, what the source has
//! set stays set; options that ask for its opposite by name are refused.

use std::os::fd::AsFd;

use mount::Attributes;
use rustix::io::Errno;
use sys::mount::attr;

/// Flags that a mount from another user namespace keeps (`MNT_LOCK_*` of mount(2)), but for those of the atime.
const LOCKABLE: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
const TIMES: u64 = attr::ATIME | attr::NODIRATIME;

fn names_times(asked: Attributes) -> bool {
    asked.clear & attr::ATIME != 0 || asked.set & attr::NODIRATIME != 0
}

/// The changes where nothing is locked.
pub(super) fn changes(asked: Attributes) -> Attributes {
    if asked.is_empty() {
        return asked;
    }
    let times = if names_times(asked) { TIMES } else { 0 };
    let clear = asked.clear | LOCKABLE | attr::NOSYMFOLLOW | times;
    Attributes { set: asked.set, clear: clear & !(asked.set & !attr::ATIME) }
}

/// The changes in a user namespace of a mount that the host made; `None` if they ask for what is locked.
pub(super) fn locked_changes(asked: Attributes, source: impl AsFd) -> Result<Option<Attributes>, Errno> {
    if asked.is_empty() {
        return Ok(Some(asked));
    }
    if names_times(asked) || asked.clear & LOCKABLE != 0 {
        let have = attributes_of(rustix::fs::fstatvfs(source)?.f_flag.bits());
        let other_times = names_times(asked) && have & TIMES != asked.set & TIMES;
        if other_times || have & asked.clear & LOCKABLE != 0 {
            return Ok(None);
        }
    }
    Ok(Some(Attributes { set: asked.set & !TIMES, clear: attr::NOSYMFOLLOW & !asked.set }))
}

/// The flags, as `MS_*`, that must not be found set where they cannot be cleared.
pub(super) fn refused(asked: Attributes) -> u64 {
    let pairs = [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
    ];
    pairs.into_iter().filter(|(bit, _)| asked.clear & bit != 0).fold(0, |flags, (_, flag)| flags | flag)
}

/// `MOUNT_ATTR_*` of `ST_*`.
fn attributes_of(flags: u64) -> u64 {
    let pairs = [
        (libc::ST_RDONLY, attr::RDONLY),
        (libc::ST_NOSUID, attr::NOSUID),
        (libc::ST_NODEV, attr::NODEV),
        (libc::ST_NOEXEC, attr::NOEXEC),
        (libc::ST_NOATIME, attr::NOATIME),
        (libc::ST_NODIRATIME, attr::NODIRATIME),
    ];
    let strict = if flags & (libc::ST_NOATIME | libc::ST_RELATIME) == 0 { attr::STRICTATIME } else { 0 };
    pairs.into_iter().filter(|(flag, _)| flags & flag != 0).fold(strict, |bits, (_, bit)| bits | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_with_flags_gets_what_it_names() {
        let asked = |set, clear| Attributes { set, clear };
        assert_eq!(changes(asked(0, 0)), asked(0, 0));
        let all = LOCKABLE | attr::NOSYMFOLLOW;
        assert_eq!(changes(asked(0, attr::NODEV)), asked(0, all));
        assert_eq!(changes(asked(attr::RDONLY, 0)), asked(attr::RDONLY, all & !attr::RDONLY));
        let times = asked(attr::NODIRATIME, all | attr::ATIME);
        assert_eq!(changes(asked(attr::NODIRATIME, 0)), times);
        assert_eq!(changes(asked(attr::STRICTATIME, attr::ATIME)), asked(attr::STRICTATIME, all | TIMES));
    }

    #[test]
    fn flags_are_told_apart() {
        assert_eq!(attributes_of(libc::ST_RDONLY | libc::ST_RELATIME), attr::RDONLY);
        assert_eq!(attributes_of(libc::ST_NOATIME | libc::ST_NODIRATIME), attr::NOATIME | attr::NODIRATIME);
        assert_eq!(attributes_of(0), attr::STRICTATIME);
        assert_eq!(refused(Attributes { set: 0, clear: attr::RDONLY | attr::ATIME }), libc::MS_RDONLY);
    }
}
