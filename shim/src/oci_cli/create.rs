//! `create`, `start` and `run`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use runtime::{Container, Creating, HostFeatures, Plan, PlanOptions, ProcessIo, Rootfs, wait};

use super::args::{Flag, Global, Words, option, switch};
use super::console::{self, Terminal};
use super::store::{Entry, Saved};
use super::{Command, Error, Result, log};

const MAKE: [Flag; 6] = [
    option("bundle", "b", "directory of the bundle (default: the current one)"),
    option("console-socket", "", "unix socket that gets the master of the terminal"),
    option("pid-file", "", "file that gets the pid of the container's process"),
    switch("no-pivot", "", "move the root instead of pivot_root (for an initramfs)"),
    switch("no-new-keyring", "", "keep the caller's session keyring"),
    option("preserve-fds", "", "how many descriptors from 3 on the container keeps"),
];

pub(crate) const CREATE: Command = Command {
    name: "create",
    about: "make a container that waits to be started",
    usage: "create [options] CONTAINER",
    flags: &MAKE,
    rest_is_command: false,
    run: create,
};

pub(crate) const START: Command = Command {
    name: "start",
    about: "run the program of a created container",
    usage: "start CONTAINER",
    flags: &[],
    rest_is_command: false,
    run: start,
};

pub(crate) const RUN: Command = Command {
    name: "run",
    about: "create and start a container",
    usage: "run [options] CONTAINER",
    flags: &{
        let [a, b, c, d, e, f] = MAKE;
        [
            a,
            b,
            c,
            d,
            e,
            f,
            switch("detach", "d", "do not wait for its end"),
            switch("keep", "", "do not delete it at its end"),
        ]
    },
    rest_is_command: false,
    run,
};

/// A container in the making with what the commands share.
struct Making {
    entry: Entry,
    terminal: bool,
    host: HostFeatures,
    plan: Plan,
    rootfs: PathBuf,
}

impl Making {
    fn new(global: &Global, words: &Words) -> core::result::Result<Self, Error> {
        let id = words.id()?;
        let bundle = words.value("bundle").unwrap_or(".");
        let bundle =
            std::fs::canonicalize(bundle).map_err(|source| Error::io(format!("opening bundle {bundle}"), source))?;
        let json = super::store::read_document(&bundle.join("config.json"))?;
        let spec = oci::parse_spec(&json)
            .map_err(|source| Error::Document { document: bundle.join("config.json").display().to_string(), source })?;
        let host = HostFeatures::detect()?;
        let options = PlanOptions {
            id: id.to_owned(),
            bundle,
            no_pivot: words.has("no-pivot"),
            no_new_keyring: words.has("no-new-keyring"),
            default_cgroup: format!("/{id}"),
            preserve_fds: words.number("preserve-fds")?.unwrap_or(0) + console::listen_fds(),
        };
        let plan = Plan::new(&spec, &host, &options)?;
        let rootfs = plan.root_path().to_owned();
        let entry = Entry::make(global, id)?;
        let making = Self { entry, terminal: plan.terminal(), host, plan, rootfs };
        if let Err(error) = making.entry.save_spec(&json) {
            let _ = making.entry.remove();
            return Err(error);
        }
        Ok(making)
    }

    fn create(self, gated: bool, io: ProcessIo) -> core::result::Result<(Container, Entry, Saved), Error> {
        let Self { entry, host, plan, rootfs, .. } = self;
        let made = gated.then(|| entry.gate()).transpose().and_then(|gate| {
            let mut creating = Creating::begin(plan, &host, Rootfs::Path(rootfs), io, gate)?;
            Ok(wait(&mut creating)?)
        });
        let container = made.inspect_err(|_| {
            let _ = entry.remove();
        })?;
        let saved =
            Saved { state: container.state(), created: super::show::now(), owner: rustix::process::geteuid().as_raw() };
        Ok((container, entry, saved))
    }
}

