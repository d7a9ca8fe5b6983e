//! From a configuration to a daemon that serves, and to its end.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use services::RequestLayer;
use supervisor::EventServer;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::transport::Server;

use crate::config::Config;
use crate::reload::Reload;
use crate::signals::{Signals, Wish};
use crate::{assemble, directories, replace, socket};

/// How long requests that are running when the daemon stops may go on. Open-ended ones end at once.
const GRACE: Duration = Duration::from_secs(3);

/// How serving ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The daemon was asked to stop.
    Stopped,
    /// Another program is to go on with the socket.
    Replaced(OwnedFd),
}

/// How long clients have to learn that a connection takes no more requests.
const LEAVE: Duration = Duration::from_millis(50);

/// Runs the daemon, whose file is `program`, until a signal asks it to stop or to be replaced.
pub(crate) async fn serve(mut reload: Reload, program: &Path) -> anyhow::Result<Ended> {
    let config = reload.current.clone();
    let mut signals = Signals::install()?;
    replace::release_signals();
    let (stop, stopping) = watch::channel(false);
    let (close, closing) = watch::channel(false);

    let opening = open(&config, stopping.clone());
    let (engines, listener) = tokio::select! {
        opened = opening => opened?,
        signal = signals.stop() => {
            tracing::info!(signal, "stopped while starting");
            return Ok(Ended::Stopped);
        }
    };
    let (journal, supervisor) = (engines.journal.clone(), engines.supervisor.clone());
    let ttrpc = &config.ttrpc;
    let events = EventServer::start(ttrpc.address.as_ref(), ttrpc.uid, ttrpc.gid, journal, supervisor)
        .await
        .context("serve events of shims")?;
    let limits =
        services::Limits { receive: config.grpc.max_recv_message_size, send: config.grpc.max_send_message_size };
    let monitor = restart::Monitor::new(engines.metadata.clone(), engines.supervisor.clone(), engines.journal.clone());
    tokio::spawn(monitor.run(stopping.clone()));
    let (routes, health) = services::routes(&engines, limits);
    let socket = listener.as_fd().try_clone_to_owned().context("copy the socket's descriptor")?;
    let api = tokio::spawn(
        Server::builder()
            .layer(RequestLayer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(socket::incoming(listener), stopped(closing)),
    );
    tracing::info!(address = config.grpc.address, "serving");
    notify(&[NotifyState::Ready]);

    let replaced = replaced(&mut signals, program, || reload.reload(&engines.supervisor)).await;
    if replaced {
        tracing::info!(program = %program.display(), "making room for the installed program; containers keep running");
        notify(&[NotifyState::Reloading]);
    } else {
        notify(&[NotifyState::Stopping]);
        // While it is still ours: once nobody answers there, a successor may put its own in its place.
        socket::remove(&config.grpc);
    }
    health.stop().await;
    // First the connections are told that no more requests are wanted on them, then those that wait for ever end: who
    // repeats one at once does so on a connection to the successor.
    close.send_replace(true);
    tokio::time::sleep(LEAVE).await;
    stop.send_replace(true);
    drain(api, &mut signals).await?;
    events.stop().await.context("stop serving events of shims")?;
    tracing::info!("stopped");
    Ok(if replaced { Ended::Replaced(socket) } else { Ended::Stopped })
}

/// Waits until the daemon is to end. True if another program is to take its place, and can.
async fn replaced(signals: &mut Signals, program: &Path, mut reload: impl FnMut()) -> bool {
    loop {
        match signals.wish().await {
            Wish::Stop(signal) => {
                tracing::info!(signal, "stopping; containers keep running");
                return false;
            }
            Wish::Reload => reload(),
            Wish::Replace => {
                let file = program.to_owned();
                match tokio::task::spawn_blocking(move || replace::check(&file)).await {
                    Ok(Ok(())) => return true,
                    Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "not replaced"),
                    Err(error) => tracing::error!(%error, "not replaced"),
                }
            }
        }
    }
}

async fn open(config: &Config, stopping: watch::Receiver<bool>) -> anyhow::Result<(services::Engines, UnixListener)> {
    directories::prepare(&config.root, &config.state)?;
    if config.oom_score != 0 {
        set_oom_score(config.oom_score);
    }
    // The socket is taken first: it tells a second daemon with the same address from a stale socket.
    let listener = socket::listen(&config.grpc).await?;
    match assemble::engines(config, stopping).await {
        Ok(engines) => Ok((engines, listener)),
        Err(error) => {
            socket::remove(&config.grpc);
            Err(error)
        }
    }
}

/// Waits for the requests that are running, for the grace time or until a second signal.
async fn drain<E>(api: tokio::task::JoinHandle<Result<(), E>>, signals: &mut Signals) -> anyhow::Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let handle = api.abort_handle();
    tokio::select! {
        ended = api => return ended.context("serve the API")?.context("serve the API"),
        () = tokio::time::sleep(GRACE) => tracing::warn!("requests still run after the grace time; they end now"),
        signal = signals.stop() => tracing::warn!(signal, "second signal; running requests end now"),
    }
    handle.abort();
    Ok(())
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the daemon.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Tells the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Lowering the score needs a capability that containers of a daemon may lack; that is no reason not to start.
fn set_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "cannot set the OOM score");
    }
}
