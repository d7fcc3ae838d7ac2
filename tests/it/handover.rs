//! After a change of the list of nodes, a new owner has what the earlier one had, and a removal wins.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use geecache::{BoxError, Clock, GroupBuilder, Loaded};

use crate::support::*;

/// The value that a node holds stays there for so long.
const TTL: Duration = Duration::from_secs(600);

fn set(nodes: &[&Node]) {
    let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
    nodes.iter().for_each(|node| node.pool.set_peers(&urls).unwrap());
}

fn keys() -> Vec<String> {
    (0..200).map(|i| format!("key {i}")).collect()
}

fn get_all(nodes: &[&Node], keys: &[String]) {
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(nodes[i % nodes.len()].get(key), Some(value_of(key)));
    }
}

/// Tries again while an earlier owner was too slow: on a busy machine 100 ms may not do for each of a
/// hundred questions. `scenario` tells whether the origin was spared entirely.
fn in_time(scenario: impl FnMut() -> bool) {
    eventually("all is handed over in time", scenario);
}

/// How many keys `node` has taken over, asked for or not.
fn handed_over(node: &Node) -> u64 {
    let stats = node.stats();
    stats.handed_over + stats.pulled
}

fn stop(node: &mut Node) {
    assert!(node.take_server().shutdown(Duration::from_secs(5)));
}

/// Waits until `node` has pulled so many keys.
fn pulls(node: &Node, keys: usize) {
    eventually("the keys are pulled", || node.stats().pulled == keys as u64);
}

#[test]
fn a_node_that_joins_takes_over_what_it_owns_now_and_the_origin_is_not_asked() {
    in_time(|| {
        let origin = Origin::of_all();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        set(&[&a, &b]);
        let keys = keys();
        get_all(&[&a, &b], &keys);
        assert_eq!(origin.loads(), keys.len());

        set(&[&a, &b, &c]);
        let own: Vec<_> = keys.iter().filter(|key| a.pool.owner(key) == c.url).cloned().collect();
        assert!(own.len() > 10);
        let (single, batch) = own.split_at(own.len() / 2);
        // Not of the earlier owners, which have them for a while yet.
        get_all(&[&c], single);
        assert_eq!(c.get_many(batch).into_iter().flatten().count(), batch.len());
        let loads = origin.loads() - keys.len();
        // What is asked for while it is pulled comes twice.
        assert!(handed_over(&c) as usize + loads >= own.len());
        let hits = c.stats().main.hits;
        get_all(&[&c], &own);
        assert_eq!(c.stats().main.hits, hits + own.len() as u64, "what was handed over is kept");
        check_identities([&a, &b, &c]);
        let (metrics, stats) = (ask(&c.url, "GET /metrics", &[]), c.stats());
        for (name, count) in [("handed_over", stats.handed_over), ("pulled", stats.pulled)] {
            let line = format!("geecache_{name}_total{{group=\"scores\"}} {count}\n");
            assert!(metrics.text().contains(&line), "{line}");
        }
        loads == 0
    });
}

#[test]
fn a_node_that_has_left_hands_over_for_as_long_as_it_answers() {
    in_time(|| {
        let origin = Origin::of_all();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        let keys = keys();
        get_all(&[&a, &b, &c], &keys);
        let key = keys.iter().find(|key| a.pool.owner(key) == c.url).unwrap();
        set(&[&a, &b]);
        let owner = if a.pool.owner(key) == a.url { &a } else { &b };
        let (_, trace) = owner.group().get_traced(key);
        get_all(&[&a], &keys);
        get_all(&[&b], &keys);
        let is_in_time = origin.loads() == keys.len();
        let told = format!("handed over by {} in ", c.url);
        let is_told = trace.to_string().starts_with(&told);
        let was_pulled = trace.hit.is_some();
        assert!(!is_in_time || is_told || was_pulled, "{trace}");
        is_in_time && is_told
    });
}

