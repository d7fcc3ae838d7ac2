//! The flow of a get with peers written by hand; the same over HTTP is in `tests/it`.

use super::batch::AT_ONCE;
use super::*;
use crate::{BoxError, Clock, Getter};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Instant;

type Fails = Box<dyn std::error::Error + Send + Sync>;

/// The scores of the source, and how often they were asked for.
fn scores(loads: &Arc<AtomicUsize>) -> impl Getter + 'static {
    let loads = loads.clone();
    move |key: &str| {
        loads.fetch_add(1, Ordering::SeqCst);
        match key {
            "Tom" => Ok(Some("630")),
            "Jack" => Ok(Some("589")),
            "bad" => Err(Fails::from("disk full")),
            "panic" => panic!("on purpose"),
            _ => Ok(None),
        }
    }
}

/// A single peer that owns every key and answers from a script.
struct Owner(Mutex<Vec<Result<Option<Loaded>, PeerError>>>);

impl Owner {
    fn answering(
        answers: impl IntoIterator<Item = Result<Option<Loaded>, PeerError>>,
    ) -> Arc<Self> {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        Arc::new(Self(Mutex::new(answers)))
    }
}

struct PickOwner(Arc<Owner>);

impl PeerPicker for PickOwner {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        Some(self.0.clone())
    }
}

impl PeerGetter for Owner {
    fn name(&self) -> &str {
        "owner"
    }

    fn get(&self, group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
        assert_eq!(group, "scores");
        self.0.lock().unwrap().pop().expect("not asked more often than the script says")
    }
}

fn check_identities(stats: &Stats) {
    assert_eq!(stats.gets, stats.main.hits + stats.hot.hits + stats.misses);
    let loads = stats.local_loads + stats.local_load_errors;
    let outcomes = stats.peer_loads + stats.handed_over + loads + stats.shared;
    assert_eq!(stats.misses, outcomes, "{stats:?}");
    assert_eq!(stats.peer_errors, stats.fallbacks);
}

