//! `Group`, alone: loads, removals, batches, and getters that ask their own group.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use super::{LONG, NONE, many, together};
use crate::{
    BoxError, ByteView, Clock, Error, Getter, Group, GroupBuilder, Loaded, PeerError, PeerGetter,
    PeerPicker,
};

pub(super) fn all() -> Vec<Trial> {
    vec![
        many(a_cold_key_is_loaded_once::<2>),
        many(a_cold_key_is_loaded_once::<4>),
        many(nothing_from_before_a_removal_is_seen_after_it::<2, false>),
        many(nothing_from_before_a_removal_is_seen_after_it::<2, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<4, false>),
        many(nothing_from_before_a_removal_is_seen_after_it::<4, true>),
        many(a_getter_that_panics_releases_all::<4>),
        many(batches_that_cross_load_each_key_once),
        many(getters_that_ask_for_each_others_keys_end::<false>),
        many(getters_that_ask_for_each_others_keys_end::<true>),
        many(a_value_whose_key_goes_to_another_node_has_an_end),
        many(a_removal_beats_a_renewal::<2, false>),
        many(a_removal_beats_a_renewal::<2, true>),
        many(a_removal_beats_a_renewal::<4, false>),
        many(a_value_is_renewed_once::<3>),
        many(a_value_that_expires_as_its_renewal_fails_answers_and_is_not_tried_again::<2>),
        many(a_value_that_expires_as_its_renewal_fails_answers_and_is_not_tried_again::<3>),
        many(nothing_stale_is_seen_after_a_removal::<2, false>),
        many(nothing_stale_is_seen_after_a_removal::<2, true>),
        many(nothing_stale_is_seen_after_a_removal::<3, false>),
        many(a_key_whose_load_fails_is_tried_once::<3>),
    ]
}

/// The version of an origin that fails.
const BROKEN: usize = usize::MAX;

/// The source: each key has the version that was written last, 0 for none.
#[derive(Default)]
pub(super) struct Origin {
    pub(super) version: AtomicUsize,
    loads: AtomicUsize,
}

impl Origin {
    pub(super) fn at(version: usize) -> Arc<Self> {
        Arc::new(Self { version: version.into(), loads: 0.into() })
    }

    pub(super) fn write(&self, version: usize) {
        self.version.store(version, Ordering::SeqCst);
    }

    /// From now on all loads fail.
    pub(super) fn break_down(&self) {
        self.write(BROKEN);
    }

    pub(super) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    fn load(&self) -> Result<Option<String>, BoxError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let version = self.version.load(Ordering::SeqCst);
        thread::yield_now();
        if version == BROKEN {
            return Err(BoxError::from("broken"));
        }
        Ok((version > 0).then(|| version.to_string()))
    }

    pub(super) fn group(self: &Arc<Self>) -> GroupBuilder {
        let origin = self.clone();
        let load = move |_: &str| origin.load();
        Group::builder("scores", load).max_bytes(10_000).negative_ttl(LONG)
    }
}

/// The version that a node gives, asked in one of three ways.
pub(super) fn ask(group: &Group, way: usize) -> usize {
    let value = match way % 3 {
        0 => group.get("k").unwrap(),
        1 => group.get_many(&["k", "other"]).swap_remove(0).unwrap(),
        _ => group.answer_peer("k").unwrap().map(|(value, _)| value),
    };
    version(value)
}

fn version(value: Option<ByteView>) -> usize {
    value.map_or(0, |value| value.to_string().parse().unwrap())
}

fn a_cold_key_is_loaded_once<const CALLERS: usize>() {
    let origin = Origin::at(1);
    let group = origin.group().build().unwrap();
    together(CALLERS, |i| {
        let value = match i % 2 {
            0 => group.get("k").unwrap(),
            _ => group.answer_peer("k").unwrap().map(|(value, _)| value),
        };
        assert_eq!(value.unwrap(), "1");
    });
    assert_eq!(origin.loads(), 1);
    let stats = group.stats();
    let outcomes = stats.local_loads + stats.shared;
    assert_eq!((stats.gets, stats.misses), (CALLERS as u64, outcomes));
}