#[test]
fn a_value_keeps_the_life_that_it_had_before_its_key_went_to_another_node() {
    in_time(|| {
        let clock = Clock::by_hand();
        let origin =
            Origin::new(|key: &str| Ok::<_, BoxError>(Some(Loaded::from(value_of(key)).ttl(TTL))));
        let settings = {
            let clock = clock.clone();
            move |_, builder: GroupBuilder| builder.clock(clock.clone())
        };
        let [a, b] = Cluster::over(&origin).with_handover().settings(settings).start();
        let key = b.key_of(&b.url);
        a.pool.set_peers([&a.url]).unwrap();
        assert_eq!(a.get(&key), Some(value_of(&key)));
        clock.advance(TTL / 10);
        set(&[&a, &b]);
        assert_eq!(b.get(&key), Some(value_of(&key)));
        if handed_over(&b) == 0 {
            return false;
        }
        // Longer than the earlier owner may keep it, which is the `hot_ttl`.
        clock.advance(TTL * 9 / 10 - Duration::from_secs(10));
        assert_eq!((b.get(&key), origin.loads()), (Some(value_of(&key)), 1));
        clock.advance(Duration::from_secs(10));
        assert_eq!((b.get(&key), origin.loads()), (Some(value_of(&key)), 2), "and no longer");
        true
    });
}

#[test]
fn only_the_caches_of_an_earlier_owner_are_asked_never_its_origin() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).with_handover().start();
    let header = ["Cache-Control: only-if-cached"];
    // Several at once, so that some reach a worker and not the thread that receives.
    together(16, |_| {
        let answer = ask(&node.url, "GET /_geecache/scores/Tom", &header);
        assert_eq!((answer.status, answer.header("Geecache-Result")), (404, Some("not-cached")));
    });
    assert_eq!((origin.loads(), node.stats().gets), (0, 0));
    node.get("Tom");
    let answer = ask(&node.url, "GET /_geecache/scores/Tom", &header);
    assert_eq!((answer.status, answer.text()), (200, "the value of Tom"));
    assert_eq!(ask(&node.url, "GET /_geecache/none/Tom", &header).status, 404);
    let batch = [header[0], "Geecache-Hand-Over: 1"];
    let answer = post(&node.url, "/_geecache/scores", &batch, &batch_of(&["Tom", "Jack"]));
    assert_eq!(answer.body, [value_frame("the value of Tom"), vec![3]].concat());
    assert_eq!(origin.loads(), 1);
}

#[test]
fn a_batch_of_large_values_is_handed_over_in_several_answers() {
    let large = |key: &str| format!("{key} {}", "x".repeat(40_000));
    in_time(|| {
        let origin = Origin::new(move |key: &str| Ok::<_, BoxError>(Some(large(key))));
        let [a, b] = Cluster::over(&origin).with_handover().start();
        let keys: Vec<_> = b.keys_of(&b.url).take(20).collect();
        a.pool.set_peers([&a.url]).unwrap();
        a.get_many(&keys);
        set(&[&a, &b]);
        let values = b.get_many(&keys);
        let expected: Vec<_> = keys.iter().map(|key| Some(large(key))).collect();
        assert!(values == expected);
        // Six fit into one answer. What is asked for while it is pulled comes twice.
        assert!(handed_over(&b) as usize + origin.loads() >= 2 * keys.len());
        origin.loads() == keys.len()
    });
}

#[test]
fn a_mute_or_dead_earlier_owner_costs_a_moment_and_then_nothing_for_a_while() {
    let mute = Stub::mute();
    for former in [mute.url.clone(), dead_url()] {
        let origin = Origin::of_all();
        let [node] = Cluster::over(&origin).with_handover().peer(&former).start();
        node.pool.set_peers([&node.url]).unwrap();
        let start = Instant::now();
        get_all(&[&node], &keys());
        // 200 times 100 ms would be 20 s.
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(origin.loads(), keys().len());
    }
}

#[test]
fn go_nodes_are_not_asked_for_a_key_that_they_owned() {
    let (former, asked) = crate::mixed::go_node();
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).with_handover().peer(&former.url).start();
    node.pool.set_peers([&node.url]).unwrap();
    get_all(&[&node], &keys());
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    assert_eq!(origin.loads(), keys().len());
}

