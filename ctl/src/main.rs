//! `gantryctl`: the command line of gantry, one file per noun.
//!
//! **Invariant:** everything goes through the daemon's API by crate `client`; this program has no way into the
//! daemon's files, so it works the same against any containerd.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line does")]

mod container;
mod events;
mod image;
mod log;
mod run;
mod snapshot;
mod spec;
mod task;
mod terminal;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use client::Client;

const EXAMPLES: &str = "\
A first container:
  gantryctl image import busybox.tar
  gantryctl run --rm docker.io/library/busybox:latest hello echo hello
  gantryctl run -d docker.io/library/busybox:latest web sleep 1000
  gantryctl exec web ps
  gantryctl kill web
  gantryctl rm web";

/// Containers by the containerd API: import images, run and inspect containers.
#[derive(Parser, Debug)]
#[command(name = "gantryctl", version = model::BUILD, after_help = EXAMPLES)]
struct Arguments {
    /// Socket of the daemon.
    #[arg(long, short, global = true, env = "CONTAINERD_ADDRESS", default_value = "/run/gantry/gantryd.sock")]
    address: PathBuf,
    /// Scope of all names; containers and images of other namespaces are not seen.
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Bring images in and list them.
    #[command(subcommand)]
    Image(image::Command),
    /// Look into file systems of images and containers.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Start a container from an image.
    Run(Box<run::Run>),
    /// List containers and where they stand.
    Ps(container::Ps),
    /// Run one more program inside a running container.
    Exec(task::Exec),
    /// Send a signal to a container's first process (SIGTERM when none is named).
    Kill(task::Kill),
    /// Look into a container's task.
    #[command(subcommand)]
    Task(task::Command),
    /// Remove a container that has ended; with --force, end it first.
    Rm(container::Rm),
    /// Show the output of a container that was started with `run -d`.
    Logs(log::Logs),
    /// Print what happens from now on, one event per line.
    Events(events::Events),
    /// Print the versions of this program and of the daemon.
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gantryctl: start the event loop: {error}");
            return ExitCode::from(125);
        }
    };
    let outcome = runtime.block_on(dispatch(arguments));
    // A read of standard input may still be under way; it must not keep the program alive.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("gantryctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command; the number is the exit code, a container's own where one was run.
async fn dispatch(arguments: Arguments) -> Result<u8> {
    let client = Client::connect(&arguments.address, &arguments.namespace).await?;
    match arguments.command {
        Command::Image(command) => image::image(&client, command).await.map(|()| 0),
        Command::Snapshot(command) => snapshot::snapshot(&client, command).await.map(|()| 0),
        Command::Run(run) => run::run(&client, &arguments.namespace, *run).await,
        Command::Ps(ps) => container::ps(&client, &ps).await.map(|()| 0),
        Command::Exec(exec) => task::exec(&client, exec).await,
        Command::Kill(kill) => task::kill(&client, kill).await.map(|()| 0),
        Command::Task(task::Command::Why { id }) => task::why(&client, &id).await.map(|()| 0),
        Command::Rm(rm) => container::rm(&client, rm).await.map(|()| 0),
        Command::Logs(logs) => log::logs(&client, logs).await.map(|()| 0),
        Command::Events(events) => events::events(&client, events).await.map(|()| 0),
        Command::Version => version::version(&client).await.map(|()| 0),
    }
}
