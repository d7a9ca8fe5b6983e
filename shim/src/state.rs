//! Which operation is allowed when.
//!
//! ```text
//!             start           pause
//!  Created ─────────▶ Running ─────▶ Pausing ─▶ Paused
//!     │                 │  ▲                      │
//!     │ exit            │  └──────── resume ──────┘
//!     ▼                 ▼ exit
//!  Stopped ◀────────────┘            (delete: from Created and Stopped)
//! ```
//!
//! **Invariant:** the texts are those of containerd's runc shim, because they reach users unchanged.

use model::record::Status;

use crate::error::Error;

/// What a client asks of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Start,
    Delete,
    Pause,
    Resume,
    Exec,
    Update,
    Resize,
}

/// Whether init of a container may be asked for `operation` now.
pub(crate) fn check_init(operation: Operation, status: Status) -> Result<(), Error> {
    use Operation::{Delete, Exec, Pause, Resize, Resume, Start, Update};
    use Status::{Created, Paused, Pausing, Running, Stopped};
    let refusal = match (operation, status) {
        (Start | Delete | Update | Resize, Created)
        | (Pause | Exec | Update | Resize, Running)
        | (Resume | Update | Resize, Paused)
        | (Update | Resize, Pausing)
        | (Delete | Resize, Stopped) => return Ok(()),
        (Pause, Created) => "cannot pause task in created state",
        (Resume, Created) => "cannot resume task in created state",
        (Exec, Created) => "cannot exec in a created state",
        (Start, Running) => "cannot start a running process",
        (Delete, Running) => "cannot delete a running process",
        (Resume, Running) => "cannot resume a running process",
        (Pause, Paused | Pausing) => "cannot pause a paused container",
        (Resume, Pausing) => "cannot resume a container that is being paused",
        (Start, Paused | Pausing) => "cannot start a paused process",
        (Delete, Paused | Pausing) => "cannot delete a paused process",
        (Exec, Paused | Pausing) => "cannot exec in a paused state",
        (Start, Stopped) => "cannot start a stopped process",
        (Pause, Stopped) => "cannot pause a stopped container",
        (Resume, Stopped) => "cannot resume a stopped container",
        (Exec, Stopped) => "cannot exec in a stopped state",
        (Update, Stopped) => "cannot update a stopped container",
    };
    Err(Error::State(refusal))
}

/// Whether an additional process may be asked for `operation` now.
pub(crate) fn check_exec(operation: Operation, status: Status) -> Result<(), Error> {
    use Operation::{Delete, Exec, Pause, Resize, Resume, Start, Update};
    use Status::{Created, Paused, Pausing, Running, Stopped};
    let refusal = match (operation, status) {
        (Start | Delete | Resize, Created) | (Resize, Running | Paused | Pausing) | (Delete, Stopped) => return Ok(()),
        (Start, Running | Paused | Pausing) => "cannot start a running process",
        (Delete, Running | Paused | Pausing) => "cannot delete a running process",
        (Start, Stopped) => "cannot start a stopped process",
        (Resize, Stopped) => "cannot resize a stopped container",
        (Pause | Resume | Exec | Update, _) => "not an operation of an additional process",
    };
    Err(Error::State(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::*;
    use Status::*;

    #[test]
    fn init() {
        for (operation, allowed) in [
            (Start, &[Created][..]),
            (Delete, &[Created, Stopped]),
            (Pause, &[Running]),
            (Resume, &[Paused]),
            (Exec, &[Running]),
            (Update, &[Created, Running, Paused, Pausing]),
            (Resize, &[Created, Running, Paused, Pausing, Stopped]),
        ] {
            for status in [Created, Running, Paused, Pausing, Stopped] {
                assert_eq!(
                    check_init(operation, status).is_ok(),
                    allowed.contains(&status),
                    "{operation:?} {status:?}"
                );
            }
        }
    }

    #[test]
    fn exec() {
        for (operation, allowed) in [
            (Start, &[Created][..]),
            (Delete, &[Created, Stopped]),
            (Resize, &[Created, Running, Paused, Pausing]),
            (Pause, &[]),
        ] {
            for status in [Created, Running, Paused, Pausing, Stopped] {
                assert_eq!(
                    check_exec(operation, status).is_ok(),
                    allowed.contains(&status),
                    "{operation:?} {status:?}"
                );
            }
        }
    }

    #[test]
    fn refusals_have_no_class() {
        let error = check_init(Pause, Created).unwrap_err();
        assert_eq!(model::render(&error), "cannot pause task in created state");
    }
}
