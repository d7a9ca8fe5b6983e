//! `create`, `start` and `run`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use oci::Spec;
use runtime::{Container, Creating, HostFeatures, Launching, Plan, PlanOptions, Rootfs, Status, wait};
use rustix::fs::{Mode, OFlags};

use super::args::{Flag, Global, Words, option, switch};
use super::console::{self, Terminal};
use super::libcontainer::Saved;
use super::notify::Notify;
use super::store::Entry;
use super::{Command, Error, Result, log};

const MAKE: [Flag; 7] = [
    option("bundle", "b", "directory of the bundle (default: the current one)"),
    option("console-socket", "", "unix socket that gets the master of the terminal"),
    option("pidfd-socket", "", "unix socket that gets a pidfd of the container's process"),
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
        let [a, b, c, d, e, f, g] = MAKE;
        [
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            switch("detach", "d", "do not wait for its end"),
            switch("keep", "", "do not delete it at its end"),
            switch("no-subreaper", "", "leave what it leaves behind to others to reap"),
        ]
    },
    rest_is_command: false,
    run,
};

/// A container in the making with what the commands share.
struct Making {
    entry: Entry,
    host: HostFeatures,
    plan: Plan,
    rootfs: PathBuf,
    links: Links,
    notify: Option<Notify>,
    spec: Spec,
}

/// Who gets descriptors of the new process. Connected before anything exists, so that a mistake costs nothing.
pub(crate) struct Links {
    console: Option<UnixStream>,
    pidfd: Option<UnixStream>,
}

impl Links {
    pub(crate) fn new(words: &Words, terminal: bool, detached: bool) -> core::result::Result<Self, Error> {
        let console = console::socket_for(terminal, words.value("console-socket"), detached)?;
        let pidfd = words.value("pidfd-socket").map(|path| console::connect("pidfd", path)).transpose()?;
        Ok(Self { console, pidfd })
    }

    /// Gives away the terminal, if somebody waits for it, and the pidfd; what nobody waited for is our own terminal.
    pub(crate) fn hand_over(
        self,
        master: Option<OwnedFd>,
        pidfd: BorrowedFd<'_>,
    ) -> core::result::Result<Option<OwnedFd>, Error> {
        if let Some(socket) = &self.pidfd {
            console::send(socket, b"pidfd", pidfd)?;
        }
        match (&self.console, master) {
            (Some(socket), Some(master)) => console::send(socket, b"/dev/ptmx", master.as_fd()).map(|()| None),
            (_, master) => Ok(master),
        }
    }
}

impl Making {
    fn new(global: &Global, words: &Words, detached: bool) -> core::result::Result<Self, Error> {
        let id = words.id()?;
        let preserve_fds = console::preserved(words)?;
        let bundle = words.value("bundle").unwrap_or(".");
        let bundle = real_directory(bundle).map_err(|source| Error::io(format!("opening bundle {bundle}"), source))?;
        let json = super::store::read_document(&bundle.join("config.json"))?;
        let (mut spec, notes) = oci::parse_spec_noting(&json)
            .map_err(|source| Error::Document { document: bundle.join("config.json").display().to_string(), source })?;
        log::warnings(global, &notes);
        let notify = Notify::wanted(&global.root.join(id))?;
        if let Some(notify) = &notify {
            notify.amend(&mut spec)?;
        }
        let passed = console::listen_fds();
        if passed > 0 {
            super::notify::add_environment(&mut spec, format!("LISTEN_FDS={passed}"));
            super::notify::add_environment(&mut spec, "LISTEN_PID=1".to_owned());
        }
        let host = HostFeatures::detect()?;
        let options = PlanOptions {
            id: id.to_owned(),
            bundle,
            no_pivot: words.has("no-pivot"),
            no_new_keyring: words.has("no-new-keyring"),
            default_cgroup: format!("/{id}"),
            systemd: global.systemd_cgroup.then(cgroups::Manager::of_caller),
            preserve_fds,
        };
        let plan = Plan::new(&spec, &host, &options)?;
        let links = Links::new(words, plan.terminal(), detached)?;
        let rootfs = plan.root_path().to_owned();
        let entry = Entry::make(global, id)?;
        let made = entry.save_spec(&json).and_then(|()| notify.as_ref().map_or(Ok(()), Notify::make_directory));
        if let Err(error) = made {
            let _ = entry.remove();
            return Err(error);
        }
        Ok(Self { entry, host, plan, rootfs, links, notify, spec })
    }

