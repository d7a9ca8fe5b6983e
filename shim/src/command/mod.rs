//! The commands that are not the shim itself: each does one thing, prints one thing, and ends.

pub(crate) mod delete;
pub(crate) mod info;
pub(crate) mod start;

use std::io::Write as _;

use crate::error::Error;

/// Writes what the caller reads, and nothing else, to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|source| Error::System { operation: "print", source })
}