#[test]
fn a_miss_loads_and_a_hit_does_not() {
    let loads = Arc::default();
    let group = Group::builder("scores", scores(&loads)).build().unwrap();
    for _ in 0..3 {
        assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let stats = group.stats();
    assert_eq!((stats.gets, stats.misses, stats.local_loads, stats.main.hits), (3, 1, 1, 2));
    check_identities(&stats);
}

#[test]
fn the_debug_text_has_the_name_and_the_counts_but_no_key_and_no_value() {
    let builder = Group::builder("scores", scores(&Arc::default()));
    assert!(format!("{builder:?}").contains("scores"));
    let group = builder.build().unwrap();
    group.get("Tom").unwrap();
    let text = format!("{group:?}");
    assert!(text.contains("scores") && text.contains("entries: 1,"), "{text}");
    assert!(!text.contains("Tom") && !text.contains("630"), "{text}");
}

#[test]
fn an_absent_key_is_an_answer_and_not_an_error() {
    let group = Group::builder("scores", scores(&Arc::default())).build().unwrap();
    assert_eq!(group.get("kkk").unwrap(), None);
    assert_eq!(group.stats().local_load_errors, 0);
}

#[test]
fn a_getter_that_fails_is_an_error_that_nobody_caches() {
    let loads = Arc::default();
    let group = Group::builder("scores", scores(&loads)).build().unwrap();
    for _ in 0..2 {
        assert_eq!(group.get("bad").unwrap_err().to_string(), "loading \"bad\": disk full");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    check_identities(&group.stats());
}

#[test]
fn a_getter_that_panics_is_an_error_and_the_key_is_usable_after() {
    let first = AtomicUsize::new(0);
    let group = Group::builder("scores", move |_: &str| {
        assert!(first.fetch_add(1, Ordering::SeqCst) > 0, "on purpose");
        Ok::<_, Fails>(Some("630"))
    })
    .build()
    .unwrap();
    let error = group.get("Tom").unwrap_err();
    assert_eq!(error.to_string(), "loading \"Tom\": the getter panicked: on purpose");
    assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    check_identities(&group.stats());
}

#[test]
fn keys_have_1_to_16384_bytes() {
    let group = Group::builder("scores", scores(&Arc::default())).build().unwrap();
    assert!(matches!(group.get(""), Err(Error::KeyLength(0))));
    assert!(group.get(&"k".repeat(MAX_KEY_BYTES)).is_ok());
    assert!(matches!(group.get(&"k".repeat(MAX_KEY_BYTES + 1)), Err(Error::KeyLength(16_385))));
    assert!(matches!(group.answer_peer(""), Err(Error::KeyLength(0))));
    assert_eq!(group.stats().gets, 1);
}

/// A getter that reports each call and waits for its turn.
fn gated() -> (impl Getter + 'static, Receiver<String>, Sender<&'static str>) {
    let (called, calls) = bounded(100);
    let (open, gate) = bounded::<&str>(0);
    let getter = move |key: &str| {
        called.send(key.to_string()).unwrap();
        gate.recv_timeout(Duration::from_secs(30)).map(Some)
    };
    (getter, calls, open)
}

#[test]
fn concurrent_gets_of_a_cold_key_make_one_load() {
    let (getter, calls, open) = gated();
    let group = Group::builder("scores", getter).build().unwrap();
    thread::scope(|scope| {
        let gets: Vec<_> = (0..50).map(|_| scope.spawn(|| group.get("Tom"))).collect();
        calls.recv_timeout(Duration::from_secs(30)).unwrap();
        open.send_timeout("630", Duration::from_secs(30)).unwrap();
        for get in gets {
            assert_eq!(get.join().unwrap().unwrap().unwrap(), "630");
        }
    });
    assert!(calls.is_empty());
    let stats = group.stats();
    assert_eq!((stats.gets, stats.local_loads), (50, 1));
    check_identities(&stats);
}

/// A group whose getter may ask it.
fn asking_itself(
    load_timeout: Duration,
    getter: impl Fn(&Group, &str) -> Result<String, Error> + Send + Sync + 'static,
) -> Arc<Group> {
    let own: Arc<OnceLock<Weak<Group>>> = Arc::default();
    let load = {
        let own = own.clone();
        move |key: &str| getter(&own.get().unwrap().upgrade().unwrap(), key).map(Some)
    };
    let group = Group::builder("scores", load).load_timeout(load_timeout).build().unwrap();
    assert!(own.set(Arc::downgrade(&group)).is_ok());
    group
}

/// The values of `keys` and a plus between them: a key that depends on others.
fn sum(group: &Group, keys: &[&str]) -> Result<String, Error> {
    let values = keys.iter().map(|key| Ok(group.get(key)?.unwrap().to_string()));
    Ok(values.collect::<Result<Vec<_>, Error>>()?.join(" + "))
}

#[test]
fn a_getter_may_ask_its_group_for_other_keys() {
    let group = asking_itself(Duration::from_secs(30), |group, key| match key {
        "sum" => sum(group, &["Tom", "Jack"]),
        "sum of sums" => sum(group, &["sum", "sum"]),
        "many" => {
            let values = group.get_many(&["Tom", "sum"]).into_iter();
            values.map(|value| Ok(value?.unwrap().to_string())).collect()
        }
        key => Ok(key.to_uppercase()),
    });
    let get = |key| group.get(key).unwrap().unwrap().to_string();
    assert_eq!(get("sum of sums"), "TOM + JACK + TOM + JACK");
    assert_eq!(get("many"), "TOMTOM + JACK");
    group.clear().unwrap();
    let batch = group.get_many(&["sum", "many", "Sam"]).into_iter();
    let batch: Vec<_> =
        batch.map(|answer| answer.map(|value| value.unwrap().to_string())).collect();
    assert_eq!(batch[0].as_ref().unwrap(), "TOM + JACK");
    assert_eq!(batch[2].as_ref().unwrap(), "SAM");
    let error = batch[1].as_ref().unwrap_err();
    assert!(is_recursive(error), "\"many\" asks for \"sum\", of the same batch: {error}");
    assert_eq!(get("many"), "TOMTOM + JACK", "and works alone");
    check_identities(&group.stats());
}

fn is_recursive(error: &Error) -> bool {
    error.to_string().contains("waits for its own answer")
}

#[test]
fn a_getter_that_comes_back_to_its_own_key_is_told() {
    let group = asking_itself(Duration::from_secs(30), |group, key| match key {
        "itself" => match group.get("itself") {
            Err(Error::Recursive { key }) => Ok(key),
            other => panic!("{other:?}"),
        },
        "itself in a batch" => match &group.get_many(&["Tom", "itself in a batch"])[..] {
            [Ok(Some(tom)), Err(Error::Recursive { .. })] => Ok(tom.to_string()),
            other => panic!("{other:?}"),
        },
        "a" => sum(group, &["b"]),
        "b" => sum(group, &["a"]),
        key => Ok(key.to_uppercase()),
    });
    let get = |key| group.get(key).map(|value| value.unwrap().to_string());
    assert_eq!(get("itself").unwrap(), "itself");
    assert_eq!(get("itself in a batch").unwrap(), "TOM");
    // Each of the two that ask for each other is told, whichever begins, alone or in a batch.
    for key in ["a", "b"] {
        assert!(is_recursive(&get(key).unwrap_err()));
    }
    for answer in group.get_many(&["a", "b"]) {
        assert!(is_recursive(&answer.unwrap_err()));
    }
    check_identities(&group.stats());
}

#[test]
fn two_threads_whose_getters_ask_for_each_others_keys_are_told() {
    let inside = AtomicUsize::new(0);
    let group = asking_itself(Duration::from_secs(30), move |group, key| {
        inside.fetch_add(1, Ordering::SeqCst);
        let start = Instant::now();
        while inside.load(Ordering::SeqCst) < 2 {
            assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
            thread::yield_now();
        }
        sum(group, if key == "a" { &["b"] } else { &["a"] })
    });
    let errors = thread::scope(|scope| {
        let gets = ["a", "b"].map(|key| {
            scope.spawn({
                let group = &group;
                move || group.get(key)
            })
        });
        gets.map(|get| get.join().unwrap().unwrap_err().to_string())
    });
    // One of them closes the circle; the other shares its error, or asks anew and comes to itself.
    assert!(errors.iter().all(|error| error.contains("waits for its own answer")), "{errors:?}");
}

#[test]
fn a_load_that_another_thread_does_not_finish_is_waited_for_only_so_long() {
    let (getter, calls, open) = gated();
    let group =
        Group::builder("scores", getter).load_timeout(Duration::from_millis(1)).build().unwrap();
    thread::scope(|scope| {
        let leader = scope.spawn(|| group.get("Tom"));
        calls.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(matches!(group.get("Tom"), Err(Error::LoadTimeout { .. })));
        open.send_timeout("630", Duration::from_secs(30)).unwrap();
        assert_eq!(leader.join().unwrap().unwrap().unwrap(), "630");
    });
}

#[test]
fn the_owner_is_asked_and_its_absent_is_final() {
    let loads = Arc::default();
    let owner = Owner::answering([Ok(Some("from the owner".into())), Ok(None)]);
    let group =
        Group::builder("scores", scores(&loads)).peers(Arc::new(PickOwner(owner))).build().unwrap();
    assert_eq!(group.get("Tom").unwrap().unwrap(), "from the owner");
    assert_eq!(group.get("kkk").unwrap(), None);
    assert_eq!(loads.load(Ordering::SeqCst), 0);
    assert_eq!(group.stats().peer_loads, 2);
    check_identities(&group.stats());
}

#[test]
fn a_key_of_another_node_is_kept_in_the_hot_cache_until_its_time_ends() {
    let clock = Clock::by_hand();
    let answers = ["1", "2"].map(|v| Ok(Some(Loaded::from(v))));
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(Arc::new(PickOwner(Owner::answering(answers))))
        .clock(clock.clone())
        .build()
        .unwrap();
    let get = || group.get("Tom").unwrap().unwrap().to_string();
    assert_eq!([get(), get(), get()], ["1", "1", "1"]);
    clock.advance(Duration::from_secs(30));
    assert_eq!(get(), "2");
    check_identities(&group.stats());
}

#[test]
fn a_copy_never_outlives_what_the_owner_says_remains() {
    let clock = Clock::by_hand();
    let answers = ["1", "2"].map(|v| Ok(Some(Loaded::from(v).ttl(Duration::from_secs(5)))));
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(Arc::new(PickOwner(Owner::answering(answers))))
        .clock(clock.clone())
        .build()
        .unwrap();
    let get = || group.get("Tom").unwrap().unwrap().to_string();
    assert_eq!([get(), get()], ["1", "1"]);
    clock.advance(Duration::from_millis(4_999));
    assert_eq!(get(), "1");
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(), "2");
}

#[test]
fn an_owner_that_fails_is_replaced_by_the_getter_and_the_value_is_hot_for_a_while() {
    let loads = Arc::default();
    let clock = Clock::by_hand();
    let failing = [Err(PeerError::Timeout), Err(PeerError::CoolingDown)];
    let group = Group::builder("scores", scores(&loads))
        .peers(Arc::new(PickOwner(Owner::answering(failing))))
        .clock(clock.clone())
        .build()
        .unwrap();
    for _ in 0..3 {
        assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    }
    clock.advance(Duration::from_secs(30));
    assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    let stats = group.stats();
    assert_eq!((stats.fallbacks, stats.hot.hits, stats.main.entries), (2, 2, 0));
    check_identities(&stats);
}

#[test]
fn a_peers_question_is_answered_without_asking_a_peer() {
    // The list of this node says that another owns the key; the asking peer's list differs.
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(Arc::new(PickOwner(Owner::answering([]))))
        .ttl(Duration::from_secs(300))
        .clock(Clock::by_hand())
        .build()
        .unwrap();
    let (value, ttl) = group.answer_peer("Tom").unwrap().unwrap();
    assert_eq!(
        (value.to_string().as_str(), ttl),
        ("630", Some(Duration::ZERO)),
        "and no copy kept"
    );
    assert_eq!(group.answer_peer("kkk").unwrap(), None);
    assert_eq!(group.stats().peer_requests, 2);
    check_identities(&group.stats());
}

#[test]
fn values_expire_by_the_getters_time_or_else_the_groups() {
    let clock = Clock::by_hand();
    let loads = Arc::new(AtomicUsize::new(0));
    let group = Group::builder("scores", {
        let loads = loads.clone();
        move |key: &str| {
            loads.fetch_add(1, Ordering::SeqCst);
            let loaded = Loaded::from("630");
            Ok::<_, Fails>(Some(if key == "brief" {
                loaded.ttl(Duration::from_secs(1))
            } else {
                loaded
            }))
        }
    })
    .ttl(Duration::from_secs(10))
    .clock(clock.clone())
    .build()
    .unwrap();
    let get_both = || ["brief", "Tom"].map(|key| group.get(key).unwrap().unwrap());
    get_both();
    clock.advance(Duration::from_secs(1));
    get_both();
    assert_eq!(loads.load(Ordering::SeqCst), 3);
    clock.advance(Duration::from_secs(9));
    get_both();
    assert_eq!(loads.load(Ordering::SeqCst), 5);
    assert_eq!(group.stats().main.expirations, 3);
}

#[test]
fn the_defaults_are_those_of_the_docs() {
    let alone = Group::builder("scores", scores(&Arc::default())).build().unwrap();
    let stats = alone.stats();
    assert_eq!((stats.main.max_bytes, stats.hot.max_bytes), (64 << 20, 0));
    let peers = Arc::new(PickOwner(Owner::answering([])));
    let group = Group::builder("scores", scores(&Arc::default())).peers(peers).build().unwrap();
    let stats = group.stats();
    assert_eq!((stats.main.max_bytes, stats.hot.max_bytes), (56 << 20, 8 << 20));
    let settings = &group.settings;
    assert_eq!((settings.ttl, settings.hot_ttl), (None, Duration::from_secs(30)));
    assert_eq!(settings.load_timeout, Duration::from_secs(60));
    assert_eq!((settings.refresh_ahead, settings.stale_if_error), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_time_to_live_without_an_end_is_for_ever() {
    let group = Group::builder("scores", |key: &str| {
        let value = Loaded::from("630");
        Ok::<_, Fails>(Some(if key == "own" { value.ttl(Duration::MAX) } else { value }))
    })
    .ttl(Duration::MAX)
    .ttl_jitter(0.5)
    .build()
    .unwrap();
    for key in ["own", "groups", "own", "groups"] {
        assert_eq!(group.get(key).unwrap().unwrap(), "630");
    }
    assert_eq!(group.stats().main.hits, 2);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let build = |name: &str, hot| {
        let getter = scores(&Arc::default());
        let built = Group::builder(name, getter).max_bytes(100).hot_bytes(hot).build();
        built.err().map(|error| error.to_string())
    };
    assert_eq!(build("scores", 100), None);
    assert_eq!(build("", 0).unwrap(), "group : a name has 1 to 1024 bytes");
    assert!(build("scores", 101).unwrap().contains("hot_bytes (101)"));
}

#[test]
fn an_absent_key_is_remembered_for_as_long_as_it_is_said() {
    let (loads, clock) = (Arc::default(), Clock::by_hand());
    let group = Group::builder("scores", scores(&loads))
        .negative_ttl(Duration::from_secs(5))
        .clock(clock.clone())
        .build()
        .unwrap();
    let get = || group.get("kkk").unwrap();
    assert_eq!([get(), get(), get()], [None, None, None]);
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!((group.stats().main.hits, group.stats().main.entries), (2, 1));
    assert_eq!(group.answer_peer("kkk").unwrap(), None);
    clock.advance(Duration::from_secs(5));
    get();
    group.remove("kkk").unwrap();
    get();
    assert_eq!(loads.load(Ordering::SeqCst), 3);
    check_identities(&group.stats());
}

#[test]
fn jitter_shortens_a_life_by_its_fraction_at_the_most() {
    let clock = Clock::by_hand();
    let group = Group::builder("scores", |_: &str| Ok::<_, Fails>(Some("630")))
        .ttl(Duration::from_secs(100))
        .ttl_jitter(0.2)
        .clock(clock)
        .build()
        .unwrap();
    let lives: Vec<Duration> = (0..1_000)
        .map(|i| group.answer_peer(&i.to_string()).unwrap().unwrap().1.unwrap())
        .collect();
    let (least, most) = (lives.iter().min().unwrap(), lives.iter().max().unwrap());
    assert!((80..85).contains(&least.as_secs()), "{least:?}");
    assert!((95..100).contains(&most.as_secs()), "{most:?}");
    let build = |jitter| {
        Group::builder("scores", |_: &str| Ok::<_, Fails>(Some("630"))).ttl_jitter(jitter).build()
    };
    assert!(
        build(1.0).is_ok()
            && build(1.1).is_err()
            && build(-0.1).is_err()
            && build(f64::NAN).is_err()
    );
}

#[test]
fn a_load_that_began_before_a_removal_answers_its_callers_and_is_not_kept() {
    let removals: [fn(&Group); 3] = [
        |group| group.remove("Tom").unwrap(),
        |group| group.clear().unwrap(),
        |group| group.answer_removal("Tom").unwrap(),
    ];
    for remove in removals {
        let (getter, calls, open) = gated();
        let group = Group::builder("scores", getter).build().unwrap();
        thread::scope(|scope| {
            let before = scope.spawn(|| group.get("Tom"));
            calls.recv_timeout(Duration::from_secs(30)).unwrap();
            remove(&group);
            let after = scope.spawn(|| group.get("Tom"));
            // It does not join the load from before, but asks the origin anew.
            calls.recv_timeout(Duration::from_secs(30)).unwrap();
            // Whichever call of the getter comes first through the gate, each get has the answer
            // of its own call.
            open.send_timeout("v1", Duration::from_secs(30)).unwrap();
            open.send_timeout("v2", Duration::from_secs(30)).unwrap();
            let (before, after) = (before.join().unwrap(), after.join().unwrap());
            let (before, after) = (before.unwrap().unwrap(), after.unwrap().unwrap());
            assert_ne!(before, after);
            assert_eq!(
                group.get("Tom").unwrap().unwrap(),
                after,
                "the one from before is not kept"
            );
        });
        check_identities(&group.stats());
    }
}

#[test]
fn no_get_that_starts_after_a_removal_sees_what_was_before_it() {
    const VERSIONS: usize = 2_000;
    let origin = Arc::new(AtomicUsize::new(0));
    let group = Group::builder("scores", {
        let origin = origin.clone();
        move |_: &str| {
            let version = origin.load(Ordering::SeqCst);
            thread::yield_now();
            Ok::<_, Fails>(Some(version.to_string()))
        }
    })
    .build()
    .unwrap();
    let number = |value: Option<ByteView>| value.unwrap().to_string().parse::<usize>().unwrap();
    // The version whose predecessors have been removed, by now.
    let (removed, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for reader in 0..3 {
            let (group, removed, ended) = (&group, &removed, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let oldest = removed.load(Ordering::SeqCst);
                    let seen = match reader {
                        0 => group.get("Tom").unwrap(),
                        1 => group.get_many(&["Jack", "Tom"]).pop().unwrap().unwrap(),
                        _ => group.answer_peer("Tom").unwrap().map(|(value, _)| value),
                    };
                    let seen = number(seen);
                    assert!(seen >= oldest, "{seen} after the removal of all before {oldest}");
                }
            });
        }
        for version in 1..=VERSIONS {
            origin.store(version, Ordering::SeqCst);
            match version % 3 {
                0 => group.clear().unwrap(),
                1 => group.answer_removal("Tom").unwrap(),
                _ => group.remove("Tom").unwrap(),
            }
            removed.store(version, Ordering::SeqCst);
        }
        ended.store(true, Ordering::SeqCst);
    });
    assert_eq!(number(group.get("Tom").unwrap()), VERSIONS);
    check_identities(&group.stats());
}

