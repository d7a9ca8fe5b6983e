//! What differs when a container has a foreign runtime: its answers take time, so no lock is held meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::record::Status;
use oci::runtime::LinuxNamespaceType;
use runtime::ProcessIo;

use crate::engine::backend::Backend;
use crate::engine::create::Users;
use crate::engine::process::Process;
use crate::engine::{Container, Create, Engine, rootfs};
use crate::error::Error;
use crate::foreign::{Calls, Runtime};
use crate::record::Records;
use crate::state::{self, Operation};
use crate::stdio::Stdio;

impl Engine {
    /// Creates a container by the runtime that the options name, and answers its pid.
    pub(super) async fn create_foreign(
        self: &Arc<Self>,
        request: Create,
        records: Records,
        spec: oci::Spec,
        (mut stdio, io): (Stdio, ProcessIo),
        mounted: &mut bool,
    ) -> Result<u32, Error> {
        let Create { id, bundle, mounts, paths, options, .. } = request;
        let runtime = Runtime::new(&options, &self.namespace, &bundle)?;
        runtime.keep()?;
        rootfs::mount_in_bundle(&mounts, &bundle)?;
        *mounted = !mounts.is_empty();
        let calls = Calls::new(Arc::new(runtime), id.clone());
        let container = {
            let _counted = self.counted();
            let container = calls.create(io, &mut stdio).await?;
            let noted = (|| {
                if let Some(cgroup) = container.cgroup() {
                    records.cgroup(cgroup.path().as_str())?;
                }
                records.task(container.identity(), Status::Created, false, &paths)
            })();
            if let Err(error) = noted {
                // Nobody knows of it yet, so nobody else would end it.
                if let Err(undone) = calls.delete().await {
                    self.log.error("undo a failed create", &undone);
                }
                return Err(error);
            }
            container
        };
        let init = Process::init(container.identity(), paths, stdio);
        let watch = container.cgroup().and_then(|cgroup| self.watch_oom(cgroup));
        let container = Container {
            id,
            bundle,
            records,
            runtime: Backend::Foreign(container),
            init,
            execs: BTreeMap::new(),
            running_execs: 0,
            started: false,
            init_gone: None,
            shares_pids: !rootfs::own_namespace(&spec, LinuxNamespaceType::Pid),
            users: Users::of(&spec),
            listing: None,
            rootfs_mounted: *mounted,
            oom_kills: 0,
            telling_ooms: None,
        };
        Ok(self.register(container, &mounts, watch))
    }

    /// Starts an additional process that was prepared, by a foreign runtime.
    pub(super) async fn exec_foreign(
        &self,
        id: &str,
        exec_id: &str,
        calls: &Calls,
        io: ProcessIo,
    ) -> Result<runtime::ExecProcess, Error> {
        let document = self.lock().container(id)?.process(exec_id)?.spec.clone();
        let _counted = self.counted();
        let made = calls.exec(exec_id, &document, io).await?;
        let (identity, pidfd, console) = (made.identity, made.pidfd, made.console);
        Ok(runtime::ExecProcess { identity, pidfd, console, warnings: Vec::new() })
    }

    /// Asks a foreign runtime for something that init's status must allow. False, and nothing done but the check, for
    /// a container of the embedded one.
    pub(super) async fn ask_foreign(
        &self,
        id: &str,
        operation: Operation,
        ask: impl AsyncFnOnce(Calls) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let calls = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            state::check_init(operation, container.init.status)?;
            let Some(calls) = container.runtime.calls() else { return Ok(false) };
            if container.init.busy {
                return Err(Error::Busy(id.to_owned()));
            }
            container.init.busy = true;
            calls
        };
        let answered = {
            let _counted = self.counted();
            ask(calls).await
        };
        if let Ok(container) = self.lock().container(id) {
            container.init.busy = false;
        }
        answered.map(|()| true)
    }
}
