//! A key, or all, leaves every node that can be reached, and loads under way do not bring it back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use geecache::{BoxError, Clock, Error, MAX_KEY_BYTES};

use crate::support::*;

/// How long a question to a peer may take where one of them is mute.
const DEADLINE: Duration = Duration::from_millis(500);

/// An origin whose values change, and that can hold an answer back.
#[derive(Clone, Default)]
struct Changing {
    version: Arc<AtomicUsize>,
    holds: Arc<AtomicBool>,
    gate: Gate,
}

impl Changing {
    fn origin(&self) -> Origin {
        let this = self.clone();
        Origin::new(move |_: &str| {
            let version = this.version.load(Ordering::SeqCst);
            if this.holds.load(Ordering::SeqCst) {
                this.gate.wait();
            }
            Ok::<_, BoxError>(Some(format!("v{version}")))
        })
    }

    fn turn_to(&self, version: usize) {
        self.version.store(version, Ordering::SeqCst);
    }
}

fn value(version: usize) -> Option<String> {
    Some(format!("v{version}"))
}

/// v1 is being loaded by the owner for another node, the origin turns to v2, `remove`, get: v2.
fn beats_a_load_in_flight(remove: impl Fn(&Node, &str)) {
    // The one that asks, the owner, a third: each removes once.
    for remover in 0..3 {
        let changing = Changing::default();
        let nodes: [Node; 3] = Cluster::over(&changing.origin()).start();
        let [asker, owner, third] = &nodes;
        let key = asker.key_of(&owner.url);
        changing.turn_to(1);
        changing.holds.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            let early = scope.spawn(|| asker.get(&key));
            eventually("v1 is being loaded", || changing.gate.waiting() == 1);
            changing.turn_to(2);
            changing.holds.store(false, Ordering::SeqCst);
            remove(&nodes[remover], &key);
            for node in [owner, asker, third] {
                assert_eq!(node.get(&key), value(2), "removed by node {remover}");
            }
            changing.gate.open();
            assert_eq!(early.join().unwrap(), value(1), "it asked before");
        });
        for node in [owner, asker, third] {
            assert_eq!(node.get(&key), value(2), "v1 was not kept");
        }
        check_identities(&nodes);
    }
}

#[test]
fn a_removal_beats_a_load_in_flight() {
    beats_a_load_in_flight(|node, key| node.group().remove(key).unwrap());
}

#[test]
fn a_clearing_beats_a_load_in_flight() {
    beats_a_load_in_flight(|node, _| node.group().clear().unwrap());
}

#[test]
fn a_removal_beats_a_batch_in_flight() {
    let changing = Changing::default();
    let [asker, owner] = Cluster::over(&changing.origin()).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(2).collect();
    changing.turn_to(1);
    changing.holds.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let early = scope.spawn(|| asker.get_many(&keys));
        eventually("v1 is being loaded", || changing.gate.waiting() == 1);
        changing.turn_to(2);
        changing.holds.store(false, Ordering::SeqCst);
        asker.group().remove(&keys[0]).unwrap();
        assert_eq!((owner.get(&keys[0]), asker.get(&keys[0])), (value(2), value(2)));
        changing.gate.open();
        assert_eq!(early.join().unwrap()[0], value(1));
    });
    assert_eq!(asker.get_many(&keys), [value(2), value(2)]);
    check_identities([&asker, &owner]);
}

#[test]
fn a_removal_takes_the_copies_of_all_nodes_whoever_removes() {
    for remover in 0..3 {
        let changing = Changing::default();
        let nodes: [Node; 3] = Cluster::over(&changing.origin()).start();
        let [asker, owner, third] = &nodes;
        let key = asker.key_of(&owner.url);
        let get_all = || nodes.each_ref().map(|node| [(); 3].map(|()| node.get(&key)));
        assert_eq!(get_all(), [(); 3].map(|()| [(); 3].map(|()| value(0))));
        let entries = || [asker.stats().hot, owner.stats().main, third.stats().hot];
        assert_eq!(entries().map(|cache| cache.entries), [1; 3]);
        changing.turn_to(1);
        assert_eq!(get_all()[0][0], value(0), "nobody knows");
        nodes[remover].group().remove(&key).unwrap();
        assert_eq!(entries().map(|cache| (cache.entries, cache.bytes)), [(0, 0); 3]);
        assert_eq!(get_all(), [(); 3].map(|()| [(); 3].map(|()| value(1))));
    }
}

#[test]
fn all_are_told_and_then_all_once_more() {
    let told = Arc::<Mutex<Vec<usize>>>::default();
    let peers = [0, 1].map(|peer| {
        let told = told.clone();
        Stub::http(move |_| {
            told.lock().unwrap().push(peer);
            b"HTTP/1.1 204 No Content\r\n\r\n".into()
        })
    });
    let [node] = Cluster::over(&Origin::of_all()).peer(&peers[0].url).peer(&peers[1].url).start();
    for owner in [0, 1].repeat(10) {
        node.group().remove(&node.key_of(&peers[owner].url)).unwrap();
        let told = told.lock().unwrap().split_off(0);
        let has_both = |round: &[usize]| round.contains(&0) && round.contains(&1);
        assert!(told.len() == 4 && told.chunks(2).all(has_both), "{told:?}");
    }
}

