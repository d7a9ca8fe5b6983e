//! System call filters: from the specification's rules to a classic BPF program, without a library.
//!
//! A filter is compiled for every container, so it has to be quick (a library needs 11 to 19 ms for Docker's profile):
//! numbers of equal fate are joined to ranges, and a program searches them by halving.
//!
//! Meaning, where the specification leaves it open (as libseccomp has it): a rule without arguments wins over those
//! with; among the latter the first that fits counts; system calls newer than every one that the profile names give
//! ENOSYS instead of a refusal, so that C libraries fall back (runc does this too); other architectures are killed.

mod arch;
mod bpf;
#[cfg(test)]
mod interpret;
mod rules;

use std::sync::Arc;

use oci::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use sys::seccomp::{Instruction, MAX_INSTRUCTIONS, flags};

use crate::Error;
use crate::child::Filter;
use arch::{Family, NATIVE};

/// Compiles the filter for the processor that this program runs on. `None` if everything is allowed.
pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Option<Filter>, Error> {
    if seccomp.listener_path().is_some() || seccomp.listener_metadata().is_some() {
        return Err(Error::unsupported("linux.seccomp.listenerPath", "notifications are not supported"));
    }
    let nothing = seccomp.syscalls().as_ref().is_none_or(Vec::is_empty);
    if nothing && seccomp.default_action() == LinuxSeccompAction::ScmpActAllow {
        return Ok(None);
    }
    let program = compile_for(seccomp, &NATIVE)?;
    Ok(Some(Filter { program: Arc::from(program), flags: filter_flags(seccomp)? }))
}

fn filter_flags(seccomp: &LinuxSeccomp) -> Result<u32, Error> {
    // Without a list: as filters always were before there was a field for it.
    let Some(list) = seccomp.flags() else { return Ok(flags::SPEC_ALLOW) };
    let mut word = 0;
    for flag in list {
        word |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags::LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flags::TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags::SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::invalid("linux.seccomp.flags", "WAIT_KILLABLE_RECV needs a listener"));
            }
        };
    }
    Ok(word)
}

fn compile_for(seccomp: &LinuxSeccomp, family: &Family) -> Result<Vec<Instruction>, Error> {
    let profile = rules::Profile::new(seccomp)?;
    let listed = seccomp.architectures().as_deref().unwrap_or_default();
    let mut sections = Vec::new();
    for machine in family.machines {
        let mut abis = Vec::new();
        for abi in machine.abis {
            if abi.native || listed.contains(&abi.name) {
                abis.push(bpf::Abi { bit: abi.bit, ranges: profile.ranges(abi), narrow: machine.narrow });
            }
        }
        if !abis.is_empty() {
            sections.push(bpf::Section { audit_arch: machine.audit_arch, bits: machine.bits(), abis });
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
mod tests;
