//! The log goes to standard error, as text or as one JSON object per line.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{Targets, dynamic_filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::Debug;

/// Libraries below the API log every frame; they are wanted only with `trace`, and then one level lower.
const CHATTY: [&str; 7] = ["h2", "hyper", "hyper_util", "loona_hpack", "sled", "tonic", "tower"];

/// Changes what is logged, and how, while the daemon runs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Logging {
    targets: reload::Handle<Targets, Registry>,
    json: Arc<AtomicBool>,
}

/// Starts logging as configured.
pub(crate) fn start(debug: &Debug) -> anyhow::Result<Logging> {
    let (targets, handle) = reload::Layer::new(targets(&debug.level)?);
    let json = Arc::new(AtomicBool::new(is_json(&debug.format)?));
    // Each form has a layer of its own, because a span that began in one cannot be written in the other.
    let (in_text, in_json) = (Arc::clone(&json), Arc::clone(&json));
    let text_layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let json_layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).json();
    tracing_subscriber::registry()
        .with(targets)
        .with(text_layer.with_filter(dynamic_filter_fn(move |_, _| !in_text.load(Ordering::Relaxed))))
        .with(json_layer.with_filter(dynamic_filter_fn(move |_, _| in_json.load(Ordering::Relaxed))))
        .init();
    Ok(Logging { targets: handle, json })
}

impl Logging {
    /// Logs as configured from now on.
    pub(crate) fn change(&self, debug: &Debug) -> anyhow::Result<()> {
        let (targets, json) = (targets(&debug.level)?, is_json(&debug.format)?);
        self.targets.reload(targets).context("change the log level")?;
        self.json.store(json, Ordering::Relaxed);
        Ok(())
    }
}

fn targets(level_name: &str) -> anyhow::Result<Targets> {
    let level = level(level_name)?;
    let chatty = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::WARN.min(level) };
    Ok(Targets::new().with_default(level).with_targets(CHATTY.map(|target| (target, chatty))))
}

fn is_json(format: &str) -> anyhow::Result<bool> {
    match format {
        "text" => Ok(false),
        "json" => Ok(true),
        other => bail!("debug.format must be text or json, not {other:?}"),
    }
}

fn level(name: &str) -> anyhow::Result<LevelFilter> {
    Ok(match name {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        other => bail!("log level must be trace, debug, info, warn, error, fatal or panic, not {other:?}"),
    })
}

/// Says why the daemon cannot go on. Nobody is left to tell if even this fails.
pub(crate) fn fatal(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}
