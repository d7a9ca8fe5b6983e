//! What must hold when the dust has settled.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::ledger::{Ledger, Record};
use crate::witness::Seen;

const KILLED: u32 = 137;
const UNKNOWN: u32 = 255;

/// Numbers are dense: nothing is missing and nothing comes twice.
pub(crate) fn sequences(events: &[Seen], begin: &str, ledger: &Ledger) {
    let mut last: u64 = begin.rsplit_once(':').and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
    for event in events {
        if event.sequence != last + 1 {
            ledger.complain(format!("event {} {} follows event {last}", event.sequence, event.topic));
        }
        last = event.sequence;
    }
}

/// What the events say of one task, from its creation to its deletion.
#[derive(Debug, Default)]
struct Life {
    events: Vec<Seen>,
}

/// Each container's events have the order and number that a task's life has, and tell the exit codes that were asked for.
pub(crate) fn lives(events: &[Seen], ledger: &Ledger) {
    let records = ledger.records();
    let mut tasks: BTreeMap<&str, Vec<Life>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.topic.starts_with("/tasks/")) {
        let lives = tasks.entry(event.id.as_str()).or_default();
        let over = lives.last().is_none_or(|life| life.events.last().is_some_and(|last| last.topic == "/tasks/delete"));
        if over {
            lives.push(Life::default());
        }
        if let Some(life) = lives.last_mut() {
            life.events.push(event.clone());
        }
    }
    for (id, record) in &records {
        let excused = ledger.is_excused(id);
        let lives = tasks.remove(id.as_str()).unwrap_or_default();
        let wrong = |text: String| ledger.complain(format!("{id}: {text}; its events: {}", told(&lives)));
        if lives.is_empty() && record.init.created {
            wrong("its creation was answered and no event tells of it".to_owned());
        }
        if lives.len() > 1 && !excused {
            wrong(format!("{} tasks", lives.len()));
        }
        for life in &lives {
            check_life(life, record, excused, &wrong);
        }
        check_execs(&lives, record, excused, &wrong);
        for (topic, answered) in [("/tasks/paused", record.paused), ("/tasks/resumed", record.resumed)] {
            let count = lives.iter().flat_map(|life| &life.events).filter(|event| event.topic == topic).count() as u64;
            if count < answered {
                wrong(format!("{answered} answers and {count} events {topic}"));
            }
        }
    }
    for (id, lives) in tasks {
        ledger.complain(format!("{id}: nobody asked for it; its events: {}", told(&lives)));
    }
    for (topic, ids) in [
        ("/containers/create", &records),
        ("/containers/delete", &records),
        ("/snapshot/prepare", &records),
        ("/snapshot/remove", &records),
    ] {
        for id in ids.keys() {
            let count = events.iter().filter(|event| event.topic == topic && event.id == *id).count();
            if count != 1 {
                ledger.complain(format!("{id}: {count} events {topic}"));
            }
        }
    }
}

fn told(lives: &[Life]) -> String {
    let one = |event: &Seen| {
        let topic = event.topic.trim_start_matches("/tasks/");
        match (topic, event.exec_id.as_str()) {
            ("exit", "") => format!("exit={}", event.status),
            ("exit", exec_id) => format!("exit({exec_id})={}", event.status),
            (topic, "") => topic.to_owned(),
            (topic, exec_id) => format!("{topic}({exec_id})"),
        }
    };
    let all: Vec<String> = lives.iter().flat_map(|life| &life.events).map(one).collect();
    const END: usize = 24;
    let end = &all[all.len().saturating_sub(END)..];
    format!("{}{}", if all.len() > END { "… " } else { "" }, end.join(" "))
}

fn check_life(life: &Life, record: &Record, excused: bool, wrong: &impl Fn(String)) {
    let place = |topic: &str, exec_id: &str| -> Vec<usize> {
        let events = life.events.iter().enumerate();
        events.filter(|(_, event)| event.topic == topic && event.exec_id == exec_id).map(|(at, _)| at).collect()
    };
    let once = |topic: &str, optional: bool| -> Option<usize> {
        let places = place(topic, "");
        if places.len() > 1 || (places.is_empty() && !optional) {
            wrong(format!("{} events {topic}", places.len()));
        }
        places.first().copied()
    };
    let create = once("/tasks/create", false);
    let start = once("/tasks/start", excused || !record.init.started);
    let exit = once("/tasks/exit", false);
    let delete = once("/tasks/delete", false);
    let ordered: Vec<usize> = [create, start, exit, delete].into_iter().flatten().collect();
    if !ordered.is_sorted() {
        wrong("create, start, exit and delete are not in order".to_owned());
    }
    if let Some(exit) = exit {
        let status = life.events[exit].status;
        if status != record.init.code && !(excused && status == KILLED) {
            wrong(format!("ended with {status}, want {}", record.init.code));
        }
        for (at, event) in life.events.iter().enumerate() {
            let between = ["/tasks/paused", "/tasks/resumed", "/tasks/oom"].contains(&event.topic.as_str());
            if between && (at > exit || start.is_none_or(|start| at < start)) {
                wrong(format!("{} is not between start and exit", event.topic));
            }
            if at > exit && !excused && event.topic == "/tasks/exit" {
                wrong(format!("the exit of {} comes behind init's", event.exec_id));
            }
        }
    }
}

fn check_execs(lives: &[Life], record: &Record, excused: bool, wrong: &impl Fn(String)) {
    let events: Vec<&Seen> = lives.iter().flat_map(|life| &life.events).collect();
    for (exec_id, asked) in &record.execs {
        let places = |topic: &str| -> Vec<usize> {
            let all = events.iter().enumerate();
            all.filter(|(_, event)| event.topic == topic && event.exec_id == *exec_id).map(|(at, _)| at).collect()
        };
        let (added, started, exits) =
            (places("/tasks/exec-added"), places("/tasks/exec-started"), places("/tasks/exit"));
        if added.len() > 1 || (asked.created && added.is_empty()) {
            wrong(format!("{} events exec-added of {exec_id}", added.len()));
        }
        if started.len() > 1 || (asked.started && started.is_empty()) {
            wrong(format!("{} events exec-started of {exec_id}", started.len()));
        }
        if exits.len() != started.len() {
            wrong(format!("{} exits of {exec_id}, which was started {} times", exits.len(), started.len()));
        }
        let ordered: Vec<usize> = [added, started, exits.clone()].concat();
        if !ordered.is_sorted() {
            wrong(format!("the events of {exec_id} are not in order"));
        }
        for at in exits {
            let status = events[at].status;
            if status != asked.code && !(excused && [KILLED, UNKNOWN].contains(&status)) {
                wrong(format!("{exec_id} ended with {status}, want {}", asked.code));
            }
        }
    }
}

/// Directories that hold something for each task are empty, and there is one directory for each snapshot.
pub(crate) fn leftovers(directory: &Path, snapshots: usize) -> Vec<String> {
    let mut found = Vec::new();
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    for place in [
        "state/io.containerd.runtime.v2.task/chaos",
        "root/io.containerd.runtime.v2.task/chaos",
        "state/s",
        "root/io.containerd.snapshotter.v1.overlayfs/trash",
        "root/io.containerd.content.v1.content/ingest",
    ] {
        let left = names(&directory.join(place));
        if !left.is_empty() {
            found.push(format!("left in {place}: {left:?}"));
        }
    }
    let kept = names(&directory.join("root/io.containerd.snapshotter.v1.overlayfs/snapshots"));
    if kept.len() != snapshots {
        found.push(format!("{snapshots} snapshots and {} directories of snapshots: {kept:?}", kept.len()));
    }
    found
}
