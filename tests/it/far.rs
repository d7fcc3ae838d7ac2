//! Owners behind a network: connections that it forgets, answers that it breaks off, keys that are
//! slow, and addresses that lead to strangers.

use std::thread;
use std::time::Duration;

use geecache::{BoxError, Clock, PeerError};

use crate::support::*;

/// How long a question may take here. Long enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 16;

/// A node that asks, an owner behind a relay, and keys of the owner that it has in its cache. There
/// are [`CONNECTIONS`] idle connections between them.
struct Far {
    asker: Node,
    owner: Node,
    relay: Relay,
    keys: Vec<String>,
    origin: Origin,
}

impl Far {
    fn new() -> Self {
        Self::with(|cluster| cluster)
    }

    fn with(settings: impl FnOnce(Cluster) -> Cluster) -> Self {
        let (origin, gate) = Origin::gated();
        let cluster = Cluster::over(&origin).timeout(DEADLINE).workers(CONNECTIONS, 256);
        let cluster = settings(cluster.settings(|_, group| group.hot_bytes(0)));
        let ([asker, owner], [_, relay]) = cluster.behind_relays();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(100).collect();
        thread::scope(|scope| {
            for key in &keys[..CONNECTIONS] {
                scope.spawn(|| asker.get(key));
            }
            eventually("each get has a connection", || gate.waiting() == CONNECTIONS);
            gate.open();
        });
        asker.get_many(&keys);
        let far = Self { asker, owner, relay, keys, origin };
        assert_eq!(far.relay.accepted(), CONNECTIONS);
        assert_eq!(far.asker.stats().peer_errors, 0);
        far
    }

    /// Gets all keys, many at the same time; how many of them the owner did not answer.
    fn unanswered(&self) -> u64 {
        let before = self.asker.stats().peer_errors;
        together(CONNECTIONS, |i| {
            for key in self.keys.iter().skip(i).step_by(CONNECTIONS) {
                assert_eq!(self.asker.get(key), Some(value_of(key)));
            }
        });
        check_identities([&self.asker, &self.owner]);
        self.asker.stats().peer_errors - before
    }

    fn all_in_one_question(&self) -> u64 {
        let before = self.asker.stats().peer_errors;
        let values: Vec<_> = self.keys.iter().map(|key| Some(value_of(key))).collect();
        assert_eq!(self.asker.get_many(&self.keys), values);
        self.asker.stats().peer_errors - before
    }
}

#[test]
fn connections_that_are_reset_cost_no_get_anything() {
    for far in [Far::new(), Far::with(Cluster::without_combining)] {
        for _ in 0..3 {
            far.relay.treat_existing(Treatment::Reset);
            assert_eq!(far.unanswered(), 0);
            far.relay.treat_existing(Treatment::Reset);
            assert_eq!(far.all_in_one_question(), 0);
        }
        assert!(far.asker.believes_in_its_peer());
        assert_eq!(far.origin.loads(), far.keys.len());
    }
}

#[test]
fn connections_that_fall_silent_cost_one_deadline_and_one_cool_down() {
    let far = Far::new();
    far.relay.treat_existing(Treatment::Swallow);
    assert_eq!(far.asker.get(&far.keys[0]), Some(value_of(&far.keys[0])));
    assert!(!far.asker.believes_in_its_peer(), "it cools down");
    eventually("the owner is asked again", || {
        assert_eq!(far.asker.get(&far.keys[1]), Some(value_of(&far.keys[1])));
        far.asker.believes_in_its_peer()
    });
    let times = &far.asker.stats().peers[&far.owner.url].times;
    let slow = times.counts.iter().zip(geecache::Histogram::BOUNDS);
    let slow = slow.filter(|(_, bound)| *bound > DEADLINE / 2).map(|(count, _)| count);
    assert_eq!(slow.sum::<u64>(), 1, "one deadline was paid");
    assert_eq!(far.unanswered(), 0, "the other connections are not tried any more");
    assert_eq!(far.all_in_one_question(), 0);
}

