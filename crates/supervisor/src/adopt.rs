//! Taking over what an earlier daemon left.
//!
//! | on disk | becomes |
//! |---|---|
//! | a task record of this boot | the task, in the state that the records and pidfds tell |
//! | a task record of another boot | removed |
//! | a bundle without a task record | its shim is ended, then removed |
//! | a hidden bundle, a work directory or socket without a bundle | removed |
//!
//! **Invariant:** no shim is asked anything here, so a frozen one delays nobody. Ends that the journal does not hold
//! are published once, before any request is served.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use events::{Entry, Journal};
use model::Timestamp;
use model::record::{ProcessIdentity, Status};
use sys::crash::{daemon as crash, point};
use tokio::sync::mpsc;

use crate::actor::MAILBOX;
use crate::bootstrap::{Bootstrap, Endpoint};
use crate::bundle::{self, Layout};
use crate::catch_up::{catch_up, told_state};
use crate::keep::Keeper;
use crate::manager::{Context, install};
use crate::pidfd::Pidfd;
use crate::published::{Published, Told};
use crate::records::{self, Found, Records};
use crate::report::Report;
use crate::shim::ShimClient;
use crate::task::{Exit, Process, Task};
use crate::{Error, launch, oom, remove, shim_log};

/// How long adoption waits for shims without a task to end; after that they are ended in the background.
const LEAKED: Duration = Duration::from_secs(2);

/// After this time a shim without a task is asked again to end.
const AGAIN: Duration = Duration::from_millis(50);

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Tasks that are not stopped.
    pub live: usize,
    /// Tasks that wait to be deleted.
    pub stopped: usize,
    /// Bundles that belonged to nobody.
    pub removed: usize,
}

/// A task on disk.
struct Candidate {
    namespace: String,
    id: String,
    bundle: PathBuf,
    records: Box<Records>,
    shim: Option<OwnedFd>,
    init: Option<OwnedFd>,
}

pub(crate) async fn adopt(context: &Arc<Context>) -> Result<Adopted, Error> {
    let shared = Arc::clone(context);
    let (candidates, leaked, removed, mut published) = blocking(move || scan(&shared)).await?;
    point(crash::ADOPT_SCANNED);
    let mut adopted = Adopted { removed, ..Adopted::default() };
    for candidate in candidates {
        let told = published.take(&candidate.namespace, &candidate.id);
        if take_over(context, candidate, told, &published)? {
            adopted.live += 1;
        } else {
            adopted.stopped += 1;
        }
    }
    let unfinished: Vec<(String, String)> =
        leaked.iter().map(|entry| (entry.namespace.clone(), entry.id.clone())).collect();
    for ((namespace, id), told) in published.rest() {
        if !unfinished.contains(&(namespace.clone(), id.clone())) {
            forgotten(context, &namespace, &id, &told);
        }
    }
    adopted.removed += leaked.len();
    let mut ending = tokio::task::JoinSet::new();
    for entry in leaked {
        if context.registry.reserve_removal(&entry.namespace, &entry.id) {
            ending.spawn(end_leaked(Arc::clone(context), entry));
        }
    }
    if tokio::time::timeout(LEAKED, async { while ending.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(count = ending.len(), "shims without a task do not end; they are left to the background");
        ending.detach_all();
    }
    let shared = Arc::clone(context);
    blocking(move || shared.layout.sweep()).await?;
    point(crash::ADOPT_SWEPT);
    Ok(adopted)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping("adoption".to_owned()))?
}

/// Sorts what is on disk, and removes what can be removed at once.
fn scan(context: &Context) -> Result<(Vec<Candidate>, Vec<bundle::Entry>, usize, Published), Error> {
    let layout = &context.layout;
    let (mut candidates, mut leaked, mut removed) = (Vec::new(), Vec::new(), 0);
    let entries = layout.entries()?;
    for entry in &entries {
        let plain =
            || entries.iter().any(|other| !other.hidden && other.namespace == entry.namespace && other.id == entry.id);
        if entry.hidden {
            if plain() {
                layout.remove_hidden(&entry.namespace, &entry.id)?;
            } else {
                discard(layout, entry);
            }
            removed += 1;
            continue;
        }
        let bundle = layout.bundle(&entry.namespace, &entry.id);
        match records::read(&bundle, context.boot_id) {
            Found::Stale => {
                discard(layout, entry);
                removed += 1;
            }
            Found::Nothing => leaked.push(entry.clone()),
            Found::Task(records) => {
                let (shim, init) = (pidfd_of(records.task.shim), pidfd_of(records.task.init));
                candidates.push(Candidate {
                    namespace: entry.namespace.clone(),
                    id: entry.id.clone(),
                    bundle,
                    records,
                    shim,
                    init,
                });
            }
        }
    }
    let published = read_journal(context.publisher.journal());
    Ok((candidates, leaked, removed, published))
}

