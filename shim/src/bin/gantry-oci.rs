//! `gantry-oci`: the command line of runc over the same runtime that the shim uses in process.
//!
//! **Invariant:** one thread, as the runtime demands; state is kept in files only, so that commands of one container
//! can follow each other in different processes.

#[path = "../oci_cli/mod.rs"]
mod oci_cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    oci_cli::main()
}
