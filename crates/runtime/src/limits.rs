//! Resource limits that only a process of the host can raise.

use rustix::process::{Pid, Resource, Rlimit};

/// Raises hard limits of a process in a user namespace of its own, which has no right to (setrlimit(2) asks for
/// CAP_SYS_RESOURCE in the initial one). It sets the limits themselves later; what could not be raised it finds out then.
pub(crate) fn raise(pid: u32, limits: &[(Resource, Rlimit)]) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    for (resource, wanted) in limits {
        let have = rustix::process::getrlimit(*resource);
        if above(wanted.maximum, have.maximum) {
            let raised = Rlimit { current: have.current, maximum: wanted.maximum };
            let _ = rustix::process::prlimit(Some(pid), *resource, raised);
        }
    }
}

/// Whether a limit is above another one; `None` is no limit at all.
fn above(wanted: Option<u64>, have: Option<u64>) -> bool {
    match (wanted, have) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(have)) => wanted > have,
    }
}

#[cfg(test)]
mod tests {
    use super::above;

    #[test]
    fn no_limit_is_the_highest() {
        for (wanted, have, want) in [
            (None, None, false),
            (None, Some(u64::MAX), true),
            (Some(1), None, false),
            (Some(2), Some(1), true),
            (Some(1), Some(1), false),
        ] {
            assert_eq!(above(wanted, have), want, "{wanted:?} {have:?}");
        }
    }
}
