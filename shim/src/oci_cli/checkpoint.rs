//! `checkpoint` and `restore`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci::Spec;
use runtime::{
    CgroupMode, CheckpointOptions, Checkpointing, Container, CriuOptions, HostFeatures, Parents, Plan, PlanOptions,
    RestoreOptions, Restoring, wait,
};
use rustix::fs::{Mode, OFlags};
use serde_json::json;

use super::args::{Flag, Global, Words, option, switch};
use super::console::{self, Terminal};
use super::create::{Links, discard, write_pid};
use super::libcontainer::Saved;
use super::store::Entry;
use super::{Command, Error, Result, log};

const IMAGES: Flag = option("image-path", "", "directory of the images (default: ./checkpoint)");
const WORK: Flag = option("work-path", "", "directory of the log (default: that of the images)");
const PARENT: Flag = option("parent-path", "", "images of a pre-dump before, relative to the images");
const CGROUPS: Flag = option("manage-cgroups-mode", "", "soft, full, strict or ignore (default: criu's)");
const EMPTY: Flag = option("empty-ns", "", "namespace to make and leave empty: network");
const TCP: Flag = switch("tcp-established", "", "keep TCP connections");
const UNIX: Flag = switch("ext-unix-sk", "", "keep unix sockets with an end outside");
const JOB: Flag = switch("shell-job", "", "the session or terminal belongs to somebody outside");
const LOCKS: Flag = switch("file-locks", "", "keep file locks");
const DEDUP: Flag = switch("auto-dedup", "", "keep memory that is in the parent's images only there");
const LAZY: Flag = switch("lazy-pages", "", "move memory when it is used");

pub(crate) const CHECKPOINT: Command = Command {
    name: "checkpoint",
    about: "write a running container to images, by criu",
    usage: "checkpoint [options] CONTAINER",
    flags: &[
        IMAGES,
        WORK,
        PARENT,
        switch("leave-running", "", "let the container go on"),
        TCP,
        switch("tcp-skip-in-flight", "", "leave out TCP connections that are being made"),
        switch("link-remap", "", "give unlinked files a name again"),
        UNIX,
        JOB,
        LAZY,
        option("status-fd", "", "descriptor that gets a zero byte when lazy pages can be asked for"),
        option("page-server", "", "ADDRESS:PORT of a page server that gets the memory"),
        LOCKS,
        switch("pre-dump", "", "memory only; the container goes on"),
        CGROUPS,
        EMPTY,
        DEDUP,
    ],
    rest_is_command: false,
    run: checkpoint,
};

pub(crate) const RESTORE: Command = Command {
    name: "restore",
    about: "make a running container of images, by criu",
    usage: "restore [options] CONTAINER",
    flags: &[
        option("console-socket", "", "unix socket that gets the master of the terminal"),
        IMAGES,
        WORK,
        PARENT,
        TCP,
        UNIX,
        JOB,
        LOCKS,
        CGROUPS,
        option("bundle", "b", "directory of the bundle (default: the current one)"),
        switch("detach", "d", "do not wait for its end"),
        option("pid-file", "", "file that gets the pid of the container's process"),
        switch("no-subreaper", "", "leave what it leaves behind to others to reap"),
        switch("no-pivot", "", "accepted: criu changes the root"),
        EMPTY,
        DEDUP,
        LAZY,
        option("lsm-profile", "", "profile of a security module, TYPE:NAME"),
        option("lsm-mount-context", "", "SELinux context of the mounts"),
    ],
    rest_is_command: false,
    run: restore,
};

fn criu_options(words: &Words) -> core::result::Result<CriuOptions, Error> {
    let cgroups = match words.value("manage-cgroups-mode") {
        None => CgroupMode::Default,
        Some("soft") => CgroupMode::Soft,
        Some("full") => CgroupMode::Full,
        Some("strict") => CgroupMode::Strict,
        Some("ignore") => CgroupMode::Ignore,
        Some(_) => return Err(Error::Usage("invalid manage-cgroups-mode value".to_owned())),
    };
    // The network is left empty in any case: its devices are the engine's.
    if let Some(other) = words.values("empty-ns").find(|name| *name != "network") {
        return Err(Error::Usage(format!("namespace {other:?} is not supported")));
    }
    Ok(CriuOptions {
        images: PathBuf::from(words.value("image-path").unwrap_or("checkpoint")),
        work: words.value("work-path").map(PathBuf::from),
        // Whoever runs this command says with the directory of the images where those before are.
        parents: Parents::Followed,
        tcp_established: words.has("tcp-established"),
        ext_unix_sk: words.has("ext-unix-sk"),
        shell_job: words.has("shell-job"),
        file_locks: words.has("file-locks"),
        auto_dedup: words.has("auto-dedup"),
        lazy_pages: words.has("lazy-pages"),
        cgroups,
    })
}

