//! Create: from a request to a container that waits for its start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_shim::convert;
use api_shim::messages::{Options, events as payload};
use cgroups::OomWatch;
use model::Mount;
use model::record::{Status, StdioPaths};
use oci::runtime::{LinuxIdMapping, LinuxNamespaceType};
use runtime::{Creating, Plan, PlanOptions};
use sys::crash::{point, shim as crash};

use crate::engine::backend::Backend;
use crate::engine::oom::Telling;
use crate::engine::process::Process;
use crate::engine::{Container, Engine, rootfs};
use crate::error::Error;
use crate::events::Event;
use crate::foreign;
use crate::listing::Listing;
use crate::record::Records;
use crate::stdio::{Logger, Owner, Stdio};

/// How long the container's process may take to set itself up, hooks included.
const DEADLINE: Duration = Duration::from_secs(30);

/// A request to create.
#[derive(Debug)]
pub(crate) struct Create {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) paths: StdioPaths,
    pub(crate) options: Options,
    pub(crate) checkpoint: String,
}

impl Engine {
    /// Creates a container and answers its pid.
    pub(crate) async fn create(self: &Arc<Self>, request: Create) -> Result<u32, Error> {
        check(&request)?;
        point(crash::CREATE_BEGUN);
        let id = request.id.clone();
        {
            let mut inner = self.lock();
            if inner.containers.contains_key(&id) || !inner.creating.insert(id.clone()) {
                return Err(Error::ContainerExists(id));
            }
        }
        let mut mounted = false;
        let bundle = request.bundle.clone();
        let result = self.create_reserved(request, &mut mounted).await;
        self.lock().creating.remove(&id);
        if result.is_err()
            && mounted
            && let Err(error) = rootfs::undo(&bundle)
        {
            self.log.error("undo a failed create", &error);
        }
        self.worked.notify_one();
        self.sweep();
        result
    }

    async fn create_reserved(self: &Arc<Self>, request: Create, mounted: &mut bool) -> Result<u32, Error> {
        let Create { id, bundle, mounts, paths, options, checkpoint } = request;
        self.enter_cgroup(&options)?;
        let records = Records::open(&bundle)?;
        let spec = read_spec(&bundle)?;
        let shares_pids = !rootfs::own_namespace(&spec, LinuxNamespaceType::Pid);
        let users = Users::of(&spec);
        let owner = stream_owner(&spec, &users, &options);
        let logger = Logger::start(&paths, owner, &id, &self.namespace).await?;
        let (mut stdio, io) = Stdio::open(&paths, owner, logger)?;
        if foreign::is_foreign(&options) {
            let request = Create { id, bundle, mounts, paths, options, checkpoint };
            return self.create_foreign(request, records, spec, (stdio, io), mounted).await;
        }
        let plan_options = PlanOptions {
            id: id.clone(),
            bundle: bundle.clone(),
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            systemd: options.systemd_cgroup.then(cgroups::Manager::of_caller),
            ..PlanOptions::default()
        };
        let failed = |source| Error::Runtime { operation: "create", source };
        let plan = Plan::new(&spec, &self.host, &plan_options).map_err(failed)?;
        let root = rootfs::prepare(&mounts, &spec, &bundle);
        let listed = (!options.root.is_empty()).then_some(spec);
        let (root, in_bundle) = root?;
        *mounted = in_bundle;
        records.planned_cgroup(plan.cgroup_path().as_str())?;
        let creating = Creating::begin(plan, &self.host, root, io, None).map_err(failed)?;
        let Ok(created) = tokio::time::timeout(DEADLINE, self.drive(creating)).await else {
            return Err(Error::Deadline { operation: "create", seconds: DEADLINE.as_secs() });
        };
        let mut container = created.map_err(failed)?;
        for warning in container.warnings() {
            self.log.line(&format!("container {id}: {warning}"));
        }
        point(crash::CREATED);
        let prepared = (|| {
            if let Some(master) = container.take_console() {
                stdio.attach(master)?;
            }
            records.cgroup(container.cgroup().path().as_str())?;
            records.task(container.identity(), Status::Created, false, &paths)
        })();
        if let Err(error) = prepared {
            // Nobody knows of it yet, so nobody else would end it. Its process is reaped as an orphan.
            let undone = match container.delete(true) {
                Ok(deleting) => self.drive(deleting).await,
                Err(source) => Err(source),
            };
            if let Err(source) = undone {
                self.log.error("undo a failed create", &Error::Runtime { operation: "delete", source });
            }
            return Err(error);
        }
        point(crash::CREATE_RECORDED);
        let init = Process::init(container.identity(), paths, stdio);
        let listing = listed.and_then(|spec| self.list(&options.root, &bundle, &spec, &container));
        let watch = self.watch_oom(container.cgroup());
        let container = Container {
            id,
            bundle,
            records,
            runtime: Backend::Embedded(Box::new(container)),
            init,
            execs: std::collections::BTreeMap::new(),
            running_execs: 0,
            started: false,
            init_gone: None,
            listing,
            shares_pids,
            users,
            rootfs_mounted: in_bundle,
            oom_kills: 0,
            telling_ooms: None,
        };
        Ok(self.register(container, &mounts, watch))
    }

    /// Goes where the shim itself is wanted. A foreign daemon's options came with `start`, which has done it.
    fn enter_cgroup(&self, options: &Options) -> Result<(), Error> {
        if options.shim_cgroup.is_empty() || self.lock().publisher.is_some() {
            return Ok(());
        }
        crate::cgroup::enter(&options.shim_cgroup, std::process::id())
    }

