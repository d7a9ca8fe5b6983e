//! The engines, opened in the order in which they need each other. Opening them is recovery.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use content::ContentStore;
use events::Journal;
use metadata::Metadata;
use model::Coded;
use services::{Blocking, Engines, MountKeeper, Plugin, Server, Streams};
use snapshots::{Driver, Native, Overlay, OverlayOptions};
use store::Store;
use supervisor::Supervisor;
use tokio::sync::watch;

use crate::config::Config;
use crate::plugins;

/// The shim, which stands beside this program.
const SHIM: &str = "containerd-shim-gantry-v2";

/// Opens everything that the services call. What survived the last daemon is found and taken over: records, unpublished
/// events, tasks.
pub(crate) async fn engines(config: &Config, stopping: watch::Receiver<bool>) -> anyhow::Result<Engines> {
    let (blocking, lengthy) = (Blocking::default(), Blocking::lengthy());
    let journal_config = events::Config { fields: api_grpc::event_field, ..events::Config::default() };
    let boot = sys::boot_id().context("read the boot id")?;
    let journal = Journal::open(&config.state, boot, journal_config).context("open the event journal")?;

    let (root, publish) = (config.root.clone(), journal.clone());
    let opened = tokio::task::spawn_blocking(move || metadata(&root, publish)).await.context("open the metadata")?;
    let (metadata, plugins) = opened?;
    let (root, state) = (config.root.clone(), config.state.clone());
    let mounts = tokio::task::spawn_blocking(move || mounts::Manager::open(&state, &root, boot)).await;
    let mounts = mounts.context("open the mount manager")?.map_err(describe).context("open the mount manager")?;
    metadata.keep(Arc::new(MountKeeper(mounts.clone())));
    let streams = Streams::default();
    metadata.keep(Arc::new(streams.clone()));

    let supervisor = Supervisor::new(
        supervisor::Config {
            runtimes: config.runtimes.clone().into(),
            ttrpc_address: config.ttrpc.address.clone(),
            debug: matches!(config.debug.level.as_str(), "debug" | "trace"),
            ..supervisor::Config::new(
                config.state.clone(),
                config.root.clone(),
                shim_path()?,
                config.grpc.address.clone(),
            )
        },
        journal.clone(),
    )
    .map_err(describe)
    .context("prepare for tasks")?;
    let adopted = supervisor.adopt().await.map_err(describe).context("take over running tasks")?;
    tracing::info!(?adopted, "tasks taken over");

    let server =
        Server::open(&config.root, env!("CARGO_PKG_VERSION"), "", plugins).context("read the daemon's uuid")?;
    Ok(Engines { metadata, supervisor, journal, blocking, lengthy, mounts, streams, server, stopping })
}

/// Opens what lives in the root directory. Blocks on the disk.
fn metadata(root: &Path, journal: Journal) -> anyhow::Result<(Metadata, Vec<Plugin>)> {
    let store_path = root.join("io.gantry.store");
    let store = Store::open(&store_path, store::Options::default())
        .map_err(describe)
        .with_context(|| format!("open the database {}", store_path.display()))?;
    let content_path = root.join("io.containerd.content.v1.content");
    let content = ContentStore::open(&content_path).map_err(describe).context("open the content store")?;

    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    let mut plugins = plugins::foundation(&content_path);
    type Opened = Result<Arc<dyn Driver>, snapshots::Error>;
    let directory = |name: &str| root.join(format!("io.containerd.snapshotter.v1.{name}"));
    let native: Opened = Native::open(&directory("native")).map(|driver| Arc::new(driver) as _);
    let overlay: Opened =
        Overlay::open(&directory("overlayfs"), OverlayOptions::default()).map(|driver| Arc::new(driver) as _);
    for (name, driver) in [("native", native), ("overlayfs", overlay)] {
        match driver {
            Ok(driver) => {
                plugins.push(plugins::snapshotter(name, Ok(&driver)));
                drivers.push(driver);
            }
            Err(error) => {
                let why = model::render(&error);
                tracing::warn!(snapshotter = name, why, "snapshotter is not available");
                plugins.push(plugins::snapshotter(name, Err(why)));
            }
        }
    }
    let metadata = Metadata::open(store, content, drivers, journal).map_err(describe).context("open the metadata")?;
    plugins.extend(plugins::house(&store_path));
    Ok((metadata, plugins))
}

/// Errors of the engines name their sources themselves.
fn describe(error: impl Coded) -> anyhow::Error {
    anyhow::Error::msg(model::render(&error))
}

/// The shim is found beside this program's file, wherever links to it stand.
fn shim_path() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find this program's file")?;
    Ok(program.with_file_name(SHIM))
}
