//! `publish`: how shims that do not speak ttrpc report to the daemon (their flag `-publish-binary`).

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::config::Config;

/// Events are small; this much of standard input is read at most.
const EVENT_MAX_BYTES: u64 = 4 << 20;

/// Publishes the event on standard input at the daemon that runs with this configuration.
pub(crate) fn publish(config: &Config, topic: String, namespace: String) -> anyhow::Result<()> {
    let mut event = Vec::new();
    std::io::stdin().lock().take(EVENT_MAX_BYTES).read_to_end(&mut event).context("read the event")?;
    // The daemon tells it to its shims, whose children we are.
    let address = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty());
    let address = address.map_or_else(|| PathBuf::from(&config.ttrpc.address), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    runtime
        .block_on(supervisor::publish(&address, namespace, topic, &event))
        .map_err(|error| anyhow::Error::msg(model::render(&error)))
}