#[test]
fn a_removal_reaches_the_owner_at_once_after_resets_and_at_the_second_attempt_after_silence() {
    let far = Far::new();
    let group = far.asker.group();
    far.relay.treat_existing(Treatment::Reset);
    group.remove(&far.keys[0]).unwrap();
    assert_eq!(far.owner.stats().main.entries, far.keys.len() - 1);
    assert_eq!(far.unanswered(), 0);
    far.relay.treat_existing(Treatment::Swallow);
    group.remove(&far.keys[1]).unwrap_err();
    group.remove(&far.keys[1]).unwrap();
    assert_eq!(far.owner.stats().main.entries, far.keys.len() - 1);
    far.relay.treat_existing(Treatment::Reset);
    group.clear().unwrap();
    assert_eq!(far.owner.stats().main.entries, 0);
}

#[test]
fn a_removal_that_succeeds_ends_the_cool_down() {
    let far = Far::new();
    far.relay.treat_existing(Treatment::Reset);
    far.relay.refuse_new();
    assert_eq!(far.asker.get(&far.keys[0]), Some(value_of(&far.keys[0])));
    assert!(!far.asker.believes_in_its_peer());
    far.relay.treat_new(Treatment::Carry);
    far.asker.group().remove(&far.keys[0]).unwrap();
    assert!(far.asker.believes_in_its_peer());
    assert_eq!(far.unanswered(), 0);
}

#[test]
fn no_question_is_sent_twice_on_new_connections() {
    let origin = Origin::of_all();
    let cluster = Cluster::over(&origin).timeout(DEADLINE);
    let ([asker, owner], [_, relay]) = cluster.behind_relays();
    relay.treat_new(Treatment::Reset);
    let key = asker.key_of(&owner.url);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((relay.accepted(), asker.stats().fallbacks), (1, 1));
    assert!(asker.group().remove(&key).is_err());
    assert_eq!(relay.accepted(), 2);
}

#[test]
fn an_answer_that_breaks_off_is_no_answer_and_is_not_asked_for_twice() {
    for by in [CutBy::End, CutBy::Reset] {
        let far = Far::new();
        // In the middle of the head.
        far.relay.treat_existing(Treatment::Cut { after: 10, by });
        assert_eq!(far.asker.get(&far.keys[0]), Some(value_of(&far.keys[0])));
        assert_eq!(far.asker.stats().fallbacks, 1);
        assert_eq!(far.relay.accepted(), CONNECTIONS, "a byte of the answer had come");
    }
}

#[test]
fn slow_keys_do_not_make_their_owner_seem_dead() {
    let (origin, gate) = Origin::gated_for(|key| key.ends_with('7'));
    let cluster = Cluster::over(&origin).timeout(DEADLINE).settings(|_, group| group.hot_bytes(0));
    let ([asker, owner], _relays) = cluster.behind_relays();
    let (slow, quick): (Vec<_>, Vec<_>) =
        asker.keys_of(&owner.url).take(200).partition(|key| key.ends_with('7'));
    asker.get_many(&quick);
    let quick_loads = || asker.stats().peer_loads;
    let before = quick_loads();
    thread::scope(|scope| {
        for key in &slow[..4] {
            let asker = &asker;
            // At the owner it waits, and so it does here.
            scope.spawn(move || {
                let (value, trace) = asker.group().get_traced(key);
                assert_eq!(value.unwrap().unwrap(), value_of(key));
                assert_eq!(trace.asked.unwrap().error, Some(PeerError::Slow));
            });
        }
        let mut asked = 0;
        eventually("the slow keys have fallen back", || {
            let key = &quick[asked % quick.len()];
            assert_eq!(asker.get(key), Some(value_of(key)));
            asked += 1;
            asker.stats().fallbacks == 4
        });
        assert!(asker.believes_in_its_peer(), "no cool-down begins");
        assert_eq!(quick_loads() - before, asked as u64, "no other get fell back");
        gate.open();
    });
    eventually("the owner has loaded them, too", || {
        let stats = owner.stats();
        stats.misses == stats.local_loads + stats.shared
    });
    check_identities([&asker, &owner]);
}

