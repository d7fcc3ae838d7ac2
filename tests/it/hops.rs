//! Owners behind a proxy, a cache or a service mesh: it changes what passes, and nothing that it has
//! changed is taken for a value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use geecache::{BoxError, Clock, Loaded};
use percent_encoding::percent_decode_str;

use crate::support::*;

const CALLERS: usize = 8;
/// So many questions may be answered otherwise before the asking node knows what the hop refuses.
const A_FEW: u64 = CALLERS as u64;

type Ask<'a> = &'a dyn Fn(&Question) -> Answer;

/// Every seventh key does not exist.
fn origin() -> Origin {
    Origin::new(|key: &str| Ok::<_, BoxError>((!key.ends_with('7')).then(|| value_of(key))))
}

/// Two nodes behind such hops, which keep no copies of each other's values.
fn nodes(
    origin: &Origin,
    treat: impl Fn(&Question, Ask<'_>) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> ([Node; 2], [Stub; 2]) {
    Cluster::over(origin).settings(|_, group| group.hot_bytes(0)).behind_hops(treat)
}

/// All that a node asks another passes through such a hop; how many gets fell back.
fn fallbacks(treat: impl Fn(&Question, Ask<'_>) -> Vec<u8> + Clone + Send + Sync + 'static) -> u64 {
    let origin = origin();
    let ([asker, owner], _hops) = nodes(&origin, treat);
    let keys: Vec<_> = asker.keys_of(&owner.url).take(50).collect();
    let value = |key: &String| (!key.ends_with('7')).then(|| value_of(key));
    let values: Vec<_> = keys.iter().map(value).collect();
    for _ in 0..2 {
        together(CALLERS, |i| {
            for key in keys.iter().cycle().skip(i * 7).take(keys.len()) {
                assert_eq!(asker.get(key), value(key));
            }
        });
        assert_eq!(asker.get_many(&keys), values);
    }
    assert!(asker.believes_in_its_peer(), "a hop that answers is no reason to leave it alone");
    check_identities([&asker, &owner]);
    asker.stats().fallbacks
}

#[test]
fn a_hop_that_leaves_the_meaning_alone_costs_no_get_anything() {
    assert_eq!(fallbacks(|question, ask| ask(question).bytes()), 0);
    assert_eq!(fallbacks(|question, ask| ask(question).chunked()), 0);
    // It takes one question on each connection.
    assert_eq!(fallbacks(|question, ask| ask(question).with("connection", "close").bytes()), 0);
    assert_eq!(fallbacks(|question, ask| ask(question).with("via", "1.1 hop").bytes()), 0);
}

#[test]
fn an_answer_that_a_hop_has_packed_is_no_value() {
    let pack = |mut answer: Answer| {
        if answer.status == 200 {
            answer.body.reverse(); // as good as gzip
            return answer.with("content-encoding", "gzip").bytes();
        }
        answer.bytes()
    };
    let polite = move |question: &Question, ask: Ask<'_>| match question.header("accept-encoding") {
        Some("identity") => ask(question).bytes(),
        _ => pack(ask(question)),
    };
    assert_eq!(fallbacks(polite), 0);
    assert!(fallbacks(move |question, ask| pack(ask(question))) > 0);
}

/// A cache keeps `GET`s, either where it is allowed to, or in any case: then it tells their age.
fn cache(is_strict: bool) -> impl Fn(&Question, Ask<'_>) -> Vec<u8> + Clone + Send + Sync {
    let kept = Arc::<Mutex<HashMap<String, Vec<u8>>>>::default();
    move |question, ask| {
        if !question.target().starts_with("GET ") {
            return ask(question).bytes();
        }
        if let Some(answer) = kept.lock().unwrap().get(question.path()) {
            return answer.clone();
        }
        let answer = ask(question);
        let may_keep = answer.header("cache-control") != Some("no-store");
        let aged = answer.clone().with("age", "0").bytes();
        if may_keep || !is_strict {
            kept.lock().unwrap().insert(question.path().into(), aged);
        }
        answer.bytes()
    }
}

#[test]
fn after_a_removal_no_cache_on_the_way_has_the_old_value() {
    for is_strict in [true, false] {
        let number = Arc::new(Mutex::new(1));
        let origin = Origin::new({
            let number = number.clone();
            move |key: &str| {
                let number = *number.lock().unwrap();
                Ok::<_, BoxError>((number > 1 || !key.ends_with('7')).then(|| number.to_string()))
            }
        });
        let ([asker, owner], _hops) = nodes(&origin, cache(is_strict));
        // One that does not exist at first, and one that does.
        let key = |exists| asker.keys_of(&owner.url).find(|key| key.ends_with('7') != exists);
        let keys = [key(false).unwrap(), key(true).unwrap()];
        let get_all = || keys.iter().map(|key| asker.get(key)).collect::<Vec<_>>();
        assert_eq!(get_all(), [None, Some("1".into())]);
        *number.lock().unwrap() = 2;
        for key in &keys {
            asker.group().remove(key).unwrap();
        }
        assert_eq!(get_all(), [Some("2".into()), Some("2".into())], "strict: {is_strict}");
        assert_eq!(asker.stats().fallbacks == 0, is_strict);
    }
}

#[test]
fn every_answer_says_that_no_cache_may_keep_it() {
    let [node] = Cluster::over(&origin()).token("secret").start();
    let token = "Authorization: Bearer secret";
    for (request, headers) in [
        ("GET /_geecache/scores/Tom", &[token][..]),
        ("GET /_geecache/scores/key%207", &[token]),
        ("GET /_geecache/scores/Tom", &[]),
        ("GET /_geecache/none/Tom", &[token]),
        ("DELETE /_geecache/scores/Tom", &[token]),
        ("GET /healthz", &[]),
        ("GET /metrics", &[]),
        ("GET /nowhere", &[]),
        ("PUT /healthz", &[]),
    ] {
        let answer = ask(&node.url, request, headers);
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{request}");
    }
    let answer = post(&node.url, "/_geecache/scores", &[token], &batch_of(&["Tom"]));
    assert_eq!((answer.status, answer.header("Cache-Control")), (200, Some("no-store")));
}

#[test]
fn where_a_hop_refuses_batches_each_key_is_asked_for_by_itself() {
    for status in [403, 404, 405, 411, 415, 502, 504] {
        let fell_back = fallbacks(move |question, ask| match question.is_batch() {
            true => Answer::of_a_hop(status, "no").bytes(),
            false => ask(question).bytes(),
        });
        assert_eq!(fell_back, 0, "{status}");
    }
    // With a page that is no error.
    let fell_back = fallbacks(|question, ask| match question.is_batch() {
        true => Answer::of_a_hop(200, "<html>").bytes(),
        false => ask(question).bytes(),
    });
    assert_eq!(fell_back, 0);
}

#[test]
fn a_hop_that_knows_only_if_cached_answers_nothing_in_the_owners_place() {
    // RFC 9111, 5.2.1.7.
    let fell_back = fallbacks(|question, ask| match question.header("cache-control") {
        Some("only-if-cached") => Answer::of_a_hop(504, "not cached here").bytes(),
        _ => ask(question).bytes(),
    });
    assert_eq!(fell_back, 0);
}

/// A proxy may decode a path, merge slashes in it, and take dots for directories.
fn decoded(path: &str) -> String {
    let path = percent_decode_str(path).decode_utf8().unwrap();
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path: String = parts.iter().map(|part| format!("/{part}")).collect();
    path.replace(' ', "%20")
}

#[test]
fn a_key_that_a_hop_has_changed_is_not_taken_for_another_one() {
    let origin = Origin::of_all();
    let ([asker, owner], _hops) =
        nodes(&origin, |question, ask| ask(&question.with_path(&decoded(question.path()))).bytes());
    let forms = ["user/N", "user//N", "/N", "a/../N", "a/./N", "N+", "N %20", "N", "N/", "%4e N"];
    let keys = (0..100).flat_map(|i| forms.map(|form| form.replace('N', &i.to_string())));
    let keys: Vec<_> = keys.filter(|key| asker.pool.owner(key) == owner.url).collect();
    let asked_anyway = || {
        for key in &keys {
            assert_eq!(asker.get(key), Some(value_of(key)));
        }
        asker.stats().peer_loads
    };
    assert!(asked_anyway() > 0, "those that arrive as they were are answered");
    let (mut gone, before) = (0, owner.stats().main.entries);
    for key in &keys {
        gone += usize::from(asker.group().remove(key).is_ok());
    }
    assert_eq!(owner.stats().main.entries, before - gone, "a removal is done, or it fails");
    let values: Vec<_> = keys.iter().map(|key| Some(value_of(key))).collect();
    assert_eq!(asker.get_many(&keys), values);
    assert!(asker.believes_in_its_peer());
    check_identities([&asker, &owner]);
}

#[test]
fn a_hop_that_drops_headers_that_it_does_not_know_costs_no_right_answer() {
    let is_ours = |name: &str| name.starts_with("geecache-");
    let fell_back =
        fallbacks(move |question, ask| ask(&question.without(is_ours)).without(is_ours).bytes());
    // What does not exist cannot be told from a page that is not there.
    assert!(fell_back > 0);
}

#[test]
fn where_a_hop_drops_the_life_of_a_value_a_copy_ends_with_the_hot_ttl() {
    let (clock, hot_ttl) = (Clock::by_hand(), Duration::from_secs(5));
    let origin = Origin::new(|key: &str| {
        Ok::<_, BoxError>(Some(Loaded::from(value_of(key)).ttl(Duration::from_secs(1))))
    });
    let settings = {
        let clock = clock.clone();
        move |_, group: geecache::GroupBuilder| group.hot_ttl(hot_ttl).clock(clock.clone())
    };
    let is_ours = |name: &str| name.starts_with("geecache-");
    let ([asker, owner], _hops): ([_; 2], [_; 2]) = Cluster::over(&origin)
        .settings(settings)
        .behind_hops(move |question, ask| ask(question).without(is_ours).bytes());
    let key = asker.key_of(&owner.url);
    asker.get(&key);
    let is_kept = || asker.group().get_cached(&key).unwrap().is_some();
    assert!(is_kept());
    clock.advance(hot_ttl);
    assert!(!is_kept());
}

#[test]
fn a_hop_whose_node_is_gone_costs_no_right_answer() {
    for status in [502, 503, 504] {
        let fell_back = fallbacks(move |_, _| Answer::of_a_hop(status, "no such node").bytes());
        assert!(fell_back > A_FEW, "{status}");
    }
}
