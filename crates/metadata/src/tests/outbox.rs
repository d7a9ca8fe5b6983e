use store::Durability;

use super::*;
use crate::db::Inner;

/// Commits a container's creation and dies before the event is published.
fn commit_and_die(dir: &Path, boot: &str, id: &str) {
    let (store, content, drivers, journal) = parts(dir, boot);
    let inner = Inner::open(store, content, drivers, journal).unwrap();
    let envelope = events::Envelope {
        timestamp: model::Timestamp::now(),
        namespace: "n".into(),
        topic: format!("/test/{id}"),
        event: any(id),
    };
    inner.store.write(Durability::OnDisk, |tx| inner.outbox.put(tx, vec![envelope])).unwrap();
}

#[test]
fn an_event_survives_a_kill_between_commit_and_publication() {
    let mut dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        commit_and_die(dir.path(), "boot", &format!("round{round}"));
        let world = World::at(dir, "boot");
        world.metadata.containers().create(&scope("n"), container(&format!("c{round}"))).unwrap();
        let want: Vec<_> = (0..=round)
            .flat_map(|round| [format!("n /test/round{round}"), "n /containers/create".to_owned()])
            .collect();
        assert_eq!(world.events(), want, "in order, each once");
        let World { metadata, dir: kept, .. } = world;
        drop(metadata);
        dir = kept;
    }
}

#[test]
fn an_event_is_published_once_though_its_entry_stays() {
    // A drop right after a write leaves the entry of its event in the store, as a kill would.
    let mut world = World::new();
    for round in 0..5_usize {
        world.metadata.containers().create(&scope("n"), container(&format!("c{round}"))).unwrap();
        world = world.restart("boot");
        assert_eq!(world.events().len(), round + 1);
    }
}

#[test]
fn another_boot_has_another_journal_and_the_outbox_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    commit_and_die(dir.path(), "boot", "lost");
    let world = World::at(dir, "boot2");
    assert_eq!(world.events(), ["n /test/lost"]);
    world.metadata.containers().create(&scope("n"), container("c")).unwrap();
    assert_eq!(world.events().len(), 2);
    let world = world.restart("boot3");
    world.metadata.containers().delete(&scope("n"), "c").unwrap();
    assert_eq!(world.events().last().unwrap(), "n /containers/delete");
}

#[test]
fn entries_are_removed_by_the_next_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (store, content, drivers, journal) = parts(dir.path(), "boot");
    let inner = Inner::open(store.clone(), content, drivers, journal).unwrap();
    let entries = || store.read(|view| view.scan(crate::keys::OUTBOX, None).count());
    for round in 0..10 {
        inner
            .write(Durability::OnDisk, |tx| {
                tx.event("n", &format!("/test/r{round}"), any("x"));
                Ok(())
            })
            .unwrap();
        assert_eq!(entries(), 1);
    }
    // What is refused publishes nothing and removes nothing.
    let refused: Result<(), _> = inner.write(Durability::OnDisk, |tx| {
        tx.event("n", "/test/refused", any("x"));
        Err(Error::NoScopeLease)
    });
    assert!(refused.is_err());
    assert_eq!(entries(), 1);
    inner.settle_outbox();
    assert_eq!((entries(), inner.has_leftovers()), (0, false));
}

#[test]
fn events_keep_the_order_of_commits() {
    let world = World::new();
    std::thread::scope(|threads| {
        for thread in 0..4 {
            let world = &world;
            threads.spawn(move || {
                for round in 0..50 {
                    let id = format!("c{thread}.{round}");
                    world.metadata.containers().create(&scope("n"), container(&id)).unwrap();
                    // Its own event is there when a request returns.
                    let told = world.journal.recent(|envelope| {
                        api_grpc::event_field(&envelope.event, &["id"]).as_deref() == Some(id.as_str())
                    });
                    assert_eq!(told.unwrap().len(), 1);
                    world.metadata.containers().delete(&scope("n"), &id).unwrap();
                }
            });
        }
    });
    let mut alive = std::collections::HashSet::new();
    for entry in world.journal.recent(|_| true).unwrap() {
        let id = api_grpc::event_field(&entry.envelope.event, &["id"]).unwrap();
        let fits = match entry.envelope.topic.as_str() {
            "/containers/create" => alive.insert(id),
            _ => alive.remove(&id),
        };
        assert!(fits, "{entry:?}");
    }
    assert_eq!(world.events().len(), 400);
}

/// Another request that is done in the middle of ours does not tell what we have not committed.
#[test]
fn an_event_waits_for_its_own_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (store, content, drivers, journal) = parts(dir.path(), "boot");
    let inner = Inner::open(store, content, drivers, journal.clone()).unwrap();
    let envelope = events::Envelope {
        timestamp: model::Timestamp::now(),
        namespace: "n".into(),
        topic: "/test/early".into(),
        event: any("early"),
    };
    let put = inner.store.write(Durability::OnDisk, |tx| {
        let put = inner.outbox.put(tx, vec![envelope])?;
        inner.outbox.publish().unwrap();
        assert_eq!(journal.last_sequence(), 0, "it may still fail");
        Ok::<_, Error>(put)
    });
    inner.outbox.commit(&put.unwrap());
    inner.outbox.publish().unwrap();
    assert_eq!(journal.last_sequence(), 1);
}
