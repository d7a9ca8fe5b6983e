//! `gantry-oci`: the command line of runc over the same runtime that the shim uses in process.
//!
//! **Invariant:** one thread, as the runtime demands; state is kept in files only, so that commands of one container
//! can follow each other in different processes.

#![cfg_attr(not(test), no_main)]

#[path = "../oci_cli/mod.rs"]
mod oci_cli;

use std::ffi::c_int;
use std::io::Write as _;

fn program() -> c_int {
    const FAILED: u8 = 1;
    let code = sys::start::begin_in_process().map_or(FAILED, |()| oci_cli::main());
    // What was printed without a line's end: nobody else does. A reader who is gone does not mind.
    let _ = std::io::stdout().flush();
    c_int::from(code)
}

/// Where the C library begins: the start of Rust's own library would be a tenth of the calls of a run.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "the one symbol that the C library looks for")]
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _words: *const *const std::ffi::c_char) -> c_int {
    program()
}

/// Tests have a beginning of their own.
#[cfg(test)]
fn main() {
    program();
}
