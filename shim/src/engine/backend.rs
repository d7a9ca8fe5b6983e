//! Which runtime has a container: the one in this program, or another program.

use std::os::fd::BorrowedFd;

use rustix::process::Signal;

use crate::error::Error;
use crate::foreign;

/// The runtime's side of a container.
#[derive(Debug)]
pub(crate) enum Backend {
    Embedded(Box<runtime::Container>),
    Foreign(foreign::Container),
}

impl Backend {
    /// What to ask a foreign runtime with; `None` for the embedded one.
    pub(crate) fn calls(&self) -> Option<foreign::Calls> {
        match self {
            Self::Embedded(_) => None,
            Self::Foreign(container) => Some(container.calls.clone()),
        }
    }

    /// The container of the embedded runtime, for a caller that has asked [`Backend::calls`] before.
    pub(crate) fn embedded(&mut self) -> Result<&mut runtime::Container, Error> {
        match self {
            Self::Embedded(container) => Ok(container),
            Self::Foreign(_) => Err(Error::InvalidRequest("the container has a foreign runtime".to_owned())),
        }
    }

    /// Init's.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Embedded(container) => container.pidfd(),
            Self::Foreign(container) => container.pidfd(),
        }
    }

    /// The container's cgroup, if it has one of its own.
    pub(crate) fn cgroup(&self) -> Option<&cgroups::Cgroup> {
        match self {
            Self::Embedded(container) => Some(container.cgroup()),
            Self::Foreign(container) => container.cgroup(),
        }
    }

    /// Kills init, without waiting for a runtime.
    pub(crate) fn kill_init(&self) -> Result<(), Error> {
        match self {
            Self::Embedded(container) => match container.kill(Signal::KILL.as_raw()) {
                Ok(()) | Err(runtime::Error::Finished) => Ok(()),
                Err(source) => Err(Error::Runtime { operation: "kill", source }),
            },
            Self::Foreign(container) => container.kill_init(),
        }
    }

    /// Init has ended: thaws what is `frozen`, and kills what is left if nobody else does, because the container
    /// `shares_pids`. Waits for no runtime.
    pub(crate) fn end_rest(&mut self, frozen: bool, shares_pids: bool) -> Result<(), Error> {
        match self {
            Self::Embedded(container) => {
                if frozen {
                    // What is frozen cannot end; nothing is left to do if it cannot be thawed.
                    let _ = container.resume();
                }
                if shares_pids {
                    let failed = |source| Error::Runtime { operation: "kill", source };
                    container.kill_all(Signal::KILL.as_raw()).map_err(failed)?;
                }
            }
            Self::Foreign(container) => {
                let Some(cgroup) = container.cgroup() else { return Ok(()) };
                if frozen {
                    let _ = cgroup.thaw();
                }
                if shares_pids {
                    return match cgroup.kill_all() {
                        Err(cgroups::Error::Gone { .. }) => Ok(()),
                        other => Ok(other?),
                    };
                }
            }
        }
        Ok(())
    }
}
