//! What a get gives, whichever node is asked, and whatever the nodes believe of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use geecache::{BoxError, Error};

use crate::support::*;

#[test]
fn a_miss_is_loaded_by_the_owner_and_hit_there_and_here() {
    let origin = Origin::of_all();
    let [asker, owner] = Cluster::over(&origin).start();
    let key = asker.key_of(&owner.url);
    for _ in 0..3 {
        assert_eq!(asker.get(&key), Some(value_of(&key)));
    }
    assert_eq!(owner.get(&key), Some(value_of(&key)));
    assert_eq!(origin.loads(), 1);
    let stats = owner.stats();
    assert_eq!((stats.peer_requests, stats.local_loads, stats.main.hits), (1, 1, 1));
    let stats = asker.stats();
    assert_eq!((stats.misses, stats.peer_loads, stats.hot.hits), (1, 1, 2));
    assert_eq!((stats.peer_errors, stats.local_loads, stats.main.entries), (0, 0, 0));
    check_identities([&asker, &owner]);
}

#[test]
fn an_absent_key_is_looked_for_by_the_owner_alone() {
    let origin = Origin::new(|_: &str| Ok::<Option<String>, BoxError>(None));
    let [asker, owner] = Cluster::over(&origin).start();
    assert_eq!(asker.get(&asker.key_of(&owner.url)), None);
    assert_eq!(origin.loads(), 1);
    let stats = asker.stats();
    assert_eq!((stats.peer_loads, stats.peer_errors, stats.fallbacks), (1, 0, 0));
}

#[test]
fn an_error_of_the_getter_is_tried_once_more_here_and_then_told() {
    let origin = Origin::new(|_: &str| Err::<Option<String>, _>("disk full"));
    let [asker, owner] = Cluster::over(&origin).start();
    let key = asker.key_of(&owner.url);
    let error = asker.group().get(&key).unwrap_err();
    assert_eq!(error.to_string(), format!("loading {key:?}: disk full"));
    assert_eq!(origin.loads(), 2);
    assert!(asker.believes_in_its_peer(), "it did answer");
    check_identities([&asker, &owner]);
}

#[test]
fn an_error_at_the_owner_alone_is_nobodys_error() {
    let calls = AtomicUsize::new(0);
    let origin = Origin::new(move |key: &str| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Err("disk full"),
        _ => Ok(Some(value_of(key))),
    });
    let [asker, owner] = Cluster::over(&origin).start();
    let key = asker.key_of(&owner.url);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((owner.stats().local_load_errors, asker.stats().fallbacks), (1, 1));
}

#[test]
fn one_load_for_100_concurrent_gets_of_a_cold_key_through_three_nodes() {
    let (origin, gate) = Origin::gated();
    let nodes: [Node; 3] = Cluster::over(&origin).start();
    thread::scope(|scope| {
        let gets =
            scope.spawn(|| together(100, |i| nodes[i % 3].get("Tom") == Some(value_of("Tom"))));
        // All have looked into the caches in vain, be it here or as a question of a peer.
        eventually("100 misses and the questions of two nodes", || {
            nodes.iter().map(|node| node.stats().misses).sum::<u64>() == 102
        });
        gate.open();
        assert!(gets.join().unwrap().into_iter().all(|is_right| is_right));
    });
    assert_eq!(origin.loads(), 1);
    check_identities(&nodes);
}

#[test]
fn a_getter_that_panics_is_an_error_to_all_who_wait_and_the_key_is_usable_after() {
    let (gate, is_broken) = (Gate::default(), Arc::new(AtomicBool::new(true)));
    let origin = Origin::new({
        let (gate, is_broken) = (gate.clone(), is_broken.clone());
        move |key: &str| {
            gate.wait();
            assert!(!is_broken.load(Ordering::SeqCst), "on purpose");
            Ok::<_, BoxError>(Some(value_of(key)))
        }
    });
    // One worker: if the panic took it along, nobody would answer any more.
    let [asker, owner] = Cluster::over(&origin).workers(1, 16).start();
    let key = asker.key_of(&owner.url);
    thread::scope(|scope| {
        let gets = scope.spawn(|| together(10, |_| asker.group().get(&key)));
        eventually("all miss", || asker.stats().misses == 10);
        gate.open();
        for outcome in gets.join().unwrap() {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::GetterPanicked { .. }), "{error}");
        }
    });
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((asker.stats().peer_loads, owner.stats().local_loads), (1, 1));
    check_identities([&asker, &owner]);
}