fn read_journal(journal: &Journal) -> Published {
    Published::read(journal).unwrap_or_else(|error| {
        tracing::error!(error = %model::render(&error), "the journal cannot be read: ends are told again");
        Published::default()
    })
}

fn discard(layout: &Layout, entry: &bundle::Entry) {
    if let Err(error) = layout.remove(&entry.namespace, &entry.id) {
        tracing::warn!(namespace = entry.namespace, id = entry.id, error = %model::render(&error), "a leftover bundle cannot be removed");
    }
}

/// The very process that a record names, if it is still there.
pub(crate) fn pidfd_of(identity: ProcessIdentity) -> Option<OwnedFd> {
    sys::process::pidfd_of(sys::process::ProcessIdentity { pid: identity.pid, start_time: identity.start_time }).ok()
}

/// Makes a task of what is on disk, and tells what the last daemon did not. True if it is not stopped.
fn take_over(context: &Arc<Context>, candidate: Candidate, told: Told, published: &Published) -> Result<bool, Error> {
    let Candidate { namespace, id, bundle, records, shim, init } = candidate;
    let task = &records.task;
    let publish = |report| context.publish(&namespace, &id, report);
    if !told.created && published.covers(records::modified(&bundle.join("config.json"))) {
        let bundle = bundle.display().to_string();
        publish(Report::Create {
            bundle,
            rootfs: Vec::new(),
            stdio: task.stdio.clone(),
            checkpoint: String::new(),
            pid: task.init.pid,
        });
    }
    let mut state = told_state(&bundle, &records, &told, published);
    if let Some(exit) = told.exit.as_deref().and_then(told_exit) {
        // Nothing is told behind an end, even where the shim had no room to record it.
        state.init.stop(exit);
    }
    let forgotten = |time| !published.covers(time);
    catch_up(&mut state, (&bundle, context.boot_id), &records, |_| false, forgotten, publish);
    let pid = task.init.pid;
    let mut told_of_memory = oom::Told::read(&bundle, told.ooms, |at| published.covers(at));
    let recorded = records::exit(&bundle, "", context.boot_id);
    let unrecorded =
        (task.status == Status::Stopped).then(|| Exit { pid, exit_status: 255, exited_at: Timestamp::now() });
    let outlived = told.exit.is_none() && state.execs.values().any(Process::lives);
    // Init's end is told last: where another process lives or seems to, the actor knows when.
    let recorded = state.init.exit().or(recorded).or(unrecorded);
    if let Some(exit) = recorded.filter(|_| !outlived) {
        let report = Report::Exit { exec_id: String::new(), exit };
        state.exit_event = Some(match told.exit {
            Some(entry) => entry,
            None if published.covers(exit.exited_at) => {
                // The last daemon may have died between the two.
                if told_of_memory.note(&bundle, records::oom_kills(&bundle, context.boot_id)) {
                    publish(Report::Oom);
                }
                publish(report)
            }
            // The journal has forgotten it, so everybody was told; only those who ask anew are told again.
            None => Arc::new(Entry { sequence: 0, envelope: report.envelope(&namespace, &id) }),
        });
        state.init.stop(exit);
    }
    point(crash::ADOPT_TOLD);
    let live = state.init.status != Status::Stopped;
    let program = program(context, &bundle);
    let (client, foreign) = client(context, &namespace, &id, &bundle);
    let keeper = foreign.then_some(Keeper { boot_id: context.boot_id, shim: task.shim });
    let watch = |pid, pidfd: Option<OwnedFd>| pidfd.map(|pidfd| Pidfd::new(pid, pidfd)).transpose();
    let (shim, init) = (watch(task.shim.pid, shim)?.map(Arc::new), watch(pid, init)?);
    if let Some(shim) = shim.as_ref().filter(|_| client.by_start()) {
        match shim_log::open(&bundle.join(shim_log::FIFO)) {
            Ok(log) => shim_log::follow(log, &namespace, &id, Arc::clone(shim)),
            Err(error) => tracing::warn!(namespace, id, error = %model::render(&error), "a shim's log cannot be read"),
        }
    }
    let (mailbox, commands) = mpsc::channel(MAILBOX);
    let task = Task::new((namespace, id), bundle, program, (client, keeper), init, mailbox, state);
    install(context, task, shim, commands, told_of_memory);
    Ok(live)
}

