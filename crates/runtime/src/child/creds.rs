//! Who the program runs as.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use sys::caps;
use sys::undefended::{Defence, left_out};

use super::Process;

/// Becomes user and group 0 of a new user namespace.
pub(super) fn become_root() -> Result<(), Errno> {
    let (user, group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(Some(group), Some(group), Some(group))?;
    rustix::thread::set_thread_res_uid(Some(user), Some(user), Some(user))
}

/// Keeps processes of the container from looking into this one (its memory, descriptors and program) before the exec.
pub(super) fn hide() -> Result<(), Errno> {
    if left_out(Defence::Hide) {
        return Ok(());
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// The supplementary groups.
pub(super) fn set_groups(process: &Process) -> Result<(), Errno> {
    let groups = if left_out(Defence::Groups) { Ok(()) } else { rustix::thread::set_thread_groups(&process.groups) };
    match groups {
        // A user namespace without the right to set groups (user_namespaces(7)) keeps those it has; asking for more
        // is refused by the plan.
        Err(Errno::PERM) if process.groups.is_empty() => Ok(()),
        result => result,
    }
}

/// User and group; the permitted capabilities stay.
pub(super) fn set_ids(process: &Process) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    rustix::thread::set_thread_res_gid(Some(group), Some(group), Some(group))?;
    rustix::thread::set_thread_res_uid(Some(user), Some(user), Some(user))?;
    // A change of ids sets this anew, from fs.suid_dumpable, which may be 1.
    hide()
}

/// Takes out of the bounding set what the program is not to have.
pub(super) fn drop_bounding(process: &Process) -> Result<(), Errno> {
    let wanted = process.capabilities.bounding;
    for capability in 0..process.capabilities.known {
        if wanted & (1 << capability) == 0 {
            caps::bounding_drop(capability)?;
        }
    }
    Ok(())
}

/// Sets the other four sets.
pub(super) fn set_capabilities(process: &Process) -> Result<(), Errno> {
    let wanted = process.capabilities;
    caps::set(caps::Sets {
        effective: wanted.effective,
        permitted: wanted.permitted,
        inheritable: wanted.inheritable,
    })?;
    // What is not inheritable has just been taken out of the ambient set (capset(2) as in `cap_capset`).
    if wanted.inheritable != 0 {
        caps::ambient_clear()?;
    }
    for capability in 0..wanted.known {
        if wanted.ambient & (1 << capability) != 0 {
            caps::ambient_raise(capability)?;
        }
    }
    Ok(())
}

/// Makes the permitted capabilities effective again after the change of ids took them away.
pub(super) fn regain() -> Result<(), Errno> {
    let sets = caps::get()?;
    caps::set(caps::Sets { effective: sets.permitted, ..sets })
}
