//! `Cache`: a budget that several threads use up, and leases.

use std::collections::HashSet;
use std::time::Duration;

use libtest_mimic::Trial;

use super::{every, many, together};
use crate::Clock;
use crate::cache::{Cache, Eviction, Hasher, Key, Record};

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(a_removal_ends_the_leases_from_before_it::<2, false>),
        every(a_removal_ends_the_leases_from_before_it::<2, true>),
        many(a_removal_ends_the_leases_from_before_it::<4, false>),
        many(the_budget_holds_and_no_byte_is_lost::<false>),
        many(the_budget_holds_and_no_byte_is_lost::<true>),
    ]
}

const VALUE: usize = 1_000;

struct Fixture {
    cache: Cache,
    hasher: Hasher,
}

impl Fixture {
    fn new(max_bytes: usize, eviction: Eviction) -> Self {
        Self {
            cache: Cache::new(max_bytes, eviction, Duration::ZERO, Clock::by_hand()),
            hasher: Hasher::default(),
        }
    }

    fn key<'k>(&self, key: &'k str) -> Key<'k> {
        Key::new(key, &self.hasher)
    }

    fn put(&self, key: &str) {
        let lease = self.cache.lease(&self.key(key));
        let record = Record::new(key, Some(&[0; VALUE]), None);
        self.cache.insert(&self.key(key), record, lease);
    }
}

fn a_removal_ends_the_leases_from_before_it<const THREADS: usize, const ALL: bool>() {
    let fixture = Fixture::new(10 * VALUE, Eviction::Lru);
    let lease = fixture.cache.lease(&fixture.key("k"));
    together(THREADS, |i| match i {
        0 if ALL => drop(fixture.cache.clear()),
        0 => fixture.cache.remove(&fixture.key("k")),
        _ => {
            let old = Record::new("k", Some(b"old"), None);
            fixture.cache.insert(&fixture.key("k"), old, lease);
        }
    });
    assert!(fixture.cache.peek(&fixture.key("k")).is_none());
    fixture.put("k");
    assert_eq!(fixture.cache.stats().entries, 1, "a lease from after it holds");
}

fn the_budget_holds_and_no_byte_is_lost<const LRU: bool>() {
    let eviction = if LRU { Eviction::Lru } else { Eviction::S3Fifo };
    let fixture = Fixture::new(3 * VALUE, eviction); // two fit
    together(4, |i| {
        ["a", "b", "c"][i % 3..].iter().for_each(|key| fixture.put(key));
        match i {
            0 => drop(fixture.cache.clear()),
            1 => fixture.cache.remove(&fixture.key("b")),
            _ => drop(fixture.cache.get(&fixture.key("c"), || {})),
        }
    });
    let stats = fixture.cache.stats();
    assert!(stats.bytes <= stats.max_bytes, "{stats:?}");
    // What was not given back would leave less room.
    fixture.cache.clear();
    ["a", "b"].iter().for_each(|key| fixture.put(key));
    assert_eq!(fixture.cache.stats().entries, 2);
}