    /// `gated`: started by another process later. `launched`: started at once, where that can be.
    fn create(self, global: &Global, gated: bool, launched: bool) -> core::result::Result<Made, Error> {
        let Self { entry, host, plan, rootfs, links, notify, spec } = self;
        if let Some(flags) = plan.filter_flags() {
            log::debug(global, || format!("seccomp filter flags: {flags}"));
        }
        let streams = console::streams(plan.terminal());
        let make = || {
            let io = console::own_io(plan.terminal());
            // What nobody has to look at before it is started is started as soon as it is there.
            if !gated && launched && notify.is_none() && plan.can_be_launched() {
                let (container, launching) = Creating::launch(plan, &host, Rootfs::Path(rootfs), io)?;
                return Ok((container, Some(launching)));
            }
            let gate = gated.then(|| entry.gate()).transpose()?;
            let mut creating = Creating::begin(plan, &host, Rootfs::Path(rootfs), io, gate)?;
            Ok((wait(&mut creating)?, None))
        };
        let (container, launching): (Container, _) = make().inspect_err(|_: &Error| {
            let _ = entry.remove();
        })?;
        log::warnings(global, container.warnings());
        log::debug(global, || format!("container {} has process {}", container.id(), container.pid()));
        let saved = Saved {
            state: container.state(),
            created: model::Timestamp::now().to_string(),
            owner: sys::process::effective_user(),
            streams,
        };
        Ok(Made { container, launching, entry, saved, links, notify, spec })
    }
}

/// The path of a directory, without links.
fn real_directory(path: &str) -> std::io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::fs::readlink(sys::fs::proc_path(directory.as_fd()), Vec::new()) {
        Ok(real) => Ok(std::ffi::OsString::from_vec(real.into_bytes()).into()),
        // Without procfs, name by name.
        Err(_) => std::fs::canonicalize(path),
    }
}

/// A container that exists and whose program does not run yet.
struct Made {
    container: Container,
    /// What lets the program run, if the container was made to be started at once.
    launching: Option<Launching>,
    entry: Entry,
    saved: Saved,
    links: Links,
    notify: Option<Notify>,
    spec: Spec,
}

fn create(global: &Global, words: Words) -> Result {
    let Made { mut container, entry, saved, links, spec, .. } =
        Making::new(global, &words, true)?.create(global, true, false)?;
    let finish = || {
        entry.save(&saved, &spec, &container)?;
        let master = container.take_console();
        links.hand_over(master, container.pidfd())?;
        write_pid(&words, container.pid())
    };
    if let Err(error) = finish() {
        let _ = discard(container, &entry);
        return Err(error);
    }
    Ok(0)
}

pub(crate) fn discard(mut container: Container, entry: &Entry) -> core::result::Result<(), Error> {
    wait(&mut container.delete(true)?)?;
    entry.remove()
}

pub(crate) fn write_pid(words: &Words, pid: u32) -> core::result::Result<(), Error> {
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
    let (mut container, mut saved, spec) = entry.open_with_spec()?;
    let refused = match container.status() {
        Status::Created => None,
        Status::Running => Some("cannot start an already running container"),
        Status::Stopped => Some("cannot start a container that has stopped"),
        Status::Paused => Some("cannot start a container in the paused state"),
    };
    if let Some(text) = refused {
        return Err(Error::State(text.to_owned()));
    }
    let mut notify = Notify::wanted(&entry.path)?;
    if let Some(notify) = &mut notify {
        notify.bind()?;
    }
    match wait(&mut container.start()?) {
        // The specification wants an error and leaves open whether the caller is told ("Errors" in its runtime.md). The
        // container has ended; engines and suites know this as a `start` of nothing, which succeeds.
        Err(error @ runtime::Error::NoProcess) => log::warnings(global, &[model::render(&error)]),
        other => other?,
    }
    saved.state = container.state();
    entry.close_gate();
    entry.save(&saved, &spec, &container)?;
    match notify {
        Some(notify) => notify.wait(container.pidfd(), container.pid()).map(|()| 0),
        None => Ok(0),
    }
}

fn run(global: &Global, words: Words) -> Result {
    let detach = words.has("detach");
    let watch = if detach { None } else { Some(console::watch_signals()?) };
    let Made { mut container, launching, entry, mut saved, links, mut notify, spec } =
        Making::new(global, &words, detach)?.create(global, false, true)?;
    if !detach && !words.has("no-subreaper") {
        // What the container leaves behind is ours to reap, not the caller's.
        let _ = sys::process::set_subreaper();
    }
    let begin = || {
        // Written once, as what it is about to be: nobody else can start it, and if it fails to it goes away with this.
        saved.state.started = true;
        entry.save(&saved, &spec, &container)?;
        if let Some(notify) = &mut notify {
            notify.bind()?;
        }
        let master = container.take_console();
        let own = links.hand_over(master, container.pidfd())?;
        let terminal = own.map(Terminal::new).transpose()?;
        write_pid(&words, container.pid())?;
        match launching {
            Some(mut launching) => {
                launching.release()?;
                log::warnings(global, &wait(&mut launching)?);
            }
            None => wait(&mut container.start()?)?,
        }
        Ok(terminal)
    };
    let terminal = match begin() {
        Ok(terminal) => terminal,
        Err(error) => {
            let _ = discard(container, &entry);
            return Err(error);
        }
    };
    let Some(signals) = watch else {
        return notify.map_or(Ok(()), |notify| notify.wait(container.pidfd(), container.pid())).map(|()| 0);
    };
    let status = console::follow(container.pidfd(), signals, terminal, notify, |signal| {
        let _ = container.kill(signal);
    })?;
    if !words.has("keep") {
        discard(container, &entry)?;
    }
    Ok(u8::try_from(status).unwrap_or(255))
}