fn page_server(text: &str) -> core::result::Result<(String, u16), Error> {
    let (address, port) = text
        .rsplit_once(':')
        .map(|(address, port)| (address.trim_start_matches('[').trim_end_matches(']'), port))
        .filter(|(address, port)| !address.is_empty() && !port.is_empty())
        .ok_or_else(|| Error::Usage("Use --page-server ADDRESS:PORT to specify page server".to_owned()))?;
    let port = port.parse().map_err(|_| Error::Usage("Invalid port number".to_owned()))?;
    Ok((address.to_owned(), port))
}

/// The descriptor that the caller left open for us. To be called before anything else is opened.
fn status_fd(words: &Words) -> core::result::Result<Option<OwnedFd>, Error> {
    let Some(number) = words.number::<u32>("status-fd")? else { return Ok(None) };
    let refuse = |why: &str| Error::Usage(format!("invalid --status-fd argument {number}: {why}"));
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(|_| refuse("not open"))?;
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    if flags & OFlags::ACCMODE.bits() == OFlags::RDONLY.bits() {
        return Err(refuse("not writable"));
    }
    let path = format!("/proc/self/fd/{number}");
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map(Some)
        .map_err(|errno| refuse(&errno.to_string()))
}

fn checkpoint(global: &Global, words: Words) -> Result {
    let status = status_fd(&words)?;
    let entry = Entry::find(global, words.id()?)?;
    let (container, saved) = entry.open()?;
    let options = CheckpointOptions {
        criu: criu_options(&words)?,
        parent: words.value("parent-path").map(PathBuf::from),
        leave_running: words.has("leave-running"),
        pre_dump: words.has("pre-dump"),
        tcp_skip_in_flight: words.has("tcp-skip-in-flight"),
        link_remap: words.has("link-remap"),
        page_server: words.value("page-server").map(page_server).transpose()?,
        status,
        descriptors: saved.streams.clone(),
    };
    let goes_on = options.leave_running || options.pre_dump;
    let images = &options.criu.images;
    std::fs::create_dir_all(images).map_err(|source| Error::io(format!("making {}", images.display()), source))?;
    let host = HostFeatures::detect()?;
    let plan = Plan::new(&entry.spec()?, &host, &plan_options(&entry.id, saved.state.bundle))?;
    wait(&mut Checkpointing::begin(&container, &plan, &host, options)?)?;
    if !goes_on {
        discard(container, &entry)?;
    }
    Ok(0)
}

fn plan_options(id: &str, bundle: PathBuf) -> PlanOptions {
    PlanOptions { id: id.to_owned(), bundle, default_cgroup: format!("/{id}"), ..PlanOptions::default() }
}

/// What a restore is made of, besides the images.
struct Making {
    entry: Entry,
    host: HostFeatures,
    spec: Spec,
    json: Vec<u8>,
    plan: Plan,
    links: Links,
    streams: Vec<String>,
}

impl Making {
    fn new(global: &Global, words: &Words, detached: bool) -> core::result::Result<Self, Error> {
        let id = words.id()?;
        let bundle = words.value("bundle").unwrap_or(".");
        let bundle =
            std::fs::canonicalize(bundle).map_err(|source| Error::io(format!("opening bundle {bundle}"), source))?;
        let document = bundle.join("config.json");
        let json = super::store::read_document(&document)?;
        let spec = oci::parse_spec(&json)
            .map_err(|source| Error::Document { document: document.display().to_string(), source })?;
        let host = HostFeatures::detect()?;
        let plan = Plan::new(&spec, &host, &plan_options(id, bundle))?;
        let links = Links::new(words, plan.terminal(), detached)?;
        let streams = console::streams(plan.terminal());
        Ok(Self { entry: Entry::make(global, id)?, host, spec, json, plan, links, streams })
    }

    fn restore(self, words: &Words, criu: CriuOptions) -> core::result::Result<Restored, Error> {
        let Self { entry, host, spec, json, plan, links, streams } = self;
        let make = || {
            entry.save_spec(&json)?;
            // For the length of the restore, and in a place that nobody else writes to.
            let scratch = entry.path.join("criu-root");
            rustix::fs::mkdir(&scratch, Mode::RWXU)
                .map_err(|errno| Error::io(format!("making {}", scratch.display()), errno))?;
            let scratch = std::fs::canonicalize(&scratch)
                .map_err(|source| Error::io(format!("opening {}", scratch.display()), source))?;
            let options = RestoreOptions {
                criu,
                scratch: scratch.clone(),
                lsm_profile: words.value("lsm-profile").map(str::to_owned),
                lsm_mount_context: words.value("lsm-mount-context").map(str::to_owned),
            };
            let io = console::own_io(plan.terminal());
            let container = Restoring::begin(plan, &host, &options, io).and_then(|mut restoring| wait(&mut restoring));
            // Unmounted by now. A directory that is not empty would be the container's root: it stays.
            let _ = std::fs::remove_dir(&scratch);
            let container = container?;
            note_time_namespace(&entry, &spec, container.pid())?;
            Ok(container)
        };
        let container: Container = make().inspect_err(|_: &Error| {
            let _ = entry.remove();
        })?;
        let saved = Saved {
            state: container.state(),
            created: model::Timestamp::now().to_string(),
            owner: rustix::process::geteuid().as_raw(),
            streams,
        };
        Ok(Restored { container, entry, saved, links, spec })
    }
}