#[test]
fn a_removal_leaves_other_keys_alone_and_a_clearing_none() {
    let origin = Origin::of_all();
    let nodes: [Node; 3] = Cluster::over(&origin).start();
    let keys: Vec<_> = (0..30).map(|i| format!("key {i}")).collect();
    let get_all = || {
        for node in &nodes {
            keys.iter().for_each(|key| assert_eq!(node.get(key), Some(value_of(key))));
        }
    };
    get_all();
    get_all(); // leaves copies everywhere
    assert_eq!(origin.loads(), 30);
    nodes[0].group().remove(&keys[0]).unwrap();
    get_all();
    assert_eq!(origin.loads(), 31);
    nodes[0].group().clear().unwrap();
    for node in &nodes {
        let stats = node.stats();
        assert_eq!((stats.main.entries, stats.main.bytes), (0, 0));
        assert_eq!((stats.hot.entries, stats.hot.bytes), (0, 0));
    }
    get_all();
    assert_eq!(origin.loads(), 61);
    check_identities(&nodes);
}

#[test]
fn a_removal_takes_the_memory_of_an_absence() {
    let changing = Arc::new(AtomicBool::new(false));
    let origin = Origin::new({
        let exists = changing.clone();
        move |_: &str| Ok::<_, BoxError>(exists.load(Ordering::SeqCst).then_some("630"))
    });
    let nodes: [Node; 3] =
        Cluster::over(&origin).settings(|_, group| group.negative_ttl(LONG)).start();
    let get_all = || nodes.each_ref().map(|node| node.get("Tom"));
    assert_eq!(get_all(), [None, None, None]);
    changing.store(true, Ordering::SeqCst);
    assert_eq!(get_all(), [None, None, None]);
    nodes[0].group().remove("Tom").unwrap();
    assert_eq!(get_all(), [(); 3].map(|()| Some("630".into())));
}

#[test]
fn nodes_that_cannot_be_reached_are_named_after_all_others_were() {
    let (dead, mute) = (dead_url(), Stub::mute());
    for clears in [false, true] {
        let changing = Changing::default();
        let nodes: [Node; 3] =
            Cluster::over(&changing.origin()).timeout(DEADLINE).peer(&dead).peer(&mute.url).start();
        let key = nodes[0].key_of(&nodes[1].url);
        let get_all = || nodes.each_ref().map(|node| [(); 3].map(|()| node.get(&key)));
        assert_eq!(get_all()[2][2], value(0));
        changing.turn_to(1);
        let start = Instant::now();
        let group = nodes[0].group();
        let removed = if clears { group.clear() } else { group.remove(&key) };
        assert!(start.elapsed() < LONG / 2, "mute nodes cost a deadline");
        let Err(Error::RemoveIncomplete { failed }) = removed else { panic!("{removed:?}") };
        let mut names: Vec<_> = failed.into_iter().map(|(name, _)| name).collect();
        names.sort();
        let mut expected = [dead.clone(), mute.url.clone()];
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(get_all(), [(); 3].map(|()| [(); 3].map(|()| value(1))));
    }
}

#[test]
fn a_node_without_the_group_has_nothing_to_remove_and_is_not_named() {
    let [new] = Cluster::over(&Origin::of_all()).groups(["scores.2"]).start();
    let [old] = Cluster::over(&Origin::of_all()).peer(&new.url).start();
    let keys = [old.key_of(&old.url), old.key_of(&new.url)];
    for key in &keys {
        assert_eq!(old.get(key), Some(value_of(key)));
        old.group().remove(key).unwrap();
    }
    old.group().clear().unwrap();
    assert_eq!(old.stats().peers[&new.url].errors["404"], 1, "each loads by itself");
    // A stranger that has no such page is not such a node.
    let stranger = Stub::answering(404, "no such page");
    let [node] = Cluster::over(&Origin::of_all()).peer(&stranger.url).start();
    assert!(node.group().remove("Tom").is_err() && node.group().clear().is_err());
}

#[test]
fn an_owner_that_cannot_be_reached_is_named_and_what_stood_in_for_it_is_removed() {
    let (dead, changing) = (dead_url(), Changing::default());
    let nodes: [Node; 3] = Cluster::over(&changing.origin()).peer(&dead).start();
    let key = nodes[0].key_of(&dead);
    let get_all = || nodes.each_ref().map(|node| node.get(&key));
    assert_eq!(get_all(), [value(0), value(0), value(0)]);
    changing.turn_to(1);
    assert_eq!(get_all(), [value(0), value(0), value(0)], "each has kept it for a while");
    let error = nodes[0].group().remove(&key).unwrap_err();
    assert!(error.to_string().starts_with(&format!("removed, but not from {dead} (")), "{error}");
    assert_eq!(get_all(), [value(1), value(1), value(1)]);
}

