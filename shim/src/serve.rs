//! The shim itself: one thread that serves until it is told to end.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api_shim::Server;
use runtime::HostFeatures;
use rustix::process::Signal;
use sys::signal::Signals;
use tokio::time::Instant;

use crate::args::Arguments;
use crate::engine::Engine;
use crate::error::Error;
use crate::events::Publisher;
use crate::log::Log;
use crate::service::Service;
use crate::watch::watch_readable;

/// The descriptor of the listening socket, by agreement with whoever starts us.
pub(crate) const SOCKET_FD: RawFd = 3;

/// How long events that nobody takes keep an ended shim alive.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after its last work the shim makes itself small: not between the steps of a client that goes on.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Serves until Shutdown, with the last container gone.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    sys::memory::keep_little_in_process();
    let listener = sys::take_inherited(SOCKET_FD).map_err(|errno| Error::system("take over the socket", errno))?;
    // A session of our own, so that no terminal's signals reach us; whoever started us may have made it already.
    let _ = rustix::process::setsid();
    sys::process::set_subreaper().map_err(|errno| Error::system("become a subreaper", errno))?;
    raise_oom_score();
    // SIGTERM and its kin would end every container with us: they are taken note of, and obeyed if there is none.
    let signals = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP].map(Signal::as_raw);
    let signals = Signals::block_in_process(&signals).map_err(|errno| Error::system("block signals", errno))?;
    let host = HostFeatures::detect().map_err(|source| Error::Runtime { operation: "probe", source })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| Error::System { operation: "start the event loop", source })?;
    runtime.block_on(serve(arguments, listener, signals, host))
}

async fn serve(arguments: &Arguments, listener: OwnedFd, signals: Signals, host: HostFeatures) -> Result<(), Error> {
    // Only a foreign daemon gives an address for events. It also expects us to remove our socket, and reads a log.
    let foreign = !arguments.ttrpc_address.is_empty();
    let (publisher, sending) = if foreign {
        let (publisher, sending) = Publisher::start(&arguments.namespace, &arguments.ttrpc_address);
        (Some(publisher), Some(sending))
    } else {
        (None, None)
    };
    let bundle = std::env::current_dir().map_err(|source| Error::System { operation: "find the bundle", source })?;
    let log = Log::in_bundle(&bundle, &arguments.id, foreign);
    let socket = if foreign { socket_path(listener.as_fd()) } else { None };
    let engine = Engine::new(&arguments.namespace, host, log, publisher, socket);
    let pending = watch_readable(&signals).map_err(|source| Error::System { operation: "watch signals", source })?;
    let mut server = Server::start(listener, Arc::new(Service::new(Arc::clone(&engine)))).await?;
    engine.worked.notify_one();
    let mut rest_at = None;
    loop {
        let resting = async {
            match rest_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = resting => {
                rest_at = None;
                rest();
            }
            () = engine.worked.notified() => rest_at = Some(Instant::now() + REST_AFTER),
            ready = pending.readable() => match ready {
                Ok(mut ready) => {
                    ready.clear_ready();
                    take_signals(&signals, &engine);
                }
                Err(source) => return Err(Error::System { operation: "wait for signals", source }),
            },
            () = engine.stopping.notified() => break,
        }
    }
    server.shutdown().await;
    engine.close_publisher();
    if let Some(sending) = sending {
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, sending).await;
    }
    Ok(())
}

/// Gives back what the last work needed: the heap that specs and plans were in, and the code that handled them.
fn rest() {
    sys::memory::trim();
    // Without it the shim is a little larger, and nothing else.
    let _ = sys::memory::release_program_pages();
}

fn take_signals(signals: &Signals, engine: &Engine) {
    while let Ok(Some(signal)) = signals.next() {
        if signal == Signal::CHILD.as_raw() {
            engine.sweep();
        } else {
            engine.shutdown();
        }
    }
}

fn socket_path(listener: BorrowedFd<'_>) -> Option<PathBuf> {
    let address = rustix::net::getsockname(listener).ok()?;
    let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = address.path()?.to_bytes().to_vec();
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// The kernel takes the shim before the daemon when memory is short, and never before the container: one more than
/// the daemon has. Failing to is no reason not to serve.
fn raise_oom_score() {
    let Some(parent) = rustix::process::getppid() else { return };
    let Ok(score) = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero())) else { return };
    if let Ok(score) = score.trim().parse::<i32>()
        && score < 1000
    {
        let _ = std::fs::write("/proc/self/oom_score_adj", (score + 1).to_string());
    }
}
