//! Lack of memory while a container lives, told to daemons that are not ours: gantryd looks by itself.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use api_shim::messages::events as payload;
use cgroups::OomWatch;
use tokio::task::JoinHandle;

use crate::engine::{Container, Engine, Inner, publish};
use crate::error::Error;
use crate::events::{Event, Publisher};
use crate::watch::watch_readable;

/// On cgroup version 1 the notice comes before the kernel has killed and counted: looked at again after these pauses.
const PAUSES_MS: [u64; 5] = [0, 5, 20, 100, 500];

impl Engine {
    /// A watch on the memory of a container that was created, if anybody is to be told of it.
    pub(crate) fn watch_oom(&self, cgroup: &cgroups::Cgroup) -> Option<OomWatch> {
        self.lock().publisher.as_ref()?;
        cgroup.watch_oom().unwrap_or_else(|source| {
            let source = runtime::Error::Cgroup { operation: "watching memory".to_owned(), source };
            self.log.error("watch for lack of memory", &Error::Runtime { operation: "create", source });
            None
        })
    }

    async fn tell_ooms(self: Arc<Self>, id: String, watch: OomWatch) {
        let Ok(readable) = watch_readable(watch.as_fd()) else { return };
        while let Ok(mut ready) = readable.readable().await {
            ready.clear_ready();
            if watch.drain().is_err() {
                return;
            }
            for pause in PAUSES_MS {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let mut inner = self.lock();
                let Inner { containers, publisher, .. } = &mut *inner;
                match containers.get_mut(&id).map(|container| tell_oom(container, publisher.as_ref())) {
                    None => return,
                    Some(true) => break,
                    Some(false) => {}
                }
            }
        }
    }
}

/// The work of telling of one container's lack of memory; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Telling(JoinHandle<()>);

impl Telling {
    /// Begins in the background.
    pub(crate) fn start(engine: &Arc<Engine>, id: &str, watch: OomWatch) -> Self {
        Self(tokio::spawn(Arc::clone(engine).tell_ooms(id.to_owned(), watch)))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells that the kernel has killed something for lack of memory since the last time, if it has.
pub(crate) fn tell_oom(container: &mut Container, publisher: Option<&Publisher>) -> bool {
    let kills = container.count_oom_kills();
    if kills <= container.oom_kills {
        return false;
    }
    container.oom_kills = kills;
    let mut event = payload::TaskOOM::new();
    event.container_id.clone_from(&container.id);
    publish(publisher, &Event::Oom(event));
    true
}
