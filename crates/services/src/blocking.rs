use std::sync::Arc;

use model::Coded;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::Error;

/// Requests that run in engines at the same time; more wait. The engines are bound by one disk, so more threads would
/// only cost memory.
const RUNNING_MAX: usize = 16;

/// Lengthy requests that run at the same time: each keeps a processor or the disk busy.
const LENGTHY_MAX: usize = 6;

/// Requests that may wait for a thread. One more is refused, because it would only be answered later than its client
/// cares for.
const WAITING_MAX: usize = 4096;

/// The one crossing from asynchronous services to the blocking engines.
///
/// Bounded twice: so many run, so many wait, and the rest is refused with RESOURCE_EXHAUSTED. Cheap to clone; clones
/// share the bounds.
#[derive(Clone, Debug)]
pub struct Blocking {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Default for Blocking {
    fn default() -> Self {
        Self::new(RUNNING_MAX, WAITING_MAX)
    }
}

impl Blocking {
    /// A crossing for what takes seconds: fewer run at the same time.
    pub fn lengthy() -> Self {
        Self::new(LENGTHY_MAX, WAITING_MAX)
    }

    /// A crossing that lets `running` operations run and `waiting` wait.
    pub fn new(running: usize, waiting: usize) -> Self {
        Self { running: Arc::new(Semaphore::new(running)), admitted: Arc::new(Semaphore::new(running + waiting)) }
    }

    /// Runs `operation` on a thread that may block, and maps its error to a status.
    ///
    /// Dropping the future before the operation began cancels it; an operation that has begun runs to its end. A panic
    /// of the operation becomes INTERNAL.
    pub async fn run<T, E, F>(&self, operation: F) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Coded + Send + 'static,
        F: FnOnce() -> Result<T, E> + Send + 'static,
    {
        self.run_plain(operation).await?.map_err(|error| api_grpc::status(&error))
    }

    /// As [`Blocking::run`], but whatever the operation returns is the result.
    pub async fn run_plain<T, F>(&self, operation: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let Ok(_admitted) = self.admitted.try_acquire() else {
            return Err(Error::Busy { waiting: WAITING_MAX }.into());
        };
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Error::Stopping)?;
        let result = tokio::task::spawn_blocking(move || {
            let result = operation();
            drop(running);
            result
        });
        result.await.map_err(|join| if join.is_panic() { Error::Panicked } else { Error::Stopping }.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn saturation_is_a_status() {
        let blocking = Blocking::new(1, 1);
        let (release, gate) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let blocking = blocking.clone();
            async move { blocking.run_plain(move || gate.recv().is_ok()).await }
        });
        let second = tokio::spawn({
            let blocking = blocking.clone();
            async move { blocking.run_plain(|| 2).await }
        });
        while blocking.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = blocking.run_plain(|| 3).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().ends_with(": resource exhausted"), "{refused}");
        release.send(()).unwrap();
        assert!(first.await.unwrap().unwrap());
        assert_eq!(second.await.unwrap().unwrap(), 2);
        assert_eq!(blocking.run_plain(|| 4).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn errors_and_panics_are_statuses() {
        let blocking = Blocking::default();
        let status = blocking.run(|| Err::<(), _>(Error::Required("container"))).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::InvalidArgument, "container must be set: invalid argument")
        );
        let status = blocking.run_plain(|| [0u8; 1].get(1).copied().unwrap()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert_eq!(blocking.run_plain(|| 1).await.unwrap(), 1);
    }
}
