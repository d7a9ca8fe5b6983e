//! Putting another program in the place of the running one.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::{Errno, FdFlags};

use crate::Result;

/// Executes `program` in this process, which keeps its id, its parent and its children. It gets `arguments` (the first
/// is its name), `environment` (`NAME=value`) and the descriptors of `keep` under their numbers; all threads of ours end.
///
/// Returns only on an error, and then has changed nothing but that the descriptors of `keep` are no longer
/// close-on-exec.
pub fn replace_process(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    environment: &[impl AsRef<OsStr>],
    keep: &[BorrowedFd<'_>],
) -> Result<Infallible> {
    let text = |word: &OsStr| CString::new(word.as_bytes()).map_err(|_| Errno::INVAL);
    let program = text(program.as_os_str())?;
    let arguments: Vec<CString> = arguments.iter().map(|word| text(word.as_ref())).collect::<Result<_>>()?;
    let environment: Vec<CString> = environment.iter().map(|word| text(word.as_ref())).collect::<Result<_>>()?;
    for descriptor in keep {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    nix::unistd::execve(&program, &arguments, &environment).map_err(|error| Errno::from_raw_os_error(error as i32))
}
