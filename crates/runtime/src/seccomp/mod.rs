use oci::runtime::LinuxSeccomp;

use crate::Error;
use crate::child::Filter;

pub(crate) fn compile(_seccomp: &LinuxSeccomp) -> Result<Option<Filter>, Error> {
    Err(Error::unsupported("linux.seccomp", "not yet"))
}
