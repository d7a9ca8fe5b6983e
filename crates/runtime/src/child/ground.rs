//! Places below the root at which names can be taken as they are, without a walk from the root.
//!
//! A path of the container is hostile: each of its components may be a link, or become one. But a file system that this
//! very process has made holds what it has put there and nothing else, and sysfs only what the kernel has. A mount on a
//! name in there needs no look at the name first.
//!
//! **Invariant:** a base is a mount that was made here, by its own descriptor, and is given up when something is mounted
//! over it, or when somebody else may have been in it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use sys::undefended::{Defence, left_out};

use super::path::{self, Text};
use super::{Filesystem, Legacy, MountStep, What, mounts};

/// What is known about a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// It was empty, and only this process has made anything in it.
    Ours,
    /// The kernel's own (sysfs), and nothing of anybody else is mounted below.
    Kernel,
}

#[derive(Debug)]
struct Base<'script> {
    /// Below the root, without a leading slash.
    at: &'script CStr,
    mount: OwnedFd,
    content: Content,
}

/// The bases at hand.
#[derive(Debug, Default)]
pub(super) struct Ground<'script> {
    bases: [Option<Base<'script>>; 4],
}

/// Whether `path` is `above` or lies below it.
fn is_below(path: &CStr, above: &CStr) -> bool {
    let rest = path.to_bytes().strip_prefix(above.to_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// The name of `path` in the directory `above`; nothing if it does not lie directly in there.
fn name_in<'path>(path: &'path CStr, above: &CStr) -> Option<&'path CStr> {
    let rest = path.to_bytes_with_nul().strip_prefix(above.to_bytes())?.strip_prefix(b"/")?;
    let name = CStr::from_bytes_with_nul(rest).ok()?;
    (!name.is_empty() && !name.to_bytes().contains(&b'/')).then_some(name)
}

impl<'script> Ground<'script> {
    /// The directory at `path`, if it is empty but for what this process has put there.
    pub(super) fn own_directory(&self, path: &CStr) -> Option<BorrowedFd<'_>> {
        let ours = |base: &&Base<'script>| base.content == Content::Ours && base.at == path;
        self.bases.iter().flatten().find(ours).map(|base| base.mount.as_fd())
    }

    /// Takes note of a mount: what it covers is no base any more, and what was made here is one.
    pub(super) fn mounted(&mut self, step: &'script MountStep, made: Option<OwnedFd>) {
        let target = step.target.as_c_str();
        let foreign = !matches!(&step.what, What::Filesystem(_) | What::Legacy(Legacy { kind: Some(_), .. }));
        for base in &mut self.bases {
            let given_up = base.as_ref().is_some_and(|base| {
                is_below(base.at, target) || (foreign && base.content == Content::Kernel && is_below(target, base.at))
            });
            if given_up {
                *base = None;
            }
        }
        let What::Filesystem(Filesystem { kind, .. }) = &step.what else { return };
        let content = match kind.to_bytes() {
            b"tmpfs" if !step.copy_up => Content::Ours,
            b"sysfs" => Content::Kernel,
            _ => return,
        };
        if let (Some(mount), Some(free)) = (made, self.bases.iter_mut().find(|base| base.is_none())) {
            *free = Some(Base { at: target, mount, content });
        }
    }

    /// Others may change what is there from now on.
    pub(super) fn give_up(&mut self) {
        self.bases = Default::default();
    }

    /// Where a mount goes, if that can be told without a walk; a directory or file for it is made. `None`: walk.
    pub(super) fn place<'a>(&'a self, root: BorrowedFd<'a>, step: &'a MountStep) -> Option<Spot<'a>> {
        let plain = !step.copy_up && !step.copy_mode && step.propagation.is_empty();
        if !plain || left_out(Defence::Paths) || !sys::features().new_mount_api {
            return None;
        }
        let target = step.target.as_c_str();
        for base in self.bases.iter().flatten() {
            match base.content {
                Content::Ours => {
                    let Some(name) = name_in(target, base.at) else { continue };
                    // What is there already may be a link of ours that leads elsewhere.
                    let made = if step.directory {
                        rustix::fs::mkdirat(&base.mount, name, Mode::from_raw_mode(0o755))
                    } else {
                        path::make_new_file(base.mount.as_fd(), name)
                    };
                    return made.is_ok().then_some(Spot { directory: base.mount.as_fd(), name, trusted: true });
                }
                // The place of the cgroups, a directory that the kernel makes.
                Content::Kernel if target == c"sys/fs/cgroup" && base.at == c"sys" && step.directory => {
                    return Some(Spot { directory: base.mount.as_fd(), name: c"fs/cgroup", trusted: true });
                }
                Content::Kernel => {}
            }
        }
        // A name in the root itself: a directory that is mounted by descriptor is not mounted on anything but a
        // directory, so that a link is an error.
        let single = !target.is_empty() && !target.to_bytes().contains(&b'/');
        (single && step.directory).then_some(Spot { directory: root, name: target, trusted: false })
    }
}

/// A name in an open directory, to mount on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    directory: BorrowedFd<'a>,
    name: &'a CStr,
    /// Whether nobody else can have put a link there.
    trusted: bool,
}

impl Spot<'_> {
    /// Attaches a detached mount, following nothing.
    pub(super) fn attach(self, mount: BorrowedFd<'_>) -> Result<(), Errno> {
        mounts::attach_name(mount, self.directory, self.name)
    }

    /// Mounts by `mount(2)`, which follows links. `None`: not here.
    pub(super) fn mount(self, legacy: &Legacy) -> Option<Result<(), Errno>> {
        if !self.trusted || legacy.remount.is_some() {
            return None;
        }
        Some(self.mount_by_name(legacy))
    }

    fn mount_by_name(self, legacy: &Legacy) -> Result<(), Errno> {
        let mut place = Text::new();
        path::magic(self.directory, &mut place)?;
        place.append(b"/")?;
        place.append(self.name.to_bytes())?;
        let data = if legacy.data.is_empty() { None } else { Some(legacy.data.as_c_str()) };
        mounts::mount_raw(Some(&legacy.source), place.as_c_str()?, legacy.kind.as_deref(), legacy.flags, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lie_directly_below() {
        for (path, above, below, name) in [
            (c"dev/pts", c"dev", true, Some(c"pts")),
            (c"dev", c"dev", true, None),
            (c"dev/", c"dev", true, None),
            (c"device", c"dev", false, None),
            (c"dev/a/b", c"dev", true, None),
            (c"sys/fs/cgroup/cpu", c"sys/fs/cgroup", true, Some(c"cpu")),
            (c"x", c"dev", false, None),
        ] {
            assert_eq!((is_below(path, above), name_in(path, above)), (below, name), "{path:?} {above:?}");
        }
    }
}
