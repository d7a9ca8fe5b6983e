//! Looks at containers when there is a reason to, one at a time each, and carries out what their labels ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use api_grpc::decode::unpack;
use api_grpc::events as wire;
use events::{Entry, Journal};
use metadata::{Container, Metadata, Scope};
use model::filter::Filters;
use model::record::{Status, StdioPaths};
use model::{Code, Coded as _, Namespace};
use supervisor::{CreateTask, Supervisor};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agenda::{Agenda, Key, Outcome};
use crate::image;
use crate::policy::{self, COUNT, Change, PENDING, Standing};

/// How long a client has to make the task of a container that it has just created or changed.
const CLIENTS_TURN: Duration = Duration::from_secs(10);
/// Containers that are started or stopped at once.
const AT_ONCE: usize = 8;
/// How long a killed container has to end.
const END: Duration = Duration::from_secs(20);

/// Keeps containers in the state that their labels ask for. See the crate's documentation.
#[derive(Clone, Debug)]
pub struct Monitor {
    metadata: Metadata,
    supervisor: Supervisor,
    journal: Journal,
}

impl Monitor {
    /// A monitor of everything in `metadata`.
    pub fn new(metadata: Metadata, supervisor: Supervisor, journal: Journal) -> Self {
        Self { metadata, supervisor, journal }
    }

    /// Works until `stopping` is true. What is under way then is carried out by the next daemon.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut agenda = Agenda::default();
        let mut working: JoinSet<(Key, Outcome)> = JoinSet::new();
        loop {
            // Registered before the look at everything, so that nothing falls between the two.
            let mut news = self.journal.subscribe(Filters::default(), |_| Vec::new());
            for key in self.all().await {
                agenda.plan(key, Instant::now());
            }
            let lagged = loop {
                let due = agenda.next().filter(|_| working.len() < AT_ONCE);
                let until_due = async {
                    match due {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    entry = news.next() => match entry {
                        Ok(entry) => note(&mut agenda, &entry),
                        Err(error) => break error,
                    },
                    () = until_due => if let Some(key) = agenda.begin(Instant::now()) {
                        working.spawn(self.clone().attend(key));
                    },
                    Some(done) = working.join_next() => if let Ok((key, outcome)) = done {
                        agenda.finish(key, outcome, Instant::now());
                    },
                }
            };
            tracing::warn!(error = %model::render(&lagged), "the restart monitor looks at everything again");
        }
    }

