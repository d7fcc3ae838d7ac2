//! Gets that go to the same owner at the same time share requests, and nothing else.

use std::thread;
use std::time::{Duration, Instant};

use geecache::BoxError;

use crate::support::*;

const CALLERS: usize = 64;

/// Keeps no copies, so that each get goes to the owner.
fn without_copies(cluster: Cluster) -> Cluster {
    cluster.settings(|_, group| group.hot_bytes(0))
}

/// Where the callers get the processor one after the other, there are no gets at the same time, and
/// nothing to share; so one of several attempts has to share.
#[test]
fn many_callers_share_few_requests() {
    const GETS: usize = 50;
    let (owner, questions) = owner_of_all();
    let origin = Origin::of_all();
    let [asker] = without_copies(Cluster::over(&origin)).peer(&owner.url).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(CALLERS * GETS).collect();
    let attempt = || {
        questions.lock().unwrap().clear();
        together(CALLERS, |i| {
            for key in &keys[i * GETS..][..GETS] {
                assert_eq!(asker.get(key), Some(value_of(key)));
            }
        });
        let questions = questions.lock().unwrap();
        for question in questions.iter().filter(|question| question.is_batch()) {
            assert!(question.wants_only_cached());
        }
        let asked = questions.iter().map(|question| question.keys().len()).sum::<usize>();
        assert_eq!(asked, CALLERS * GETS);
        questions.len()
    };
    let mut requests = Vec::new();
    while requests.last().is_none_or(|&last| last > CALLERS * GETS / 4) {
        assert!(requests.len() < ATTEMPTS, "{requests:?} requests");
        requests.push(attempt());
    }
    let gets = (requests.len() * CALLERS * GETS) as u64;
    let stats = asker.stats();
    assert_eq!((stats.peer_loads, stats.peer_errors), (gets, 0));
    check_identities([&asker]);
}

#[test]
fn each_caller_has_its_own_answer() {
    let origin =
        Origin::new(|key: &str| Ok::<_, BoxError>((!key.ends_with('7')).then(|| value_of(key))));
    let nodes: [Node; 3] = without_copies(Cluster::over(&origin)).start();
    together(CALLERS, |caller| {
        for i in 0..100 {
            let key = format!("key {}", (caller + i) % 200);
            let value = (!key.ends_with('7')).then(|| value_of(&key));
            assert_eq!(nodes[caller % 3].get(&key), value);
        }
    });
    assert_eq!(nodes.iter().map(|node| node.stats().peer_errors).sum::<u64>(), 0);
    check_identities(&nodes);
}

#[test]
fn groups_are_not_mixed_up() {
    let (owner, questions) = recording(|question| {
        let group = question.path().split('/').nth(2).unwrap();
        let value = |key: &String| format!("{key} in {group}");
        let keys = question.keys();
        if question.is_batch() {
            let frames: Vec<_> = keys.iter().map(|key| value_frame(value(key))).collect();
            return response(200, BATCH_TYPE, frames.concat());
        }
        response(200, "application/octet-stream", value(&keys[0]))
    });
    let groups = ["scores", "heights", "widths"];
    let [asker] =
        without_copies(Cluster::over(&Origin::of_all()).groups(groups)).peer(&owner.url).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(CALLERS).collect();
    let attempt = || {
        together(CALLERS, |i| {
            for key in &keys {
                let group = &asker.groups()[i % 3];
                let expected = format!("{key} in {}", group.name());
                assert_eq!(group.get(key).unwrap().unwrap(), expected);
            }
        });
        batches(&questions)
    };
    assert!((0..ATTEMPTS).any(|_| attempt() > 0));
    check_identities([&asker]);
}

#[test]
fn a_slow_load_does_not_hold_up_the_hits_of_others() {
    let (origin, gate) = Origin::gated_for(|key| key.starts_with("slow"));
    let [asker, owner] = without_copies(Cluster::over(&origin)).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(100).collect();
    owner.get_many(&keys);
    let slow = (0..).map(|i| format!("slow {i}")).filter(|key| asker.pool.owner(key) == owner.url);
    let slow: Vec<_> = slow.take(4).collect();
    thread::scope(|scope| {
        let get = |key| assert_eq!(asker.get(key), Some(value_of(key)));
        slow.iter().for_each(|key| drop(scope.spawn(move || get(key))));
        eventually("the slow ones load", || gate.waiting() == slow.len());
        let loads = origin.loads();
        together(16, |i| (0..100).for_each(|j| get(&keys[(i + j) % 100])));
        assert_eq!((gate.waiting(), origin.loads()), (slow.len(), loads), "the gate is shut");
        gate.open();
    });
    assert_eq!(asker.stats().peer_errors, 0);
    check_identities([&asker, &owner]);
}

