//! `Cache`: entries by key, within a budget of bytes.
//!
//! How does a cache serve many threads and still keep to one budget? The entries are spread
//! over [`Shard`]s by the hash of their key, each behind a `Mutex` of its own that is held for
//! some tens of nanoseconds. The bytes of all shards together are one sum, which no hit touches. A
//! shard that holds more than its fair part evicts first, so shards stay equally full, and yet a
//! single value may be as large as the whole budget.
//!
//! | file | what |
//! |---|---|
//! | `record.rs` | `Record`: expiry, key and value in one allocation |
//! | `key.rs` | `Key`: a key and its hash |
//! | `shard.rs` | `Shard`: one lock's part of the entries; `Lease` |
//! | `slab.rs` | `Slab`: the entries in slots; `List`: lists over them |
//! | `table.rs` | `Table`: which slot has a key |
//! | `order.rs` | [`Eviction`], `Order`: which entry is evicted next, by two queues |
//! | `ghosts.rs` | `Ghosts`: the keys that left a queue lately |

mod ghosts;
mod key;
mod order;
mod record;
mod shard;
mod slab;
mod table;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
pub(crate) use key::{Hasher, Key};
pub use order::Eviction;
pub(crate) use record::Record;
pub(crate) use shard::Lease;
use shard::Shard;

pub(crate) struct Cache {
    // Each Mutex guards its shard; no two are held at once.
    shards: Box<[Padded<Mutex<Shard>>]>,
    // The bytes of all shards together.
    bytes: Padded<AtomicUsize>,
    max_bytes: usize,
    eviction: Eviction,
    // How long before its end a value is due for renewal.
    ahead: Duration,
    clock: Clock,
}

/// Shares no cache line with its neighbours.
#[repr(align(128))]
struct Padded<T>(T);

/// A snapshot of a cache. The bytes of an entry are those of its key and its value, and 80 more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Gets that found their key.
    pub hits: u64,
    /// Entries evicted to make room for others.
    pub evictions: u64,
    /// Entries that had expired when they were replaced or evicted.
    pub expirations: u64,
    /// Values not kept because of their size: larger than the whole budget, or
    /// [large](Eviction::S3Fifo) and loaded for the first time.
    pub rejected: u64,
    /// Entries held now, with those that have expired and are neither replaced nor evicted yet.
    pub entries: usize,
    /// Bytes held now.
    pub bytes: usize,
    /// The budget.
    pub max_bytes: usize,
}

/// The least fair part of the budget for a shard: a small cache has one shard, and so one order.
const LEAST_PART: usize = 64 << 10;

impl Cache {
    /// An empty cache. `ahead` is how long before its end a value is due for renewal.
    pub(crate) fn new(max_bytes: usize, eviction: Eviction, ahead: Duration, clock: Clock) -> Self {
        let threads = thread::available_parallelism().map_or(4, usize::from);
        let shards = (16 * threads).clamp(16, 512).min((max_bytes / LEAST_PART).max(1));
        let shard = || Padded(Mutex::new(Shard::new(eviction)));
        Self {
            // A power of two, rounded down.
            shards: (0..1 << shards.ilog2()).map(|_| shard()).collect(),
            bytes: Padded(AtomicUsize::new(0)),
            max_bytes,
            eviction,
            ahead,
            clock,
        }
    }

    /// The record of `key`. Calls `on_due`, without locks, if its value is due for renewal.
    #[inline]
    pub(crate) fn get(&self, key: &Key<'_>, on_due: impl FnOnce()) -> Option<Record> {
        if self.max_bytes == 0 {
            return None; // as the hot cache of a group without peers
        }
        let mut shard = self.lock(key);
        let (slot, record) = shard.find(key)?;
        let record = record.clone();
        if let Some(end) = record.expires() {
            return self.get_before(end, shard, slot, record, on_due);
        }
        shard.count_hit(slot);
        Some(record)
    }

    // Apart, so that hits on entries that do not expire do not pay for it.
    #[inline(never)]
    fn get_before(
        &self,
        end: Duration,
        mut shard: MutexGuard<'_, Shard>,
        slot: u32,
        record: Record,
        on_due: impl FnOnce(),
    ) -> Option<Record> {
        let now = self.clock.now();
        if end <= now {
            return None; // it stays: what is loaded for it now takes its slot
        }
        shard.count_hit(slot);
        drop(shard);
        if self.ahead >= end - now && !record.is_absent() {
            on_due();
        }
        Some(record)
    }

