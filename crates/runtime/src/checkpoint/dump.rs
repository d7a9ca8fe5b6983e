use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use sys::clone::flags;

use super::criu::{Heard, Job, Talk};
use super::images::{Directory, Parents};
use super::message::{Features, Kind, Options};
use super::{CheckpointOptions, config_file, external};
use crate::container::Status;
use crate::{Container, Error, HostFeatures, Operation, Plan};

const LOG: &str = "dump.log";
/// A checkpoint under way. At its end the container's processes are gone, unless they were to be left running.
/// After a failure, or when it is dropped before its end, they go on as before.
#[derive(Debug)]
pub struct Checkpointing {
    talk: Talk,
    cgroup: cgroups::CgroupPath,
    host: HostFeatures,
    /// Whether it was frozen before.
    paused: bool,
    status: Option<OwnedFd>,
    done: bool,
}

impl Checkpointing {
    /// Begins to dump `container`, which was made by `plan`.
    ///
    /// [`Error::State`] if it does not run. [`Error::CriuMissing`] where there is no CRIU.
    pub fn begin(
        container: &Container,
        plan: &Plan,
        host: &HostFeatures,
        options: CheckpointOptions,
    ) -> Result<Self, Error> {
        let paused = match container.status() {
            Status::Running => false,
            Status::Paused => true,
            status @ (Status::Created | Status::Stopped) => {
                return Err(Error::State { operation: "checkpoint", status: status.as_str() });
            }
        };
        let images = Directory::make(&options.criu.images)?;
        images.check_images(options.criu.parents)?;
        check_parent(&images, &options)?;
        let work = options.criu.work.as_deref().map(Directory::make).transpose()?;
        let log = work.as_ref().unwrap_or(&images);
        log.check_written(&[LOG, "stats-dump"])?;
        let mut job = Job {
            kind: if options.pre_dump { Kind::PreDump } else { Kind::Dump },
            options: request(container, plan, host, &options)?,
            needs: Features { memory_tracking: options.pre_dump, lazy_pages: options.criu.lazy_pages },
            minimum: None,
            log: (log.copy()?, log.path.join(LOG)),
            held: Vec::new(),
        };
        if !options.pre_dump {
            external_mounts(container, plan, host, &mut job.options)?;
            images.write_descriptors(&options.descriptors)?;
        }
        job.options.images = images.fd.as_raw_fd();
        job.options.work = work.as_ref().map(|work| work.fd.as_raw_fd());
        job.held.push(images.fd);
        job.held.extend(work.map(|work| work.fd));
        let talk = Talk::begin(job, None, Vec::new())?;
        let cgroup = container.cgroup.path().clone();
        Ok(Self { talk, cgroup, host: host.clone(), paused, status: options.status, done: false })
    }

    fn notified(&mut self, name: &str) {
        if name == "status-ready"
            && let Some(status) = self.status.take()
        {
            // Whoever waits there sees the end of the file in any case.
            let _ = rustix::io::write(&status, &[0]);
        }
    }

    /// CRIU thaws what it froze; one that was killed did not.
    fn undo(&self) {
        if self.paused {
            return;
        }
        if let Ok(cgroup) = cgroups::Cgroup::open(&self.host.cgroups, &self.cgroup)
            && cgroup.is_frozen().unwrap_or(false)
        {
            let _ = cgroup.thaw();
        }
    }

    fn go_on(&mut self) -> Result<Option<()>, Error> {
        loop {
            match self.talk.advance()? {
                Heard::Nothing => return Ok(None),
                Heard::Notification { name, .. } => {
                    self.notified(&name);
                    self.talk.answer(true)?;
                }
                Heard::Done => {
                    self.done = true;
                    return Ok(Some(()));
                }
            }
        }
    }
}

impl Operation for Checkpointing {
    type Output = ();

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.talk.poll_fd()
    }

    fn advance(&mut self) -> Result<Option<()>, Error> {
        self.go_on()
    }
}

impl Drop for Checkpointing {
    fn drop(&mut self) {
        if !self.done {
            self.undo();
        }
    }
}

/// Where the earlier images are must be a directory, relative to the new ones.
fn check_parent(images: &Directory, options: &CheckpointOptions) -> Result<(), Error> {
    let Some(parent) = &options.parent else { return Ok(()) };
    if parent.is_absolute() {
        return Err(Error::invalid("--parent-path", "must be relative"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&images.fd, parent, flags, Mode::empty())
        .map_err(|errno| Error::host(format!("invalid --parent-path {}", parent.display()), errno))?;
    Directory { fd, path: images.path.join(parent) }.check_images(Parents::Followed)
}

fn request(
    container: &Container,
    plan: &Plan,
    host: &HostFeatures,
    options: &CheckpointOptions,
) -> Result<Options, Error> {
    use std::os::unix::ffi::OsStrExt as _;
    let common = &options.criu;
    let pid = i32::try_from(container.pid()).map_err(|_| Error::Finished)?;
    Ok(Options {
        pid: Some(pid),
        log_file: LOG.to_owned(),
        root: plan.root_path.as_os_str().as_bytes().to_vec(),
        parent: options.parent.as_ref().map(|parent| parent.as_os_str().as_bytes().to_vec()),
        config_file: config_file(plan)?,
        leave_running: options.leave_running,
        ext_unix_sk: common.ext_unix_sk,
        tcp_established: common.tcp_established,
        tcp_skip_in_flight: options.tcp_skip_in_flight,
        shell_job: common.shell_job,
        file_locks: common.file_locks,
        link_remap: options.link_remap,
        auto_dedup: common.auto_dedup,
        lazy_pages: common.lazy_pages,
        page_server: options.page_server.clone(),
        cgroup_mode: common.cgroups,
        freeze_cgroup: freezer(container, host),
        external: external::dumped_namespaces(plan, container.pid())?,
        // Network devices are the engine's.
        empty_namespaces: u32::try_from(flags::NEWNET).unwrap_or_default(),
        ..Options::default()
    })
}

/// The directory of the freezer, with which CRIU stops a container at once instead of process by process.
fn freezer(container: &Container, host: &HostFeatures) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    let place = match &host.cgroups {
        cgroups::Host::V1 { controllers } => &controllers.iter().find(|(name, _)| name == "freezer")?.1,
        cgroups::Host::V2 { mount } => mount,
    };
    let directory = place.join(container.cgroup.path().as_str());
    directory.is_dir().then(|| directory.into_os_string().into_vec())
}

/// Names the mounts of the host that the container has, so that CRIU does not look for their content.
fn external_mounts(
    container: &Container,
    plan: &Plan,
    host: &HostFeatures,
    options: &mut Options,
) -> Result<(), Error> {
    let path = format!("/proc/{}/root", container.pid());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| Error::host(format!("opening {path}"), errno))?;
    for mount in external::mounts(plan, host) {
        let place = external::resolved(root.as_fd(), &mount.target);
        options.mounts.push((place.clone(), place));
    }
    for masked in &plan.masked_paths {
        let target = Path::new(std::ffi::OsStr::new(masked.to_str().unwrap_or_default()));
        // Directories are masked by a file system of their own.
        if let Ok(found) = sys::fs::open_in_root(root.as_fd(), target, OFlags::PATH)
            && rustix::fs::fstat(&found).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) != FileType::Directory)
        {
            let key = Path::new("/").join(target).into_os_string();
            options.mounts.push((key.into_encoded_bytes(), b"/dev/null".to_vec()));
        }
    }
    Ok(())
}
