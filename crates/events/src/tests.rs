//! The journal as its users see it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::filter::Filters;
use model::{Any, Code, Coded, Timestamp};

use crate::{Config, Entry, Envelope, Error, Journal, Lag, Retention, Subscription};

mod cursors;

const BOOT: &str = "b1";

fn envelope(topic: &str, text: &str) -> Envelope {
    Envelope {
        timestamp: Timestamp { seconds: 1, nanos: 2 },
        namespace: "default".into(),
        topic: topic.into(),
        event: Any { type_url: "test.Text".into(), value: text.as_bytes().to_vec() },
    }
}

fn open(state: &Path, config: Config) -> Journal {
    Journal::open(state, BOOT, config).unwrap()
}

fn publish(journal: &Journal, text: &str) -> Arc<Entry> {
    journal.publish(envelope("/tasks/start", text)).unwrap()
}

fn text(entry: &Entry) -> String {
    String::from_utf8(entry.envelope.event.value.clone()).unwrap()
}

fn drain(subscription: &mut Subscription) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(entry) = subscription.try_next().unwrap() {
        found.push(text(&entry));
    }
    found
}

fn texts(entries: &[Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| text(entry)).collect()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn segments(state: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(state.join("io.gantry.events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn all(journal: &Journal) -> Vec<String> {
    texts(&journal.recent(|_| true).unwrap())
}

#[test]
fn an_event_is_published_in_order_to_everybody() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    publish(&journal, "before");
    let mut first = journal.subscribe(Filters::default(), |_| Vec::new());
    let mut second = journal.subscribe(Filters::default(), |_| Vec::new());
    for number in 0..200 {
        publish(&journal, &number.to_string());
    }
    assert_eq!(drain(&mut first), numbers(0..200));
    assert_eq!(drain(&mut second), numbers(0..200));
    assert!(drain(&mut first).is_empty());
    assert_eq!(journal.last_sequence(), 201);
}

#[test]
fn an_event_is_shared_and_let_go() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    publish(&journal, "nobody");
    assert_eq!(journal.held(), 0, "nothing is held without a reader");
    let mut one = journal.subscribe(Filters::default(), |_| Vec::new());
    let mut two = journal.subscribe(Filters::default(), |_| Vec::new());
    let published = publish(&journal, "x");
    let (a, b) = (one.try_next().unwrap().unwrap(), two.try_next().unwrap().unwrap());
    assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&a, &published));
    for number in 0..1000 {
        publish(&journal, &number.to_string());
        let (a, b) = (one.try_next().unwrap(), two.try_next().unwrap());
        assert!(a.is_some() && b.is_some());
        assert!(journal.held() <= 65, "{} held", journal.held());
    }
    drop(one);
    publish(&journal, "y");
    drop(two);
    assert_eq!(journal.held(), 0);
}

