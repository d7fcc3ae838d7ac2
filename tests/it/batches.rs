//! Many keys at once: their order, whom they are asked of, and owners that fail or know no batches.

use std::thread;
use std::time::{Duration, Instant};

use geecache::{BoxError, Error, MAX_KEY_BYTES};

use crate::support::*;

/// How long a question to an owner may take where it is mute.
const DEADLINE: Duration = Duration::from_millis(500);

/// As `http/frame.rs` has them.
const MAX_KEYS: usize = 1024;
const MAX_QUESTION_BYTES: usize = 1 << 20;
const MAX_VALUE_BYTES: usize = 16 << 20;

fn values_of(keys: &[String]) -> Vec<Option<String>> {
    keys.iter().map(|key| Some(value_of(key))).collect()
}

#[test]
fn batches_of_all_sizes_are_answered_in_order_duplicates_included() {
    for size in [0, 1, 1_000, 10_000] {
        let origin = Origin::of_all();
        let nodes: [Node; 3] = Cluster::over(&origin).start();
        // One in ten twice, far from each other.
        let keys: Vec<_> =
            (0..size).map(|i| format!("key {}", i * 7 % (size - size / 10))).collect();
        for node in &nodes {
            assert_eq!(node.get_many(&keys), values_of(&keys));
        }
        assert_eq!(origin.loads(), size - size / 10, "one load for each, in the whole cluster");
        for node in &nodes {
            let stats = node.stats();
            assert_eq!((stats.gets - stats.peer_requests, stats.peer_errors), (size as u64, 0));
        }
        check_identities(&nodes);
    }
}

#[test]
fn a_batch_calls_the_getter_once_at_each_owner_for_what_is_missing_there() {
    let origin = Origin::of_all();
    let nodes: [Node; 3] = Cluster::over(&origin).start();
    let keys: Vec<_> = (0..300).map(|i| format!("key {i}")).collect();
    // What is cached at its owner is not missing.
    let mut missing = keys.clone();
    for key in missing.extract_if(.., |key| key.ends_with('7')) {
        nodes[1].get(&key);
    }
    assert_eq!(nodes[0].get_many(&keys), values_of(&keys));
    let mut batches = origin.batches();
    batches.sort();
    let mut expected = nodes.each_ref().map(|node| {
        missing.iter().filter(|key| node.pool.owner(key) == node.url).cloned().collect::<Vec<_>>()
    });
    expected.sort();
    assert_eq!(batches, expected);
    assert_eq!(origin.loads(), 300);
    assert_eq!(nodes[0].get_many(&keys), values_of(&keys));
    assert_eq!(origin.batches().len(), 3, "now the owners have them");
    check_identities(&nodes);
}

#[test]
fn absent_keys_and_failed_loads_are_each_keys_own() {
    let origin = Origin::new(|key: &str| match key.rsplit(' ').next() {
        Some("bad") => Err("disk full"),
        Some("absent") => Ok(None),
        _ => Ok(Some(value_of(key))),
    });
    let [asker, owner] = Cluster::over(&origin).start();
    let key = |kind: &str| {
        let mut keys = (0..).map(|i| format!("{i} {kind}"));
        keys.find(|key| asker.pool.owner(key) == owner.url).unwrap()
    };
    let (good, absent, bad, long) =
        (key("good"), key("absent"), key("bad"), "k".repeat(MAX_KEY_BYTES + 1));
    let answers = asker.group().get_many(&[&*bad, "", &good, &absent, &long]);
    assert!(matches!(&answers[0], Err(Error::Getter { key, .. }) if *key == bad), "{answers:?}");
    assert!(matches!(answers[1], Err(Error::KeyLength(0))));
    assert_eq!(answers[2].as_ref().unwrap().as_ref().unwrap(), &value_of(&good));
    assert_eq!(answers[3].as_ref().unwrap(), &None);
    assert!(matches!(answers[4], Err(Error::KeyLength(16_385))));
    assert_eq!((asker.stats().peer_loads, asker.stats().fallbacks), (2, 1));
    assert!(asker.believes_in_its_peer());
    check_identities([&asker, &owner]);
}

