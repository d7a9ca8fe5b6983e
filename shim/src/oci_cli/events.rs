//! `events`: what a container has used and when its memory ran out, one JSON object per line in runc's form.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use cgroups::Stats;
use runtime::{Container, Status};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;

use super::args::{Global, Words, option, switch};
use super::store::Entry;
use super::{Command, Error, Result, log, print, stats};

pub(crate) const EVENTS: Command = Command {
    name: "events",
    about: "show what a container uses, and when its memory ran out",
    usage: "events [options] CONTAINER",
    flags: &[
        option("interval", "", "time between two statistics, with a unit as in 5s (default) or 100ms"),
        switch("stats", "", "show the statistics once"),
    ],
    rest_is_command: false,
    run: events,
};

/// The fields stand in runc's order.
#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn tell(event: &Event<'_>) -> Result {
    let line = serde_json::to_string(event).map_err(|source| Error::io("writing an event", source))?;
    print(&(line + "\n"))
}

fn events(global: &Global, words: Words) -> Result {
    let entry = Entry::find(global, words.id()?)?;
    let interval = words.value("interval").map_or(Ok(Duration::from_secs(5)), duration)?;
    let (container, _) = entry.open()?;
    if container.status() == Status::Stopped {
        return Err(Error::State(format!("container with id {} is not running", entry.id)));
    }
    let id = entry.id.as_str();
    if words.has("stats") {
        return tell(&Event { r#type: "stats", id, data: Some(statistics(&container)?) });
    }
    follow(global, id, &container, interval)
}

/// Tells what happens until the container ends.
fn follow(global: &Global, id: &str, container: &Container, interval: Duration) -> Result {
    let failed = |source| Error::Runtime(runtime::Error::Cgroup { operation: "watching memory".to_owned(), source });
    let watch = container.cgroup().watch_oom().map_err(failed)?;
    let mut kills = container.cgroup().oom_kills().unwrap_or(0);
    let mut due = Instant::now() + interval;
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(container.pidfd(), PollFlags::IN)];
        polled.extend(watch.as_ref().map(|watch| PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)));
        let rest = Timespec::try_from(due.saturating_duration_since(Instant::now())).unwrap_or_default();
        match rustix::event::poll(&mut polled, Some(&rest)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("waiting for events", errno)),
        }
        let ended = !polled[0].revents().is_empty();
        if let Some(watch) = &watch {
            watch.drain().map_err(failed)?;
        }
        // The notice also comes when the group is removed; only the count says that memory ran out.
        let now = container.cgroup().oom_kills().unwrap_or(kills);
        if now > kills {
            kills = now;
            tell(&Event { r#type: "oom", id, data: None })?;
        }
        if ended {
            return Ok(0);
        }
        if Instant::now() >= due {
            due += interval;
            match statistics(container) {
                Ok(data) => tell(&Event { r#type: "stats", id, data: Some(data) }).map(drop)?,
                Err(error) => log::error(global, &model::render(&error)),
            }
        }
    }
}

/// A time with units as Go writes it: `1m30s`, `100ms`. More than nothing.
fn duration(text: &str) -> core::result::Result<Duration, Error> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let parse = || {
        let (mut rest, mut total) = (text, 0.0);
        while !rest.is_empty() {
            let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
            let number: f64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let unit = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
            total += number * UNITS.iter().find(|(name, _)| *name == &rest[..unit])?.1;
            rest = &rest[unit..];
        }
        Duration::try_from_secs_f64(total).ok()
    };
    match parse() {
        Some(interval) if !interval.is_zero() => Ok(interval),
        Some(_) => Err(Error::Usage("duration interval must be greater than 0".to_owned())),
        None => Err(Error::Usage(format!("invalid value {text:?} for flag -interval"))),
    }
}

fn statistics(container: &Container) -> core::result::Result<Value, Error> {
    let failed = |source| {
        Error::Runtime(runtime::Error::Cgroup { operation: "unable to get container cgroup stats".to_owned(), source })
    };
    Ok(match container.cgroup().stats().map_err(failed)? {
        Stats::V1(used) => stats::of_v1(&used),
        Stats::V2(used) => stats::of_v2(&used),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_written_as_in_go() {
        for (text, milliseconds) in [("5s", 5000), ("100ms", 100), ("1m0.5s", 60_500), ("1h", 3_600_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for bad in ["", "0s", "5", "s", "1x", "-1s", "1e9h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
