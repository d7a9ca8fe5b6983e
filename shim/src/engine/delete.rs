//! Delete: a process that has ended, or never ran, and with init the whole container.

use api_shim::convert;
use api_shim::messages::events as payload;
use model::record::Status;
use sys::crash::{point, shim as crash};

use crate::engine::{Container, Engine, Exit, rootfs};
use crate::error::Error;
use crate::events::Event;
use crate::state::{self, Operation};

impl Engine {
    /// Deletes a process and answers pid and end.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), Error> {
        let draining = self.begin_delete(id, exec_id).await?;
        draining.finish().await;
        let result = if exec_id.is_empty() { self.delete_container(id).await } else { self.delete_exec(id, exec_id) };
        if result.is_err()
            && let Ok(process) = self.lock().container(id).and_then(|container| container.process(exec_id))
        {
            process.busy = false;
        }
        self.worked.notify_one();
        self.sweep();
        result
    }

    /// Makes sure that the process has ended and that nobody else deletes it.
    async fn begin_delete(&self, id: &str, exec_id: &str) -> Result<crate::stdio::Draining, Error> {
        let ending = {
            let mut inner = self.lock();
            let container = inner.container(id)?;
            check(container, exec_id)?;
            if exec_id.is_empty() && container.init.status == Status::Created {
                // It waits for a start that will not come.
                container.runtime.kill_init()?;
                Some(std::sync::Arc::clone(&container.init.end))
            } else {
                None
            }
        };
        if let Some(end) = ending {
            end.wait().await;
        }
        let mut inner = self.lock();
        let container = inner.container(id)?;
        check(container, exec_id)?;
        let process = container.process(exec_id)?;
        process.busy = true;
        Ok(process.stdio.draining())
    }

    fn delete_exec(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), Error> {
        let mut inner = self.lock();
        let container = inner.container(id)?;
        let process = container.execs.remove(exec_id).ok_or_else(|| Error::NoProcess(exec_id.to_owned()))?;
        container.records.forget_exec(exec_id);
        // For those that wait for the end of a process that was never started.
        process.end.set(process.exit());
        Ok((process.pid(), process.exit()))
    }

    async fn delete_container(&self, id: &str) -> Result<(u32, Exit), Error> {
        point(crash::DELETE_BEGUN);
        let calls = self.lock().container(id)?.runtime.calls();
        match calls {
            Some(calls) => {
                let _counted = self.counted();
                calls.delete().await?;
            }
            None => {
                let failed = |source| Error::Runtime { operation: "delete", source };
                let deleting = self.lock().container(id)?.runtime.embedded()?.delete(true).map_err(failed)?;
                self.drive(deleting).await.map_err(failed)?;
            }
        }
        let mut inner = self.lock();
        let container = inner.container(id)?;
        if container.rootfs_mounted {
            rootfs::undo(&container.bundle)?;
            container.rootfs_mounted = false;
        }
        point(crash::DELETED);
        let (pid, exit) = (container.init.pid(), container.init.exit());
        let mut event = payload::TaskDelete::new();
        event.container_id = id.to_owned();
        event.pid = pid;
        event.exit_status = exit.status;
        event.exited_at = convert::timestamp(exit.at);
        let container = inner.containers.remove(id);
        inner.publish(&Event::Delete(event));
        drop(inner);
        for process in container.iter().flat_map(|container| container.execs.values()) {
            process.end.set(process.exit());
        }
        // Outside of the lock: its streams end here, and tasks of theirs with them.
        if let Some(listing) = container.and_then(|container| container.listing) {
            listing.remove();
        }
        Ok((pid, exit))
    }
}

fn check(container: &mut Container, exec_id: &str) -> Result<(), Error> {
    let process = container.process(exec_id)?;
    if exec_id.is_empty() {
        state::check_init(Operation::Delete, process.status)?;
    } else {
        state::check_exec(Operation::Delete, process.status)?;
    }
    if process.busy { Err(Error::Busy(process.exec_id.clone())) } else { Ok(()) }
}
