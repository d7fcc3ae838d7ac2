//! `Shard`: the map, the entries, their bytes and their order; one thread at a time.
//!
//! The cache is cut into shards so that threads seldom meet at the same lock. A shard never
//! drops a record by itself: what leaves is returned, and dropped outside of the lock.

use std::collections::BTreeSet;
use std::time::Duration;

use super::order::{Eviction, Order};
use super::table::Table;
use super::{Key, Record};

pub(crate) struct Shard {
    table: Table,
    order: Order,
    // When the entries that expire do, soonest first.
    expiries: BTreeSet<(Duration, u32)>,
    // How often keys were removed, counted for some keys together.
    removals: [u32; REMOVAL_COUNTERS],
    pub(crate) bytes: usize,
    pub(crate) counts: Counts,
}

/// Keys are spread over so many counts of removals, lest the removal of one end the leases of all.
const REMOVAL_COUNTERS: usize = 64;

/// The right to put in what is loaded from now on. A removal of the key ends it, and now and then
/// that of another key.
///
/// 1. Thread A misses, takes a lease and asks the origin, which says v1.
/// 2. The origin turns to v2, and thread B removes the key.
/// 3. A comes with v1. Its lease is from before the removal, so v1 is not put in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Lease(u32);

/// What a shard counts under its lock, so that threads share no counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) evictions: u64,
    pub(crate) expirations: u64,
}

/// What a look-up finds.
pub(crate) enum Found {
    Hit(Record),
    /// The entry was there but past its time; it has been taken out.
    Expired(Record),
    Nothing,
}

impl Shard {
    pub(crate) fn new(eviction: Eviction) -> Self {
        Self {
            table: Table::new(),
            order: Order::new(eviction),
            expiries: BTreeSet::new(),
            removals: [0; REMOVAL_COUNTERS],
            bytes: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Looks `key` up; `now` is asked only where the entry can expire.
    #[inline]
    pub(crate) fn get(&mut self, key: &Key<'_>, now: impl FnOnce() -> Duration) -> Found {
        let Some((place, record)) = self.find(key) else { return Found::Nothing };
        if record.expires().is_some_and(|at| at <= now()) {
            return self.take_expired(place);
        }
        let hit = record.clone();
        self.counts.hits += 1;
        self.order.touch(&mut self.table.slots, place);
        Found::Hit(hit)
    }

    #[cold]
    fn take_expired(&mut self, place: u32) -> Found {
        self.counts.expirations += 1;
        Found::Expired(self.take(place))
    }

    /// What [`get`](Self::get) would find, without counting or touching it.
    pub(crate) fn peek(&self, key: &Key<'_>, now: impl FnOnce() -> Duration) -> Option<Record> {
        let (_, record) = self.find(key)?;
        record.expires().is_none_or(|at| at > now()).then(|| record.clone())
    }

    /// A lease on `key`, to be taken before the origin is asked.
    pub(crate) fn lease(&self, key: &Key<'_>) -> Lease {
        Lease(self.removals[Self::leased_as(key)])
    }

    /// Puts `record` in as the newest, and returns the one of the same key that it replaces; or
    /// gives it back, if the lease has ended.
    pub(crate) fn insert(
        &mut self,
        key: &Key<'_>,
        record: Record,
        lease: Lease,
    ) -> Result<Option<Record>, Record> {
        if self.lease(key) != lease {
            return Err(record);
        }
        let replaced = self.take_key(key);
        let (cost, expires) = (record.cost(), record.expires());
        let place = self.table.insert(key.short_hash(), record);
        self.bytes += cost;
        self.order.push(&mut self.table.slots, place);
        self.expiries.extend(expires.map(|at| (at, place)));
        Ok(replaced)
    }

    /// Takes the entry out and ends the leases on its key.
    pub(crate) fn remove(&mut self, key: &Key<'_>) -> Option<Record> {
        let removals = &mut self.removals[Self::leased_as(key)];
        *removals = removals.wrapping_add(1);
        self.take_key(key)
    }

    /// Takes all entries out and ends all leases. What is returned is to be dropped.
    pub(crate) fn clear(&mut self, eviction: Eviction) -> Self {
        let mut empty = Self::new(eviction);
        empty.removals = self.removals.map(|removals| removals.wrapping_add(1));
        empty.counts = self.counts;
        std::mem::replace(self, empty)
    }

    fn take_key(&mut self, key: &Key<'_>) -> Option<Record> {
        let (place, _) = self.find(key)?;
        Some(self.take(place))
    }

    fn leased_as(key: &Key<'_>) -> usize {
        (key.hash >> 24) as usize % REMOVAL_COUNTERS
    }

    /// Takes out the entry that is first in the order of eviction; but before a live one, one
    /// that has expired.
    #[doc(alias = "RemoveOldest")]
    pub(crate) fn evict(&mut self, now: impl FnOnce() -> Duration) -> Option<Record> {
        if let Some(&(at, place)) = self.expiries.first()
            && at <= now()
        {
            self.counts.expirations += 1;
            return Some(self.take(place));
        }
        let place = self.order.victim(&mut self.table.slots)?;
        self.counts.evictions += 1;
        Some(self.take(place))
    }

    fn take(&mut self, place: u32) -> Record {
        self.order.remove(&mut self.table.slots, place);
        let record = self.table.take(place);
        if let Some(at) = record.expires() {
            self.expiries.remove(&(at, place));
        }
        self.bytes -= record.cost();
        record
    }

    #[inline]
    fn find(&self, key: &Key<'_>) -> Option<(u32, &Record)> {
        self.table.find(key.short_hash(), key.text.as_bytes())
    }

    /// Walks the whole structure and checks that its parts agree.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let filled = self.table.places();
        let slots = &self.table.slots;
        let mut ordered = self.order.places(slots);
        ordered.sort_unstable();
        assert_eq!(ordered, filled, "each record is in the order once");
        let records = || filled.iter().map(|&place| (place, slots.record(place)));
        assert_eq!(self.bytes, records().map(|(_, record)| record.cost()).sum::<usize>());
        let expiries = records().filter_map(|(place, record)| Some((record.expires()?, place)));
        assert_eq!(self.expiries, expiries.collect());
        for (place, record) in records() {
            let found = self.table.find(slots[place].hash(), record.key());
            assert_eq!(found.map(|(place, _)| place), Some(place));
        }
    }
}