    /// Lists a container where the client looks for it. That it cannot be is no reason not to run it.
    fn list(&self, root: &str, bundle: &Path, spec: &oci::Spec, container: &runtime::Container) -> Option<Listing> {
        Listing::make(root, &self.namespace, bundle, spec, container)
            .inspect_err(|error| self.log.error("list a container in its runtime root", error))
            .ok()
    }

    pub(super) fn register(
        self: &Arc<Self>,
        mut container: Container,
        mounts: &[Mount],
        watch: Option<OomWatch>,
    ) -> u32 {
        let pid = container.init.pid();
        container.telling_ooms = watch.map(|watch| Telling::start(self, &container.id, watch));
        let mut inner = self.lock();
        if inner.publisher.is_some() {
            inner.publish(&Event::Create(create_event(&container, mounts)));
        }
        inner.containers.insert(container.id.clone(), container);
        pid
    }
}

fn create_event(container: &Container, mounts: &[Mount]) -> payload::TaskCreate {
    let mut io = payload::TaskIO::new();
    let paths = &container.init.paths;
    io.stdin.clone_from(&paths.stdin);
    io.stdout.clone_from(&paths.stdout);
    io.stderr.clone_from(&paths.stderr);
    io.terminal = paths.terminal;
    let mut event = payload::TaskCreate::new();
    event.container_id.clone_from(&container.id);
    event.bundle = container.bundle.display().to_string();
    event.rootfs = mounts.iter().map(convert::mount_message).collect();
    event.io = protobuf::MessageField::some(io);
    event.pid = container.init.pid();
    event
}

fn check(request: &Create) -> Result<(), Error> {
    model::check_identifier(&request.id).map_err(|source| Error::Identifier { what: "container id", source })?;
    if !request.bundle.is_absolute() {
        return Err(Error::InvalidRequest(format!("bundle {:?} must be an absolute path", request.bundle)));
    }
    if !request.checkpoint.is_empty() {
        return Err(Error::Unimplemented("restore from a checkpoint".to_owned()));
    }
    Ok(())
}

fn read_spec(bundle: &Path) -> Result<oci::Spec, Error> {
    let path = bundle.join("config.json");
    let json = std::fs::read(&path).map_err(|source| Error::file("read", path, source))?;
    Ok(oci::parse_spec(&json)?)
}

/// Who must own the streams of a container's first process, if that is not root: options first, as clients of runc
/// set them, else the process's user as the host sees it.
fn stream_owner(spec: &oci::Spec, users: &Users, options: &Options) -> Option<Owner> {
    let (uid, gid) = spec.process().as_ref().map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
    let of_user = users.owner(uid, gid);
    let chosen = |option: u32, of_user: u32| if option == 0 { of_user } else { option };
    let owner = Owner { uid: chosen(options.io_uid, of_user.uid), gid: chosen(options.io_gid, of_user.gid) };
    (owner.uid != 0).then_some(owner)
}

/// Who the users of a container are on the host.
#[derive(Debug, Default)]
pub(crate) struct Users {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Users {
    pub(super) fn of(spec: &oci::Spec) -> Self {
        let Some(linux) = spec.linux() else { return Self::default() };
        Self {
            uids: linux.uid_mappings().clone().unwrap_or_default(),
            gids: linux.gid_mappings().clone().unwrap_or_default(),
        }
    }

    /// The host's ids of a user; without a user namespace they are the same.
    pub(crate) fn owner(&self, uid: u32, gid: u32) -> Owner {
        let host_id = |id: u32, mappings: &[LinuxIdMapping]| {
            let mapped = mappings.iter().find_map(|map| {
                let offset = id.checked_sub(map.container_id()).filter(|offset| *offset < map.size())?;
                map.host_id().checked_add(offset)
            });
            mapped.unwrap_or(id)
        };
        Owner { uid: host_id(uid, &self.uids), gid: host_id(gid, &self.gids) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owns_the_streams() {
        for (uid, mapped, option, want) in [
            (0, false, 0, None),
            (0, false, 7, Some(7)),
            (33, false, 0, Some(33)),
            (0, true, 0, Some(100_000)),
            (33, true, 0, Some(100_033)),
        ] {
            let map = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            let mut json = serde_json::json!({"ociVersion": "1.0.2", "linux": {},
                "process": {"user": {"uid": uid, "gid": 0}, "cwd": "/", "args": ["x"]}});
            if mapped {
                json["linux"]["uidMappings"] = map;
            }
            let spec: oci::Spec = serde_json::from_value(json).unwrap();
            let mut options = Options::new();
            options.io_uid = option;
            assert_eq!(
                stream_owner(&spec, &Users::of(&spec), &options).map(|owner| owner.uid),
                want,
                "{uid} {mapped} {option}"
            );
        }
    }

    #[test]
    fn what_is_refused_says_so() {
        let request = |change: fn(&mut Create)| {
            let mut request = Create {
                id: "a".to_owned(),
                bundle: PathBuf::from("/b"),
                mounts: Vec::new(),
                paths: StdioPaths::default(),
                options: Options::new(),
                checkpoint: String::new(),
            };
            change(&mut request);
            check(&request).map_err(|error| model::render(&error))
        };
        assert_eq!(request(|_| {}), Ok(()));
        assert_eq!(request(|request| request.options.binary_name = "runc".to_owned()), Ok(()));
        for (change, text) in [
            ((|request| request.id.clear()) as fn(&mut Create), "must not be empty"),
            (|request| request.bundle = PathBuf::from("b"), "absolute path"),
            (|request| request.checkpoint = "/c".to_owned(), "not implemented"),
        ] {
            let error = request(change).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
