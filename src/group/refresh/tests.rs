//! Both options by a clock moved by hand and an origin that says what it is told to.

use super::super::builder::{MOST_JOBS, MOST_THREADS};
use super::*;
use crate::stats::Stats;
use crate::{BoxError, Clock, GroupBuilder, Loaded, PeerError, PeerGetter, PeerPicker};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

const LONG: Duration = Duration::from_secs(30);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "waited in vain");
        thread::yield_now();
    }
}

#[derive(Clone, Copy)]
enum Says {
    Value(&'static str),
    Absent,
    Fails,
    Panics,
}
use Says::*;

/// An origin that answers all keys alike, and with a gate lets each call wait for it.
struct Origin {
    says: Mutex<Says>,
    calls: AtomicUsize,
    gate: Mutex<Option<Receiver<()>>>,
    clock: Clock,
}

impl Origin {
    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// From now on each call waits for a message, or until this is dropped.
    fn close(&self) -> Sender<()> {
        let (open, gate) = bounded(0);
        *self.gate.lock().unwrap() = Some(gate);
        open
    }

    fn load(&self) -> Result<Option<&'static str>, BoxError> {
        let says = *self.says.lock().unwrap();
        self.calls.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            let _ = gate.recv_timeout(LONG);
        }
        match says {
            Value(value) => Ok(Some(value)),
            Absent => Ok(None),
            Fails => Err("disk full".into()),
            Panics => std::panic::resume_unwind(Box::new("on purpose")),
        }
    }
}

/// A group whose values live for 10 s, and its origin, which says "1".
fn group(options: impl FnOnce(GroupBuilder) -> GroupBuilder) -> (Arc<Group>, Arc<Origin>) {
    let clock = Clock::by_hand();
    let origin = Arc::new(Origin {
        says: Mutex::new(Value("1")),
        calls: AtomicUsize::new(0),
        gate: Mutex::default(),
        clock: clock.clone(),
    });
    let getter = {
        let origin = origin.clone();
        move |_: &str| origin.load()
    };
    let builder = Group::builder("scores", getter).ttl(ms(10_000)).clock(clock);
    (options(builder).build().unwrap(), origin)
}

fn refreshing() -> (Arc<Group>, Arc<Origin>) {
    group(|builder| builder.refresh_ahead(ms(2_000)))
}

fn keeping_stale() -> (Arc<Group>, Arc<Origin>) {
    group(|builder| builder.stale_if_error(ms(60_000)))
}

fn get(group: &Group) -> String {
    group.get("Tom").unwrap().unwrap().to_string()
}

fn refreshes(group: &Group) -> (u64, u64) {
    let stats = group.stats();
    (stats.refreshes, stats.refresh_errors)
}

fn check_identities(stats: &Stats) {
    assert_eq!(stats.gets, stats.main.hits + stats.hot.hits + stats.misses);
    let outcomes = stats.peer_loads + stats.local_loads + stats.local_load_errors + stats.shared;
    assert_eq!(stats.misses, outcomes, "{stats:?}");
    assert_eq!(stats.peer_errors, stats.fallbacks);
}

#[test]
fn a_value_is_renewed_once_and_answers_meanwhile() {
    let (group, origin) = refreshing();
    get(&group);
    origin.clock.advance(ms(8_001));
    origin.says(Value("2"));
    let open = origin.close();
    for _ in 0..100 {
        assert_eq!(get(&group), "1");
    }
    eventually(|| origin.calls() == 2);
    drop(open);
    eventually(|| refreshes(&group) == (1, 0));
    assert_eq!(get(&group), "2");
    // It lives from when it was renewed.
    origin.clock.advance(ms(7_999));
    assert_eq!(get(&group), "2");
    assert_eq!(origin.calls(), 2);
    let stats = group.stats();
    assert_eq!((stats.misses, stats.local_loads), (1, 1), "a renewal is no get");
    assert_eq!(stats.getter_times.count(), 2);
    check_identities(&stats);
}