    /// Whether a hit, which is not past its time, is to be renewed: a value that is near its end.
    pub(crate) fn is_due(&self, hit: &Record) -> bool {
        let is_near = |end| end <= self.clock.now().saturating_add(self.ahead);
        !self.ahead.is_zero() && !hit.is_absent() && hit.expires().is_some_and(is_near)
    }

    /// Looks without using: no hit is counted, the order stays.
    pub(crate) fn peek(&self, key: &Key<'_>) -> Option<Record> {
        let lives = |record: &Record| record.expires().is_none_or(|end| end > self.clock.now());
        self.look(key).filter(lives)
    }

    /// A record that has expired, but not for longer than `grace`, if it was not evicted since.
    pub(crate) fn past(&self, key: &Key<'_>, grace: Duration) -> Option<Record> {
        let record = self.look(key)?;
        let (end, now) = (record.expires()?, self.clock.now());
        (end <= now && now < end.saturating_add(grace)).then_some(record)
    }

    /// The right to keep a value that is loaded from now on, unless the key is removed meanwhile.
    pub(crate) fn lease(&self, key: &Key<'_>) -> Lease {
        self.lock(key).lease(key)
    }

    /// Keeps `record`, if the lease still holds, and evicts others until the budget holds. A record
    /// larger than the whole budget is not kept; neither is the one that it would have replaced. Nor is
    /// a [large](Eviction::S3Fifo) one of a new key, if the budget is used up.
    pub(crate) fn insert(&self, key: &Key<'_>, record: Record, lease: Lease) {
        let home = self.home(key);
        let cost = record.cost();
        if cost > self.max_bytes {
            drop(self.change(home, |shard| shard.reject(key)));
            return;
        }
        let now = || self.clock.now();
        drop(self.change(home, |shard| {
            let is_full = self.bytes.0.load(Ordering::Relaxed) + cost > self.max_bytes;
            let not_kept = shard.insert(key, record, lease, is_full, now);
            // Most often that makes the room, and under the same lock.
            let can_give = is_full && shard.bytes() > self.fair_part() && shard.len() > 1;
            let evicted = if not_kept.is_none() && can_give { shard.evict(now) } else { None };
            (not_kept, evicted)
        }));
        self.make_room(home);
    }

    /// Removes `key`, and ends its leases, so that a value that is being loaded for it now is not kept.
    pub(crate) fn remove(&self, key: &Key<'_>) {
        drop(self.change(self.home(key), |shard| shard.remove(key)));
    }

    /// Takes `key` out, but ends no lease: the entry is outdated, a value that is being loaded is not.
    pub(crate) fn drop_outdated(&self, key: &Key<'_>) {
        drop(self.change(self.home(key), |shard| shard.take_key(key)));
    }

    /// Removes all keys in the same way. Returns the entries, to be dropped: for a million entries
    /// that takes a tenth of a second.
    pub(crate) fn clear(&self) -> impl Send + use<> {
        let clear = |index| self.change(index, |shard| shard.clear(self.eviction));
        (0..self.shards.len()).map(clear).collect::<Vec<_>>()
    }

    /// Changes a shard, and counts the bytes that come and go. Returns the records that have left, to
    /// be dropped outside of the lock.
    fn change<R>(&self, index: usize, change: impl FnOnce(&mut Shard) -> R) -> R {
        let mut shard = self.shards[index].0.lock().unwrap();
        let before = shard.bytes();
        let left = change(&mut shard);
        // Under the lock, so that no thread subtracts bytes that are not added yet.
        self.bytes.0.fetch_add(shard.bytes().wrapping_sub(before), Ordering::Relaxed);
        left
    }

    /// Evicts until the budget holds: first from shards above their fair part, beginning at the
    /// one that was `filled`, then from any. Never evicts the newest entry of that one, except in an
    /// LRU whose other entries were all hit since.
    fn make_room(&self, filled: usize) {
        for part in [self.fair_part(), 0] {
            for i in 0..self.shards.len() {
                let index = (filled + i) & (self.shards.len() - 1);
                let least_entries = if i == 0 { 2 } else { 1 };
                let evict = |shard: &mut Shard| {
                    let can_give = shard.bytes() > part && shard.len() >= least_entries;
                    can_give.then(|| shard.evict(|| self.clock.now()))
                };
                loop {
                    if self.bytes.0.load(Ordering::Relaxed) <= self.max_bytes {
                        return;
                    }
                    if self.change(index, evict).is_none() {
                        break;
                    }
                }
            }
        }
    }

