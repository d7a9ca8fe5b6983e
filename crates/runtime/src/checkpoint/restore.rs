use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use sys::mount::UnmountFlags;

use super::criu::{FIRST_INHERITED, Heard, Job, Streams, Talk};
use super::images::Directory;
use super::message::{Features, Kind, Options};
use super::{RestoreOptions, config_file, external, rights};
use crate::container::Remains;
use crate::create::CgroupGuard;
use crate::hooks::{HookRunner, HookState, state_around_pid};
use crate::{Container, Error, HostFeatures, Operation, Plan, ProcessIo};

const LOG: &str = "restore.log";
/// The first version that restores with another profile than that of the dump.
const LSM: i32 = 31_600;

/// A restore under way; it yields the running container, whose init is a child of this process. Dropping it before
/// its end kills what exists.
#[derive(Debug)]
pub struct Restoring {
    // In this order they are dropped: CRIU must be gone before what it works with.
    talk: Talk,
    hooks: Option<HookRunner>,
    hook_state: HookState,
    init: Option<(u32, OwnedFd)>,
    console: Option<OwnedFd>,
    warnings: Vec<String>,
    plan: Option<Plan>,
    cgroup: Option<cgroups::Cgroup>,
    host: HostFeatures,
    _root: MountedRoot,
}

impl Restoring {
    /// Begins to restore a container from images that were made of one with the same specification.
    pub fn begin(plan: Plan, host: &HostFeatures, options: &RestoreOptions, io: ProcessIo) -> Result<Self, Error> {
        let images = Directory::open(&options.criu.images)?;
        images.check_images(options.criu.parents)?;
        let descriptors = images.read_descriptors()?;
        let work = options.criu.work.as_deref().map(Directory::make).transpose()?;
        let log = work.as_ref().unwrap_or(&images);
        log.check_written(&[LOG, "stats-restore"])?;
        let log = (log.copy()?, log.path.join(LOG));

        let mut request = request(&plan, host, options)?;
        let joined = external::restored_namespaces(&plan)?;
        request.join = joined.entered;
        let streams = streams(io.owned()?, &descriptors, &mut request);
        let mut inherited = Vec::new();
        for (number, (key, file)) in (FIRST_INHERITED..).zip(joined.inherited) {
            request.inherit.push((key, number));
            inherited.push(file);
        }
        request.images = images.fd.as_raw_fd();
        request.work = work.as_ref().map(|work| work.fd.as_raw_fd());

        let guard = CgroupGuard::create(&plan, host)?;
        let root = MountedRoot::new(&plan, &options.scratch)?;
        let lsm = options.lsm_profile.is_some() || options.lsm_mount_context.is_some();
        let job = Job {
            kind: Kind::Restore,
            options: request,
            needs: Features { memory_tracking: false, lazy_pages: options.criu.lazy_pages },
            minimum: lsm.then_some((LSM, "--lsm-profile or --lsm-mount-context")),
            log,
            held: [Some(images.fd), work.map(|work| work.fd)].into_iter().flatten().collect(),
        };
        let talk = Talk::begin(job, streams, inherited)?;
        // Holds a scope of systemd until CRIU is in it.
        let (cgroup, keeper) = guard.into_inner();
        let hook_state = HookState { around_pid: state_around_pid(&plan, "creating"), bundle: plan.bundle.clone() };
        let mut restoring = Self {
            talk,
            hooks: None,
            hook_state,
            init: None,
            console: None,
            warnings: Vec::new(),
            plan: Some(plan),
            cgroup,
            host: host.clone(),
            _root: root,
        };
        restoring.enter_cgroup()?;
        drop(keeper);
        Ok(restoring)
    }

    /// What CRIU forks is where CRIU is; and it is told where the groups in the images are now.
    fn enter_cgroup(&mut self) -> Result<(), Error> {
        let pid = self.talk.pid();
        if let Some(cgroup) = &self.cgroup {
            let operation = || format!("moving criu into cgroup {}", cgroup.path());
            cgroup.add_process(pid).map_err(|source| Error::Cgroup { operation: operation(), source })?;
        }
        let path = format!("/proc/{pid}/cgroup");
        let table = sys::fs::read_small(rustix::fs::CWD, path.as_str())
            .map_err(|errno| Error::host(format!("reading {path}"), errno))?;
        self.talk.options().cgroup_roots = cgroup_roots(&table);
        Ok(())
    }