#[test]
fn a_value_is_due_from_the_time_before_its_end_on_that_the_option_says() {
    for (ahead, due) in [(2_000, 8_000), (2_500, 7_500), (9_999, 1), (1, 9_999)] {
        let (group, origin) = group(|builder| builder.refresh_ahead(ms(ahead)));
        get(&group);
        origin.clock.advance(ms(due - 1));
        assert!(!group.get_traced("Tom").1.renews, "{ahead}");
        origin.clock.advance(ms(1));
        let (_, trace) = group.get_traced("Tom");
        assert_eq!(trace.to_string(), "main hit, due for renewal", "{ahead}");
    }
    let (group, origin) = group(|builder| builder.refresh_ahead(Duration::ZERO));
    get(&group);
    origin.clock.advance(ms(9_999));
    assert!(!group.get_traced("Tom").1.renews);
    origin.clock.advance(ms(1));
    assert!(group.get_traced("Tom").1.loaded.is_some());
}

#[test]
fn a_value_that_is_due_all_its_life_is_renewed_once_a_second() {
    let (group, origin) = group(|builder| builder.refresh_ahead(Duration::MAX));
    get(&group);
    for renewed in 1..4 {
        get(&group);
        eventually(|| refreshes(&group) == (renewed, 0));
        for _ in 0..10 {
            origin.clock.advance(ms(99));
            get(&group);
        }
        origin.clock.advance(ms(10));
    }
    assert_eq!((origin.calls(), group.stats().misses), (4, 1));
}

#[test]
fn no_such_key_is_not_renewed() {
    let (group, origin) = group(|builder| builder.negative_ttl(ms(5_000)).refresh_ahead(ms(2_000)));
    origin.says(Absent);
    assert_eq!(group.get("Tom").unwrap(), None);
    origin.clock.advance(ms(4_999));
    assert!(!group.get_traced("Tom").1.renews);
    assert_eq!((origin.calls(), refreshes(&group)), (1, (0, 0)));
}

#[test]
fn batches_and_peers_have_values_renewed_too() {
    let ways: [fn(&Group); 5] = [
        |group| drop(group.get_many(&["Tom"])),
        |group| drop(group.answer_peer("Tom").unwrap()),
        |group| drop(group.answer_peer_cached("Tom").unwrap()),
        |group| drop(group.answer_batch(&["Tom"])),
        |group| drop(group.answer_batch_cached(&["Tom"], |_| true)),
    ];
    for way in ways {
        let (group, origin) = refreshing();
        get(&group);
        origin.clock.advance(ms(8_001));
        way(&group);
        eventually(|| refreshes(&group) == (1, 0));
        check_identities(&group.stats());
    }
}

#[test]
fn a_renewal_that_fails_leaves_the_value_until_its_end_and_is_tried_again_after_a_second() {
    for says in [Fails, Panics] {
        let (group, origin) = refreshing();
        get(&group);
        origin.says(says);
        origin.clock.advance(ms(8_001));
        assert_eq!(get(&group), "1");
        eventually(|| refreshes(&group) == (1, 1));
        origin.clock.advance(ms(999));
        assert_eq!(get(&group), "1");
        assert_eq!(origin.calls(), 2, "it rests");
        origin.clock.advance(ms(1));
        assert!(group.get_traced("Tom").1.renews);
        eventually(|| refreshes(&group) == (2, 2));
        origin.clock.advance(ms(998));
        assert_eq!(get(&group), "1");
        origin.clock.advance(ms(1));
        assert!(group.get("Tom").is_err(), "it ended 10 s after it was loaded");
        origin.says(Value("2"));
        assert_eq!(get(&group), "2");
        check_identities(&group.stats());
    }
}

#[test]
fn no_such_key_learned_by_a_renewal_replaces_the_value() {
    for remembered in [false, true] {
        let (group, origin) = group(|builder| {
            let builder = builder.refresh_ahead(ms(2_000)).stale_if_error(ms(60_000));
            if remembered { builder.negative_ttl(ms(5_000)) } else { builder }
        });
        get(&group);
        origin.says(Absent);
        origin.clock.advance(ms(8_001));
        assert_eq!(get(&group), "1");
        eventually(|| refreshes(&group) == (1, 0));
        assert_eq!(group.get("Tom").unwrap(), None);
        assert_eq!(origin.calls(), if remembered { 2 } else { 3 });
        origin.says(Fails);
        origin.clock.advance(ms(5_000));
        assert!(group.get("Tom").is_err(), "the value does not come back");
    }
}

