//! What the labels of a container ask for. Pure.

use std::collections::BTreeMap;

use model::record::Status;

/// The namespace of the labels.
pub(crate) const PREFIX: &str = "containerd.io/restart.";
/// The label that says what is wanted.
pub(crate) const STATUS: &str = "containerd.io/restart.status";
/// The label that counts.
pub(crate) const COUNT: &str = "containerd.io/restart.count";
/// The label that stands while a container is being started again: a daemon that finds it goes on with that.
pub(crate) const PENDING: &str = "containerd.io/restart.pending";

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) status: Status,
    pub(crate) exit_status: u32,
}

/// What is to be done with a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Start it, for the `count`th time.
    Start { count: u64, log: String },
    /// End and delete its task.
    Stop,
}

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    No,
    Always,
    /// At most so often; 0 for no bound.
    OnFailure(u64),
    UnlessStopped,
}

impl Policy {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "no" => Some(Self::No),
            "" | "always" => Some(Self::Always),
            "unless-stopped" => Some(Self::UnlessStopped),
            "on-failure" => Some(Self::OnFailure(0)),
            other => other.strip_prefix("on-failure:")?.parse().ok().map(Self::OnFailure),
        }
    }
}

/// Compares what `labels` ask for with how the task stands; `task` is `None` where there is none. `None` if nothing is
/// to be done. A label that cannot be understood asks for nothing; the text says which.
pub(crate) fn change(labels: &BTreeMap<String, String>, task: Option<Standing>) -> Result<Option<Change>, String> {
    let label = |name: &str| labels.get(&format!("{PREFIX}{name}")).map_or("", String::as_str);
    match label("status") {
        "" => Ok(None),
        "stopped" => match task {
            None | Some(Standing { status: Status::Stopped, .. }) => Ok(None),
            Some(Standing { status: Status::Created | Status::Running | Status::Paused | Status::Pausing, .. }) => {
                Ok(Some(Change::Stop))
            }
        },
        "running" => {
            let pending = label("pending") == "true";
            let exit_status = match task {
                None => None,
                Some(Standing { status: Status::Stopped, exit_status }) => Some(exit_status),
                Some(Standing { status: Status::Created, .. }) if pending => None,
                // Created: whoever made it is about to start it.
                Some(_) => return Ok(None),
            };
            let policy = label("policy");
            let policy = Policy::parse(policy).ok_or_else(|| format!("restart policy {policy:?} does not exist"))?;
            // The start that was begun is counted already.
            let count = label("count").parse().unwrap_or(0_u64).saturating_sub(u64::from(pending));
            let wanted = match policy {
                Policy::No => false,
                Policy::Always => true,
                Policy::OnFailure(most) => {
                    exit_status.map_or(pending, |status| status != 0) && (most == 0 || count < most)
                }
                Policy::UnlessStopped => label("explicitly-stopped") != "true",
            };
            Ok(wanted.then(|| Change::Start { count: count.saturating_add(1), log: label("loguri").to_owned() }))
        }
        other => Err(format!("restart status {other:?} is neither running nor stopped")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect()
    }

    #[test]
    fn policies() {
        let ended = |exit_status| Some(Standing { status: Status::Stopped, exit_status });
        let standing = |status| Some(Standing { status, exit_status: 0 });
        let start = |count| Ok(Some(Change::Start { count, log: String::new() }));
        let running = |more: &[(&str, &str)]| labels(&[&[("status", "running")], more].concat());
        for (labels, task, want) in [
            (labels(&[]), ended(1), Ok(None)),
            (running(&[]), None, start(1)),
            (running(&[]), ended(0), start(1)),
            (running(&[]), standing(Status::Running), Ok(None)),
            (running(&[]), standing(Status::Created), Ok(None)),
            (running(&[]), standing(Status::Paused), Ok(None)),
            (running(&[("policy", "always"), ("count", "4")]), ended(0), start(5)),
            (running(&[("policy", "no")]), ended(1), Ok(None)),
            (running(&[("policy", "on-failure")]), ended(0), Ok(None)),
            (running(&[("policy", "on-failure")]), ended(3), start(1)),
            (running(&[("policy", "on-failure:2"), ("count", "1")]), ended(3), start(2)),
            (running(&[("policy", "on-failure:2"), ("count", "2")]), ended(3), Ok(None)),
            (running(&[("policy", "on-failure:2"), ("count", "2"), ("pending", "true")]), None, start(2)),
            (running(&[("policy", "on-failure:2"), ("count", "2"), ("pending", "true")]), ended(3), start(2)),
            (running(&[("policy", "on-failure:2"), ("count", "2"), ("pending", "true")]), ended(0), Ok(None)),
            (running(&[("policy", "on-failure"), ("count", "1")]), None, Ok(None)),
            (running(&[("count", "3"), ("pending", "true")]), standing(Status::Created), start(3)),
            (running(&[("count", "3"), ("pending", "true")]), standing(Status::Running), Ok(None)),
            (running(&[("policy", "unless-stopped")]), ended(0), start(1)),
            (running(&[("policy", "unless-stopped"), ("explicitly-stopped", "true")]), ended(0), Ok(None)),
            (running(&[("policy", "unless-stopped"), ("explicitly-stopped", "false")]), ended(0), start(1)),
            (labels(&[("status", "stopped")]), ended(0), Ok(None)),
            (labels(&[("status", "stopped")]), None, Ok(None)),
            (labels(&[("status", "stopped")]), standing(Status::Running), Ok(Some(Change::Stop))),
            (
                running(&[("policy", "on-failure:x")]),
                ended(1),
                Err("restart policy \"on-failure:x\" does not exist".into()),
            ),
            (labels(&[("status", "up")]), None, Err("restart status \"up\" is neither running nor stopped".into())),
        ] {
            assert_eq!(change(&labels, task), want, "{labels:?} {task:?}");
        }
        let logged = running(&[("loguri", "file:///var/log/x")]);
        assert_eq!(change(&logged, None), Ok(Some(Change::Start { count: 1, log: "file:///var/log/x".into() })));
    }
}