#[test]
fn a_node_that_was_not_reached_has_its_copy_until_the_hot_ttl_ends() {
    let (changing, clock) = (Changing::default(), Clock::by_hand());
    let mut nodes: [Node; 3] = Cluster::over(&changing.origin())
        .timeout(DEADLINE)
        .settings({
            let clock = clock.clone();
            move |_, group| group.hot_ttl(LONG).clock(clock.clone())
        })
        .start();
    let key = nodes[0].key_of(&nodes[1].url);
    for _ in 0..2 {
        assert_eq!(nodes[2].get(&key), value(0));
    }
    nodes[2].take_server().shutdown(LONG);
    changing.turn_to(1);
    assert!(nodes[0].group().remove(&key).is_err());
    assert_eq!((nodes[0].get(&key), nodes[2].get(&key)), (value(1), value(0)));
    clock.advance(LONG);
    assert_eq!(nodes[2].get(&key), value(1));
}

#[test]
fn a_former_owner_that_was_not_reached_has_the_value_until_the_hot_ttl_ends() {
    let (changing, clock) = (Changing::default(), Clock::by_hand());
    let mut nodes: [Node; 3] = Cluster::over(&changing.origin())
        .timeout(DEADLINE)
        .settings({
            let clock = clock.clone();
            move |_, group| group.hot_ttl(LONG).clock(clock.clone())
        })
        .start();
    let urls = nodes.each_ref().map(|node| node.url.clone());
    let key = nodes[0].key_of(&urls[1]);
    // The last node is alone for a while, owns all, and has the value without an end.
    nodes[2].pool.set_peers([&urls[2]]).unwrap();
    assert_eq!(nodes[2].get(&key), value(0));
    nodes[2].pool.set_peers(&urls).unwrap();
    nodes[2].take_server().shutdown(LONG);
    changing.turn_to(1);
    assert!(nodes[0].group().remove(&key).is_err());
    assert_eq!((nodes[0].get(&key), nodes[2].get(&key)), (value(1), value(0)));
    clock.advance(LONG);
    assert_eq!(nodes[2].get(&key), value(1));
}

#[test]
fn a_removal_passes_where_a_token_is_asked_for() {
    let changing = Changing::default();
    let nodes: [Node; 3] = Cluster::over(&changing.origin()).token("secret").start();
    let get_all = || nodes.each_ref().map(|node| [(); 2].map(|()| node.get("Tom")));
    get_all();
    changing.turn_to(1);
    nodes[0].group().remove("Tom").unwrap();
    assert_eq!(get_all(), [(); 3].map(|()| [value(1), value(1)]));
    changing.turn_to(2);
    nodes[1].group().clear().unwrap();
    assert_eq!(get_all(), [(); 3].map(|()| [value(2), value(2)]));
}

#[test]
fn a_key_that_cannot_be_is_refused_before_anybody_is_asked() {
    let [node] = Cluster::over(&Origin::of_all()).peer(&dead_url()).start();
    for key in ["", &"k".repeat(MAX_KEY_BYTES + 1)] {
        assert!(matches!(node.group().remove(key), Err(Error::KeyLength(_))));
    }
}

#[test]
fn the_deletion_of_a_key_or_a_group_is_204() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).start();
    for (path, loads) in [("scores/a%2Fb", 2), ("scores", 3), ("scores/nobody%20has%20it", 3)] {
        assert_eq!(node.get("a/b").unwrap(), value_of("a/b"));
        let answer = ask(&node.url, &format!("DELETE /_geecache/{path}"), &[]);
        assert_eq!((answer.status, answer.text()), (204, ""), "{path}");
        node.get("a/b");
        assert_eq!(origin.loads(), loads, "{path}");
    }
}

#[test]
fn a_deletion_that_cannot_be_says_why() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let long = format!("DELETE /_geecache/scores/{}", "k".repeat(MAX_KEY_BYTES + 1));
    for (request, status) in [
        ("DELETE /_geecache/", 400),
        ("DELETE /_geecache/scores/", 400),
        ("DELETE /_geecache/scores/%FF", 400),
        (&*long, 400),
        ("DELETE /_geecache/heights", 404),
        ("DELETE /_geecache/heights/Tom", 404),
        ("POST /_geecache/scores/Tom", 405),
        ("PUT /_geecache/scores", 405),
    ] {
        let answer = ask(&node.url, request, &[]);
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.text().len() > 1, "{request}");
        let allowed = match (status, request.ends_with("Tom")) {
            (405, true) => Some("GET, DELETE"),
            (405, false) => Some("POST, DELETE"),
            _ => None,
        };
        assert_eq!(answer.header("Allow"), allowed, "{request}");
    }
}

#[test]
fn a_deletion_without_the_token_is_401_and_removes_nothing() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).token("secret").start();
    node.get("Tom");
    for path in ["scores/Tom", "scores"] {
        assert_eq!(ask(&node.url, &format!("DELETE /_geecache/{path}"), &[]).status, 401);
    }
    node.get("Tom");
    assert_eq!(origin.loads(), 1);
    let headers = ["Authorization: Bearer secret"];
    assert_eq!(ask(&node.url, "DELETE /_geecache/scores/Tom", &headers).status, 204);
    node.get("Tom");
    assert_eq!(origin.loads(), 2);
}
