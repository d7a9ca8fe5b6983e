//! Subscribers that keep account of what they have seen.

use super::*;
use crate::{Cursor, Since};

fn since(journal: &Journal, sequence: u64) -> Since {
    Since::After(Cursor { uuid: journal.uuid(), sequence })
}

fn resume(journal: &Journal, since: &Since) -> Subscription {
    journal.resume(Filters::default(), since).unwrap().0
}

fn drain_sequences(subscription: &mut Subscription) -> Vec<u64> {
    std::iter::from_fn(|| subscription.try_next().unwrap()).map(|entry| entry.sequence).collect()
}

/// Segments of ten events.
const TENS: Config = Config {
    retention: Retention { bytes: 1 << 20, events: 80, age: Duration::from_secs(3600) },
    lag: Lag { events: 16_384, bytes: 16 << 20 },
    fields: |_, _| None,
};

#[test]
fn nothing_is_missed_or_doubled_across_a_restart_and_segments() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), TENS);
    for number in 1..=25 {
        publish(&journal, &number.to_string());
    }
    for seen in 0..=25 {
        let mut subscription = resume(&journal, &since(&journal, seen));
        assert_eq!(drain_sequences(&mut subscription), (seen + 1..=25).collect::<Vec<_>>(), "behind {seen}");
    }
    let mut subscription = resume(&journal, &since(&journal, 7));
    assert_eq!(subscription.try_next().unwrap().unwrap().sequence, 8);
    drop((subscription, journal));

    let journal = open(state.path(), TENS);
    let mut subscription = resume(&journal, &since(&journal, 8));
    // Published behind the registration, before anything was read.
    for number in 26..=47 {
        publish(&journal, &number.to_string());
    }
    assert_eq!(drain_sequences(&mut subscription), (9..=47).collect::<Vec<_>>());
    publish(&journal, "48");
    assert_eq!(drain_sequences(&mut subscription), [48]);
}

#[test]
fn from_now_on() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), TENS);
    publish(&journal, "1");
    let (mut subscription, begin) = journal.resume(Filters::default(), &Since::Now).unwrap();
    assert_eq!(begin, Cursor { uuid: journal.uuid(), sequence: 1 });
    publish(&journal, "2");
    assert_eq!(drain(&mut subscription), ["2"]);
    // Where the stream begins is a cursor too, for those who lost it before the first event came.
    assert_eq!(drain(&mut resume(&journal, &Since::After(begin))), ["2"]);
}

#[test]
fn filters_hold_for_the_past_too() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), TENS);
    for number in 0..30 {
        let topic = if number % 3 == 0 { "/tasks/exit" } else { "/tasks/start" };
        journal.publish(envelope(topic, &number.to_string())).unwrap();
    }
    let filters = Filters::parse(&["topic==/tasks/exit"]).or_else(|_| Filters::parse(&[r#"topic=="/tasks/exit""#]));
    let (mut subscription, _) = journal.resume(filters.unwrap(), &since(&journal, 10)).unwrap();
    assert_eq!(drain(&mut subscription), ["12", "15", "18", "21", "24", "27"]);
}

#[test]
fn a_cursor_of_elsewhere_and_a_forgotten_one_are_told_where_to_begin() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), TENS);
    for number in 1..=200 {
        publish(&journal, &number.to_string());
    }
    let oldest = journal.recent(|_| true).unwrap()[0].sequence;
    assert!(oldest > 100);
    let foreign = Since::After(Cursor { uuid: "elsewhere".into(), sequence: 150 });
    for wrong in [foreign, since(&journal, 0), since(&journal, oldest - 2), since(&journal, 201)] {
        let error = journal.resume(Filters::default(), &wrong).unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange, "{wrong:?}");
        let told = Cursor { uuid: journal.uuid(), sequence: oldest - 1 };
        assert!(model::render(&error).contains(&told.to_string()), "{error}");
    }
    let mut subscription = resume(&journal, &since(&journal, oldest - 1));
    assert_eq!(drain_sequences(&mut subscription), (oldest..=200).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_retention_overtakes_is_told() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path(), TENS);
    for number in 1..=60 {
        publish(&journal, &number.to_string());
    }
    let mut subscription = resume(&journal, &since(&journal, 0));
    assert_eq!(subscription.try_next().unwrap().unwrap().sequence, 1);
    for number in 61..=200 {
        publish(&journal, &number.to_string());
    }
    let mut last = 1;
    let error = loop {
        match subscription.try_next() {
            Ok(Some(entry)) => {
                assert_eq!(entry.sequence, last + 1);
                last = entry.sequence;
            }
            Ok(None) => panic!("it ends at {last} as if nothing was missing"),
            Err(error) => break error,
        }
    };
    assert!((10..60).contains(&last), "{last}");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(subscription.try_next().unwrap_err().code(), Code::ResourceExhausted, "for good");
}

#[test]
fn old_events_go_when_the_next_is_published() {
    let state = tempfile::tempdir().unwrap();
    let age = Duration::from_millis(100);
    let config = Config { retention: Retention { age, ..Retention::default() }, ..Config::default() };
    let journal = open(state.path(), config);
    assert_eq!(journal.complete_since(), None);
    for number in 1..=3 {
        publish(&journal, &number.to_string());
        std::thread::park_timeout(Duration::from_millis(150));
    }
    assert_eq!(all(&journal), ["2", "3"], "the segment of 1 was older than 100 ms when 3 came");
    assert!(journal.complete_since().is_some());
    drop(journal);
    let journal = open(state.path(), config);
    std::thread::park_timeout(Duration::from_millis(150));
    publish(&journal, "4");
    assert!(!all(&journal).contains(&"2".to_owned()), "the age is known after a restart");
}
