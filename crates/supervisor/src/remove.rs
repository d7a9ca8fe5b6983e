//! The end of a task: container, shim, files, in this order.
//!
//! **Invariant:** the files of a bundle go only after its shim has ended, so that nobody writes into a directory that
//! a new task may have.

use std::path::Path;
use std::sync::Arc;

use model::{Code, Timestamp};
use sys::crash::{daemon as crash, point};

use crate::ends::UNKNOWN;
use crate::manager::Context;
use crate::pidfd::Pidfd;
use crate::shim::ShimClient;
use crate::task::{Exit, Task};
use crate::{Error, launch};

/// Deletes the task at its shim; returns how init ended. `known` is its end, if it has come. The shim and the files stay.
pub(crate) async fn empty(task: &Task, alive: bool, known: Option<Exit>) -> Result<Exit, Error> {
    if !alive {
        return Ok(known.unwrap_or_default());
    }
    match (task.shim.delete(String::new()).await, known) {
        // An earlier attempt was cut off after the shim had deleted its container.
        (Err(Error::Shim { code: Code::NotFound, .. }), known) => Ok(known.unwrap_or_else(unknown)),
        (result, _) => result,
    }
}

/// The end of a process that nobody remembers.
fn unknown() -> Exit {
    Exit { pid: 0, exit_status: UNKNOWN, exited_at: Timestamp::now() }
}

/// Ends the shim of a task that is deleted there, and removes the files. A second attempt goes on where the first failed.
pub(crate) async fn clear(context: &Arc<Context>, task: &Task, shim: Option<&Pidfd>) -> Result<(), Error> {
    if shim.is_some() {
        end_shim(context, &task.shim, shim, false).await;
    }
    point(crash::SHIM_ENDED);
    remove_files(context, &task.namespace, &task.id).await
}

/// Ends a shim that has nothing to do: politely, then by force, unless it may have something to do for others.
pub(crate) async fn end_shim(context: &Context, client: &ShimClient, shim: Option<&Pidfd>, now: bool) {
    // The answer may be lost because the shim ends; its end is what counts.
    let _ = client.shutdown(now).await;
    let limit = context.config.timeouts.shutdown;
    let shared = client.by_start() && context.registry.others_use(client);
    if let Some(shim) = shim.filter(|_| !shared) {
        let polite = tokio::time::timeout(limit, shim.ended()).await.is_ok();
        if !polite && client.grouped() {
            tracing::warn!(
                pid = shim.pid(),
                "a shim of a group does not end; another container may be on its way to it"
            );
        } else if !polite {
            tracing::warn!(pid = shim.pid(), "a shim does not end and is killed");
            if let Err(error) = shim.signal(9) {
                tracing::warn!(pid = shim.pid(), error = %model::render(&error), "cannot kill a shim");
            }
            let _ = tokio::time::timeout(limit, shim.ended()).await;
        }
        shim.reap();
    }
    client.close();
    if client.by_start() && !shared {
        let endpoint = client.endpoint().clone();
        let _ = tokio::task::spawn_blocking(move || launch::remove_stale(&endpoint)).await;
    }
}

/// Removes bundle, work directory and socket.
pub(crate) async fn remove_files(context: &Arc<Context>, namespace: &str, id: &str) -> Result<(), Error> {
    let (context, namespace, id) = (Arc::clone(context), namespace.to_owned(), id.to_owned());
    let stopping = id.clone();
    tokio::task::spawn_blocking(move || context.layout.remove(&namespace, &id))
        .await
        .map_err(|_| Error::Stopping(stopping))?
}

/// Undoes a creation that failed with `error`: ends the shim, what it may have made, and the files. Returns the error
/// to tell, which for a shim that died has the end of its log.
#[expect(clippy::too_many_arguments, reason = "there is no task yet that would hold them")]
pub(crate) async fn undo(
    context: &Arc<Context>,
    namespace: &str,
    id: &str,
    program: &Path,
    bundle: &Path,
    client: &ShimClient,
    shim: Option<&Pidfd>,
    error: Error,
) -> Error {
    // A shim that answered has cleaned up behind itself; one that did not may have left a container.
    let answered = matches!(error, Error::Shim { .. });
    let died = matches!(error, Error::Closed { .. });
    end_shim(context, client, shim, true).await;
    let log = if died { launch::log_tail(bundle) } else { String::new() };
    if !answered && let Err(error) = launch::delete(&context.config, namespace, id, program, bundle).await {
        tracing::warn!(id, error = %model::render(&error), "what a shim left may not be removed");
    }
    if let Err(error) = remove_files(context, namespace, id).await {
        tracing::warn!(namespace, id, error = %model::render(&error), "a bundle stays until the next start");
    }
    if died && !client.by_start() { Error::ShimDied { log } } else { error }
}