#[test]
fn peers_that_cannot_be_reached_are_named_after_all_others_were() {
    struct Deaf(&'static str, Arc<AtomicUsize>);
    impl PeerGetter for Deaf {
        fn name(&self) -> &str {
            self.0
        }
        fn get(&self, _group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
            Err(PeerError::Timeout)
        }
        fn remove(&self, _group: &str, key: &str) -> Result<(), PeerError> {
            assert_eq!(key, "Tom");
            self.1.fetch_add(1, Ordering::SeqCst);
            if self.0 == "well" { Ok(()) } else { Err(PeerError::Timeout) }
        }
    }
    struct Three(Arc<AtomicUsize>);
    impl PeerPicker for Three {
        fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
            Some(Arc::new(Deaf("deaf owner", self.0.clone())))
        }
        fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
            let peer = |name| Arc::new(Deaf(name, self.0.clone())) as Arc<dyn PeerGetter>;
            ["deaf owner", "deaf", "well"].map(peer).to_vec()
        }
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(Arc::new(Three(asked.clone())))
        .build()
        .unwrap();
    group.get("Tom").unwrap();
    let error = group.remove("Tom").unwrap_err();
    let Error::RemoveIncomplete { failed } = &error else { panic!("{error}") };
    let names: Vec<&str> = failed.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["deaf", "deaf owner"]);
    assert_eq!(asked.load(Ordering::SeqCst), 4, "those that fail are not told again");
    assert_eq!(group.stats().hot.entries, 0);
    assert!(error.to_string().contains("deaf owner (no answer within the deadline)"), "{error}");
}

