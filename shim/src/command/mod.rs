//! The commands that are not the shim itself: each does one thing, prints one thing, and ends.

pub(crate) mod delete;
pub(crate) mod info;
pub(crate) mod start;

use std::io::{Read as _, Write as _};

use crate::error::Error;

/// More than this of standard input is not read: a daemon sends a few hundred bytes.
const INPUT_BYTES_MAX: u64 = 1 << 20;

/// What the caller has to say.
fn read_input() -> Result<Vec<u8>, Error> {
    let mut input = Vec::new();
    std::io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX)
        .read_to_end(&mut input)
        .map_err(|source| Error::System { operation: "read standard input", source })?;
    Ok(input)
}

/// Writes what the caller reads, and nothing else, to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|source| Error::System { operation: "print", source })
}
