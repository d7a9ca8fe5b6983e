//! System call filters: from the specification's rules to a classic BPF program, without a library.
//!
//! A filter is compiled for every container, so it has to be quick (a library needs 11 to 19 ms for Docker's profile):
//! numbers of equal fate are joined to ranges, and a program searches them by halving.
//!
//! Meaning, where the specification leaves it open (as runc and libseccomp have it): a rule without arguments wins over
//! those with; among the latter the first that fits counts; a rule with the default action is none; names that no table
//! has are passed over; system calls newer than every one that the profile names give ENOSYS instead of a refusal, so
//! that C libraries fall back; other architectures are killed. `oracle` compares all this with libseccomp.
//!
//! With `SCMP_ACT_NOTIFY` a filter has a [`Listener`]: the agent that answers for the kernel.

mod arch;
mod bpf;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod compare;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod interpret;
mod listener;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod oracle;
#[cfg(any(test, feature = "fuzzing"))]
mod reference;
mod rules;

use std::sync::Arc;

use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use sys::seccomp::{Instruction, MAX_INSTRUCTIONS, flags};

use crate::Error;
use arch::{Family, NATIVE};
pub(crate) use listener::{Listener, Offer};

/// A filter, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) program: Arc<[Instruction]>,
    /// Of [`sys::seccomp::flags`].
    pub(crate) flags: u32,
    /// Who answers notifications, if there can be any.
    pub(crate) listener: Option<Arc<Listener>>,
}

/// Compiles the filter for the processor that this program runs on. `None` if everything is allowed.
pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Option<Filter>, Error> {
    let nothing = seccomp.syscalls().as_ref().is_none_or(Vec::is_empty);
    if nothing && seccomp.default_action() == LinuxSeccompAction::ScmpActAllow {
        return Ok(None);
    }
    let profile = rules::Profile::new(seccomp)?;
    let listener = if profile.notifies() { Some(Arc::new(Listener::new(seccomp, &profile)?)) } else { None };
    let flags = filter_flags(seccomp, listener.is_some())?;
    let program = Arc::from(compile_for(seccomp, &profile, &NATIVE)?);
    Ok(Some(Filter { program, flags, listener }))
}

/// Refuses a filter that the running kernel would not take.
pub(crate) fn check_host(filter: Option<&Filter>) -> Result<(), Error> {
    let wanted = filter.is_some_and(|filter| filter.flags & flags::WAIT_KILLABLE_RECV != 0);
    if wanted && !sys::features().seccomp_wait_killable() {
        let reason = "this kernel lacks SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19)";
        return Err(Error::unsupported("linux.seccomp.flags", reason));
    }
    Ok(())
}

fn filter_flags(seccomp: &LinuxSeccomp, notifies: bool) -> Result<u32, Error> {
    let mut word = if notifies { flags::NEW_LISTENER } else { 0 };
    // Without a list: as filters always were before there was a field for it.
    let Some(list) = seccomp.flags() else { return Ok(word | flags::SPEC_ALLOW) };
    for flag in list {
        word |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags::LOG,
            // The process that gets the filter has one thread; and a listener excludes the flag (seccomp(2)).
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags::SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => flags::WAIT_KILLABLE_RECV,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                let problem = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY";
                return Err(Error::invalid("linux.seccomp.flags", problem));
            }
        };
    }
    Ok(word)
}

fn compile_for(
    seccomp: &LinuxSeccomp,
    profile: &rules::Profile<'_>,
    family: &Family,
) -> Result<Vec<Instruction>, Error> {
    let listed = seccomp.architectures().as_deref().unwrap_or_default();
    let mut sections = Vec::new();
    for machine in family.machines {
        let mut abis = Vec::new();
        for abi in machine.abis {
            if abi.native || listed.contains(&abi.name) {
                abis.push(bpf::Abi { bit: abi.bit, ranges: profile.ranges(abi), narrow: abi.narrow });
            }
        }
        if !abis.is_empty() {
            let (audit_arch, bits) = (machine.audit_arch, machine.bits());
            sections.push(bpf::Section { audit_arch, default: profile.default, bits, abis });
        }
    }
    let program = bpf::assemble(&sections);
    if program.len() > MAX_INSTRUCTIONS {
        let problem = format!("compiles to {} instructions, more than {MAX_INSTRUCTIONS}", program.len());
        return Err(Error::invalid("linux.seccomp", problem));
    }
    Ok(program)
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
