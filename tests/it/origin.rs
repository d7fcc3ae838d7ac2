//! The origin, slow or down, between nodes: values renewed ahead, and values past their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use geecache::{BoxError, Clock, Error, Loaded, Stats};

use crate::support::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An origin whose values are versions, and which can be broken.
#[derive(Clone, Default)]
struct Versions {
    version: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

impl Versions {
    fn origin(&self) -> Origin {
        let this = self.clone();
        Origin::new(move |key: &str| {
            if this.is_broken.load(Ordering::SeqCst) {
                return Err(BoxError::from("no such table"));
            }
            Ok(Some(format!("{key} v{}", this.version.load(Ordering::SeqCst))))
        })
    }

    fn write(&self, version: usize) {
        self.version.store(version, Ordering::SeqCst);
    }

    fn breaks(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
    }
}

/// Nodes with both options, whose values live for 10 s by one clock.
fn nodes<const N: usize>(cluster: Cluster, clock: &Clock) -> [Node; N] {
    let clock = clock.clone();
    let settings = move |_, builder: geecache::GroupBuilder| {
        let builder = builder.ttl(ms(10_000)).refresh_ahead(ms(2_000)).stale_if_error(ms(60_000));
        builder.clock(clock.clone())
    };
    cluster.settings(settings).start()
}

fn sum(nodes: &[Node], of: impl Fn(&Stats) -> u64) -> u64 {
    nodes.iter().map(|node| of(&node.stats())).sum()
}

#[test]
fn a_hundred_gets_through_three_nodes_renew_a_value_once() {
    for combines in [true, false] {
        let (versions, clock) = (Versions::default(), Clock::by_hand());
        let origin = versions.origin();
        let cluster = Cluster::over(&origin);
        let cluster = if combines { cluster } else { cluster.without_combining() };
        let nodes: [Node; 3] = nodes(cluster, &clock);
        let key = nodes[0].key_of(&nodes[2].url);
        // Twice, so that the others have copies.
        for node in nodes.iter().cycle().take(6) {
            assert_eq!(node.get(&key), Some(format!("{key} v0")));
        }
        versions.write(1);
        clock.advance(ms(8_001));
        together(10, |i| (0..10).for_each(|_| drop(nodes[i % 3].get(&key).unwrap())));
        eventually("the owner has the new value", || nodes[2].get(&key).unwrap().ends_with("v1"));
        // A copy may have been renewed by what the owner was about to replace. It ends with that.
        clock.advance(ms(1_999));
        for node in &nodes {
            assert_eq!(node.get(&key), Some(format!("{key} v1")));
        }
        assert_eq!(origin.loads(), 2);
        assert_eq!(sum(&nodes, |stats| stats.refresh_errors), 0);
        check_identities(&nodes);
    }
}

#[test]
fn while_the_origin_is_down_all_nodes_answer_and_none_keeps_a_copy() {
    for combines in [true, false] {
        let (versions, clock) = (Versions::default(), Clock::by_hand());
        let origin = versions.origin();
        let cluster = Cluster::over(&origin);
        let cluster = if combines { cluster } else { cluster.without_combining() };
        let nodes: [Node; 3] = nodes(cluster, &clock);
        let key = nodes[0].key_of(&nodes[2].url);
        let old = Some(format!("{key} v0"));
        nodes[2].get(&key);
        versions.breaks(true);
        clock.advance(ms(10_000));
        for node in nodes.iter().cycle().take(30) {
            assert_eq!(node.get(&key), old);
        }
        assert_eq!(origin.loads(), 2, "one that failed, in all nodes together");
        assert_eq!(sum(&nodes, |stats| stats.hot.entries as u64), 0);
        assert_eq!(sum(&nodes, |stats| stats.fallbacks), 0);
        let (_, trace) = nodes[2].group().get_traced(&key);
        assert!(trace.stale.is_some(), "{trace}");
        assert_eq!(nodes[2].stats().stale, sum(&nodes, |stats| stats.stale), "the owner counts");
        // In a batch, beside a key that nobody has.
        let (other, new) = (nodes[0].key_of(&nodes[1].url), "new");
        let answers = nodes[0].group().get_many(&[&key, new, &other]);
        assert_eq!(answers[0].as_ref().unwrap().as_ref().unwrap(), &**old.as_ref().unwrap());
        assert!(answers[1].is_err() && answers[2].is_err());
        assert_eq!(sum(&nodes, |stats| stats.hot.entries as u64), 0);

        versions.breaks(false);
        versions.write(1);
        clock.advance(ms(1_000));
        for node in &nodes {
            assert_eq!(node.get(&key), Some(format!("{key} v1")), "it recovers by itself");
        }
        check_identities(&nodes);
    }
}

#[test]
fn a_stale_value_ends_after_its_grace_and_with_a_removal_on_all_nodes() {
    let (versions, clock) = (Versions::default(), Clock::by_hand());
    let nodes: [Node; 2] = nodes(Cluster::over(&versions.origin()), &clock);
    let keys: Vec<_> = nodes[0].keys_of(&nodes[1].url).take(2).collect();
    for _ in 0..3 {
        nodes[0].get_many(&keys);
    }
    versions.breaks(true);
    clock.advance(ms(69_999));
    for node in &nodes {
        assert!(node.get(&keys[0]).is_some() && node.get(&keys[1]).is_some());
    }
    nodes[0].group().remove(&keys[0]).unwrap();
    for node in &nodes {
        assert!(node.group().get(&keys[0]).is_err(), "it was removed");
        assert!(node.get(&keys[1]).is_some());
    }
    clock.advance(ms(1));
    for node in &nodes {
        assert!(node.group().get(&keys[1]).is_err(), "its grace has ended");
    }
    check_identities(&nodes);
}

#[test]
fn where_neither_the_owner_nor_the_origin_answers_an_old_copy_does() {
    let (versions, clock) = (Versions::default(), Clock::by_hand());
    let cluster = Cluster::over(&versions.origin());
    let [asker, mut owner] = nodes(cluster, &clock);
    let key = asker.key_of(&owner.url);
    for _ in 0..3 {
        asker.get(&key);
    }
    versions.breaks(true);
    owner.take_server().shutdown(LONG);
    clock.advance(ms(10_000));
    let (answer, trace) = asker.group().get_traced(&key);
    assert_eq!(answer.unwrap().unwrap(), &*format!("{key} v0"));
    let reasons = (trace.asked.unwrap().error.is_some(), trace.loaded.is_some());
    assert_eq!(reasons, (true, true));
    assert!(trace.stale.unwrap().contains("no such table"));
    check_identities([&asker]);
}

#[test]
fn between_nodes_a_stale_value_is_one_with_no_life_left() {
    let (versions, clock) = (Versions::default(), Clock::by_hand());
    let [node, _other] = nodes(Cluster::over(&versions.origin()), &clock);
    let key = node.key_of(&node.url);
    node.get(&key);
    let path = format!("/_geecache/scores/{}", key.replace(' ', "%20"));
    let mut client = Client::connect(&node.url);
    let mut ask = || {
        client.send(&format!("GET {path}"), &[]);
        client.answer()
    };
    assert_eq!(ask().header("Geecache-Ttl-Ms"), Some("10000"));
    versions.breaks(true);
    clock.advance(ms(10_000));
    for _ in 0..2 {
        let answer = ask();
        assert_eq!((answer.status, answer.text()), (200, &*format!("{key} v0")));
        assert_eq!(answer.header("Geecache-Ttl-Ms"), Some("0"));
        assert_eq!(answer.header("Content-Type"), Some("application/octet-stream"));
    }
    let ask = |key: &str| post(&node.url, "/_geecache/scores", &[], &batch_of(&[key]));
    let answer = ask(&key);
    let value = format!("{key} v0");
    let frame = [&[0; 9][..], &(value.len() as u32).to_be_bytes(), value.as_bytes()].concat();
    assert_eq!(answer.body, frame, "a value that lives for 0 ms");
}

#[test]
fn an_answer_without_life_is_not_kept() {
    // As a node answers whose value has less than a millisecond left.
    let (stub, _questions) = recording(|question| {
        let frame = [&[0; 9][..], &3_u32.to_be_bytes(), b"630"].concat();
        let head = "HTTP/1.1 200 OK\r\nGeecache-Ttl-Ms: 0\r\n";
        let (kind, body) = if question.is_batch() {
            (BATCH_TYPE, &*frame)
        } else {
            ("application/octet-stream", &b"630"[..])
        };
        let length = body.len();
        let head = format!("{head}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    });
    let clock = Clock::by_hand();
    let origin = Origin::new(|_: &str| Err::<Option<Loaded>, _>("no such table"));
    let [asker] = nodes(Cluster::over(&origin).peer(&stub.url), &clock);
    let key = asker.key_of(&stub.url);
    for _ in 0..3 {
        let (answer, trace) = asker.group().get_traced(&key);
        assert_eq!(answer.unwrap().unwrap(), "630");
        assert_eq!(trace.stale, None);
        assert_eq!(asker.get_many(&[&key]), [Some("630".to_string())]);
    }
    assert_eq!((asker.stats().hot.entries, asker.stats().stale), (0, 0));
}

/// What a get or a key of a batch gives whose owner could not load it.
fn is_of(owner: &Node, key: &str, error: &Error) -> bool {
    let text = format!("loading {key:?}: its owner {}: loading {key:?}: no such table", owner.url);
    matches!(error, Error::Owner { peer, .. } if *peer == owner.url) && error.to_string() == text
}

#[test]
fn a_get_whose_owner_fails_to_load_ends_with_its_error_if_told_so() {
    for combines in [true, false] {
        let versions = Versions::default();
        let origin = versions.origin();
        let cluster = Cluster::over(&origin).settings(|_, group| group.retry_failed_loads(false));
        let cluster = if combines { cluster } else { cluster.without_combining() };
        let [asker, owner] = cluster.start();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(16).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        versions.breaks(true);
        let (answer, trace) = asker.group().get_traced(keys[0]);
        assert!(is_of(&owner, keys[0], &answer.unwrap_err()));
        assert!(trace.asked.as_ref().unwrap().error.is_some() && trace.loaded.is_none(), "{trace}");
        assert!(trace.to_string().ends_with("no such table"), "{trace}");
        assert_eq!(origin.loads(), 1, "here it is not tried");
        // Those who come together share a load, or have one of their own, at the owner.
        for key in together(16, |i| asker.group().get(keys[i / 2]).map_err(|error| (i / 2, error)))
        {
            let (i, error) = key.unwrap_err();
            assert!(is_of(&owner, keys[i], &error), "{error}");
        }
        for (key, answer) in keys.iter().zip(asker.group().get_many(&keys)) {
            assert!(is_of(&owner, key, &answer.unwrap_err()));
        }
        assert_eq!(owner.stats().local_load_errors, origin.loads() as u64);
        let stats = asker.stats();
        assert_eq!((stats.fallbacks, stats.local_load_errors, stats.peer_loads), (0, 0, 0));
        assert_eq!(stats.misses, stats.peer_errors + stats.shared);
        assert_eq!(stats.peers[&owner.url].errors["load_failed"], stats.peer_errors);
        assert!(asker.believes_in_its_peer(), "it did answer");

        versions.breaks(false);
        assert_eq!(asker.get(keys[0]), Some(format!("{} v0", keys[0])), "nothing of it is kept");
    }
}

#[test]
fn where_the_owner_could_not_load_an_old_copy_answers_whether_or_not_it_is_tried_here() {
    for retries in [true, false] {
        let (versions, clock) = (Versions::default(), Clock::by_hand());
        let origin = versions.origin();
        let settings = {
            let clock = clock.clone();
            move |_, group: geecache::GroupBuilder| {
                let group = group.ttl(ms(10_000)).stale_if_error(ms(60_000));
                group.clock(clock.clone()).retry_failed_loads(retries)
            }
        };
        let [asker, owner] = Cluster::over(&origin).settings(settings).start();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(2).collect();
        for _ in 0..3 {
            asker.get_many(&keys);
        }
        keys.iter().for_each(|key| owner.group().answer_removal(key).unwrap());
        versions.breaks(true);
        clock.advance(ms(10_000));
        let loads = origin.loads();
        assert_eq!(asker.get(&keys[0]), Some(format!("{} v0", keys[0])));
        assert_eq!(asker.get_many(&keys[1..]), [Some(format!("{} v0", keys[1]))]);
        assert_eq!(origin.loads() - loads, if retries { 4 } else { 2 });
        // Left alone for a second, as after a load of its own.
        assert_eq!(asker.get(&keys[0]), Some(format!("{} v0", keys[0])));
        assert_eq!(origin.loads() - loads, if retries { 4 } else { 2 });
        assert_eq!(asker.stats().stale, 3);
    }
}

#[test]
fn a_502_that_no_node_marks_is_a_proxys_and_falls_back() {
    let proxy = Stub::answering(502, "bad gateway");
    let cluster = Cluster::over(&Origin::of_all()).peer(&proxy.url);
    let [asker] = cluster.settings(|_, group| group.retry_failed_loads(false)).start();
    let keys: Vec<_> = asker.keys_of(&proxy.url).take(3).collect();
    assert_eq!(asker.get(&keys[0]), Some(value_of(&keys[0])));
    assert_eq!(asker.get_many(&keys[1..]), [1, 2].map(|i| Some(value_of(&keys[i]))));
    assert_eq!((asker.stats().fallbacks, asker.stats().local_loads), (3, 3));
    check_identities([&asker]);
}

#[test]
fn an_owner_that_answers_others_and_not_this_key_is_not_replaced_if_told_so() {
    let slow = Arc::new(std::sync::OnceLock::<String>::new());
    let is_slow = slow.clone();
    let (origin, gate) =
        Origin::gated_for(move |key| is_slow.get().is_some_and(|slow| slow == key));
    let cluster = Cluster::over(&origin).timeout(ms(1_000));
    let [asker, owner] = cluster.settings(|_, group| group.retry_failed_loads(false)).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(2).collect();
    slow.set(keys[0].clone()).unwrap();
    let is_over = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        // Another caller, whom the owner answers meanwhile.
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let _ = asker.group().get(&keys[1]);
                asker.group().answer_removal(&keys[1]).unwrap();
            }
        });
        let error = asker.group().get(&keys[0]).unwrap_err();
        is_over.store(true, Ordering::SeqCst);
        error
    });
    assert!(matches!(&error, Error::Owner { peer, .. } if *peer == owner.url), "{error}");
    assert!(error.to_string().contains("though it answers others"), "{error}");
    assert_eq!((asker.stats().fallbacks, gate.waiting()), (0, 1), "the owner alone loads it");
    assert!(asker.believes_in_its_peer());
    gate.open();
}

#[test]
fn an_owner_whose_workers_all_wait_for_the_origin_costs_a_moment_and_one_load_here() {
    let slow = Arc::new(std::sync::OnceLock::<String>::new());
    let is_slow = slow.clone();
    let (origin, gate) =
        Origin::gated_for(move |key| is_slow.get().is_some_and(|slow| slow == key));
    let cluster = Cluster::over(&origin).workers(1, 16);
    let [asker, owner] = cluster.settings(|_, group| group.retry_failed_loads(false)).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(4).collect();
    slow.set(keys[0].clone()).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| asker.get(&keys[0]));
        eventually("the only worker waits", || gate.waiting() == 1);
        let start = std::time::Instant::now();
        assert_eq!(asker.get(&keys[1]), Some(value_of(&keys[1])));
        let values: Vec<_> = keys[1..].iter().map(|key| Some(value_of(key))).collect();
        assert_eq!(asker.get_many(&keys[1..]), values);
        // Else they would wait for the gate.
        assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
        gate.open();
        assert_eq!(first.join().unwrap(), Some(value_of(&keys[0])));
    });
    assert_eq!((asker.stats().fallbacks, origin.loads()), (3, 4));
    check_identities([&asker, &owner]);
}