fn nothing_from_before_a_removal_is_seen_after_it<const CALLERS: usize, const ALL: bool>() {
    // From "no such key", which is remembered as well, to a value, or from a value to another.
    for before in [0, 1] {
        let origin = Origin::at(before);
        let group = origin.group().build().unwrap();
        together(CALLERS, |i| {
            if i > 0 {
                ask(&group, i);
                return;
            }
            origin.write(2);
            if ALL {
                group.clear().unwrap()
            } else {
                group.remove("k").unwrap()
            }
            assert_eq!(ask(&group, 0), 2, "while others ask");
        });
        assert_eq!(ask(&group, 0), 2, "was kept");
    }
}

fn a_getter_that_panics_releases_all<const CALLERS: usize>() {
    let panicked = AtomicBool::new(false);
    let load = move |_: &str| {
        thread::yield_now();
        if !panicked.swap(true, Ordering::SeqCst) {
            resume_unwind(Box::new("on purpose"));
        }
        Ok::<_, BoxError>(Some("1"))
    };
    let group = Group::builder("scores", load).max_bytes(10_000).build().unwrap();
    together(CALLERS, |_| match group.get("k") {
        Ok(value) => assert_eq!(value.unwrap(), "1"),
        Err(error) => {
            assert!(matches!(error, Error::GetterPanicked { .. }), "{error}");
            assert_eq!(group.get("k").unwrap().unwrap(), "1", "told of a panic that was over");
        }
    });
}

fn batches_that_cross_load_each_key_once() {
    let origin = Origin::at(1);
    let group = origin.group().build().unwrap();
    together(4, |i| {
        let keys: &[&str] = [&["a", "b"][..], &["b", "a"], &["a"], &["b", "a", "b"]][i];
        let answers = group.get_many(keys);
        assert!(answers.into_iter().all(|answer| answer.unwrap().unwrap() == "1"));
    });
    assert_eq!(origin.loads(), 2);
}

fn getters_that_ask_for_each_others_keys_end<const BATCH: bool>() {
    let own: Arc<OnceLock<Weak<Group>>> = Arc::default();
    let load = {
        let own = own.clone();
        move |key: &str| {
            let group = own.get().unwrap().upgrade().unwrap();
            group.get(if key == "a" { "b" } else { "a" })
        }
    };
    let group = Group::builder("scores", load).max_bytes(10_000).build().unwrap();
    own.set(Arc::downgrade(&group)).ok();
    together(2, |i| {
        let keys = ["a", "b"];
        let answer = if BATCH { group.get_many(&keys).pop().unwrap() } else { group.get(keys[i]) };
        assert!(answer.is_err());
    });
}

/// A node that owns all keys until it owns none.
#[derive(Default)]
struct Turning {
    is_other: Mutex<bool>,
    on_change: OnceLock<Weak<dyn Fn() + Send + Sync>>,
}

impl PeerPicker for Turning {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        self.is_other.lock().unwrap().then(|| Arc::new(Dead) as Arc<dyn PeerGetter>)
    }

    fn on_change(&self, changed: Weak<dyn Fn() + Send + Sync>) {
        self.on_change.set(changed).ok();
    }
}

struct Dead;

impl PeerGetter for Dead {
    fn name(&self) -> &str {
        "dead"
    }

    fn get(&self, _group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
        Err(PeerError::Timeout)
    }
}