    /// Visits, in no order and without locks, all records that are there throughout; of those that
    /// come or go meanwhile, some.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&Record)) {
        for Padded(shard) in &self.shards {
            // The slots are visited from the last to the first, some hundreds at a time.
            let mut end = usize::MAX;
            while end > 0 {
                let records = shard.lock().unwrap().records_below(&mut end);
                records.iter().for_each(&mut visit);
            }
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let mut stats = CacheStats { max_bytes: self.max_bytes, ..CacheStats::default() };
        for Padded(shard) in &self.shards {
            let shard = shard.lock().unwrap();
            stats.hits += shard.counts.hits;
            stats.evictions += shard.counts.evictions;
            stats.expirations += shard.counts.expirations;
            stats.rejected += shard.counts.rejected;
            stats.entries += shard.len();
            stats.bytes += shard.bytes();
        }
        stats
    }

    fn fair_part(&self) -> usize {
        self.max_bytes / self.shards.len()
    }

    fn home(&self, key: &Key<'_>) -> usize {
        // Bits that are not in the short hash, by which the shard's table goes.
        (key.hash >> 40) as usize & (self.shards.len() - 1)
    }

    /// The record of `key`, expired or not.
    fn look(&self, key: &Key<'_>) -> Option<Record> {
        self.lock(key).find(key).map(|(_, record)| record.clone())
    }