#[test]
fn an_owner_that_fails_falls_back_for_its_keys_alone() {
    let mute = Stub::mute();
    for failing in [dead_url(), mute.url.clone()] {
        let origin = Origin::of_all();
        let [asker, other] = Cluster::over(&origin).timeout(DEADLINE).peer(&failing).start();
        let keys: Vec<_> = (0..1_000).map(|i| format!("key {i}")).collect();
        let start = Instant::now();
        assert_eq!(asker.get_many(&keys), values_of(&keys));
        assert!(start.elapsed() < LONG / 2, "one deadline and not one for each key");
        let of = |url: &str| keys.iter().filter(|key| asker.pool.owner(key) == url).count() as u64;
        let stats = asker.stats();
        assert_eq!((stats.peer_loads, stats.fallbacks), (of(&other.url), of(&failing)));
        assert_eq!((origin.loads(), origin.batches().len()), (1_000, 3));
        check_identities([&asker, &other]);
    }
}

#[test]
fn an_owner_that_knows_no_batches_is_asked_singly_and_sent_no_more() {
    // `GET` is answered by all of them, `POST` by each in its way; 400 is Go's own, to a path
    // without a key.
    for (status, text) in [
        (400, "bad request"),
        (404, "404 page not found"),
        (405, "ask by GET"),
        (500, "oops"),
        (501, "not implemented"),
        (200, "the wrong thing"),
        (200, ""),
    ] {
        let (owner, questions) = recording(move |question| match question.is_batch() {
            true => response(status, "text/plain; charset=utf-8", text),
            false => response(200, "application/octet-stream", value_of(&question.keys()[0])),
        });
        let origin = Origin::of_all();
        let [asker] = Cluster::over(&origin).peer(&owner.url).start();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(20).collect();
        for round in 1..=2 {
            assert_eq!(asker.get_many(&keys[..10 * round]), values_of(&keys[..10 * round]));
            assert_eq!(batches(&questions), 1, "{status} {text}");
        }
        let stats = asker.stats();
        assert_eq!((stats.peer_errors, origin.loads()), (0, 0), "{status} {text}");
        assert!(asker.believes_in_its_peer());
        check_identities([&asker]);
    }
}

#[test]
fn an_owner_whose_answer_is_malformed_falls_back() {
    let good = [value_frame("630"), vec![1]].concat();
    let more_than_there_is = [&[0][..], &[0xff; 8], &[0xff; 4], b"630\x01"].concat();
    for body in [
        &[][..],
        &good[..good.len() - 1],
        &[&good[..], &[1]].concat(),
        &more_than_there_is,
        &[4, 1],
        &[2, 0xff, 0xff, 1],
        b"no frames at all",
    ] {
        let answer = response(200, BATCH_TYPE, body);
        let (owner, questions) = recording(move |_| answer.clone());
        let [asker] = Cluster::over(&Origin::of_all()).peer(&owner.url).start();
        let keys: Vec<_> = asker.keys_of(&owner.url).take(2).collect();
        assert_eq!(asker.get_many(&keys), values_of(&keys), "{body:?}");
        assert_eq!((asker.stats().fallbacks, asker.stats().peer_loads), (2, 0), "{body:?}");
        assert_eq!(batches(&questions), 1);
        check_identities([&asker]);
    }
}