#[test]
fn a_removal_beats_a_renewal_under_way() {
    for all in [false, true] {
        let (group, origin) = refreshing();
        get(&group);
        origin.clock.advance(ms(8_001));
        let open = origin.close();
        get(&group);
        eventually(|| origin.calls() == 2);
        origin.says(Value("2"));
        if all {
            group.clear().unwrap()
        } else {
            group.remove("Tom").unwrap()
        }
        drop(open);
        eventually(|| refreshes(&group) == (1, 0));
        assert_eq!(get(&group), "2", "the renewal had read 1");
        assert_eq!(origin.calls(), 3);
    }
}

#[test]
fn a_value_that_expires_while_it_is_renewed_is_waited_for_and_not_loaded_twice() {
    let (group, origin) = refreshing();
    get(&group);
    origin.clock.advance(ms(9_999));
    origin.says(Value("2"));
    let open = origin.close();
    assert_eq!(get(&group), "1");
    eventually(|| origin.calls() == 2);
    origin.clock.advance(ms(1));
    thread::scope(|scope| {
        let late: Vec<_> = (0..10).map(|_| scope.spawn(|| get(&group))).collect();
        eventually(|| group.loading.followers("Tom") == 10);
        drop(open);
        late.into_iter().for_each(|get| assert_eq!(get.join().unwrap(), "2"));
    });
    assert_eq!(origin.calls(), 2);
    check_identities(&group.stats());
}

#[test]
fn a_ttl_shorter_than_the_renewal_takes_brings_values_that_are_right_for_their_time() {
    let (group, origin) = group(|builder| builder.ttl(ms(5)).refresh_ahead(ms(2)));
    for life in 0..20 {
        origin.says(Value(["even", "odd"][life % 2]));
        let before = origin.calls();
        let answer = get(&group);
        assert_eq!(answer, ["even", "odd"][life % 2], "the one before had ended");
        assert_eq!(origin.calls(), before + 1);
        let open = origin.close();
        origin.clock.advance(ms(4));
        assert_eq!(get(&group), answer);
        eventually(|| origin.calls() == before + 2);
        origin.clock.advance(ms(1));
        group.remove("Tom").unwrap();
        drop(open);
        eventually(|| refreshes(&group) == (life as u64 + 1, 0));
    }
}

#[test]
fn what_more_keys_than_there_is_room_for_need_is_left_to_their_end() {
    let (group, origin) = refreshing();
    let keys: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    keys.iter().for_each(|key| drop(group.get(key).unwrap()));
    origin.clock.advance(ms(8_001));
    let open = origin.close();
    let ask = |keys: &[String]| keys.iter().for_each(|key| drop(group.get(key).unwrap()));
    ask(&keys[..MOST_THREADS]);
    eventually(|| origin.calls() == 300 + MOST_THREADS);
    ask(&keys);
    // Removals that are repeated, and sweeps, do not wait behind renewals that hang.
    let (sender, done) = bounded(1);
    assert!(group.threads.run(group.job(move |_| sender.send(()).unwrap())).is_ok());
    done.recv_timeout(LONG).unwrap();
    drop(open);
    let renewed = (MOST_THREADS + MOST_JOBS) as u64;
    eventually(|| refreshes(&group) == (renewed, 0));
    ask(&keys[299..]);
    eventually(|| refreshes(&group) == (renewed + 1, 0));
    assert_eq!(group.stats().misses, 300, "all have been hits");
}

#[test]
fn a_value_past_its_time_answers_where_the_load_fails_for_as_long_as_was_said() {
    for says in [Fails, Panics] {
        let (group, origin) = keeping_stale();
        get(&group);
        origin.says(says);
        origin.clock.advance(ms(9_999));
        assert_eq!(group.get_traced("Tom").1.stale, None);
        origin.clock.advance(ms(1));
        let (answer, trace) = group.get_traced("Tom");
        assert_eq!(answer.unwrap().unwrap(), "1");
        assert!(trace.loaded.is_some() && trace.stale.is_some(), "{trace}");
        origin.clock.advance(ms(59_999));
        assert_eq!(get(&group), "1");
        origin.clock.advance(ms(1));
        assert!(group.get("Tom").is_err());
        let stats = group.stats();
        assert_eq!((stats.stale, stats.local_load_errors), (2, 3));
        check_identities(&stats);
    }
}