    fn notified(&mut self, name: &str, pid: i32, descriptor: Option<OwnedFd>) -> Result<(), Error> {
        match name {
            "setup-namespaces" => {
                let hooks = self.plan.as_ref().map(|plan| plan.hooks.before.as_slice()).unwrap_or_default();
                if !hooks.is_empty() {
                    let runner = HookRunner::new(hooks, &self.hook_state, pid.unsigned_abs())?;
                    self.talk.watch(runner.poll_fd())?;
                    self.hooks = Some(runner);
                }
            }
            "post-restore" => {
                let pid = pid.unsigned_abs();
                let pidfd = sys::process::pidfd_open(pid)
                    .map_err(|errno| Error::host("opening the restored process", errno))?;
                self.init = Some((pid, pidfd));
            }
            // All is restored, and nothing runs yet.
            "pre-resume" => {
                if let (Some(plan), Some((pid, _))) = (&self.plan, &self.init) {
                    self.warnings = rights::check(plan, *pid)?;
                }
            }
            "orphan-pts-master" => self.console = descriptor,
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Container, Error> {
        let missing = || self.talk.failed("it told of no restored process".to_owned());
        let Some((pid, pidfd)) = self.init.take() else { return Err(missing()) };
        let Some(plan) = self.plan.take() else { return Err(missing()) };
        let Some(cgroup) = self.cgroup.take() else { return Err(missing()) };
        let (remains, mut warnings) = Remains::of(plan);
        warnings.append(&mut self.warnings);
        Container::restored(remains, cgroup, self.host.clone(), (pid, pidfd), self.console.take(), warnings)
    }
}

impl Operation for Restoring {
    type Output = Container;

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.talk.poll_fd()
    }

    fn advance(&mut self) -> Result<Option<Container>, Error> {
        loop {
            if let Some(hooks) = &mut self.hooks {
                if !hooks.advance()? {
                    return Ok(None);
                }
                self.hooks = None;
                self.talk.answer(true)?;
            }
            match self.talk.advance()? {
                Heard::Nothing => return Ok(None),
                Heard::Notification { name, pid, descriptor } => {
                    self.notified(&name, pid, descriptor)?;
                    if self.hooks.is_none() {
                        self.talk.answer(true)?;
                    }
                }
                Heard::Done => return self.finish().map(Some),
            }
        }
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        let Some(cgroup) = self.cgroup.take() else { return };
        // Whatever was restored is a child of ours or below one, and in the group; so is CRIU itself.
        let own = self.talk.pid();
        let pids = cgroup.processes().unwrap_or_default().into_iter().filter(|pid| *pid != own);
        let children: Vec<OwnedFd> = pids.filter_map(|pid| sys::process::pidfd_open(pid).ok()).collect();
        let _ = cgroup.kill_all();
        for child in children {
            // Somebody else's child is none of ours to wait for.
            let _ = sys::process::wait(child.as_fd());
        }
        self.talk.kill();
        let _ = cgroup.delete();
    }
}

fn request(plan: &Plan, host: &HostFeatures, options: &RestoreOptions) -> Result<Options, Error> {
    let common = &options.criu;
    let mut mounts: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&plan.root_path, flags, Mode::empty())
        .map_err(|errno| Error::host(format!("opening {}", plan.root_path.display()), errno))?;
    external::make_mount_points(plan, root.as_fd())?;
    for mount in external::mounts(plan, host) {
        let key = external::resolved_below(root.as_fd(), &mount.target);
        mounts.push((key, mount.source.as_os_str().as_bytes().to_vec()));
    }
    if !plan.masked_paths.is_empty() {
        mounts.push((b"/dev/null".to_vec(), b"/dev/null".to_vec()));
    }
    Ok(Options {
        log_file: LOG.to_owned(),
        root: options.scratch.as_os_str().as_bytes().to_vec(),
        config_file: config_file(plan)?,
        evasive_devices: true,
        sibling: true,
        ext_unix_sk: common.ext_unix_sk,
        tcp_established: common.tcp_established,
        shell_job: common.shell_job,
        file_locks: common.file_locks,
        auto_dedup: common.auto_dedup,
        lazy_pages: common.lazy_pages,
        cgroup_mode: common.cgroups,
        mounts,
        empty_namespaces: u32::try_from(sys::clone::flags::NEWNET).unwrap_or_default(),
        lsm_profile: options.lsm_profile.clone(),
        lsm_mount_context: options.lsm_mount_context.clone(),
        ..Options::default()
    })
}

/// The streams for CRIU, whose standard streams they become; pipes of the dump are replaced by them.
fn streams(io: ProcessIo, descriptors: &[String], request: &mut Options) -> Option<Streams> {
    let ProcessIo::Streams { stdin, stdout, stderr } = io else { return None };
    for (number, descriptor) in (0..3).zip(descriptors) {
        if descriptor.contains("pipe:") {
            request.inherit.push((descriptor.clone(), number));
        }
    }
    Some([stdin, stdout, stderr])
}

/// `/proc/<pid>/cgroup` as pairs of controller and path.
fn cgroup_roots(table: &str) -> Vec<(String, String)> {
    let mut roots = Vec::new();
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        roots.extend(controllers.split(',').map(|controller| (controller.to_owned(), path.to_owned())));
    }
    roots
}

/// The root file system on a mount of its own, as CRIU wants it. Dropping it unmounts it.
#[derive(Debug)]
struct MountedRoot(PathBuf);

impl MountedRoot {
    fn new(plan: &Plan, place: &Path) -> Result<Self, Error> {
        let failed = |errno| Error::host(format!("mounting the root file system on {}", place.display()), errno);
        sys::mount::mount_bind_recursive(&plan.root_path, place).map_err(failed)?;
        let mounted = Self(place.to_owned());
        // What CRIU mounts below must not spread to other mounts of the same directory.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        sys::mount::mount_change(place, private).map_err(failed)?;
        Ok(mounted)
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        let _ = mount::unmount_all(&self.0, UnmountFlags::DETACH);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_versions() {
        let own = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(cgroup_roots("0::/a/b\n"), own(&[("", "/a/b")]));
        assert_eq!(
            cgroup_roots("9:name=systemd:/x\n3:cpu,cpuacct:/a:b\n0::/\n"),
            own(&[("name=systemd", "/x"), ("cpu", "/a:b"), ("cpuacct", "/a:b"), ("", "/")])
        );
    }

    #[test]
    fn pipes_are_replaced_and_nothing_else() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let io = ProcessIo::Streams { stdin: null(), stdout: null(), stderr: null() };
        let descriptors = ["/dev/null", "pipe:[12]", "pipe:[13]", "pipe:[14]"].map(str::to_owned);
        let mut request = Options::default();
        assert!(streams(io, &descriptors, &mut request).is_some());
        assert_eq!(request.inherit, [("pipe:[12]".to_owned(), 1), ("pipe:[13]".to_owned(), 2)]);
        assert!(streams(ProcessIo::Console { size: None }, &descriptors, &mut request).is_none());
    }
}