fn create(global: &Global, words: Words) -> Result {
    let making = Making::new(global, &words)?;
    let id = making.entry.path.clone();
    let undo = |error| {
        let _ = std::fs::remove_dir_all(&id);
        error
    };
    let socket = console::socket_for(making.terminal, words.value("console-socket"), true).map_err(undo)?;
    let io = console::plain_io(making.terminal)?;
    let (mut container, entry, saved) = making.create(true, io)?;
    log::warnings(global, container.warnings());
    let finish = |container: &mut Container| {
        entry.save(&saved)?;
        if let (Some(socket), Some(master)) = (&socket, container.take_console()) {
            console::send(socket, master)?;
        }
        write_pid(&words, container.pid())
    };
    if let Err(error) = finish(&mut container) {
        let _ = discard(container, &entry);
        return Err(error);
    }
    Ok(0)
}

fn discard(mut container: Container, entry: &Entry) -> core::result::Result<(), Error> {
    wait(&mut container.delete(true)?)?;
    entry.remove()
}

fn write_pid(words: &Words, pid: u32) -> core::result::Result<(), Error> {
    let Some(path) = words.value("pid-file") else { return Ok(()) };
    write_pid_file(Path::new(path), pid)
}

/// Written whole or not at all: engines poll for it.
pub(crate) fn write_pid_file(path: &Path, pid: u32) -> core::result::Result<(), Error> {
    let failed = |source: std::io::Error| Error::io(format!("writing {}", path.display()), source);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = OwnedFd::from(std::fs::File::open(parent).map_err(failed)?);
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
    sys::fs::write_atomic(directory.as_fd(), name, pid.to_string().as_bytes(), 0o644)
        .map_err(|errno| failed(errno.into()))
}

fn start(global: &Global, words: Words) -> Result {
    let entry = Entry::find(global, words.id()?)?;
    let (mut container, mut saved) = entry.open()?;
    let mut starting = match container.start() {
        Err(runtime::Error::State { status, .. }) => {
            return Err(Error::State(format!("cannot start a container that has {}", past(status))));
        }
        other => other?,
    };
    wait(&mut starting)?;
    saved.state = container.state();
    entry.save(&saved)?;
    Ok(0)
}

/// runc's words for a state that does not allow a start.
fn past(status: &str) -> &str {
    match status {
        "stopped" => "stopped",
        "paused" => "been paused",
        _ => "already started",
    }
}

fn run(global: &Global, words: Words) -> Result {
    let making = Making::new(global, &words)?;
    let path = making.entry.path.clone();
    let detach = words.has("detach");
    let undo = |error| {
        let _ = std::fs::remove_dir_all(&path);
        error
    };
    let socket = console::socket_for(making.terminal, words.value("console-socket"), detach).map_err(undo)?;
    let terminal = making.terminal;
    let io = console::plain_io(terminal)?;
    let watch = if detach { None } else { Some(console::watch_signals().map_err(undo)?) };
    let (mut container, entry, mut saved) = making.create(false, io)?;
    log::warnings(global, container.warnings());
    let master = container.take_console();
    let begin = |container: &mut Container, saved: &mut Saved| {
        entry.save(saved)?;
        write_pid(&words, container.pid())?;
        let mut starting = container.start()?;
        wait(&mut starting)?;
        saved.state = container.state();
        entry.save(saved)
    };
    if let Err(error) = begin(&mut container, &mut saved) {
        let _ = discard(container, &entry);
        return Err(error);
    }
    let own = match (socket, master) {
        (Some(socket), Some(master)) => {
            console::send(&socket, master)?;
            None
        }
        (None, Some(master)) => Some(Terminal::new(master)?),
        _ => None,
    };
    let Some(signals) = watch else { return Ok(0) };
    let status = console::follow(container.pidfd(), signals, own, |signal| {
        let _ = container.kill(signal);
    })?;
    if !words.has("keep") {
        wait(&mut container.delete(true)?)?;
        entry.remove()?;
    }
    Ok(u8::try_from(status).unwrap_or(255))
}