#[test]
fn a_batch_over_the_limits_is_split() {
    let (owner, questions) = owner_of_all();
    let [asker] = Cluster::over(&Origin::of_all()).peer(&owner.url).start();
    let many: Vec<_> = asker.keys_of(&owner.url).take(2 * MAX_KEYS + 1).collect();
    assert_eq!(asker.get_many(&many), values_of(&many));
    let sizes = || {
        let questions = std::mem::take(&mut *questions.lock().unwrap());
        questions.iter().map(|question| (question.keys().len(), question.body.len())).collect()
    };
    let by_count: Vec<_> = sizes();
    assert_eq!([by_count[0].0, by_count[1].0, by_count[2].0], [MAX_KEYS, MAX_KEYS, 1]);

    let long = |i| format!("{i:0>MAX_KEY_BYTES$}");
    let long: Vec<_> =
        (0..).map(long).filter(|key| asker.pool.owner(key) == owner.url).take(100).collect();
    assert_eq!(asker.get_many(&long), values_of(&long));
    let by_bytes: Vec<_> = sizes();
    assert_eq!([by_bytes[0].0, by_bytes[1].0], [63, 37], "63 keys of 16 KiB are just below 1 MiB");
    assert!(by_bytes[0].1 <= MAX_QUESTION_BYTES);
    assert_eq!((asker.stats().peer_loads, asker.stats().peer_errors), (2049 + 100, 0));
}

#[test]
fn values_that_are_too_large_for_one_answer_are_fetched_singly_and_arrive() {
    const LENGTH: usize = MAX_VALUE_BYTES / 5 * 2;
    let origin = Origin::new(|key: &str| Ok::<_, BoxError>(Some(key.repeat(LENGTH / key.len()))));
    let [asker, owner] =
        Cluster::over(&origin).settings(|_, group| group.max_bytes(256 << 20)).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(4).collect();
    let texts: Vec<_> = keys.iter().map(String::as_str).collect();
    for (key, value) in keys.iter().zip(asker.group().get_many(&texts)) {
        assert!(value.unwrap().unwrap() == key.repeat(LENGTH / key.len()), "{key}");
    }
    assert_eq!(origin.loads(), 4);
    assert_eq!((asker.stats().peer_loads, asker.stats().peer_errors), (4, 0));
    assert_eq!(owner.stats().peer_requests, 6, "four by the batch, and two of them again");
    check_identities([&asker, &owner]);
}

#[test]
fn a_value_above_the_transfer_limit_falls_back_for_itself_alone() {
    let origin = Origin::new(|key: &str| {
        Ok::<_, BoxError>(Some(key.repeat(if key.ends_with('7') { 1000 } else { 1 })))
    });
    let [asker, owner] = Cluster::over(&origin).max_value_bytes(1000).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(50).collect();
    let large = keys.iter().filter(|key| key.ends_with('7')).count() as u64;
    for (key, value) in keys.iter().zip(asker.get_many(&keys)) {
        assert_eq!(value.unwrap().len(), key.len() * if key.ends_with('7') { 1000 } else { 1 });
    }
    assert!(large > 0);
    assert_eq!((asker.stats().peer_loads, asker.stats().fallbacks), (50 - large, large));
    assert!(asker.believes_in_its_peer());
}

/// Two keys of a batch from one node and one of them singly from another: which first?
fn share_their_load(batch_first: bool) {
    let (origin, gate) = Origin::gated();
    let nodes: [Node; 3] = Cluster::over(&origin).start();
    let [asker, owner, third] = &nodes;
    let keys: Vec<_> = asker.keys_of(&owner.url).take(2).collect();
    thread::scope(|scope| {
        let ask = |for_batch: bool| match for_batch {
            true => assert_eq!(asker.get_many(&keys), values_of(&keys)),
            false => assert_eq!(third.get(&keys[1]), Some(value_of(&keys[1]))),
        };
        scope.spawn(move || ask(batch_first));
        eventually("the first loads", || gate.waiting() == 1);
        scope.spawn(move || ask(!batch_first));
        eventually("all have missed", || owner.stats().misses == 3);
        gate.open();
    });
    assert_eq!(origin.loads(), 2);
    assert_eq!(owner.stats().shared, 1);
    check_identities(&nodes);
}

#[test]
fn a_single_get_of_another_node_joins_the_load_of_a_batch() {
    share_their_load(true);
}

#[test]
fn a_batch_joins_the_load_of_a_single_get_of_another_node() {
    share_their_load(false);
}