fn a_value_whose_key_goes_to_another_node_has_an_end() {
    let picker = Arc::new(Turning::default());
    let clock = Clock::by_hand();
    let group = Origin::at(1).group().peers(picker.clone()).clock(clock.clone()).build().unwrap();
    together(3, |i| {
        if i > 0 {
            // Not as a batch, whose keys may go to two owners: shuttle wakes a thread that waits when one that
            // it has started ends.
            assert_eq!(ask(&group, 2 * (i - 1)), 1);
            return;
        }
        *picker.is_other.lock().unwrap() = true;
        picker.on_change.get().unwrap().upgrade().unwrap()();
    });
    let (_, remaining) = group.answer_peer("k").unwrap().unwrap();
    assert!(remaining.is_some(), "would stay for ever");
    clock.advance(LONG);
    assert_eq!(group.get_cached("k").unwrap(), None, "would stay for ever");
}

const TTL: Duration = Duration::from_secs(10);

/// A group with the value 1 of an origin of version 1, and that long after it was loaded.
fn after(time: Duration) -> (Arc<Origin>, Arc<Group>) {
    let origin = Origin::at(1);
    let (group, _) = aged(origin.group(), 0, time);
    (origin, group)
}

/// The same with any getter, of the keys that are asked for in that way.
fn aged(builder: GroupBuilder, way: usize, time: Duration) -> (Arc<Group>, Clock) {
    let clock = Clock::by_hand();
    let builder = builder.ttl(TTL).clock(clock.clone());
    let group = builder.refresh_ahead(TTL / 2).stale_if_error(LONG).build().unwrap();
    assert_eq!(ask(&group, way), 1);
    clock.advance(time);
    (group, clock)
}

fn a_removal_beats_a_renewal<const CALLERS: usize, const ALL: bool>() {
    let (origin, group) = after(TTL * 3 / 4);
    together(CALLERS, |i| {
        if i > 0 {
            ask(&group, i);
            return;
        }
        ask(&group, 0);
        origin.write(2);
        if ALL {
            group.clear().unwrap()
        } else {
            group.remove("k").unwrap()
        }
        assert_eq!(ask(&group, 0), 2, "while others ask");
    });
    assert_eq!(ask(&group, 0), 2, "was kept");
}

fn a_value_is_renewed_once<const CALLERS: usize>() {
    let (origin, group) = after(TTL * 3 / 4);
    origin.write(2);
    together(CALLERS, |i| {
        // Some before the renewal ends, some after it.
        for _ in 0..2 {
            assert!(matches!(ask(&group, i % 2 * 2), 1 | 2));
        }
    });
    assert!(origin.loads() <= 2);
    assert_eq!(group.stats().misses, 1);
}

fn a_value_that_expires_as_its_renewal_fails_answers_and_is_not_tried_again<
    const CALLERS: usize,
>() {
    let origin = Origin::at(1);
    // Less than a key rests after a failure.
    let left = Duration::from_millis(500);
    let (group, clock) = aged(origin.group(), 0, TTL - left);
    origin.break_down();
    together(CALLERS, |i| {
        assert_eq!(ask(&group, 0), 1);
        if i == 0 {
            clock.advance(left);
        }
        assert_eq!(ask(&group, i % 2 * 2), 1);
    });
    assert_eq!(origin.loads(), 2, "the first, and the one that failed");
}

fn nothing_stale_is_seen_after_a_removal<const CALLERS: usize, const ALL: bool>() {
    let (origin, group) = after(TTL);
    origin.break_down();
    together(CALLERS, |i| {
        if i > 0 {
            let _ = group.get("k");
            return;
        }
        if ALL {
            group.clear().unwrap()
        } else {
            group.remove("k").unwrap()
        }
        assert!(group.get("k").is_err(), "while others ask");
    });
    assert!(group.get("k").is_err(), "was kept");
}

fn a_key_whose_load_fails_is_tried_once<const CALLERS: usize>() {
    let (origin, group) = after(TTL);
    origin.break_down();
    together(CALLERS, |i| {
        for _ in 0..2 {
            assert_eq!(ask(&group, i % 2 * 2), 1);
        }
    });
    assert_eq!(origin.loads(), 2, "the first, and the one that failed");
}