#[test]
fn while_the_origin_fails_a_key_is_tried_once_a_second() {
    let (group, origin) = keeping_stale();
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    for (after, calls) in [(0, 2), (0, 2), (999, 2), (1, 3), (999, 3), (1, 4), (0, 4)] {
        origin.clock.advance(ms(after));
        let (answer, trace) = group.get_traced("Tom");
        assert_eq!(answer.unwrap().unwrap(), "1");
        assert_eq!(trace.stale.as_deref(), Some("loading \"Tom\": disk full"));
        assert_eq!(origin.calls(), calls);
    }
    origin.says(Value("2"));
    assert_eq!(get(&group), "1");
    origin.clock.advance(ms(1_000));
    assert_eq!(get(&group), "2", "it recovers by itself");
    assert_eq!(group.get_traced("Tom").1.to_string(), "main hit");
    check_identities(&group.stats());
}

#[test]
fn what_must_not_be_tried_yet_is_found_without_waiting() {
    let (group, origin) = keeping_stale();
    let cached = || group.get_cached("Tom").unwrap().map(|value| value.unwrap().to_string());
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    assert_eq!(cached(), None, "somebody has to try");
    assert_eq!(get(&group), "1");
    assert_eq!(cached().as_deref(), Some("1"));
    origin.clock.advance(ms(999));
    assert_eq!(cached().as_deref(), Some("1"));
    origin.clock.advance(ms(1));
    assert_eq!(cached(), None, "it is time to try again");
    let open = origin.close();
    thread::scope(|scope| {
        let tries = scope.spawn(|| get(&group));
        eventually(|| origin.calls() == 3);
        assert_eq!(cached().as_deref(), Some("1"), "another caller tries");
        drop(open);
        tries.join().unwrap();
    });
    group.remove("Tom").unwrap();
    assert_eq!(cached(), None, "removed is removed");
    assert_eq!(origin.calls(), 3);
    assert_eq!(group.stats().stale, 5);
    check_identities(&group.stats());
}

#[test]
fn threads_that_find_the_origin_broken_at_the_same_time_try_once() {
    let (group, origin) = keeping_stale();
    for round in 0..20 {
        origin.says(Value("1"));
        get(&group);
        let before = origin.calls();
        origin.says(Fails);
        origin.clock.advance(ms(10_000));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| assert_eq!(get(&group), "1")));
            }
        });
        assert_eq!(origin.calls(), before + 1, "round {round}");
        origin.clock.advance(ms(1_000));
    }
    check_identities(&group.stats());
}

#[test]
fn while_one_caller_tries_again_the_others_do_not_wait() {
    let (group, origin) = keeping_stale();
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    get(&group);
    origin.clock.advance(ms(1_000));
    let open = origin.close();
    thread::scope(|scope| {
        let tries = scope.spawn(|| get(&group));
        eventually(|| origin.calls() == 3);
        assert_eq!(get(&group), "1");
        assert_eq!(group.get_many(&["Tom"])[0].as_ref().unwrap().as_ref().unwrap(), "1");
        drop(open);
        assert_eq!(tries.join().unwrap(), "1");
    });
    assert_eq!(origin.calls(), 3);
}

#[test]
fn a_load_that_does_not_end_is_a_failed_one_to_those_who_wait() {
    let (group, origin) = group(|builder| builder.stale_if_error(ms(60_000)).load_timeout(ms(1)));
    get(&group);
    origin.clock.advance(ms(10_000));
    let open = origin.close();
    thread::scope(|scope| {
        let leader = scope.spawn(|| get(&group));
        eventually(|| origin.calls() == 2);
        let (answer, trace) = group.get_traced("Tom");
        assert_eq!(answer.unwrap().unwrap(), "1");
        assert!(trace.to_string().contains("still at it after 1ms"), "{trace}");
        drop(open);
        leader.join().unwrap();
    });
}

#[test]
fn a_failed_renewal_is_a_failed_load_when_the_value_expires() {
    let (group, origin) =
        group(|builder| builder.refresh_ahead(ms(2_000)).stale_if_error(ms(60_000)));
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(9_500));
    assert_eq!(get(&group), "1");
    eventually(|| refreshes(&group) == (1, 1));
    assert_eq!(group.stats().stale, 0);
    origin.clock.advance(ms(999));
    assert_eq!(get(&group), "1");
    assert_eq!((origin.calls(), group.stats().stale), (2, 1));
    origin.clock.advance(ms(1));
    assert_eq!(get(&group), "1");
    assert_eq!((origin.calls(), group.stats().stale), (3, 2));
}