/// An owner whose answers, which live for 10 s, are under way for 3 s by the group's clock.
struct FarOwner(Clock);

impl PeerGetter for FarOwner {
    fn name(&self) -> &str {
        "far owner"
    }

    fn get(&self, _group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        self.0.advance(Duration::from_secs(3));
        Ok(Some(Loaded::from(key).ttl(Duration::from_secs(10))))
    }

    fn get_cached(&self, group: &str, keys: &[&str], _: Duration) -> Vec<Option<Loaded>> {
        keys.iter().map(|key| self.get(group, key).unwrap()).collect()
    }
}

impl PeerPicker for FarOwner {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        (key != "handed over").then(|| Arc::new(Self(self.0.clone())) as Arc<dyn PeerGetter>)
    }

    fn former(&self, _key: &str) -> Vec<Arc<dyn PeerGetter>> {
        vec![Arc::new(Self(self.0.clone()))]
    }
}

#[test]
fn a_life_is_counted_from_when_the_peer_was_asked() {
    for key in ["one by one", "in a batch", "handed over"] {
        let clock = Clock::by_hand();
        let group = Group::builder("scores", scores(&Arc::default()))
            .peers(Arc::new(FarOwner(clock.clone())))
            .clock(clock.clone())
            .build()
            .unwrap();
        let is_kept = || group.get_cached(key).unwrap().is_some();
        match key {
            "in a batch" => drop(group.get_many(&[key])),
            _ => drop(group.get(key)),
        }
        clock.advance(Duration::from_millis(6_999));
        assert!(is_kept(), "{key}");
        clock.advance(Duration::from_millis(1));
        assert!(!is_kept(), "{key}");
    }
}

