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

/// How many keys `node` has taken over.
fn handed_over(node: &Node) -> u64 {
    node.stats().handed_over
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
        assert_eq!(handed_over(&c) as usize + loads, own.len());
        let hits = c.stats().main.hits;
        get_all(&[&c], &own);
        assert_eq!(c.stats().main.hits, hits + own.len() as u64, "what was handed over is kept");
        check_identities([&a, &b, &c]);
        let (metrics, stats) = (ask(&c.url, "GET /metrics", &[]), c.stats());
        let line =
            format!("geecache_handed_over_total{{group=\"scores\"}} {}\n", stats.handed_over);
        assert!(metrics.text().contains(&line), "{line}");
        loads == 0
    });
}

#[test]
fn a_node_that_has_left_hands_over_for_as_long_as_it_answers() {
    in_time(|| {
        let origin = Origin::of_all();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        let keys = keys();
        // The others have copies, which would end after the earlier owner.
        [&a, &b, &c].iter().for_each(|node| get_all(&[node], &keys));
        let key = keys.iter().find(|key| a.pool.owner(key) == c.url).unwrap();
        set(&[&a, &b]);
        let owner = if a.pool.owner(key) == a.url { &a } else { &b };
        let (_, trace) = owner.group().get_traced(key);
        get_all(&[&a], &keys);
        get_all(&[&b], &keys);
        let is_in_time = origin.loads() == keys.len();
        let told = format!("handed over by {} in ", c.url);
        assert!(!is_in_time || trace.to_string().starts_with(&told), "{trace}");
        is_in_time
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
    let ask = |group: &str, keys: &[&str]| {
        post(&node.url, &format!("/_geecache/{group}"), &[], &cached_batch_of(keys))
    };
    // Several at once, so that some reach a worker and not the thread that receives.
    together(16, |_| {
        let answer = ask("scores", &["Tom"]);
        assert_eq!((answer.status, &answer.body[..]), (200, &[3][..]));
    });
    assert_eq!((origin.loads(), node.stats().gets), (0, 0));
    node.get("Tom");
    let body = ask("scores", &["Tom", "Jack"]).body;
    assert_eq!(body, [value_frame("the value of Tom"), vec![3]].concat());
    assert_eq!(ask("none", &["Tom"]).status, 404);
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
        // Six fit into one answer.
        assert_eq!(handed_over(&b) as usize + origin.loads(), 2 * keys.len());
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