#[test]
fn two_nodes_that_each_take_the_other_for_the_owner_both_answer() {
    let (origin, gate) = Origin::gated();
    let [a, b]: [Node; 2] = Cluster::over(&origin).workers(1, 16).start();
    // Each lists the other under a name that the other does not call itself by.
    a.pool.set_peers([&a.url, &b.alias()]).unwrap();
    b.pool.set_peers([&b.url, &a.alias()]).unwrap();
    let key = a.keys_of(&b.alias()).find(|key| b.pool.owner(key) == a.alias()).unwrap();
    thread::scope(|scope| {
        let gets = scope.spawn(|| together(2, |i| [&a, &b][i].get(&key)));
        eventually("each is asked by the other", || {
            a.stats().peer_requests == 1 && b.stats().peer_requests == 1
        });
        gate.open();
        let value = Some(value_of(&key));
        assert_eq!(gets.join().unwrap(), [value.clone(), value]);
    });
    assert_eq!((a.stats().fallbacks, b.stats().fallbacks), (0, 0), "by the other, not by itself");
    check_identities([&a, &b]);
}

#[test]
fn a_node_that_lists_itself_under_another_name_asks_itself_and_is_answered() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).workers(1, 16).start();
    node.pool.set_peers([&node.url, &node.alias()]).unwrap();
    let key = node.key_of(&node.alias());
    assert_eq!(node.get(&key), Some(value_of(&key)));
    assert_eq!((origin.loads(), node.stats().peer_loads, node.stats().peer_requests), (1, 1, 1));
    check_identities([&node]);
}

#[test]
fn a_question_is_never_passed_on() {
    let origin = Origin::of_all();
    let [a, b, c] = Cluster::over(&origin).start();
    a.pool.set_peers([&a.url, &b.url]).unwrap();
    b.pool.set_peers([&b.url, &c.url]).unwrap();
    let key = a.keys_of(&b.url).find(|key| b.pool.owner(key) == c.url).unwrap();
    assert_eq!(a.get(&key), Some(value_of(&key)));
    assert_eq!((b.stats().local_loads, c.stats().peer_requests), (1, 0));
}

#[test]
fn one_worker_per_node_answers_50_gets_from_both_sides_at_once() {
    let origin = Origin::of_all();
    let [a, b]: [Node; 2] = Cluster::over(&origin).workers(1, 64).start();
    let keys_of_a: Vec<_> = b.keys_of(&a.url).take(50).collect();
    let keys_of_b: Vec<_> = a.keys_of(&b.url).take(50).collect();
    together(100, |i| {
        let (asker, key) =
            if i % 2 == 0 { (&a, &keys_of_b[i / 2]) } else { (&b, &keys_of_a[i / 2]) };
        assert_eq!(asker.get(key), Some(value_of(key)));
    });
    for node in [&a, &b] {
        // On a busy machine some may have waited for the worker for too long.
        assert_eq!(node.stats().peer_loads + node.stats().fallbacks, 50);
    }
    assert_eq!(origin.loads(), 100);
}

#[test]
fn no_get_fails_while_the_list_of_peers_changes() {
    let [a, b, c] = Cluster::over(&Origin::of_all()).start();
    let lists = [vec![&a.url], vec![&a.url, &b.url], vec![&a.url, &b.url, &c.url]];
    let (finished, gets) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..4 {
            let (a, finished, gets) = (&a, &finished, &gets);
            scope.spawn(move || {
                for i in 0.. {
                    if finished.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("{thread}/{i}");
                    assert_eq!(a.get(&key), Some(value_of(&key)));
                    gets.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for i in 0..100 {
            let before = gets.load(Ordering::SeqCst);
            a.pool.set_peers(lists[i % 3].iter().copied()).unwrap();
            eventually("some gets", || gets.load(Ordering::SeqCst) >= before + 8);
        }
        finished.store(true, Ordering::SeqCst);
    });
    let stats = a.stats();
    assert!(stats.peer_loads > 0 && stats.local_loads > 0, "{stats:?}");
    assert_eq!(stats.peer_errors, 0, "a peer that leaves the list still answers what it was asked");
    check_identities([&a]);
}
