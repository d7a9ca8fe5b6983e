//! What the running kernel can do beyond the floor, probed once.
//!
//! Features are probed by calling them with arguments that cannot succeed: version numbers lie on kernels with
//! backports, and a seccomp filter around us may forbid a call that the kernel has.

#![expect(unsafe_code, reason = "probes are raw system calls with empty arguments")]

use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use crate::arch::NATIVE;
use crate::syscall;

/// The environment variable that makes [`features`] report nothing, so that every fallback runs. Read once.
pub const FORCE_FALLBACKS_VARIABLE: &str = "GANTRY_FORCE_FALLBACKS";

/// What the kernel offers to this process. A field that is false has a fallback wherever it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `clone3(2)`.
    pub clone3: bool,
    /// `clone3` with `CLONE_INTO_CGROUP` (cgroup v2 only).
    pub clone_into_cgroup: bool,
    /// `openat2(2)`.
    pub openat2: bool,
    /// `mount_setattr(2)`, on detached mounts too.
    pub mount_setattr: bool,
    /// `fsopen`, `fsconfig`, `fsmount`, `open_tree`, `move_mount`.
    pub new_mount_api: bool,
    /// `close_range(2)`.
    pub close_range: bool,
    /// `pidfd_open(2)`, `pidfd_send_signal(2)` and `waitid(P_PIDFD)`. These have no fallback: false only if forced.
    pub pidfd: bool,
    /// `cgroup.kill` may be tried; older kernels lack the file.
    pub cgroup_kill: bool,
    /// Whether `GANTRY_FORCE_FALLBACKS=1` switched everything off.
    pub forced_fallbacks: bool,
}

/// The features of the running kernel.
pub fn features() -> &'static Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    FEATURES.get_or_init(|| {
        if std::env::var_os(FORCE_FALLBACKS_VARIABLE).is_some_and(|value| value == "1") {
            Features { forced_fallbacks: true, ..Features::default() }
        } else {
            probe()
        }
    })
}

impl Features {
    /// Whether overlayfs takes its lower directories one by one (`lowerdir+`, Linux 6.7), which lifts the one-page
    /// limit. Probed when first asked, because asking may load the overlay module.
    pub fn overlay_lowerdir_append(&self) -> bool {
        static APPEND: OnceLock<bool> = OnceLock::new();
        self.new_mount_api && *APPEND.get_or_init(|| probe_lowerdir_append().is_ok())
    }

    /// Whether a process that waits for the answer to a seccomp notification can be told to be killable only
    /// (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, Linux 5.19). Probed when first asked: few profiles want it.
    pub fn seccomp_wait_killable(&self) -> bool {
        use crate::seccomp::{flags, flags_available};
        static KILLABLE: OnceLock<bool> = OnceLock::new();
        // Alone the flag is refused; it goes with a listener.
        let wanted = flags::NEW_LISTENER | flags::WAIT_KILLABLE_RECV;
        !self.forced_fallbacks && *KILLABLE.get_or_init(|| flags_available(wanted))
    }
}

/// What the kernel has, by one question each, or by two for all: without a filter around us Linux 5.15 lacks nothing.
/// (A version number says too little about a kernel with backports, never too much.)
fn probe() -> Features {
    if unfiltered() && has_release(5, 15) {
        return Features {
            clone3: true,
            clone_into_cgroup: true,
            openat2: true,
            mount_setattr: true,
            new_mount_api: true,
            close_range: true,
            pidfd: true,
            cgroup_kill: true,
            forced_fallbacks: false,
        };
    }
    probe_each()
}

/// Whether no seccomp filter is around this process.
fn unfiltered() -> bool {
    // SAFETY: takes no further argument, and answers 0 without a filter.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == 0 }
}

/// Whether the kernel says that it is of this release or a later one.
fn has_release(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    name.release().to_str().is_ok_and(|release| is_release(release, major, minor))
}

fn is_release(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(has_major)), Some(Ok(has_minor))) => (has_major, has_minor) >= (major, minor),
        _ => false,
    }
}

fn probe_each() -> Features {
    let into_cgroup = probe_clone_into_cgroup();
    Features {
        clone3: into_cgroup != Err(Errno::NOSYS),
        clone_into_cgroup: into_cgroup == Err(Errno::BADF),
        openat2: exists(libc::SYS_openat2),
        mount_setattr: exists(NATIVE.numbers.mount_setattr),
        new_mount_api: !matches!(fsopen("", FsOpenFlags::FSOPEN_CLOEXEC), Err(Errno::NOSYS)),
        close_range: probe_close_range(),
        pidfd: true,
        cgroup_kill: true,
        forced_fallbacks: false,
    }
}

/// Calls `number` with all arguments zero, which no call probed here accepts.
fn exists(number: i64) -> bool {
    // SAFETY: openat2 and mount_setattr refuse a size of 0 before they look at any pointer.
    let result = unsafe { syscall::call(number, [0; 5]) };
    !matches!(result, Err(Errno::NOSYS))
}

/// Asks for a clone into a cgroup given by a descriptor that cannot be open: a kernel that knows the flag says EBADF
/// before it makes a process, one that does not says EINVAL, and one without `clone3` ENOSYS.
fn probe_clone_into_cgroup() -> Result<(), Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args = [0_u64; 11];
    args[0] = CLONE_INTO_CGROUP;
    args[10] = i32::MAX.unsigned_abs().into();
    // SAFETY: `args` is a whole struct clone_args (VER2) that outlives the call, which fails on the bad descriptor.
    unsafe { syscall::call(NATIVE.numbers.clone3, [syscall::address(&args), size_of_val(&args), 0, 0, 0]) }.map(drop)
}

/// Closes the empty range above the largest possible descriptor.
fn probe_close_range() -> bool {
    let last = u32::MAX as usize;
    // SAFETY: no descriptor can have this number, so nothing is closed.
    unsafe { syscall::call(NATIVE.numbers.close_range, [last, last, 0, 0, 0]) }.is_ok()
}

/// Before Linux 6.5 overlayfs looks at its options only when it is created, so it takes any of them here: only a
/// kernel that refuses nonsense tells the truth about the rest.
fn probe_lowerdir_append() -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    match fsconfig_set_string(&context, "gantry_probes", "/") {
        Ok(()) => Err(Errno::NOSYS),
        Err(_) => fsconfig_set_string(&context, "lowerdir+", "/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forced_means_nothing_is_on() {
        let features = features();
        if features.forced_fallbacks {
            assert_eq!(*features, Features { forced_fallbacks: true, ..Features::default() });
            assert!(!features.overlay_lowerdir_append());
        } else {
            assert_eq!(*features, probe());
            assert_eq!(*features, probe_each());
        }
    }

    #[test]
    fn releases() {
        for (release, want) in [
            ("5.15.0", true),
            ("6.1", true),
            ("5.14.21-x", false),
            ("5.4.0-150-generic", false),
            ("10.0.1", true),
            ("6.18.44-fc-v669", true),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_release(release, 5, 15), want, "{release:?}");
        }
    }

    #[test]
    fn the_floor_has_what_it_must_have() {
        // Linux 5.15 has all of these; a seccomp filter around the tests would show here.
        let found = probe_each();
        assert!(found.clone3 && found.openat2 && found.mount_setattr && found.new_mount_api, "{found:?}");
        assert!(found.close_range && found.pidfd && found.clone_into_cgroup, "{found:?}");
    }

    #[test]
    fn a_call_that_does_not_exist_is_told_apart() {
        assert!(!exists(100_000));
    }
}
