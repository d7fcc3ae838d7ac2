//! How long a node may say what it once heard: absent keys, and lives that differ.

use std::time::Duration;

use geecache::{BoxError, Clock, GroupBuilder};

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Has no key at all.
fn empty() -> Origin {
    Origin::new(|_: &str| Ok::<Option<String>, BoxError>(None))
}

/// Absent keys are remembered for a minute of `clock`.
fn forgetting_after_a_minute(
    clock: &Clock,
) -> impl Fn(usize, GroupBuilder) -> GroupBuilder + use<> {
    let clock = clock.clone();
    move |_, group| group.negative_ttl(MINUTE).clock(clock.clone())
}

#[test]
fn a_thousand_gets_of_a_missing_key_through_three_nodes_make_one_load() {
    let origin = empty();
    let nodes: [Node; 3] =
        Cluster::over(&origin).settings(|_, group| group.negative_ttl(MINUTE)).start();
    together(10, |i| {
        for j in 0..100 {
            assert_eq!(nodes[(i + j) % 3].get("kkk"), None);
        }
    });
    assert_eq!(origin.loads(), 1);
    assert_eq!(nodes.iter().map(|node| node.stats().peer_errors).sum::<u64>(), 0);
    check_identities(&nodes);
}

#[test]
fn an_absence_is_remembered_by_the_owner_until_its_time_ends() {
    let (origin, clock) = (empty(), Clock::by_hand());
    let [asker, owner] = Cluster::over(&origin).settings(forgetting_after_a_minute(&clock)).start();
    let key = asker.key_of(&owner.url);
    let loads_after_a_get = || {
        assert_eq!(asker.get(&key), None);
        origin.loads()
    };
    assert_eq!(loads_after_a_get(), 1);
    clock.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(loads_after_a_get(), 1);
    assert_eq!((asker.stats().hot.entries, owner.stats().main.entries), (0, 1));
    clock.advance(Duration::from_nanos(1));
    assert_eq!(loads_after_a_get(), 2);
    assert_eq!(owner.stats().main.expirations, 1);
}

#[test]
fn absences_keep_to_the_budget() {
    let nodes: [Node; 1] = Cluster::over(&empty())
        .settings(|_, group| group.negative_ttl(MINUTE).max_bytes(64 << 10).hot_bytes(0))
        .start();
    for i in 0..10_000 {
        assert_eq!(nodes[0].get(&format!("missing {i}")), None);
    }
    let main = nodes[0].stats().main;
    assert!(main.bytes <= 64 << 10 && main.entries > 100 && main.evictions > 0, "{main:?}");
}

#[test]
fn without_a_time_for_it_an_absence_is_remembered_by_nobody() {
    let origin = empty();
    let [asker, owner] = Cluster::over(&origin).start();
    let key = asker.key_of(&owner.url);
    for loads in 1..=3 {
        assert_eq!(asker.get(&key), None);
        assert_eq!(origin.loads(), loads);
    }
}

#[test]
fn with_jitter_what_was_loaded_together_does_not_expire_together() {
    let clock = Clock::by_hand();
    let [node] = Cluster::over(&Origin::of_all())
        .settings(move |_, group| group.ttl(MINUTE).ttl_jitter(0.5).clock(clock.clone()))
        .start();
    let lives = (0..100).map(|i| {
        let answer = ask(&node.url, &format!("GET /_geecache/scores/{i}"), &[]);
        answer.header("Geecache-Ttl-Ms").unwrap().parse::<u32>().unwrap()
    });
    let mut lives: Vec<_> = lives.collect();
    lives.sort();
    assert!((30_000..=60_000).contains(&lives[0]) && lives[99] <= 60_000, "{lives:?}");
    // A hundred lives spread over half a minute: no second in which a quarter of them ends.
    assert!(lives.windows(25).all(|some| some[24] - some[0] > 1000), "{lives:?}");
}

#[test]
fn what_remains_of_a_time_to_live_travels_in_a_batch_too() {
    let (origin, clock) = (Origin::of_all(), Clock::by_hand());
    let [asker, owner] = Cluster::over(&origin)
        .settings({
            let clock = clock.clone();
            move |_, group| group.ttl(MINUTE).hot_ttl(60 * MINUTE).clock(clock.clone())
        })
        .start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(10).collect();
    owner.get_many(&keys);
    clock.advance(MINUTE / 3);
    asker.get_many(&keys); // and keeps copies for the 40 s that are left
    clock.advance(MINUTE / 3);
    asker.get_many(&keys);
    assert_eq!((asker.stats().peer_loads, asker.stats().hot.hits), (10, 10));
    clock.advance(MINUTE / 3);
    asker.get_many(&keys);
    assert_eq!((asker.stats().peer_loads, asker.stats().hot.expirations), (20, 10));
    assert_eq!(origin.loads(), 20);
    check_identities([&asker, &owner]);
}