/// A container that runs again.
struct Restored {
    container: Container,
    entry: Entry,
    saved: Saved,
    links: Links,
    spec: Spec,
}

fn restore(global: &Global, words: Words) -> Result {
    let detach = words.has("detach");
    let watch = if detach { None } else { Some(console::watch_signals()?) };
    let criu = criu_options(&words)?;
    let Restored { mut container, entry, saved, links, spec } =
        Making::new(global, &words, detach)?.restore(&words, criu)?;
    log::warnings(global, container.warnings());
    if !detach && !words.has("no-subreaper") {
        let _ = sys::process::set_subreaper();
    }
    let begin = || {
        entry.save(&saved, &spec, &container)?;
        let master = container.take_console();
        let own = links.hand_over(master, container.pidfd())?;
        let terminal = own.map(Terminal::new).transpose()?;
        write_pid(&words, container.pid()).map(|()| terminal)
    };
    let terminal = match begin() {
        Ok(terminal) => terminal,
        Err(error) => {
            let _ = discard(container, &entry);
            return Err(error);
        }
    };
    let Some(signals) = watch else { return Ok(0) };
    let status = console::follow(container.pidfd(), signals, terminal, None, |signal| {
        let _ = container.kill(signal);
    })?;
    discard(container, &entry)?;
    Ok(u8::try_from(status).unwrap_or(255))
}

/// CRIU gives what it restores a time namespace, so that its clocks go on where they stopped. An exec must enter it,
/// and does if our copy of the specification has it.
fn note_time_namespace(entry: &Entry, spec: &Spec, pid: u32) -> core::result::Result<(), Error> {
    let of = |who: &str| std::fs::read_link(Path::new("/proc").join(who).join("ns/time")).ok();
    let mut value = serde_json::to_value(spec).map_err(|source| Error::Record { id: entry.id.clone(), source })?;
    let Some(spaces) = value["linux"]["namespaces"].as_array_mut() else { return Ok(()) };
    if of(&pid.to_string()) == of("self") || spaces.iter().any(|space| space["type"] == "time") {
        return Ok(());
    }
    spaces.push(json!({"type": "time"}));
    entry.save_spec(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        let line = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Words::parse("checkpoint", line, CHECKPOINT.flags, false).unwrap()
    }

    #[test]
    fn page_servers() {
        assert_eq!(page_server("0.0.0.0:27277").unwrap(), ("0.0.0.0".to_owned(), 27277));
        assert_eq!(page_server("[::1]:1").unwrap(), ("::1".to_owned(), 1));
        for bad in ["", ":", "1.2.3.4", ":5", "a:", "a:b", "a:65536", "a:-1"] {
            assert!(page_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_are_runcs() {
        let options = criu_options(&words("--image-path i --work-path=w --shell-job --manage-cgroups-mode ignore id"));
        let options = options.unwrap();
        assert_eq!((options.images, options.work), (PathBuf::from("i"), Some(PathBuf::from("w"))));
        assert!(options.shell_job && options.cgroups == CgroupMode::Ignore && !options.tcp_established);
        assert_eq!(criu_options(&words("id")).unwrap().images, PathBuf::from("checkpoint"));
        assert!(criu_options(&words("--manage-cgroups-mode none id")).is_err());
        assert!(criu_options(&words("--empty-ns mount id")).is_err());
        criu_options(&words("--empty-ns network id")).unwrap();
    }

    #[test]
    fn the_status_descriptor_must_be_open_for_writing() {
        assert!(status_fd(&words("id")).unwrap().is_none());
        let error = status_fd(&words("--status-fd 987654 id")).unwrap_err().to_string();
        assert!(error.contains("--status-fd argument 987654"), "{error}");
        let (reader, writer) = std::io::pipe().unwrap();
        let number = |end: &dyn std::os::fd::AsRawFd| format!("--status-fd {} id", end.as_raw_fd());
        assert!(status_fd(&words(&number(&reader))).is_err());
        assert!(status_fd(&words(&number(&writer))).unwrap().is_some());
    }
}
