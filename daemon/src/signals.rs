//! Signals: SIGTERM and SIGINT stop the daemon, SIGUSR1 writes down what its threads do.
//!
//! SIGPIPE is ignored by Rust's runtime already.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::threads;

/// The handlers, installed before the engines are opened: a daemon that recovers can be stopped, too.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    report: Signal,
}

impl Signals {
    pub(crate) fn install() -> anyhow::Result<Self> {
        let install = |kind, name: &str| signal(kind).with_context(|| format!("handle {name}"));
        Ok(Self {
            terminate: install(SignalKind::terminate(), "SIGTERM")?,
            interrupt: install(SignalKind::interrupt(), "SIGINT")?,
            report: install(SignalKind::user_defined1(), "SIGUSR1")?,
        })
    }

    /// Returns the name of the signal that asks the daemon to stop; meanwhile answers SIGUSR1.
    ///
    /// Cancel-safe.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.report.recv() => threads::report(),
            }
        }
    }
}