#[test]
fn filters_see_namespace_topic_and_fields() {
    let state = tempfile::tempdir().unwrap();
    let fields =
        |event: &Any, path: &[&str]| (path == ["text"]).then(|| String::from_utf8_lossy(&event.value).into_owned());
    let journal = open(state.path(), Config { fields, ..Config::default() });
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &["a", "b", "c"]),
        (&[r#"topic=="/tasks/exit""#], &["b"]),
        (&["topic~=|^/tasks/|"], &["a", "b"]),
        (&["namespace==default,topic~=|^/images/|"], &["c"]),
        (&["namespace==other"], &[]),
        (&["event.text==a", r#"topic=="/images/create""#], &["a", "c"]),
        (&["event.text"], &["a", "b", "c"]),
        (&["event", "event.none", "nothing"], &[]),
    ];
    let mut subscriptions: Vec<_> =
        cases.iter().map(|(filters, _)| journal.subscribe(Filters::parse(filters).unwrap(), |_| Vec::new())).collect();
    for (topic, text) in [("/tasks/start", "a"), ("/tasks/exit", "b"), ("/images/create", "c")] {
        journal.publish(envelope(topic, text)).unwrap();
    }
    for ((filters, want), subscription) in cases.iter().zip(&mut subscriptions) {
        assert_eq!(drain(subscription), *want, "{filters:?}");
    }
}

#[test]
fn what_may_not_be_published() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let bad_namespace = Envelope { namespace: "a/b".into(), ..envelope("/tasks/start", "") };
    let no_namespace = Envelope { namespace: String::new(), ..envelope("/tasks/start", "") };
    let mut large = envelope("/tasks/start", "");
    large.event.value = vec![0; 16 << 20];
    for refused in [bad_namespace, no_namespace, envelope("", ""), envelope("tasks", ""), envelope("/a//b", ""), large]
    {
        assert_eq!(journal.publish(refused).unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(journal.last_sequence(), 0);
    assert_eq!(all(&journal), [""; 0]);
}

#[tokio::test]
async fn a_waiting_reader_is_woken() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let mut subscription = journal.subscribe(Filters::parse(&[r#"topic=="/tasks/exit""#]).unwrap(), |_| Vec::new());
    let waiting = tokio::spawn(async move { subscription.next().await.map(|entry| text(&entry)) });
    tokio::task::yield_now().await;
    publish(&journal, "no match");
    tokio::task::yield_now().await;
    journal.publish(envelope("/tasks/exit", "match")).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "match");
}

#[tokio::test]
async fn a_cancelled_wait_loses_nothing() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let mut subscription = journal.subscribe(Filters::default(), |_| Vec::new());
    for number in 0..50 {
        let cancelled = tokio::time::timeout(Duration::ZERO, subscription.next()).await;
        assert!(cancelled.is_err());
        publish(&journal, &number.to_string());
        assert_eq!(text(&subscription.next().await.unwrap()), number.to_string());
    }
}

#[tokio::test]
async fn a_slow_reader_ends_with_an_error_and_others_do_not() {
    let state = tempfile::tempdir().unwrap();
    for lag in [Lag { events: 100, ..Lag::default() }, Lag { bytes: 100 * 90, ..Lag::default() }] {
        let journal = open(state.path(), Config { lag, ..Config::default() });
        let mut slow = journal.subscribe(Filters::default(), |_| Vec::new());
        let mut fast = journal.subscribe(Filters::default(), |_| Vec::new());
        for number in 0..1000 {
            publish(&journal, &number.to_string());
            assert_eq!(text(&fast.next().await.unwrap()), number.to_string());
        }
        assert!(journal.held() <= 100, "{} held", journal.held());
        for _ in 0..2 {
            let error = slow.next().await.unwrap_err();
            assert!(matches!(error, Error::Lagged { behind: 1000 }), "{error}");
            assert_eq!(error.code(), Code::ResourceExhausted);
        }
        // It has missed exits, perhaps: what happened before its end is told to its successor.
        drop(slow);
        let mut horizon = 0;
        let _new = journal.subscribe(Filters::default(), |told| {
            horizon = told;
            Vec::new()
        });
        assert_eq!(horizon, journal.last_sequence());
    }
}

#[test]
fn a_new_stream_is_healed_before_it_is_live() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let exit = |text| journal.publish(envelope("/tasks/exit", text)).unwrap();
    let (one, two) = (exit("one"), exit("two"));
    let unpublished = Arc::new(Entry { sequence: 0, envelope: envelope("/tasks/exit", "old") });
    let filtered = journal.publish(envelope("/tasks/oom", "filtered")).unwrap();

    let filters = || Filters::parse(&[r#"topic=="/tasks/exit""#]).unwrap();
    let mut first = journal.subscribe(filters(), |horizon| {
        assert_eq!(horizon, 3);
        // An exit between registration and the answer: it is both in the answer and live, and must be told once.
        let late = journal.publish(envelope("/tasks/exit", "late")).unwrap();
        vec![late, two.clone(), filtered.clone(), one.clone(), unpublished.clone()]
    });
    exit("live");
    assert_eq!(drain(&mut first), ["old", "one", "two", "late", "live"]);
    assert!(drain(&mut first).is_empty(), "once per stream");
}

#[test]
fn the_horizon_stands_while_no_stream_is_lost() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    publish(&journal, "0");
    let horizon = |journal: &Journal| {
        let mut told = 0;
        let subscription = journal.subscribe(Filters::default(), |horizon| {
            told = horizon;
            Vec::new()
        });
        (told, subscription)
    };
    let (told, first) = horizon(&journal);
    assert_eq!(told, 1, "what happened before the start, and until the first streams are back");
    publish(&journal, "1");
    drop(first);
    publish(&journal, "2");
    let (told, _second) = horizon(&journal);
    assert_eq!(told, 3, "what happened before the loss and until the reconnection");
}

#[test]
fn the_journal_outlives_the_process() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let uuid = journal.uuid();
    publish(&journal, "1");
    assert!(journal.publish_from(7, envelope("/images/create", "2")).unwrap().is_some());
    drop(journal);
    // kill -9 leaves the same files as a drop: nothing is written at the end.
    let journal = open(state.path(), Config::default());
    assert_eq!((journal.uuid(), journal.last_sequence(), journal.last_origin()), (uuid, 2, 7));
    assert_eq!(publish(&journal, "3").sequence, 3);
    assert_eq!(all(&journal), ["1", "2", "3"]);
    let found = journal.recent(|envelope| envelope.topic == "/images/create").unwrap();
    assert_eq!((found.len(), found[0].sequence), (1, 2));
}

#[test]
fn an_outbox_number_is_published_once() {
    let state = tempfile::tempdir().unwrap();
    let config =
        Config { retention: Retention { bytes: 4096, events: 16, ..Retention::default() }, ..Config::default() };
    let journal = open(state.path(), config);
    for (step, origin) in [1, 2, 2, 5, 4, 5, 6].into_iter().enumerate() {
        let published = journal.publish_from(origin, envelope("/images/create", &origin.to_string())).unwrap();
        // Numbers only grow: 4 after 5 is one of the past.
        let known = journal.recent(|_| true).unwrap().len();
        assert_eq!(
            (published.is_some(), known),
            [(true, 1), (true, 2), (false, 2), (true, 3), (false, 3), (false, 3), (true, 4)][step]
        );
    }
    assert_eq!(all(&journal), ["1", "2", "5", "6"]);
    // Also when the events themselves have been dropped long ago.
    for number in 0..100 {
        publish(&journal, &number.to_string());
    }
    assert!(!all(&journal).contains(&"6".to_owned()));
    drop(journal);
    let journal = open(state.path(), config);
    assert_eq!(journal.last_origin(), 6);
    assert!(journal.publish_from(6, envelope("/images/create", "6")).unwrap().is_none());
}

#[test]
fn retention_drops_the_oldest() {
    let state = tempfile::tempdir().unwrap();
    for retention in [
        Retention { bytes: 1 << 20, events: 80, ..Retention::default() },
        Retention { bytes: 8192, events: 1 << 20, ..Retention::default() },
    ] {
        let journal = open(state.path(), Config { retention, ..Config::default() });
        let first = journal.last_sequence();
        for number in 0..1000 {
            publish(&journal, &number.to_string());
        }
        let kept = all(&journal);
        assert_eq!(kept, numbers(1000 - kept.len() as u64..1000));
        let bytes: u64 = segments(state.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(kept.len() >= 40 && kept.len() <= 100, "{} events, {bytes} bytes", kept.len());
        assert_eq!(journal.last_sequence(), first + 1000);
        let sequences: Vec<_> = journal.recent(|_| true).unwrap().iter().map(|entry| entry.sequence).collect();
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}

#[test]
fn a_torn_tail_is_cut_off() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    publish(&journal, "1");
    let whole = segments(state.path())[0].metadata().unwrap().len();
    publish(&journal, "2");
    drop(journal);
    let path = segments(state.path()).remove(0);
    let bytes = fs::read(&path).unwrap();
    for end in whole..bytes.len() as u64 {
        fs::write(&path, &bytes[..usize::try_from(end).unwrap()]).unwrap();
        let journal = open(state.path(), Config::default());
        assert_eq!(all(&journal), ["1"], "cut at {end}");
        assert_eq!(publish(&journal, "3").sequence, 2);
        drop(journal);
        assert_eq!(all(&open(state.path(), Config::default())), ["1", "3"], "cut at {end}");
    }
    // Bytes of another kind behind the last event, as an interrupted write leaves them.
    fs::write(&path, &bytes).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[0; 100]).unwrap();
    let journal = open(state.path(), Config::default());
    publish(&journal, "3");
    assert_eq!(all(&journal), ["1", "2", "3"]);
}

#[test]
fn another_boot_and_broken_headers_are_swept() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), Config::default());
    let uuid = journal.uuid();
    publish(&journal, "1");
    drop(journal);
    let torn = state.path().join("io.gantry.events/99999999999999999999.log");
    fs::write(&torn, "gantry-events 1 b1").unwrap();
    assert_eq!(all(&open(state.path(), Config::default())), ["1"]);
    assert!(!torn.exists());

    let journal = Journal::open(state.path(), "b2", Config::default()).unwrap();
    assert_ne!(journal.uuid(), uuid);
    assert_eq!((journal.last_sequence(), journal.last_origin()), (0, 0));
    assert_eq!(segments(state.path()).len(), 1);
}