/// The shim that a bundle was made for.
fn program(context: &Context, bundle: &Path) -> PathBuf {
    std::fs::read_to_string(bundle.join("shim-binary-path")).map_or_else(|_| context.config.shim.clone(), PathBuf::from)
}

/// A client of a bundle's shim, not connected yet, and whether the shim leaves the records to us.
fn client(context: &Context, namespace: &str, id: &str, bundle: &Path) -> (ShimClient, bool) {
    let own = Endpoint::Path(context.layout.socket(namespace, id));
    let client = |endpoint| ShimClient::new(namespace.to_owned(), id.to_owned(), endpoint, context.config.timeouts);
    let Some((bootstrap, endpoint)) = Bootstrap::read(bundle)
        .and_then(|bootstrap| bootstrap.endpoint().map(|endpoint| (bootstrap, endpoint)))
        .filter(|(_, endpoint)| *endpoint != own)
    else {
        return (client(own), false);
    };
    let grouped = std::fs::read(bundle.join("config.json")).is_ok_and(|spec| bundle::grouped(&spec));
    (client(endpoint).of_start(bootstrap.version, grouped), bootstrap.kept_by_daemon)
}

/// How init ended, by the event that told it.
fn told_exit(entry: &Entry) -> Option<Exit> {
    let event = api_grpc::decode::unpack::<api_grpc::events::TaskExit>(&entry.envelope.event).ok()?;
    let exited_at = api_grpc::decode::timestamp(event.exited_at);
    Some(Exit { pid: event.pid, exit_status: event.exit_status, exited_at })
}

/// A task that was told of and is gone: the daemon died between the removal and its event. Its end was told before the
/// removal; one that somebody else removed has an end that nobody knows.
fn forgotten(context: &Context, namespace: &str, id: &str, told: &Told) {
    let unknown = Exit { pid: 0, exit_status: 255, exited_at: Timestamp::now() };
    let exit = match &told.exit {
        Some(entry) => told_exit(entry).unwrap_or(unknown),
        None if told.created => {
            context.publish(namespace, id, Report::Exit { exec_id: String::new(), exit: unknown });
            unknown
        }
        None => return,
    };
    context.publish(namespace, id, Report::Delete { exit });
}

/// Ends the shim of a bundle that has no task, if there is one, and removes the bundle.
async fn end_leaked(context: Arc<Context>, entry: bundle::Entry) {
    let bundle::Entry { namespace, id, .. } = entry;
    let bundle = context.layout.bundle(&namespace, &id);
    let (client, _) = client(&context, &namespace, &id, &bundle);
    if client.connect().await.is_ok()
        && let Ok(Some(shim)) = client.shim_process().await
    {
        // It may be about to make a container, and does not end before that is deleted.
        let ending = async {
            loop {
                let _ = client.delete(String::new()).await;
                let _ = client.shutdown(true).await;
                if tokio::time::timeout(AGAIN, shim.ended()).await.is_ok() {
                    return;
                }
            }
        };
        if tokio::time::timeout(context.config.timeouts.shutdown, ending).await.is_ok() {
            shim.reap();
            client.close();
        } else {
            remove::end_shim(&context, &client, Some(&shim), true).await;
        }
    }
    let program = program(&context, &bundle);
    let deleted = launch::delete(&context.config, &namespace, &id, &program, &bundle).await.map(drop);
    let removed = remove::remove_files(&context, &namespace, &id).await;
    if let Err(error) = removed.and(deleted) {
        tracing::warn!(namespace, id, error = %model::render(&error), "an unfinished task cannot be removed");
    }
    context.registry.remove(&namespace, &id);
}
