//! Signals: SIGTERM and SIGINT stop the daemon, SIGUSR1 writes down what its threads do, SIGUSR2 replaces the daemon by
//! the program that is installed now, SIGHUP makes it read its configuration again.
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
    replace: Signal,
    reload: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The end of the daemon, by the signal of this name.
    Stop(&'static str),
    /// Another program in its place.
    Replace,
    /// A look at the configuration.
    Reload,
}

impl Signals {
    pub(crate) fn install() -> anyhow::Result<Self> {
        let install = |kind, name: &str| signal(kind).with_context(|| format!("handle {name}"));
        Ok(Self {
            terminate: install(SignalKind::terminate(), "SIGTERM")?,
            interrupt: install(SignalKind::interrupt(), "SIGINT")?,
            report: install(SignalKind::user_defined1(), "SIGUSR1")?,
            replace: install(SignalKind::user_defined2(), "SIGUSR2")?,
            reload: install(SignalKind::hangup(), "SIGHUP")?,
        })
    }

    /// Returns what a signal asks for; meanwhile answers SIGUSR1.
    ///
    /// Cancel-safe.
    pub(crate) async fn wish(&mut self) -> Wish {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Wish::Stop("SIGTERM"),
                _ = self.interrupt.recv() => return Wish::Stop("SIGINT"),
                _ = self.replace.recv() => return Wish::Replace,
                _ = self.reload.recv() => return Wish::Reload,
                _ = self.report.recv() => threads::report(),
            }
        }
    }

    /// Returns the name of the signal that asks the daemon to stop; it cannot be replaced meanwhile.
    ///
    /// Cancel-safe.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            match self.wish().await {
                Wish::Stop(signal) => return signal,
                Wish::Replace => tracing::warn!("not replaced: the daemon is starting or stopping"),
                Wish::Reload => tracing::warn!("not reloaded: the daemon is starting or stopping"),
            }
        }
    }
}