#[test]
fn a_dropped_segment_does_not_disturb_readers_of_the_rest() {
    use std::os::unix::fs::MetadataExt as _;
    let state = tempfile::tempdir().unwrap();
    let config =
        Config { retention: Retention { bytes: 1 << 20, events: 80, ..Retention::default() }, ..Config::default() };
    let journal = open(state.path(), config);
    for number in 0..30 {
        publish(&journal, &number.to_string());
    }
    let before = segments(state.path());
    assert_eq!(before.len(), 3);
    fs::remove_file(&before[0]).unwrap();
    assert_eq!(all(&journal), numbers(10..30));
    assert_eq!(before[1].metadata().unwrap().mode() & 0o777, 0o600);
}

/// Environment of the child that has a small file system of its own.
const SMALL: &str = "GANTRY_TEST_SMALL_STATE";

#[test]
fn a_full_file_system_costs_old_events_not_new_ones() {
    if let Some(state) = std::env::var_os(SMALL) {
        return fill(Path::new(&state));
    }
    let state = tempfile::tempdir().unwrap();
    // The mount is private to the child and goes with it.
    let script = "mount -t tmpfs -o size=64k none \"$GANTRY_TEST_SMALL_STATE\" && exec \"$@\"";
    let run = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "tests::a_full_file_system_costs_old_events_not_new_ones", "--nocapture"])
        .env(SMALL, state.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}");
}

fn fill(state: &Path) {
    // Far more segments than the file system has pages for.
    let config =
        Config { retention: Retention { bytes: 1 << 30, events: 1 << 8, ..Retention::default() }, ..Config::default() };
    let journal = open(state, config);
    let large = "x".repeat(512);
    for number in 0..1000 {
        publish(&journal, &format!("{number} {large}"));
    }
    let kept = all(&journal);
    assert!(kept.len() > 30 && kept.last().unwrap().starts_with("999 "), "{} kept", kept.len());
    drop(journal);

    // One segment that fills it all: nothing can give way, and the failure leaves no trace.
    fs::remove_dir_all(state.join("io.gantry.events")).unwrap();
    let journal = open(state, Config::default());
    let other = state.join("other");
    fs::write(&other, [0; 8192]).unwrap();
    let mut published = Vec::new();
    let error = loop {
        let text = format!("{} {large}", published.len());
        match journal.publish(envelope("/tasks/start", &text)) {
            Ok(_) => published.push(text),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(all(&journal), published);
    fs::remove_file(other).unwrap();
    publish(&journal, "again");
    published.push("again".to_owned());
    drop(journal);
    assert_eq!(all(&open(state, Config::default())), published);
}