/// Two hundred peers, and how many of them are asked at the same time.
#[derive(Default)]
struct Crowd {
    busy: Mutex<(usize, usize)>,
    is_full: Condvar,
    told: AtomicUsize,
}

struct OfCrowd(String, Arc<Crowd>);

impl PeerGetter for OfCrowd {
    fn name(&self) -> &str {
        &self.0
    }

    fn get(&self, _group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
        unreachable!()
    }

    /// Holds the first until as many are here as ever will be.
    fn remove(&self, _group: &str, _key: &str) -> Result<(), PeerError> {
        let mut busy = self.1.busy.lock().unwrap();
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
        self.1.is_full.notify_all();
        let is_filling = |busy: &mut (usize, usize)| busy.1 < AT_ONCE;
        let patience = Duration::from_secs(30);
        let (mut busy, _) = self.1.is_full.wait_timeout_while(busy, patience, is_filling).unwrap();
        busy.0 -= 1;
        self.1.told.fetch_add(1, Ordering::SeqCst);
        if self.0.ends_with("7") { Err(PeerError::Timeout) } else { Ok(()) }
    }
}

struct PickCrowd(Arc<Crowd>);

impl PeerPicker for PickCrowd {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        None
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        let peer = |i| Arc::new(OfCrowd(format!("{i:03}"), self.0.clone())) as _;
        (0..200).map(peer).collect()
    }
}

#[test]
fn a_removal_tells_two_hundred_peers_sixteen_at_a_time() {
    let crowd = Arc::<Crowd>::default();
    let builder = Group::builder("scores", scores(&Arc::default()));
    let group = builder.peers(Arc::new(PickCrowd(crowd.clone()))).build().unwrap();
    let Err(Error::RemoveIncomplete { failed }) = group.remove("Tom") else { panic!("some fail") };
    assert_eq!(*crowd.busy.lock().unwrap(), (0, 16), "as many at the same time");
    assert_eq!(crowd.told.load(Ordering::SeqCst), 200 + 180, "those that fail are not told again");
    let names: Vec<_> = (0..20).map(|i| format!("{:03}", 10 * i + 7)).collect();
    assert_eq!(failed.iter().map(|(name, _)| name).collect::<Vec<_>>(), Vec::from_iter(&names));
}

/// The database of a getter is down.
#[derive(Debug)]
struct Down(usize);

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a query for {} keys: the database is down", self.0)
    }
}

impl std::error::Error for Down {}

/// A getter that answers each batch by one call.
struct Batches(Sender<Vec<String>>);

impl Getter for Batches {
    fn get(&self, key: &str) -> Result<Option<Loaded>, BoxError> {
        self.get_many(&[key])?.pop().unwrap()
    }

