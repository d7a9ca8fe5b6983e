//! SIGHUP: the configuration is read again, and what can change while the daemon runs does.
//!
//! **Invariant:** nothing here ends the daemon: a configuration that is wrong is reported and the old one stays.

use anyhow::Context as _;
use supervisor::Supervisor;

use crate::cli::Arguments;
use crate::config::{self, Config};
use crate::logging::Logging;

/// What is needed to read the configuration again.
#[derive(Debug)]
pub(crate) struct Reload {
    /// How the daemon was called: flags still win over the file.
    pub(crate) arguments: Arguments,
    /// What is in force.
    pub(crate) current: Config,
    pub(crate) logging: Logging,
}

impl Reload {
    /// Reads the configuration again: level and format of the log, and runtimes. Blocks on small files.
    pub(crate) fn reload(&mut self, supervisor: &Supervisor) {
        match self.apply(supervisor) {
            Ok(fixed) if fixed.is_empty() => tracing::info!("configuration reloaded"),
            Ok(fixed) => tracing::warn!(
                fixed = fixed.join(", "),
                "configuration reloaded: log and runtimes; what else has changed needs a restart"
            ),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "configuration not reloaded; the old one stays")
            }
        }
    }

    fn apply(&mut self, supervisor: &Supervisor) -> anyhow::Result<Vec<&'static str>> {
        let loaded = config::load(&self.arguments)?;
        // The only thing that can still be refused comes first: nothing changes by halves.
        self.logging.change(&loaded.config.debug).context("configure the log")?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        supervisor.set_runtimes(loaded.config.runtimes.clone());
        let fixed = self.current.fixed_differences(&loaded.config);
        self.current.debug = loaded.config.debug;
        self.current.runtimes = loaded.config.runtimes;
        Ok(fixed)
    }
}