#[test]
fn hits_need_no_worker_of_the_owner_whatever_their_size() {
    const WORKERS: usize = 16;
    const GETS: usize = 50;
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |key: &str| {
            if key.starts_with("slow") {
                gate.wait();
            }
            let length = if key.starts_with("large") { 2_000 } else { 3 };
            Ok::<_, BoxError>(Some("v".repeat(length)))
        }
    });
    let cluster = Cluster::over(&origin).workers(WORKERS, 256);
    let ([asker, owner], _relays) = cluster.settings(|_, group| group.hot_bytes(0)).behind_relays();
    let keys = |prefix: &str, length: usize, count: usize| -> Vec<String> {
        let width = length - prefix.len();
        let numbered = (0..).map(|i| format!("{prefix}{i:0width$}"));
        numbered.filter(|key| asker.pool.owner(key) == owner.url).take(count).collect()
    };
    // Callers, and the keys that they ask for: bodies and answers of batches below and above what
    // tiny_http reads, and a server sends, without another thread.
    let loads =
        [(64, keys("small", 16, 200)), (16, keys("long", 100, 200)), (64, keys("large", 16, 200))];
    for (_, keys) in &loads {
        asker.get_many(keys);
    }
    let slow = keys("slow", 16, WORKERS);
    thread::scope(|scope| {
        for key in &slow {
            let asker = &asker;
            scope.spawn(move || asker.get(key));
        }
        eventually("all workers wait for the origin", || gate.waiting() == WORKERS);
        let fallbacks = asker.stats().fallbacks;
        for (callers, keys) in &loads {
            together(*callers, |caller| {
                for key in keys.iter().cycle().skip(caller * 3).take(GETS) {
                    assert!(asker.get(key).is_some());
                }
            });
            // As many as an answer without a worker holds.
            let values = asker.get_many(&keys[..100]);
            assert!(values.iter().all(Option::is_some));
        }
        assert_eq!(asker.stats().fallbacks, fallbacks, "no get needed a worker");
        assert_eq!(gate.waiting(), WORKERS, "all of them still wait");
        gate.open();
    });
}

#[test]
fn a_slow_key_in_a_batch_leaves_the_others_their_answers() {
    // Small values come by one more question, long ones by several.
    for (timeout, bytes) in [(DEADLINE, 10), (4 * DEADLINE, 8 << 10)] {
        a_slow_key_in_a_batch(timeout, bytes);
    }
}

/// A key is about as long as its value.
fn a_slow_key_in_a_batch(timeout: Duration, bytes: usize) {
    let (origin, gate) = Origin::gated_for(|key| key.ends_with('7'));
    let cluster = Cluster::over(&origin).timeout(timeout).settings(|_, group| group.hot_bytes(0));
    let ([asker, owner], _relays) = cluster.behind_relays();
    let keys = (0..).map(|i| format!("{i:0bytes$}"));
    let (slow, quick): (Vec<_>, Vec<_>) = keys
        .filter(|key| asker.pool.owner(key) == owner.url)
        .take(100)
        .partition(|key| key.ends_with('7'));
    asker.get_many(&quick);
    let keys: Vec<_> = quick.iter().chain(&slow[..1]).collect();
    let loads = asker.stats().peer_loads;
    thread::scope(|scope| {
        let batch = scope.spawn(|| asker.get_many(&keys));
        eventually("the slow key has fallen back", || asker.stats().fallbacks == 1);
        gate.open();
        let values: Vec<_> = keys.iter().map(|key| Some(value_of(key))).collect();
        assert_eq!(batch.join().unwrap(), values);
    });
    assert_eq!(asker.stats().peer_loads - loads, quick.len() as u64);
    assert!(asker.believes_in_its_peer());
    eventually("the owner has loaded it, too", || {
        let stats = owner.stats();
        stats.misses == stats.local_loads + stats.shared
    });
    check_identities([&asker, &owner]);
}