#[test]
fn nothing_stale_comes_after_a_removal_or_no_such_key() {
    let takes: [fn(&Group, &Origin); 3] = [
        |group, _| group.remove("Tom").unwrap(),
        |group, _| group.clear().unwrap(),
        |group, origin| {
            origin.says(Absent);
            assert_eq!(group.get("Tom").unwrap(), None);
        },
    ];
    for take in takes {
        for fails_before in [false, true] {
            let (group, origin) = keeping_stale();
            get(&group);
            origin.clock.advance(ms(10_000));
            if fails_before {
                origin.says(Fails);
                assert_eq!(get(&group), "1");
                origin.clock.advance(ms(1_000));
            }
            take(&group, &origin);
            origin.says(Fails);
            assert!(group.get("Tom").is_err());
            assert!(group.get_many(&["Tom"])[0].is_err());
            check_identities(&group.stats());
        }
    }
}

#[test]
fn a_load_that_fails_after_a_removal_finds_nothing_stale() {
    let (group, origin) = keeping_stale();
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    let open = origin.close();
    thread::scope(|scope| {
        let before = scope.spawn(|| group.get("Tom"));
        eventually(|| origin.calls() == 2);
        group.remove("Tom").unwrap();
        drop(open);
        assert!(before.join().unwrap().is_err());
    });
}

#[test]
fn each_key_of_a_batch_is_stale_or_not_by_itself() {
    let clock = Clock::by_hand();
    let fails = Arc::new(Mutex::new(false));
    let (called, calls) = unbounded();
    let getter = {
        let fails = fails.clone();
        move |key: &str| {
            called.send(key.to_string()).unwrap();
            match *fails.lock().unwrap() && key != "Sam" {
                true => Err(BoxError::from("disk full")),
                false => Ok(Some(key.to_uppercase())),
            }
        }
    };
    let builder = Group::builder("scores", getter).ttl(ms(10_000)).clock(clock.clone());
    let group = builder.stale_if_error(ms(60_000)).build().unwrap();
    let ask = || {
        let answers = group.get_many(&["Tom", "Jack", "Sam", "Tom", "new"]).into_iter();
        answers.map(|a| a.map_or("-".into(), |v| v.unwrap().to_string())).collect::<Vec<_>>()
    };
    group.get_many(&["Tom", "Jack", "Sam"]);
    *fails.lock().unwrap() = true;
    clock.advance(ms(10_000));
    for _ in 0..2 {
        assert_eq!(ask(), ["TOM", "JACK", "SAM", "TOM", "-"]);
    }
    let called: Vec<_> = calls.try_iter().collect();
    assert_eq!(called[3..], ["Tom", "Jack", "Sam", "new", "new"], "what fails rests");
    assert_eq!(group.stats().stale, 6);
    let told = group.answer_batch(&["Tom", "Sam", "new"]);
    use crate::group::Told;
    assert!(matches!(
        &told[..],
        [Ok(Told::Value(tom, Some(Duration::ZERO))), Ok(Told::Value(..)), Err(_)] if tom == "TOM"
    ));
    check_identities(&group.stats());
}

#[test]
fn a_peer_is_told_that_a_value_is_stale() {
    let (group, origin) = keeping_stale();
    get(&group);
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    let (value, left) = group.answer_peer("Tom").unwrap().unwrap();
    assert_eq!((value.to_string().as_str(), left), ("1", Some(Duration::ZERO)));
    assert_eq!(group.stats().stale, 1);
}

/// An owner of all keys that answers from a script, which the test can add to.
struct Owner(Receiver<Result<Option<Loaded>, PeerError>>);

impl PeerGetter for Owner {
    fn name(&self) -> &str {
        "owner"
    }

    fn get(&self, _group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
        self.0.try_recv().expect("not asked more often than the script says")
    }
}

struct PickOwner(Arc<Owner>);

impl PeerPicker for PickOwner {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        Some(self.0.clone())
    }
}

type Script = Sender<Result<Option<Loaded>, PeerError>>;

fn asking() -> (Arc<Group>, Arc<Origin>, Script) {
    let (script, answers) = unbounded();
    let (group, origin) = group(|builder| {
        let builder = builder.refresh_ahead(ms(2_000)).stale_if_error(ms(60_000));
        builder.peers(Arc::new(PickOwner(Arc::new(Owner(answers)))))
    });
    (group, origin, script)
}