#[test]
fn a_batch_by_hand_has_a_frame_for_each_key() {
    let origin = Origin::new(|key: &str| match key {
        "bad" => Err("disk full"),
        "kkk" => Ok(None),
        _ => Ok(Some("630")),
    });
    let [node] = Cluster::over(&origin).start();
    let path = "/_geecache/scores";
    let keys = batch_of(&["Tom", "kkk", "bad", "Tom"]);
    let cached_keys = cached_batch_of(&["Tom", "kkk", "bad", "Tom"]);
    let answer = post(&node.url, path, &[], &cached_keys);
    assert_eq!((answer.status, answer.header("Content-Type")), (200, Some(BATCH_TYPE)));
    assert_eq!((answer.body, origin.loads()), (vec![3, 3, 3, 3], 0));

    let failed = b"\x02\0\x18loading \"bad\": disk full";
    let frames = [&value_frame("630")[..], &[1], failed, &value_frame("630")].concat();
    assert_eq!(post(&node.url, path, &[], &keys).body, frames);

    let answer = post(&node.url, path, &[], &cached_keys);
    assert_eq!(answer.body, [&value_frame("630")[..], &[3, 3], &value_frame("630")].concat());
    assert_eq!(post(&node.url, path, &[], &batch_of(&[])).body, b"");
    check_identities([&node]);
}

#[test]
fn a_malformed_batch_is_400_and_too_large_a_one_413() {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).start();
    let too_many = vec!["k"; MAX_KEYS + 1];
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for (body, status) in [
        (&b""[..], 400),
        (b"\0\0\0\x01", 400),
        (b"\xff\xff\xff\xff", 400),
        (b"\0\0\0\x01\0\x05Tom", 400),
        (b"\0\0\0\x01\0\x03Tom!", 400),
        (b"\0\0\0\x01\0\x02\xc3\x28", 400),
        (&batch_of(&[""]), 400),
        (&batch_of(&[&long]), 400),
        (&batch_of(&too_many), 400),
        (&vec![0; MAX_QUESTION_BYTES + 1], 413),
    ] {
        let answer = post(&node.url, "/_geecache/scores", &[], body);
        assert_eq!(answer.status, status, "{:?}", &body[..body.len().min(20)]);
        assert!(answer.text().len() > 1, "it says why");
    }
    let answer = post(&node.url, "/_geecache/heights", &[], &batch_of(&["Tom"]));
    assert_eq!((answer.status, answer.header("Geecache-Result")), (404, None));
    assert_eq!((node.stats().gets, origin.loads()), (0, 0));
}

#[test]
fn batches_pass_where_a_token_is_asked_for() {
    let origin = Origin::of_all();
    let [asker, owner] = Cluster::over(&origin).token("secret").start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(10).collect();
    assert_eq!(asker.get_many(&keys), values_of(&keys));
    assert_eq!((asker.stats().peer_loads, asker.stats().peer_errors), (10, 0));
    assert_eq!(post(&owner.url, "/_geecache/scores", &[], &batch_of(&["Tom"])).status, 401);
}

#[test]
fn an_owner_that_refuses_the_token_is_not_taken_for_one_that_knows_no_batches() {
    let (owner, questions) = recording(|_| response(401, "text/plain", "a token is required\n"));
    let [asker] = Cluster::over(&Origin::of_all()).token("guess").peer(&owner.url).start();
    let keys: Vec<_> = asker.keys_of(&owner.url).take(20).collect();
    assert_eq!(asker.get_many(&keys[..10]), values_of(&keys[..10]));
    assert_eq!(asker.get_many(&keys[10..]), values_of(&keys[10..]));
    assert_eq!(batches(&questions), 2);
    let questions = questions.lock().unwrap();
    assert_eq!(questions.len(), 2, "nor asked for each key singly");
    assert!(questions.iter().all(|q| q.header("Authorization") == Some("Bearer guess")));
    assert_eq!((asker.stats().fallbacks, asker.stats().peer_loads), (20, 0));
}
