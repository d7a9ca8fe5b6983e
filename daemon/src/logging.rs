//! The log goes to standard error, as text or as one JSON object per line.

use std::io::Write as _;

use anyhow::bail;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Debug;

/// Libraries below the API log every frame; they are wanted only with `trace`, and then one level lower.
const CHATTY: [&str; 7] = ["h2", "hyper", "hyper_util", "loona_hpack", "sled", "tonic", "tower"];

/// Starts logging as configured.
pub(crate) fn start(debug: &Debug) -> anyhow::Result<()> {
    let level = level(&debug.level)?;
    let chatty = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::WARN.min(level) };
    let targets = Targets::new().with_default(level).with_targets(CHATTY.map(|target| (target, chatty)));
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match debug.format.as_str() {
        "text" => registry.with(layer).init(),
        "json" => registry.with(layer.json()).init(),
        other => bail!("debug.format must be text or json, not {other:?}"),
    }
    Ok(())
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