    /// All containers that may have labels for us.
    async fn all(&self) -> Vec<Key> {
        let metadata = self.metadata.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let filters = Filters::parse(&[format!("labels.{:?}", policy::STATUS)]).unwrap_or_default();
            let mut keys = Vec::new();
            for info in metadata.namespaces().list()? {
                // A name in the store has passed its rule.
                let Ok(namespace) = info.name.parse::<Namespace>() else { continue };
                for container in metadata.containers().list(&namespace, &filters)? {
                    keys.push((info.name.clone(), container.id));
                }
            }
            Ok::<_, metadata::Error>(keys)
        });
        match listed.await {
            Ok(Ok(keys)) => keys,
            Ok(Err(error)) => {
                tracing::error!(error = %model::render(&error), "the restart monitor cannot list containers");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    async fn attend(self, key: Key) -> (Key, Outcome) {
        let outcome = self.look(&key).await.unwrap_or_else(|error| {
            tracing::warn!(namespace = key.0, id = key.1, error, "a container cannot be kept as its labels ask");
            Outcome::Failed
        });
        (key, outcome)
    }

    /// Compares a container with its labels and does what they ask for.
    async fn look(&self, (namespace, id): &Key) -> Result<Outcome, String> {
        let namespace: Namespace = namespace.parse().map_err(|error| format!("{error}"))?;
        let Some((container, log_refused)) = self.container(&namespace, id).await? else {
            return Ok(Outcome::Nothing);
        };
        let task = match self.supervisor.get(&namespace, id, "") {
            Ok(state) => Some(Standing { status: state.status, exit_status: state.exit_status }),
            Err(error) if error.code() == Code::NotFound => None,
            Err(error) => return Err(model::render(&error)),
        };
        match policy::change(&container.labels, task)? {
            None => {
                tracing::debug!(id, ?task, "left as it is");
                Ok(Outcome::Nothing)
            }
            Some(Change::Stop) => {
                self.end(&namespace, id).await?;
                Ok(Outcome::Nothing)
            }
            Some(Change::Start { count, mut log }) => {
                if log_refused && !log.is_empty() {
                    tracing::warn!(id, log, "the image cannot be read to tell whether this log is its wish: no log");
                    log.clear();
                }
                // Told apart from a task that a client has deleted, should we die in between.
                self.mark(&namespace, id, Some(count)).await?;
                let started = self.start_again(&namespace, container, task.is_some(), log).await;
                self.mark(&namespace, id, None).await?;
                started?;
                tracing::info!(namespace = namespace.as_str(), id, count, "started again");
                Ok(Outcome::Started)
            }
        }
    }

    /// The container, without labels that come from its image; and whether nobody can tell which do.
    async fn container(&self, namespace: &Namespace, id: &str) -> Result<Option<(Container, bool)>, String> {
        let (metadata, namespace, id) = (self.metadata.clone(), namespace.clone(), id.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let mut container = match metadata.containers().get(&namespace, &id) {
                Ok(container) => container,
                Err(error) if error.code() == Code::NotFound => return Ok(None),
                Err(error) => return Err(model::render(&error)),
            };
            if !container.labels.keys().any(|name| name.starts_with(policy::PREFIX)) {
                return Ok(None);
            }
            if container.image.is_empty() {
                return Ok(Some((container, false)));
            }
            let brought = image::labels(&metadata, &namespace, &container.image);
            let unknown = brought.is_none();
            let brought = brought.unwrap_or_default();
            container.labels.retain(|name, value| brought.get(name) != Some(value));
            Ok(Some((container, unknown)))
        });
        found.await.map_err(|error| error.to_string())?
    }

    /// Writes down that a container is being started for the `count`th time, or with `None` that this is over.
    async fn mark(&self, namespace: &Namespace, id: &str, count: Option<u64>) -> Result<(), String> {
        let (metadata, scope) = (self.metadata.clone(), Scope::new(namespace.clone()));
        let pending = (PENDING.to_owned(), if count.is_some() { "true".to_owned() } else { String::new() });
        let count = count.map(|count| (COUNT.to_owned(), count.to_string()));
        let labels: BTreeMap<_, _> = count.into_iter().chain([pending]).collect();
        let mask: Vec<String> = labels.keys().map(|name| format!("labels.{name}")).collect();
        let changed = Container { id: id.to_owned(), labels, ..Container::default() };
        tokio::task::spawn_blocking(move || metadata.containers().update(&scope, &changed, &mask))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| model::render(&error))?;
        Ok(())
    }

    /// Ends a task and removes it.
    async fn end(&self, namespace: &Namespace, id: &str) -> Result<(), String> {
        let gone = |error: &supervisor::Error| error.code() == Code::NotFound;
        let told = |error: supervisor::Error| model::render(&error);
        let stopped = self.supervisor.get(namespace, id, "").is_ok_and(|state| state.status == Status::Stopped);
        if !stopped {
            match self.supervisor.kill(namespace, id, "", 9, true).await {
                Err(error) if !gone(&error) => return Err(told(error)),
                Ok(()) | Err(_) => {}
            }
            let ended = tokio::time::timeout(END, self.supervisor.wait(namespace, id, "")).await;
            match ended.map_err(|_| format!("it does not end within {END:?} of being killed"))? {
                Err(error) if !gone(&error) => return Err(told(error)),
                Ok(_) | Err(_) => {}
            }
        }
        match self.supervisor.delete(namespace, id).await {
            Err(error) if !gone(&error) => Err(told(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Makes a new task and starts it, in place of one that has `ended`.
    async fn start_again(
        &self,
        namespace: &Namespace,
        container: Container,
        ended: bool,
        log: String,
    ) -> Result<(), String> {
        let id = container.id.clone();
        if ended {
            self.end(namespace, &id).await?;
        }
        let (metadata, scope) = (self.metadata.clone(), namespace.clone());
        let (snapshotter, key) = (container.snapshotter.clone(), container.snapshot_key.clone());
        let rootfs = if key.is_empty() {
            Vec::new()
        } else {
            tokio::task::spawn_blocking(move || metadata.snapshots().mounts(&scope, &snapshotter, &key))
                .await
                .map_err(|error| error.to_string())?
                .map_err(|error| model::render(&error))?
        };
        let task = CreateTask {
            id: container.id,
            runtime: container.runtime,
            spec: container.spec.map(|spec| spec.value).unwrap_or_default(),
            rootfs,
            stdio: StdioPaths { stdin: String::new(), stdout: log.clone(), stderr: log, terminal: false },
            checkpoint: String::new(),
            options: container.runtime_options,
        };
        self.supervisor.create(namespace, task).await.map_err(|error| model::render(&error))?;
        if let Err(error) = self.supervisor.start(namespace, &id, "").await {
            let error = model::render(&error);
            if let Err(second) = self.end(namespace, &id).await {
                tracing::warn!(id, error = second, "a container that could not be started stays behind");
            }
            return Err(error);
        }
        Ok(())
    }
}

/// Takes note of an event: which container it is a reason to look at, and when.
fn note(agenda: &mut Agenda, entry: &Entry) {
    let envelope = &entry.envelope;
    let now = Instant::now();
    let key = |id: String| (envelope.namespace.clone(), id);
    match envelope.topic.as_str() {
        "/tasks/exit" => {
            if let Ok(event) = unpack::<wire::TaskExit>(&envelope.event)
                && event.id == event.container_id
            {
                agenda.ended(key(event.id), now);
            }
        }
        "/containers/create" => {
            if let Ok(event) = unpack::<wire::ContainerCreate>(&envelope.event) {
                agenda.plan(key(event.id), now + CLIENTS_TURN);
            }
        }
        "/containers/update" => {
            if let Ok(event) = unpack::<wire::ContainerUpdate>(&envelope.event) {
                // Nobody but us stops what its labels say is to be stopped.
                let stop = event.labels.get(policy::STATUS).is_some_and(|status| status == "stopped");
                agenda.plan(key(event.id), if stop { now } else { now + CLIENTS_TURN });
            }
        }
        "/containers/delete" => {
            if let Ok(event) = unpack::<wire::ContainerDelete>(&envelope.event) {
                agenda.forget(key(event.id));
            }
        }
        _ => {}
    }
}
