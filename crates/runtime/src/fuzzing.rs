//! What fuzz targets and measurements reach from outside. Not part of the crate's interface.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use crate::plan::ProcessPlan;
use crate::seccomp::compare::{Choices, agreed, compared, names, profile};
use crate::seccomp::oracle::Library;
use crate::{Error, HostFeatures};

/// Compiles the filter of a profile and gives the number of its instructions.
pub fn compile_seccomp(profile: &oci::runtime::LinuxSeccomp) -> Result<usize, Error> {
    Ok(crate::seccomp::compile(profile)?.map_or(0, |filter| filter.program.len()))
}

/// Makes a profile of the bytes and compares our filter with libseccomp's. The text says what differs; `Ok(None)`: the
/// library is not installed; else how it ended.
pub fn seccomp_beside_library(bytes: &[u8]) -> Result<Option<String>, String> {
    static LIBRARY: OnceLock<Option<(Library, BTreeSet<&'static str>)>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        let library = Library::load().ok()?;
        let known = names().into_iter().filter(|name| agreed(&library, name)).collect();
        Some((library, known))
    });
    let Some((library, known)) = loaded else { return Ok(None) };
    let profile = profile(&mut Choices(bytes));
    compared(library, &profile, |name| known.contains(name)).map(|outcome| Some(format!("{outcome:?}")))
}

/// Plans an exec.
pub fn plan_exec(process: &oci::Process, host: &HostFeatures, in_user_space: bool) -> Result<(), Error> {
    let plan = ProcessPlan::new("process", process, host, in_user_space)?;
    let _ = (plan.program_name(), plan.candidates());
    Ok(())
}