    fn get_many(&self, keys: &[&str]) -> Result<Vec<Result<Option<Loaded>, BoxError>>, BoxError> {
        self.0.send(keys.iter().map(|key| key.to_string()).collect()).unwrap();
        let answer = |key: &&str| match *key {
            "bad" => Err(Fails::from("disk full")),
            "kkk" => Ok(None),
            "panic" => panic!("on purpose"),
            key => Ok(Some(Loaded::from(key.to_uppercase()))),
        };
        let answers = keys.iter().map(answer).collect();
        match keys {
            _ if keys.contains(&"short") => Ok(Vec::new()),
            _ if keys.contains(&"down") => Err(Box::new(Down(keys.len()))),
            _ => Ok(answers),
        }
    }
}

fn batches() -> (Arc<Group>, Receiver<Vec<String>>) {
    let (sender, calls) = bounded(100);
    (Group::builder("scores", Batches(sender)).build().unwrap(), calls)
}

#[test]
fn a_batch_is_answered_in_order_duplicates_included_by_one_call_for_what_is_missing() {
    let (group, calls) = batches();
    group.get("a").unwrap();
    assert_eq!(calls.recv().unwrap(), ["a"]);
    let answers = group.get_many(&["b", "a", "kkk", "b", "bad", ""]);
    let texts: Vec<String> = answers
        .into_iter()
        .map(|answer| match answer {
            Ok(value) => value.map_or("absent".into(), |value| value.to_string()),
            Err(error) => error.to_string(),
        })
        .collect();
    let empty = "the key is empty: a key is required";
    assert_eq!(texts, ["B", "A", "absent", "B", "loading \"bad\": disk full", empty]);
    assert_eq!(calls.recv().unwrap(), ["b", "kkk", "bad"]);
    assert!(calls.is_empty());
    assert!(group.get_many(&[]).is_empty());
    let stats = group.stats();
    assert_eq!((stats.gets, stats.misses, stats.shared), (6, 5, 1));
    check_identities(&stats);
}

#[test]
fn a_batch_and_single_gets_share_their_loads() {
    let (getter, calls, open) = gated();
    let group = Group::builder("scores", getter).build().unwrap();
    thread::scope(|scope| {
        let single = scope.spawn(|| group.get("a"));
        assert_eq!(calls.recv_timeout(Duration::from_secs(30)).unwrap(), "a");
        let batch = scope.spawn(|| group.get_many(&["a", "b"]));
        assert_eq!(calls.recv_timeout(Duration::from_secs(30)).unwrap(), "b");
        // Two calls wait at the gate, each of another key.
        open.send_timeout("1", Duration::from_secs(30)).unwrap();
        open.send_timeout("1", Duration::from_secs(30)).unwrap();
        assert_eq!(single.join().unwrap().unwrap().unwrap(), "1");
        assert!(batch.join().unwrap().into_iter().all(|answer| answer.unwrap().unwrap() == "1"));
    });
    assert!(calls.is_empty());
    check_identities(&group.stats());
}

#[test]
fn a_getter_that_fails_a_whole_batch_is_an_error_for_each_key_and_the_keys_are_usable_after() {
    let (group, _calls) = batches();
    let errors = |keys: &[&str]| -> Vec<String> {
        group.get_many(keys).into_iter().map(|answer| answer.unwrap_err().to_string()).collect()
    };
    assert_eq!(
        errors(&["a", "panic"]),
        [
            "loading \"a\": the getter panicked: on purpose",
            "loading \"panic\": the getter panicked: on purpose"
        ]
    );
    let short = errors(&["short", "a"]);
    assert_eq!(short[1], "loading \"a\": get_many gave 0 answers for 2 keys");
    for answer in group.get_many(&["a", "down", "b"]) {
        let error = answer.unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.downcast_ref::<Down>().unwrap().0, 3, "as the getter made it");
        assert!(error.to_string().ends_with(": a query for 3 keys: the database is down"));
    }
    assert_eq!(group.get("a").unwrap().unwrap(), "A");
    check_identities(&group.stats());
}

#[test]
fn a_batch_falls_back_for_those_keys_that_its_owner_did_not_answer() {
    let owner = Owner::answering([Ok(Some("1".into())), Err(PeerError::Timeout), Ok(None)]);
    let (sender, calls) = bounded(100);
    let group = Group::builder("scores", Batches(sender))
        .peers(Arc::new(PickOwner(owner)))
        .build()
        .unwrap();
    let answers = group.get_many(&["a", "b", "c"]).into_iter().map(Result::unwrap);
    let texts: Vec<_> = answers.map(|value| value.map(|value| value.to_string())).collect();
    assert_eq!(texts, [Some("1".into()), Some("B".into()), None]);
    assert_eq!(calls.recv().unwrap(), ["b"]);
    let stats = group.stats();
    assert_eq!((stats.peer_loads, stats.fallbacks, stats.hot.entries), (2, 1, 2));
    check_identities(&stats);
}

#[test]
fn a_batch_of_a_peer_may_ask_for_what_is_cached_only() {
    let (group, calls) = batches();
    group.get("a").unwrap();
    let told = group.answer_batch_cached(&["a", "b"], |_| true);
    assert!(matches!(told[..], [Ok(Told::Value(..)), Ok(Told::NotCached)]));
    let told = group.answer_batch_cached(&["a", "b"], |length| length > 1);
    assert!(matches!(told[..], [Ok(Told::NotCached), Ok(Told::NotCached)]));
    assert_eq!((calls.len(), group.stats().peer_requests, group.stats().gets), (1, 1, 2));
    let told = group.answer_batch(&["a", "b", "b", "kkk"]);
    assert!(matches!(
        told[..],
        [Ok(Told::Value(..)), Ok(Told::Value(..)), Ok(Told::Value(..)), Ok(Told::Absent)]
    ));
    check_identities(&group.stats());
}