/// Each value is a number, which a change makes larger.
fn numbers() -> (Origin, Arc<AtomicUsize>) {
    let number = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let number = number.clone();
        move |_: &str| Ok::<_, BoxError>(Some(number.load(Ordering::SeqCst).to_string()))
    });
    (origin, number)
}

#[test]
fn what_was_removed_is_not_taken_over_from_a_node_that_no_removal_reached() {
    for is_batch in [false, true] {
        let (origin, number) = numbers();
        let [old, new, other] = Cluster::over(&origin).with_handover().start();
        let key = old.key_of(&old.url);
        assert_eq!(old.get(&key).unwrap(), "1");
        // The old owner leaves the lists, but does not know: and nobody tells it of the removal.
        set(&[&new, &other]);
        let old_list = [&old.url, &new.url, &other.url];
        old.pool.set_peers(old_list).unwrap();
        let owner = if new.pool.owner(&key) == new.url { &new } else { &other };
        number.store(2, Ordering::SeqCst);
        owner.group().answer_removal(&key).unwrap();
        let get = |node: &Node| match is_batch {
            false => node.get(&key),
            true => node.get_many(&[&key]).pop().unwrap(),
        };
        assert_eq!((old.get(&key).unwrap(), get(owner).unwrap()), ("1".into(), "2".into()));
        // It may have been pulled before it was removed.
        assert_eq!(owner.stats().handed_over, 0);
    }
}

#[test]
fn a_removal_reaches_a_node_that_has_left_the_list_a_moment_ago() {
    let (origin, number) = numbers();
    let [old, new, other] = Cluster::over(&origin).with_handover().start();
    let key = old.key_of(&old.url);
    assert_eq!(old.get(&key).unwrap(), "1");
    set(&[&new, &other]);
    number.store(2, Ordering::SeqCst);
    new.group().remove(&key).unwrap();
    for node in [&new, &other, &old] {
        assert_eq!(node.get(&key).unwrap(), "2");
    }
}

#[test]
fn zero_turns_it_off() {
    let origin = Origin::of_all();
    let [a, b] = Cluster::over(&origin).start();
    a.pool.set_peers([&a.url]).unwrap();
    let keys = keys();
    get_all(&[&a], &keys);
    set(&[&a, &b]);
    get_all(&[&b], &keys);
    let moved = keys.iter().filter(|key| a.pool.owner(key) == b.url).count();
    assert_eq!((handed_over(&b), origin.loads()), (0, keys.len() + moved));
}

#[test]
fn what_nobody_asks_for_is_pulled_from_nodes_that_stay_and_from_one_that_leaves() {
    let origin = Origin::of_all();
    let [mut a, mut b, c] = Cluster::over(&origin).with_handover().start();
    set(&[&a, &b]);
    set(&[&c]);
    // Several pages, in each of several shards.
    let keys: Vec<_> = (0..5_000).map(|i| format!("key {i}")).collect();
    let owned = |by: &Node| keys.iter().filter(|key| by.pool.owner(key) == by.url).count();
    a.get_many(&keys);
    assert_eq!(origin.loads(), keys.len());

    set(&[&a, &b, &c]);
    pulls(&c, owned(&c));
    // One leaves, and still answers.
    let before = owned(&b);
    set(&[&b, &c]);
    pulls(&b, owned(&b) - before);
    pulls(&c, owned(&c));
    stop(&mut a);
    assert_eq!(b.get_many(&keys).into_iter().flatten().count(), keys.len());
    stop(&mut b);
    assert_eq!(origin.loads(), keys.len());
    check_identities([&b, &c]);
}

#[test]
fn a_list_that_was_set_before_there_was_a_group_is_pulled_for_too() {
    let origin = Origin::of_all();
    let [old] = Cluster::over(&origin).with_handover().start();
    let keys = keys();
    old.get_many(&keys);
    let [new] = Cluster::over(&origin).with_handover().peer(&old.url).start();
    pulls(&new, keys.iter().filter(|key| new.pool.owner(key) == new.url).count());
    assert_eq!(origin.loads(), keys.len());
}