#[test]
fn where_it_is_turned_off_each_get_is_a_request() {
    let (owner, questions) = owner_of_all();
    let [asker] = without_copies(Cluster::over(&Origin::of_all()))
        .without_combining()
        .peer(&owner.url)
        .start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(10 * CALLERS).collect();
    together(CALLERS, |i| {
        let own = &keys[10 * i..][..10];
        own.iter().for_each(|key| assert_eq!(asker.get(key), Some(value_of(key))));
    });
    assert_eq!((batches(&questions), questions.lock().unwrap().len()), (0, 10 * CALLERS));
}

#[test]
fn a_lonely_caller_sends_no_batch() {
    let (owner, questions) = owner_of_all();
    let [asker] = Cluster::over(&Origin::of_all()).peer(&owner.url).start();
    for key in asker.keys_of(&owner.url).take(100) {
        assert_eq!(asker.get(&key), Some(value_of(&key)));
    }
    assert_eq!((batches(&questions), questions.lock().unwrap().len()), (0, 100));
}

#[test]
fn a_mute_owner_costs_each_caller_no_more_than_its_deadline() {
    const DEADLINE: Duration = Duration::from_secs(3);
    let owner = Stub::mute();
    let [asker] = Cluster::over(&Origin::of_all()).timeout(DEADLINE).peer(&owner.url).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(CALLERS).collect();
    let get = |i: usize| {
        let start = Instant::now();
        assert_eq!(asker.get(&keys[i]), Some(value_of(&keys[i])));
        start.elapsed()
    };
    let slowest = together(CALLERS, get).into_iter().max().unwrap();
    assert!(slowest < 2 * DEADLINE, "{slowest:?}");
    assert_eq!(asker.stats().fallbacks, CALLERS as u64);
    assert!(owner.connections() <= CALLERS, "no question is sent twice");
    check_identities([&asker]);
}

#[test]
fn what_fails_at_the_owner_is_each_callers_own() {
    let origin = Origin::new(|key: &str| match key.ends_with('7') {
        true => Err("disk full"),
        false => Ok(Some(value_of(key))),
    });
    let [asker, owner] = without_copies(Cluster::over(&origin)).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(CALLERS).collect();
    together(CALLERS, |i| {
        for key in keys.iter().cycle().skip(i).take(CALLERS) {
            match asker.group().get(key) {
                Ok(value) => assert_eq!(value.unwrap(), value_of(key)),
                Err(error) => {
                    assert_eq!(error.to_string(), format!("loading {key:?}: disk full"))
                }
            }
        }
    });
    let stats = asker.stats();
    assert!(stats.local_load_errors > 0 && stats.fallbacks == stats.local_load_errors, "{stats:?}");
    check_identities([&asker, &owner]);
}

#[test]
fn an_owner_that_knows_no_batches_is_sent_no_more_of_them() {
    for status in [404, 500, 200] {
        let (owner, questions) = recording(move |question| match question.is_batch() {
            true => response(status, "text/plain; charset=utf-8", "what is this?"),
            false => response(200, "application/octet-stream", value_of(&question.keys()[0])),
        });
        let origin = Origin::of_all();
        let [asker] = without_copies(Cluster::over(&origin)).peer(&owner.url).start();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(CALLERS).collect();
        let get_all = || {
            together(CALLERS, |i| {
                for key in keys.iter().cycle().skip(i).take(CALLERS) {
                    assert_eq!(asker.get(key), Some(value_of(key)));
                }
            });
        };
        // The first batch is of two callers who meet, and one comes about sooner or later.
        eventually("callers meet", || {
            get_all();
            batches(&questions) > 0
        });
        let before = batches(&questions);
        get_all();
        assert_eq!(batches(&questions), before, "{status}");
        assert_eq!((origin.loads(), asker.stats().peer_errors), (0, 0), "{status}");
        assert!(asker.believes_in_its_peer());
        check_identities([&asker]);
    }
}
