//! The protocol of foreign shims: `<shim> start` forks the shim, prints where it listens, and ends.
//!
//! ```text
//!  gantryd ── exec, cwd = bundle, options on stdin ─▶ <shim> start ── forks ─▶ shim
//!          ◀─ address ────────────────────────────────────┘ ends                │
//!          ── connect, Connect (whose process is it?), Create ─────────────────▶│
//! ```
//!
//! **Invariant:** on an error the bundle is gone, and the `delete` of a shim that was reached has been run. One that
//! `start` left running without saying where is unknown to us and stays, as with containerd.

use std::path::Path;
use std::sync::Arc;

use model::Any;

use crate::bootstrap::{self, Bootstrap};
use crate::bundle::{self, Layout};
use crate::launch::{self, Launched};
use crate::manager::Context;
use crate::pidfd::Pidfd;
use crate::program::{self, Errors, Finished};
use crate::runtimes::Program;
use crate::shim::ShimClient;
use crate::task::CreateTask;
use crate::{Error, remove, shim_log};

/// As [`launch::launch`].
pub(crate) async fn start(
    context: &Arc<Context>,
    namespace: &str,
    request: &CreateTask,
    program: &Program,
) -> Result<Launched, Error> {
    let id = request.id.as_str();
    let (shared, names) = (Arc::clone(context), (namespace.to_owned(), request.id.clone()));
    let (spec, path) = (request.spec.clone(), program.path.clone());
    let made = tokio::task::spawn_blocking(move || shared.layout.make_for_foreign(&names.0, &names.1, &spec, &path));
    let bundle = made.await.map_err(|_| Error::Stopping(id.to_owned()))??;
    // A shim waits for a reader of its log before it does anything.
    let log = match shim_log::open(&bundle.join(shim_log::FIFO)) {
        Ok(log) => log,
        Err(error) => return Err(give_up(context, namespace, id, error).await),
    };
    let started = execute(context, namespace, id, &program.path, &bundle, request.options.as_ref()).await;
    let bootstrap = match started {
        Ok(bootstrap) => bootstrap,
        Err(error) => return Err(give_up(context, namespace, id, error).await),
    };
    let Some(endpoint) = bootstrap.endpoint() else { return Err(Error::Stopping(id.to_owned())) };
    let client = ShimClient::new(namespace.to_owned(), id.to_owned(), endpoint, context.config.timeouts)
        .of_start(bootstrap.version, bundle::grouped(&request.spec));
    match join(&client, &bundle, &bootstrap, !program.own).await {
        Ok(shim) => Ok(Launched { bundle, client, shim, log: Some(log), foreign: !program.own }),
        Err(error) => Err(remove::undo(context, namespace, id, &program.path, &bundle, &client, None, error).await),
    }
}

/// Removes the bundle of a shim that was never there.
async fn give_up(context: &Arc<Context>, namespace: &str, id: &str, error: Error) -> Error {
    if let Err(cleanup) = remove::remove_files(context, namespace, id).await {
        tracing::warn!(namespace, id, error = %model::render(&cleanup), "a bundle stays until the next start");
    }
    error
}

/// Connects to the shim, and asks who it is: one that does not know yet says so by an error.
async fn join(
    client: &ShimClient,
    bundle: &Path,
    bootstrap: &Bootstrap,
    foreign: bool,
) -> Result<Option<Arc<Pidfd>>, Error> {
    Layout::listens(bundle, &Bootstrap { kept_by_daemon: foreign, ..bootstrap.clone() })?;
    client.connect().await?;
    match client.shim_process().await {
        Ok(shim) => Ok(shim.map(Arc::new)),
        Err(Error::Shim { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs `start`, in the dialect that the program understands.
async fn execute(
    context: &Context,
    namespace: &str,
    id: &str,
    program: &Path,
    bundle: &Path,
    options: Option<&Any>,
) -> Result<Bootstrap, Error> {
    let config = &context.config;
    let daemon = std::env::current_exe().unwrap_or_default().display().to_string();
    let mut refusals: Vec<Error> = Vec::new();
    for dialect in context.dialects.of(program) {
        let input = bootstrap::input(dialect, config, namespace, id, &daemon, options);
        let command = launch::command(config, namespace, program).env("GOMAXPROCS", "2").env("MAX_SHIM_VERSION", "2");
        let command = launch::arguments(command, config, namespace, id).arg("start").cwd(bundle).new_session();
        let ended = program::run(command, input, Errors::Output, config.timeouts.create).await;
        let Finished { status, output } =
            ended.map_err(|source| Error::Launch { operation: "run start of", path: program.to_owned(), source })?;
        if status == 0 {
            let bootstrap = Bootstrap::parse(program, &output)?;
            context.dialects.learn(program, dialect);
            return Ok(bootstrap);
        }
        let output = String::from_utf8_lossy(&output).trim().to_owned();
        tracing::debug!(id, ?dialect, status, output, "a shim does not start");
        refusals.push(Error::ShimStart { output, status });
    }
    // The last word is that of the older dialect, which says what is wrong more often than not.
    Err(refusals.pop().unwrap_or_else(|| Error::Stopping(id.to_owned())))
}
