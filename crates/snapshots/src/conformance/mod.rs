//! The rules of snapshots as a suite that every driver passes.
//!
//! The suite mounts what it is given, in the mount namespace of the calling thread. Call it from a thread that has
//! unshared its namespace and made `/` private, so that nothing of it is seen or left outside. Nothing here panics: a
//! case fails by returning a [`Failure`].

mod bench;
mod layers;
mod names;

use std::path::Path;
use std::sync::Arc;

use crate::{Driver, Error};
pub(crate) use bench::{Bench, ensure, refused};

/// A rule that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A call failed that must succeed.
    #[error("call failed")]
    Call(#[from] Error),
    /// A mount failed.
    #[error("mount")]
    Mount(#[from] mount::Error),
    /// The store failed.
    #[error("store")]
    Store(#[from] store::Error),
    /// The suite's own work on files failed.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
    /// A result is wrong.
    #[error("{0}")]
    Wrong(String),
}

/// A rule: its name and the program that checks it.
pub(crate) type Case = (&'static str, fn(&Bench) -> Result<(), Failure>);

/// Runs all cases, each with a driver that `open` opens in a new directory below `scratch`. Gives the names of the cases
/// that hold, and the failures.
pub fn run(
    scratch: &Path,
    open: impl Fn(&Path) -> Result<Arc<dyn Driver>, Error>,
) -> (Vec<&'static str>, Vec<(&'static str, Failure)>) {
    let mut held = Vec::new();
    let mut failures = Vec::new();
    for (number, (name, case)) in names::CASES.iter().chain(layers::CASES).enumerate() {
        let result = Bench::new(&scratch.join(number.to_string()), &open).and_then(|bench| case(&bench));
        match result {
            Ok(()) => held.push(*name),
            Err(failure) => failures.push((*name, failure)),
        }
    }
    (held, failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Native, Overlay, OverlayOptions};

    /// Runs the suite in a thread with a mount namespace of its own, which takes all mounts with it when it ends.
    fn conforms(open: fn(&Path) -> Result<Arc<dyn Driver>, Error>) {
        let suite = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare");
            rustix::mount::mount_change(
                "/",
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
            )
            .expect("make / private");
            let scratch = tempfile::tempdir().expect("temporary directory");
            let (held, failures) = run(scratch.path(), open);
            assert!(failures.is_empty(), "{failures:#?}");
            assert_eq!(held.len(), names::CASES.len() + layers::CASES.len());
        };
        std::thread::spawn(suite).join().expect("the suite");
    }

    #[test]
    fn overlayfs_conforms() {
        conforms(|root| Ok(Arc::new(Overlay::open(root, OverlayOptions::default())?)));
    }

    #[test]
    fn native_conforms() {
        conforms(|root| Ok(Arc::new(Native::open(root)?)));
    }
}
