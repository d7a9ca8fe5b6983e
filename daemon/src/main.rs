//! gantryd: read the configuration, open the engines, serve, drain.
//!
//! ```text
//! command line + file ─► Config ─► engines (opening them is recovery) ─► sockets ─► READY=1
//!      SIGTERM, SIGINT ─► STOPPING=1 ─► no new requests, running ones get a grace time ─► exit; containers live on
//! ```
//!
//! **Invariant:** nothing but assembly lives here, and nothing that a restart needs is kept in memory: killing this
//! process at any instruction loses no container, no acknowledged write, no exit code and no event.

mod assemble;
mod cli;
mod config;
mod directories;
mod logging;
mod oci_hook;
mod plugins;
mod publish;
mod reload;
mod replace;
mod serve;
mod signals;
mod socket;
mod threads;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Threads that poll futures. The engines' threads are bounded by [`services::Blocking`], so few are enough, and each
/// costs memory.
const WORKER_THREADS: usize = 2;

/// Upper bound of threads that may block: those of the services and a few for tokio's own file and name work.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    // Some thirty threads with an allocator arena each would keep what one import has needed for ever.
    sys::memory::keep_little_in_process();
    let arguments = cli::Arguments::parse_from(cli::with_long_dashes(std::env::args_os()));
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not be set up yet, so this goes to standard error as plain text.
            logging::fatal(&format!("gantryd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Goes where the operator wants the daemon. Its shims begin there, too.
fn enter_cgroup(path: &str) -> anyhow::Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let enter = || -> Result<(), cgroups::Error> {
        let host = cgroups::Host::detect()?;
        cgroups::Cgroup::create(&host, &cgroups::CgroupPath::new(path)?)?.add_process(std::process::id())
    };
    enter().map_err(|error| anyhow::Error::msg(model::render(&error))).with_context(|| format!("enter cgroup {path:?}"))
}

fn run(arguments: cli::Arguments) -> anyhow::Result<()> {
    // A hook runs where the daemon's configuration may not be readable, and needs none.
    if let Some(cli::Command::OciHook { command }) = &arguments.command {
        return oci_hook::run(command);
    }
    let loaded = config::load(&arguments)?;
    match arguments.command.clone() {
        Some(cli::Command::Config { action }) => return cli::print_config(action, &loaded.config),
        Some(cli::Command::Publish { topic, namespace }) => {
            return publish::publish(&loaded.config, topic, namespace);
        }
        Some(cli::Command::OciHook { .. }) | None => {}
    }
    let logging = logging::start(&loaded.config.debug)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    enter_cgroup(&loaded.config.cgroup.path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("gantryd")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let program = replace::program()?;
    let reload = reload::Reload { arguments, current: loaded.config, logging };
    let result = runtime.block_on(serve::serve(reload, &program));
    // What still runs on blocking threads is a transaction that will be acknowledged to nobody; it need not end.
    runtime.shutdown_background();
    match result? {
        serve::Ended::Stopped => Ok(()),
        serve::Ended::Replaced(socket) => match replace::replace(&program, &socket)? {},
    }
}
