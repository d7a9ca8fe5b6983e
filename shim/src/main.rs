//! `containerd-shim-gantry-v2`: keeps the processes of one container, or of one pod, for a containerd-compatible
//! daemon, and outlives it.
//!
//! ```text
//!  args ─▶ serve ──▶ service (ttrpc: decode, encode)
//!      │               └─▶ engine (containers, processes, ends) ──▶ runtime · mount · cgroups
//!      │                      ├─▶ foreign  runtimes that are other programs
//!      │                      ├─▶ stdio    FIFOs and terminals
//!      │                      ├─▶ record   files that a restarted daemon reads
//!      │                      └─▶ events   for daemons that are not ours
//!      └▶ command: start · delete · info
//! ```
//! **Invariants:** one thread for life; nothing blocks the loop for longer than a system call takes; an exit record is
//! written before its process is reaped; and nothing but replies reaches standard output.

mod args;
mod bootstrap;
mod cgroup;
mod command;
mod engine;
mod error;
mod events;
mod foreign;
#[path = "oci_cli/libcontainer.rs"]
mod libcontainer;
mod listing;
mod log;
mod record;
mod serve;
mod service;
mod state;
mod stats;
mod stdio;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;

use args::{Arguments, Command};
use error::Error;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A daemon shows this to its user, or keeps it in its log.
            let _ = std::io::stderr().write_all(format!("{}\n", model::render(&error)).as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let words = std::env::args_os().skip(1).map(|word| word.into_string());
    let words: Result<Vec<String>, _> = words.collect();
    let words = words.map_err(|word| Error::Usage(format!("argument {word:?} is not UTF-8")))?;
    let arguments = Arguments::parse(words)?;
    match arguments.command {
        Command::Start => command::start::run(&arguments),
        Command::Delete => command::delete::run(&arguments),
        Command::Serve => serve::run(&arguments),
        Command::Info => command::info::run(),
        Command::Version => command::info::version(),
        Command::Help => command::print(args::USAGE.as_bytes()),
    }
}