fn lives(value: &str, millis: u64) -> Result<Option<Loaded>, PeerError> {
    Ok(Some(Loaded::from(value).ttl(ms(millis))))
}

#[test]
fn a_copy_is_renewed_by_asking_the_owner() {
    let (group, origin, script) = asking();
    script.send(lives("a", 10_000)).unwrap();
    (0..2).for_each(|_| assert_eq!(get(&group), "a"));
    origin.clock.advance(ms(8_001));
    script.send(lives("b", 100)).unwrap();
    assert_eq!(get(&group), "a");
    eventually(|| refreshes(&group) == (1, 0));
    assert_eq!(get(&group), "b");
    // An owner whose own value is about to expire is not asked again and again.
    origin.clock.advance(ms(99));
    assert_eq!(get(&group), "b");
    assert_eq!((origin.calls(), group.stats().hot.entries), (0, 1));
    check_identities(&group.stats());
}

#[test]
fn an_owner_that_does_not_answer_or_is_stale_leaves_the_copy_until_its_end() {
    let stale = Loaded::from("old").ttl(Duration::ZERO);
    for (says, errors) in [(Err(PeerError::Timeout), 1), (Ok(Some(stale)), 0)] {
        let (group, origin, script) = asking();
        script.send(lives("a", 10_000)).unwrap();
        (0..2).for_each(|_| assert_eq!(get(&group), "a"));
        origin.clock.advance(ms(9_500));
        script.send(says).unwrap();
        assert_eq!(get(&group), "a");
        eventually(|| refreshes(&group) == (1, errors));
        assert_eq!((get(&group).as_str(), origin.calls()), ("a", 0), "the getter is not asked");
        check_identities(&group.stats());
    }
}

#[test]
fn an_owner_that_has_no_such_key_any_more_ends_the_copy() {
    let (group, origin, script) = asking();
    script.send(lives("a", 10_000)).unwrap();
    (0..2).for_each(|_| assert_eq!(get(&group), "a"));
    origin.clock.advance(ms(8_001));
    script.send(Ok(None)).unwrap();
    assert_eq!(get(&group), "a");
    eventually(|| refreshes(&group) == (1, 0));
    assert_eq!(group.stats().hot.entries, 0);
    script.send(Err(PeerError::Timeout)).unwrap();
    origin.says(Fails);
    assert!(group.get("Tom").is_err());
}

#[test]
fn of_an_owners_stale_value_no_copy_is_kept() {
    let (group, origin, script) = asking();
    for _ in 0..3 {
        let stale = Loaded::from("old").ttl(Duration::ZERO);
        script.send(Ok(Some(stale))).unwrap();
        let (answer, trace) = group.get_traced("Tom");
        assert_eq!(answer.unwrap().unwrap(), "old");
        assert_eq!(trace.stale, None, "the owner knows");
    }
    let stats = group.stats();
    assert_eq!((stats.stale, stats.hot.entries, stats.peer_loads), (0, 0, 3));
    assert_eq!(origin.calls(), 0);
    check_identities(&group.stats());
}

#[test]
fn a_copy_stands_in_where_neither_the_owner_nor_the_origin_answers() {
    let (group, origin, script) = asking();
    script.send(lives("a", 10_000)).unwrap();
    (0..2).for_each(|_| assert_eq!(get(&group), "a"));
    origin.says(Fails);
    origin.clock.advance(ms(10_000));
    script.send(Err(PeerError::Timeout)).unwrap();
    let (answer, trace) = group.get_traced("Tom");
    assert_eq!(answer.unwrap().unwrap(), "a");
    assert!(trace.asked.is_some() && trace.stale.is_some(), "{trace}");
    assert_eq!(get(&group), "a", "for a second nobody is asked");
    origin.clock.advance(ms(1_000));
    script.send(lives("b", 10_000)).unwrap();
    assert_eq!(get(&group), "b");
    let stats = group.stats();
    assert_eq!((stats.stale, origin.calls()), (2, 1));
    check_identities(&stats);
}

#[test]
fn the_table_of_attempts_forgets_what_is_over() {
    let attempts = Attempts::default();
    for hash in 0..100_000 {
        attempts.end(&Key { text: "", hash }, ms(hash), Some(String::new()));
    }
    let remembered = (REST + REMEMBERED).as_millis() as usize;
    let known = attempts.table.lock().unwrap().by_key.len();
    assert!(known <= 2 * remembered, "{known}");
}