#[test]
fn a_pull_evicts_nothing_and_ends_when_the_cache_is_full() {
    let origin = Origin::of_all();
    let [old] = Cluster::over(&origin).with_handover().start();
    let keys: Vec<_> = (0..1_000).map(|i| format!("key {i}")).collect();
    old.get_many(&keys);
    let small = |_, builder: GroupBuilder| builder.max_bytes(5_000);
    let [new] = Cluster::over(&origin).with_handover().peer(&old.url).settings(small).start();
    let is_full = || new.stats().main.bytes + 200 > new.stats().main.max_bytes;
    eventually("it is full", is_full);
    let stats = new.stats();
    assert!(stats.pulled > 10 && stats.main.evictions == 0, "{stats:?}");
}

#[test]
fn what_was_removed_is_not_pulled() {
    let (origin, number) = numbers();
    let [old, new] = Cluster::over(&origin).with_handover().start();
    let keys: Vec<_> = new.keys_of(&new.url).take(20).collect();
    [&old, &new].iter().for_each(|node| set(&[node]));
    old.get_many(&keys);
    number.store(2, Ordering::SeqCst);
    // The old owner is not told.
    new.group().answer_removal(&keys[0]).unwrap();
    set(&[&old, &new]);
    pulls(&new, keys.len() - 1);
    assert_eq!((new.get(&keys[0]).unwrap(), new.get(&keys[1]).unwrap()), ("2".into(), "1".into()));
}

#[test]
fn a_peer_that_knows_no_pages_of_keys_is_left_alone() {
    let asked = Arc::<AtomicUsize>::default();
    let stub = Stub::http({
        let asked = asked.clone();
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            response(400, "text/plain", "more keys than there can be")
        }
    });
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).with_handover().peer(&stub.url).start();
    eventually("it was asked", || asked.load(Ordering::SeqCst) == 1);
    for key in node.keys_of(&node.url).take(20) {
        assert_eq!(node.get(&key), Some(value_of(&key)));
    }
    assert!(node.believes_in_its_peer());
}

#[test]
fn a_page_has_the_keys_of_the_arcs_for_peers_alone() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).with_handover().token("secret").start();
    let keys: Vec<_> = (0..200).map(|i| format!("key {i}")).collect();
    node.get_many(&keys);
    let question = |arcs: &[(u32, u32)]| {
        let arcs = arcs.iter().flat_map(|(first, last)| [first.to_be_bytes(), last.to_be_bytes()]);
        [&[0; 9][..], &arcs.collect::<Vec<_>>().concat()].concat()
    };
    let kind = "Content-Type: application/x-geecache-keys";
    let token = "Authorization: Bearer secret";
    let ask = |headers: &[&str], body: &[u8]| post(&node.url, "/_geecache/scores", headers, body);
    let all = question(&[(0, u32::MAX)]);
    let page = ask(&[kind, token], &all);
    assert_eq!((page.status, page.header("Content-Type")), (200, kind.split(": ").nth(1)));
    // No further page: all ones.
    assert_eq!(page.body[..8], [0xff; 8]);
    assert_eq!(page.body[8..12], 200_u32.to_be_bytes());
    let ring = node.pool.ring();
    let half = keys.iter().filter(|key| ring.position(key) <= u32::MAX / 2).count() as u32;
    let page = ask(&[kind, token], &question(&[(0, u32::MAX / 4), (1 << 30, u32::MAX / 2)]));
    assert_eq!(page.body[8..12], half.to_be_bytes());
    assert_eq!(ask(&[kind, token], &question(&[])).body[8..], [0; 4]);
    assert_eq!(ask(&[kind, token], &[[0xff; 8].as_slice(), &all[8..]].concat()).body[8..], [0; 4]);
    assert_eq!(ask(&[kind], &all).status, 401);
    assert_eq!(ask(&[kind, token, "Origin: http://elsewhere"], &all).status, 403);
    for malformed in [&all[..8], &all[..all.len() - 1], &[0, 0, 0, 0, 0, 0, 0, 0, 2][..]] {
        assert_eq!(ask(&[kind, token], malformed).status, 400);
    }
    assert_eq!(post(&node.url, "/_geecache/none", &[kind, token], &all).status, 404);
    assert_eq!(node.stats().gets, 200);
}