#[test]
fn a_trace_tells_the_branches_that_a_get_took() {
    let own = Group::builder("scores", scores(&Arc::default())).build().unwrap();
    let (answer, trace) = own.get_traced("Tom");
    assert_eq!(answer.unwrap().unwrap(), "630");
    let Trace { hit, asked, handed_over, loaded, waited, renews, stale } = &trace;
    assert_eq!((hit, asked, handed_over, waited), (&None, &None, &None, &None));
    assert!(loaded.is_some() && !renews && stale.is_none());
    let (_, trace) = own.get_traced("Tom");
    assert_eq!(trace, Trace { hit: Some(Tier::Main), ..Trace::default() });
    assert_eq!(own.get_traced("").1, Trace::default());
    let (answer, trace) = own.get_traced("bad");
    assert!(answer.is_err() && trace.loaded.is_some(), "the getter was asked, and failed");

    let value = || Ok(Some("1".into()));
    let (late, cold) = (Err(PeerError::Timeout), Err(PeerError::CoolingDown));
    let owner = Owner::answering([value(), Ok(None), late, cold]);
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(Arc::new(PickOwner(owner)))
        .build()
        .unwrap();
    let by_owner = |trace: &Trace, why: Option<PeerError>| {
        let asked = trace.asked.as_ref().unwrap();
        (&*asked.peer, &asked.error) == ("owner", &why) && trace.loaded.is_some() == why.is_some()
    };
    for key in ["a", "absent"] {
        assert!(by_owner(&group.get_traced(key).1, None), "{key}");
    }
    assert_eq!(group.get_traced("a").1, Trace { hit: Some(Tier::Hot), ..Trace::default() });
    assert!(by_owner(&group.get_traced("Jack").1, Some(PeerError::Timeout)));
    assert!(by_owner(&group.get_traced("Tom").1, Some(PeerError::CoolingDown)));
    let stats = group.stats();
    let peer = &stats.peers["owner"];
    assert_eq!((peer.loads, peer.errors.values().sum()), (2, 2));
    assert_eq!(peer.times.count(), 3, "who cools down is not asked");
    assert_eq!(stats.getter_times.count(), 2);
    check_identities(&stats);
}

#[test]
fn a_trace_tells_that_another_caller_did_the_work() {
    let (getter, calls, open) = gated();
    let group = Group::builder("scores", getter).build().unwrap();
    let long = Duration::from_secs(30);
    thread::scope(|scope| {
        let leader = scope.spawn(|| group.get_traced("Tom").1);
        calls.recv_timeout(long).unwrap();
        let follower = scope.spawn(|| group.get_traced("Tom").1);
        while group.loading.followers("Tom") == 0 {
            thread::yield_now();
        }
        open.send_timeout("630", long).unwrap();
        assert!(leader.join().unwrap().loaded.is_some());
        let trace = follower.join().unwrap();
        assert!(trace.waited.is_some() && trace.loaded.is_none(), "{trace}");
    });
}

/// Owns every key, until it is told that the owner does.
struct Turning {
    owner: Arc<Owner>,
    is_other: AtomicBool,
    on_change: Mutex<Vec<Weak<dyn Fn() + Send + Sync>>>,
}

impl Turning {
    fn to(answers: impl IntoIterator<Item = Result<Option<Loaded>, PeerError>>) -> Arc<Self> {
        let owner = Owner::answering(answers);
        Arc::new(Self { owner, is_other: AtomicBool::new(false), on_change: Mutex::default() })
    }

    fn turn(&self) {
        self.is_other.store(true, Ordering::SeqCst);
        self.on_change.lock().unwrap().iter().for_each(|changed| changed.upgrade().unwrap()());
    }
}

impl PeerPicker for Turning {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        let owner = self.is_other.load(Ordering::SeqCst).then(|| self.owner.clone());
        owner.map(|owner| owner as Arc<dyn PeerGetter>)
    }

    fn on_change(&self, changed: Weak<dyn Fn() + Send + Sync>) {
        self.on_change.lock().unwrap().push(changed);
    }
}

#[test]
fn a_value_whose_key_goes_to_another_node_lives_for_the_hot_ttl_from_then_on() {
    let clock = Clock::by_hand();
    let picker = Turning::to([Ok(Some("from the owner".into()))]);
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(picker.clone())
        .clock(clock.clone())
        .build()
        .unwrap();
    assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    clock.advance(Duration::from_secs(1_000));
    picker.turn();
    let told = group.answer_peer("Tom").unwrap().unwrap();
    assert_eq!(told, (ByteView::from("630"), Some(Duration::ZERO)), "no copy is kept of it");
    clock.advance(Duration::from_millis(29_999));
    assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    clock.advance(Duration::from_millis(1));
    assert_eq!(group.get("Tom").unwrap().unwrap(), "from the owner");
    check_identities(&group.stats());
    drop(group);
    // The sweep may still be under way.
    let start = Instant::now();
    while picker.on_change.lock().unwrap()[0].upgrade().is_some() {
        assert!(start.elapsed() < Duration::from_secs(30), "the group is gone");
        thread::yield_now();
    }
}