    #[inline(always)] // a call takes as long again as the lock
    fn lock(&self, key: &Key<'_>) -> MutexGuard<'_, Shard> {
        self.shards[self.home(key)].0.lock().unwrap()
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::record::OVERHEAD;
    use super::*;

    struct Fixture {
        cache: Cache,
        hasher: Hasher,
        clock: Clock,
    }

    /// Room for three entries of a one-byte key and a one-byte value.
    fn room_for_three(eviction: Eviction) -> Fixture {
        with_budget(3 * (OVERHEAD + 2), eviction)
    }

    fn with_budget(max_bytes: usize, eviction: Eviction) -> Fixture {
        let (hasher, clock) = (Hasher::default(), Clock::by_hand());
        let cache = Cache::new(max_bytes, eviction, Duration::ZERO, clock.clone());
        Fixture { cache, hasher, clock }
    }

    impl Fixture {
        fn put(&self, key: &str, value: &[u8]) {
            self.put_until(key, value, None);
        }

        fn put_until(&self, key: &str, value: &[u8], expires: Option<Duration>) {
            let record = Record::new(key, Some(value), expires);
            let key = Key::new(key, &self.hasher);
            self.cache.insert(&key, record, self.cache.lease(&key));
        }

        fn get(&self, key: &str) -> Option<String> {
            self.cache
                .get(&Key::new(key, &self.hasher), || {})
                .map(|r| r.into_value().unwrap().to_string())
        }

        /// Which of the keys A to E are held, without touching them.
        fn held(&self) -> String {
            let has = |key: &&str| self.cache.peek(&Key::new(key, &self.hasher)).is_some();
            ["A", "B", "C", "D", "E"].into_iter().filter(has).collect()
        }
    }

    /// Asks for each key, puts it in where it is missing, and tells what is held after each.
    fn story(eviction: Eviction, keys: &str) -> Vec<String> {
        let fixture = room_for_three(eviction);
        let ask = |key| {
            if fixture.get(key).is_none() {
                fixture.put(key, b"x");
            }
            fixture.held()
        };
        letters(keys).map(ask).collect()
    }

    fn letters(keys: &str) -> impl Iterator<Item = &str> {
        keys.split("").filter(|key| !key.is_empty())
    }

    #[test]
    fn lru_evicts_the_least_recently_used() {
        let held = story(Eviction::Lru, "ABCADBE");
        assert_eq!(held, ["A", "AB", "ABC", "ABC", "ACD", "ABD", "BDE"]);
    }

    #[test]
    fn s3fifo_evicts_what_was_asked_for_once_and_keeps_what_came_back() {
        // B and C pass through the small queue; A, hit twice, moves to main and outlives D.
        let held = story(Eviction::S3Fifo, "AAABCDE");
        assert_eq!(held, ["A", "A", "A", "AB", "ABC", "ACD", "ADE"]);
        // B comes back as a ghost and goes to main, where it outlives C, D and A.
        let held = story(Eviction::S3Fifo, "ABCDEAC");
        assert_eq!(held, ["A", "AB", "ABC", "BCD", "CDE", "ADE", "ACE"]);
    }

    #[test]
    fn a_scan_empties_an_lru_cache_and_not_the_default_one() {
        // Two keys of 32,768 look like the same ghost, so a few of the popular may go.
        for (eviction, survivors) in [(Eviction::Lru, 0..=0), (Eviction::S3Fifo, 880..=900)] {
            let fixture = with_budget(1_000 * (OVERHEAD + 9), eviction);
            let popular: Vec<String> = (0..900).map(|i| format!("pop{i:05}")).collect();
            for key in popular.iter().chain(&popular).chain(&popular) {
                if fixture.get(key).is_none() {
                    fixture.put(key, b"x");
                }
            }
            (0..10_000).for_each(|i| fixture.put(&format!("{i:08}"), b"x"));
            let held = popular.iter().filter(|key| fixture.get(key).is_some()).count();
            assert!(survivors.contains(&held), "{eviction:?}: {held}");
        }
    }

    #[test]
    fn replacing_a_thousand_times_leaves_the_byte_count_exact() {
        let fixture = with_budget(1 << 20, Eviction::S3Fifo);
        for length in 0..1_000 {
            fixture.put("A", &vec![0; length]);
        }
        let stats = fixture.cache.stats();
        assert_eq!((stats.entries, stats.bytes, stats.evictions), (1, 1 + 999 + OVERHEAD, 0));
        assert_eq!(fixture.cache.bytes.0.load(Ordering::Relaxed), stats.bytes);
    }

    #[test]
    fn a_value_above_the_budget_is_not_kept_and_flushes_nothing_but_the_old_value_of_its_key() {
        let fixture = room_for_three(Eviction::S3Fifo);
        fixture.put("A", b"x");
        fixture.put("B", &vec![0; 3 * (OVERHEAD + 2)]);
        assert_eq!(fixture.held(), "A");
        fixture.put("B", b"x");
        fixture.put("A", &vec![0; 3 * (OVERHEAD + 2)]);
        assert_eq!(fixture.held(), "B", "what A was is not its value any more");
        let stats = fixture.cache.stats();
        assert_eq!((stats.rejected, stats.evictions, stats.bytes), (2, 0, OVERHEAD + 2));
    }

    #[test]
    fn a_value_as_large_as_the_budget_is_kept_though_there_are_many_shards() {
        let fixture = with_budget(1 << 20, Eviction::S3Fifo);
        assert!(fixture.cache.shards.len() > 1);
        for i in 0..1_000 {
            fixture.put(&i.to_string(), b"x");
        }
        let large = vec![b'x'; (1 << 20) - OVERHEAD - 1];
        fixture.put("A", &large);
        assert_eq!((fixture.held().as_str(), fixture.cache.stats().entries), ("", 1_000));
        fixture.put("A", &large);
        assert_eq!(fixture.get("A").map(|value| value.len()), Some(large.len()));
        assert_eq!(fixture.cache.stats().entries, 1);
    }

    #[test]
    fn while_the_cache_is_full_a_large_value_is_kept_when_it_is_loaded_again() {
        const LARGE: usize = 10_000;
        let fill = |eviction, value: usize| {
            let fixture = with_budget(60_000, eviction);
            (0..1_000).for_each(|i| fixture.put(&i.to_string(), &vec![0; value]));
            fixture
        };
        let rejected = |fixture: &Fixture| fixture.cache.stats().rejected;
        let fixture = fill(Eviction::S3Fifo, 20);
        (0..100).for_each(|i| fixture.put(&format!("large {i}"), &[0; LARGE]));
        // Two keys of 32,768 look like the same ghost.
        assert!((98..=100).contains(&rejected(&fixture)));
        let before = rejected(&fixture);
        fixture.put("A", &[0; LARGE]);
        assert_eq!((fixture.held().as_str(), rejected(&fixture)), ("", before + 1));
        fixture.put("A", &[0; LARGE]);
        assert_eq!((fixture.held().as_str(), rejected(&fixture)), ("A", before + 1));
        fixture.put("A", &[0; 2 * LARGE]);
        assert_eq!(
            (fixture.held().as_str(), rejected(&fixture)),
            ("A", before + 1),
            "it was there"
        );

        let fixture = with_budget(60_000, Eviction::S3Fifo);
        ["A", "B", "C"].iter().for_each(|key| fixture.put(key, &[0; LARGE]));
        assert_eq!(fixture.held(), "ABC", "there was room");
        let fixture = fill(Eviction::S3Fifo, LARGE);
        fixture.put("A", &[0; LARGE]);
        assert_eq!(fixture.held(), "A", "it is no larger than others");
        let fixture = fill(Eviction::Lru, 20);
        fixture.put("A", &[0; LARGE]);
        assert_eq!((fixture.held().as_str(), rejected(&fixture)), ("A", 0));
    }

    #[test]
    fn an_expired_entry_is_never_returned_and_the_next_value_takes_its_place() {
        let fixture = room_for_three(Eviction::S3Fifo);
        fixture.put_until("A", b"x", Some(Duration::from_millis(5)));
        fixture.clock.advance(Duration::from_millis(4));
        assert!(fixture.get("A").is_some());
        fixture.clock.advance(Duration::from_millis(1));
        assert!(fixture.get("A").is_none() && fixture.get("A").is_none());
        let stats = fixture.cache.stats();
        assert_eq!((stats.expirations, stats.entries, stats.hits), (0, 1, 1), "found, not counted");
        fixture.put("A", b"y");
        assert_eq!(fixture.get("A").unwrap(), "y");
        let stats = fixture.cache.stats();
        assert_eq!((stats.expirations, stats.entries, stats.bytes), (1, 1, OVERHEAD + 2));
    }

    #[test]
    fn an_expired_entry_is_the_first_to_be_evicted_that_is_met_whatever_its_hits() {
        let fixture = room_for_three(Eviction::S3Fifo);
        fixture.put_until("A", b"x", Some(Duration::from_secs(1)));
        fixture.put("B", b"x");
        fixture.put("C", b"x");
        letters("AAABB").for_each(|key| assert!(fixture.get(key).is_some()));
        fixture.clock.advance(Duration::from_secs(1));
        fixture.put("D", b"x");
        assert_eq!(fixture.held(), "BCD");
        fixture.put("E", b"x");
        assert_eq!(fixture.held(), "BDE");
        let stats = fixture.cache.stats();
        assert_eq!((stats.expirations, stats.evictions), (1, 1));
    }

    #[test]
    fn an_lru_evicts_by_use_alone() {
        let fixture = room_for_three(Eviction::Lru);
        fixture.put("A", b"x");
        fixture.put_until("B", b"x", Some(Duration::from_secs(1)));
        fixture.put("C", b"x");
        fixture.clock.advance(Duration::from_secs(1));
        fixture.put("D", b"x");
        assert_eq!(fixture.held(), "CD", "A went; B has expired");
        fixture.put("E", b"x");
        assert_eq!(fixture.held(), "CDE");
        let stats = fixture.cache.stats();
        assert_eq!((stats.expirations, stats.evictions), (1, 1));
    }

    #[test]
    fn an_entry_that_is_replaced_keeps_its_place_and_its_hits() {
        let life = Duration::from_secs(1);
        for expires in [None, Some(life)] {
            let fixture = room_for_three(Eviction::S3Fifo);
            fixture.put_until("A", b"x", expires);
            fixture.put("B", b"x");
            letters("AA").for_each(|key| assert!(fixture.get(key).is_some()));
            fixture.clock.advance(life);
            fixture.put("A", b"y"); // renewed, or loaded again after its end
            letters("CDE").for_each(|key| fixture.put(key, b"x"));
            assert_eq!(fixture.held(), "ADE", "A was promoted, and B the oldest");
        }
        let fixture = room_for_three(Eviction::S3Fifo);
        letters("ABCAD").for_each(|key| fixture.put(key, b"x"));
        assert_eq!(fixture.held(), "BCD", "A was still the oldest");
        let fixture = room_for_three(Eviction::Lru);
        letters("ABCAD").for_each(|key| fixture.put(key, b"x"));
        assert_eq!(fixture.held(), "ACD", "in an LRU it has been used");
    }

    #[test]
    fn a_removal_ends_the_leases_that_were_taken_before_it() {
        let fixture = room_for_three(Eviction::S3Fifo);
        let key = Key::new("A", &fixture.hasher);
        let record = || Record::new("A", Some(b"x"), None);
        let before = fixture.cache.lease(&key);
        fixture.cache.remove(&key);
        fixture.cache.insert(&key, record(), before);
        assert_eq!(fixture.held(), "");
        let before = fixture.cache.lease(&key);
        fixture.put("A", b"x");
        fixture.cache.clear();
        fixture.cache.insert(&key, record(), before);
        assert_eq!((fixture.held().as_str(), fixture.cache.stats().bytes), ("", 0));
        fixture.cache.insert(&key, record(), fixture.cache.lease(&key));
        assert_eq!(fixture.held(), "A");
    }

    #[test]
    fn keys_are_spread_over_the_shards_and_over_the_chains_of_each() {
        let fixture = with_budget(16 << 20, Eviction::S3Fifo);
        let shards = &fixture.cache.shards;
        assert!(shards.len() >= 16);
        let per_shard = 1_000;
        (0..per_shard * shards.len()).for_each(|i| fixture.put(&i.to_string(), b"x"));
        for Padded(shard) in shards {
            let shard = shard.lock().unwrap();
            assert!((800..1_200).contains(&shard.len()), "{} of {per_shard}", shard.len());
            // By chance alone, one of all chains is this long in one of 500,000 runs.
            assert!(shard.longest_chain() < 13, "{}", shard.longest_chain());
        }
    }

    #[test]
    fn shards_above_their_fair_part_give_way_to_those_below() {
        for eviction in [Eviction::S3Fifo, Eviction::Lru] {
            let fixture = with_budget(1 << 20, eviction);
            let cache = &fixture.cache;
            let home = |key: &String| cache.home(&Key::new(key, &fixture.hasher));
            let keys = || (0..1_000_000).map(|i| format!("{i:07}"));
            let keys_of = |shard| keys().filter(move |key| home(key) == shard);
            let cost = OVERHEAD + 8;
            let (all, fair) = ((1 << 20) / cost, (1 << 20) / cost / cache.shards.len());
            let entries = |shard: usize| cache.shards[shard].0.lock().unwrap().len();
            // While the others are empty, a single shard may take the whole budget.
            keys_of(0).take(2 * all).for_each(|key| fixture.put(&key, b"x"));
            assert_eq!(entries(0), all);
            // Another takes its part from it, and after that from itself.
            for (i, key) in keys_of(1).take(2 * fair).enumerate() {
                fixture.put(&key, b"x");
                assert_eq!((entries(0) + entries(1), entries(1)), (all, (i + 1).min(fair)));
            }
            assert_eq!(entries(1), fair);
        }
    }

    #[test]
    fn the_budget_holds_under_threads_and_the_sums_agree() {
        for eviction in [Eviction::S3Fifo, Eviction::Lru] {
            let fixture = with_budget(256 << 10, eviction);
            thread::scope(|scope| {
                for thread in 0..4 {
                    let fixture = &fixture;
                    scope.spawn(move || churn(fixture, thread));
                }
            });
            let stats = fixture.cache.stats();
            assert!(stats.bytes <= stats.max_bytes);
            assert_eq!(fixture.cache.bytes.0.load(Ordering::Relaxed), stats.bytes);
            for Padded(shard) in &fixture.cache.shards {
                shard.lock().unwrap().validate();
            }
        }
    }

    fn churn(fixture: &Fixture, thread: usize) {
        for i in 0..20_000_usize {
            let i = i.wrapping_mul(2_654_435_761 + thread) % 5_000;
            match i % 7 {
                0 | 1 => drop(fixture.get(&i.to_string())),
                2 => fixture.cache.remove(&Key::new(&i.to_string(), &fixture.hasher)),
                3 => fixture.put_until(&i.to_string(), b"x", Some(Duration::from_secs(i as u64))),
                _ => fixture.put(&i.to_string(), &vec![0; i % 300]),
            }
        }
    }
}