#[test]
fn an_answer_that_no_node_writes_is_a_strangers() {
    let page = "<html>another service</html>";
    let answers = [
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 28\r\n\r\n{page}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n{page}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n{page}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-geecache-batch\r\n\r\n{page}"),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "HTTP/1.1 206 Partial Content\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: 2\r\n\r\nab"
            .into(),
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".into(),
    ];
    for answer in answers {
        let stranger = Stub::raw({
            let answer = answer.clone();
            move |mut stream| {
                use std::io::{Read, Write};
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let origin = Origin::new(|key: &str| {
            Ok::<_, BoxError>((!key.ends_with('7')).then(|| value_of(key)))
        });
        let [asker] = Cluster::over(&origin).timeout(DEADLINE).peer(&stranger.url).start();
        let keys: Vec<_> = asker.keys_of(&stranger.url).take(40).collect();
        let value = |key: &String| (!key.ends_with('7')).then(|| value_of(key));
        let (one_by_one, together) = keys.split_at(20);
        for key in one_by_one {
            assert_eq!(asker.get(key), value(key), "{answer}");
        }
        let values: Vec<_> = together.iter().map(value).collect();
        assert_eq!(asker.get_many(together), values, "{answer}");
        let stats = asker.stats();
        assert_eq!((stats.peer_loads, stats.fallbacks), (0, 40), "{answer}");
        check_identities([&asker]);
    }
}

#[test]
fn the_time_in_transit_counts_against_a_copys_life() {
    let (ttl, transit) = (Duration::from_secs(20), Duration::from_secs(5));
    let clock = Clock::by_hand();
    let origin = Origin::of_all();
    let cluster = Cluster::over(&origin).settings({
        let clock = clock.clone();
        move |_, group| group.ttl(ttl).clock(clock.clone())
    });
    let ([asker, owner], [_, relay]) = cluster.behind_relays();
    let ways: [fn(&Node, &str); 2] =
        [|node, key| drop(node.get(key)), |node, key| drop(node.get_many(&[key]))];
    for (key, ask) in asker.keys_of(&owner.url).zip(ways) {
        let answered = owner.stats().peer_requests;
        // The answer is under way while the clock moves.
        relay.set_delays(Duration::ZERO, Duration::from_secs(1));
        thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&asker, &key));
            eventually("the owner has answered", || owner.stats().peer_requests > answered);
            clock.advance(transit);
            assert!(!asking.is_finished(), "the machine has stood still for a second");
        });
        relay.set_delays(Duration::ZERO, Duration::ZERO);
        let is_kept = || asker.group().get_cached(&key).unwrap().is_some();
        clock.advance(ttl - transit - Duration::from_millis(1));
        assert!(is_kept(), "to the last millisecond");
        clock.advance(Duration::from_millis(1));
        assert!(!is_kept(), "it does not live on by the time of its transit");
    }
}

#[test]
fn a_batch_of_more_than_one_answer_can_hold_goes_on_in_batches() {
    const VALUE_BYTES: usize = 64 << 10;
    // By `repeat`: 34 MB made byte by byte take seconds without optimization, and a busy machine longer
    // than the deadline of the question.
    let origin = Origin::new(|key: &str| {
        Ok::<_, BoxError>(Some(key.repeat(VALUE_BYTES / key.len()).into_bytes()))
    });
    let cluster = Cluster::over(&origin).settings(|_, group| group.hot_bytes(0));
    let ([asker, owner], [_, relay]) = cluster.behind_relays();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(532).collect();
    asker.get_many(&keys);
    relay.set_delay(Duration::from_millis(20));
    let before = asker.stats();
    let start = relay.accepted();
    let values = asker.get_many(&keys);
    for (key, value) in keys.iter().zip(values) {
        assert!(value.unwrap().starts_with(key));
    }
    let stats = asker.stats();
    assert_eq!((stats.peer_loads - before.peer_loads, stats.fallbacks), (532, 0));
    let questions = &stats.peers[&owner.url].times;
    assert_eq!(questions.count(), 2, "one call of the peer for each get_many");
    assert_eq!(relay.accepted(), start, "one after the other, on one connection");
}