#[test]
fn a_value_that_comes_after_its_key_has_gone_is_not_kept_as_an_owners() {
    let (getter, calls, open) = gated();
    let picker = Turning::to([]);
    let group = Group::builder("scores", getter)
        .peers(picker.clone())
        .ttl(Duration::from_secs(10))
        .hot_ttl(Duration::from_secs(5))
        .clock(Clock::by_hand())
        .build()
        .unwrap();
    let remaining = |key| group.answer_peer(key).unwrap().unwrap().1.unwrap().as_secs();
    thread::scope(|scope| {
        let get = scope.spawn(|| group.get("Tom"));
        calls.recv_timeout(Duration::from_secs(30)).unwrap();
        picker.turn();
        open.send_timeout("630", Duration::from_secs(30)).unwrap();
        get.join().unwrap().unwrap();
        assert_eq!(group.stats().main.entries, 0);
        // A peer with another list takes this node for the owner.
        let peer = scope.spawn(|| group.answer_peer("Jack"));
        open.send_timeout("589", Duration::from_secs(30)).unwrap();
        peer.join().unwrap().unwrap();
        assert_eq!(remaining("Jack"), 0, "no copy is kept of it");
    });
}

#[test]
fn a_batch_waits_for_all_other_loads_no_longer_than_for_one() {
    const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let (getter, calls, open) = gated();
    let (patience, long) = (Duration::from_millis(500), Duration::from_secs(30));
    let group = Group::builder("scores", getter).load_timeout(patience).build().unwrap();
    thread::scope(|scope| {
        for key in KEYS {
            let group = &group;
            scope.spawn(move || group.get(key).unwrap());
            calls.recv_timeout(long).unwrap();
        }
        let start = Instant::now();
        for answer in group.get_many(&KEYS) {
            assert!(matches!(answer, Err(Error::LoadTimeout { .. })), "{answer:?}");
        }
        assert!(start.elapsed() < patience * KEYS.len() as u32 / 2, "{:?}", start.elapsed());
        KEYS.iter().for_each(|_| open.send_timeout("630", long).unwrap());
    });
}

#[test]
fn when_the_list_has_changed_many_values_are_served_for_the_hot_ttl_and_then_go_by_themselves() {
    let clock = Clock::by_hand();
    let picker = Turning::to([]);
    let brief = |key: &str| {
        let ttl = if key.ends_with('7') { 1 } else { 1_000 };
        Ok::<_, Fails>(Some(Loaded::from(key).ttl(Duration::from_secs(ttl))))
    };
    let group =
        Group::builder("scores", brief).peers(picker.clone()).clock(clock.clone()).build().unwrap();
    let keys: Vec<_> = (0..10_000).map(|i| i.to_string()).collect();
    keys.iter().for_each(|key| drop(group.get(key).unwrap()));
    picker.turn();
    for key in &keys {
        assert_eq!(group.answer_peer(key).unwrap().unwrap().1, Some(Duration::ZERO));
    }
    assert_eq!((group.stats().main.entries, group.stats().misses), (10_000, 10_000));
    clock.advance(Duration::from_secs(30));
    assert_eq!(group.get_cached("0").unwrap(), None);
    let start = Instant::now();
    while group.stats().main.entries > 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "the sweep does not end");
        thread::yield_now();
    }
}

#[test]
fn keys_that_come_home_within_the_hot_ttl_are_there_as_before() {
    let clock = Clock::by_hand();
    let picker = Turning::to([]);
    let group = Group::builder("scores", scores(&Arc::default()))
        .peers(picker.clone())
        .clock(clock.clone())
        .build()
        .unwrap();
    group.get("Tom").unwrap();
    picker.turn();
    picker.is_other.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(31));
    assert_eq!(group.get("Tom").unwrap().unwrap(), "630");
    assert_eq!(group.answer_peer("Tom").unwrap().unwrap().1, None, "it has its own life again");
    assert_eq!(group.stats().misses, 1);
}

#[test]
fn what_is_cached_is_told_and_used_without_a_load_or_a_question() {
    let loads = Arc::default();
    let owner = Owner::answering([Ok(Some("1".into()))]);
    let picker = PickOwner(owner);
    let own = Group::builder("scores", scores(&loads)).negative_ttl(Duration::from_secs(5));
    let own = own.build().unwrap();
    assert_eq!(own.get_cached("Tom").unwrap(), None);
    assert_eq!(own.stats(), Group::builder("g", scores(&loads)).build().unwrap().stats());
    for key in ["Tom", "kkk"] {
        own.get(key).unwrap();
    }
    assert_eq!(own.get_cached("Tom").unwrap().unwrap().unwrap(), "630");
    assert_eq!(own.get_cached("kkk").unwrap(), Some(None), "it is known to be absent");
    assert!(matches!(own.get_cached(""), Err(Error::KeyLength(0))));
    assert_eq!((loads.load(Ordering::SeqCst), own.stats().main.hits), (2, 2));
    check_identities(&own.stats());

    // A copy of another node's key.
    let group = Group::builder("scores", scores(&loads)).peers(Arc::new(picker)).build().unwrap();
    assert_eq!(group.get_cached("Tom").unwrap(), None);
    group.get("Tom").unwrap();
    assert_eq!(group.get_cached("Tom").unwrap().unwrap().unwrap(), "1");
    assert_eq!((loads.load(Ordering::SeqCst), group.stats().hot.hits), (2, 1));
    check_identities(&group.stats());
}

#[test]
fn what_is_asked_for_as_cached_stays_as_what_is_got() {
    // Two fit, and the least recently used is evicted.
    let group = Group::builder("scores", |_: &str| Ok::<_, Fails>(Some("x")))
        .max_bytes(2 * 82)
        .eviction(crate::cache::Eviction::Lru)
        .build()
        .unwrap();
    group.get_many(&["a", "b"]);
    group.get_cached("a").unwrap().unwrap();
    group.get("c").unwrap();
    let held = ["a", "b", "c"].map(|key| group.get_cached(key).unwrap().is_some());
    assert_eq!(held, [true, false, true]);
}
