//! `Shard`: a part of the cache's entries, with their table, bytes and order; one thread at a time.
//!
//! The cache is cut into shards so that threads seldom meet at the same lock. A shard never
//! drops a record itself: it returns those that leave, to be dropped outside of the lock.

use std::cell::LazyCell;
use std::time::Duration;

use super::CacheStats;
use super::key::Key;
use super::order::{Eviction, Order};
use super::record::Record;
use super::table::Table;

#[repr(C)] // as are its parts, so that what a hit reads and writes is close to the lock
pub(crate) struct Shard {
    // Counted under the lock, so that threads share no counter. Sizes are not in it.
    pub(crate) counts: CacheStats,
    table: Table,
    order: Order,
    // How often keys were removed; each counter serves some of the keys.
    removals: [u32; REMOVAL_COUNTERS],
}

/// Removals are counted in 64 buckets of keys, so that one removal ends few other leases.
const REMOVAL_COUNTERS: usize = 64;

/// The right to insert a value that is loaded from now on. A removal of the key ends it, and now and then
/// the removal of another key.
///
/// 1. Thread A misses, takes a lease and asks the origin, which answers v1.
/// 2. The value at the origin becomes v2, and thread B removes the key.
/// 3. A wants to insert v1. Its lease is from before the removal, so v1 is not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Lease(u32);

impl Shard {
    pub(crate) fn new(eviction: Eviction) -> Self {
        Self {
            counts: CacheStats::default(),
            table: Table::new(),
            order: Order::new(eviction),
            removals: [0; REMOVAL_COUNTERS],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.order.bytes()
    }

    /// The slot and the record of `key`, expired or not.
    #[inline]
    pub(crate) fn find(&self, key: &Key<'_>) -> Option<(u32, &Record)> {
        self.table.find(key.short_hash(), key.text.as_bytes())
    }

    /// The entry in a slot was hit.
    #[inline]
    pub(crate) fn count_hit(&mut self, slot: u32) {
        self.counts.hits += 1;
        self.order.touch(&mut self.table.slab, slot);
    }

    /// A lease on `key`, to be taken before the origin or the owner is asked.
    pub(crate) fn lease(&self, key: &Key<'_>) -> Lease {
        Lease(self.removals[Self::leased_as(key)])
    }

    /// Inserts `record`, in the slot of the same key if there is one, so that it keeps its place in the
    /// order and its hits; in an LRU it counts as used. Returns the record that is not kept: the one that it replaces, or `record`
    /// itself if the lease has ended or the order does not admit it to a cache that is full.
    pub(crate) fn insert(
        &mut self,
        key: &Key<'_>,
        record: Record,
        lease: Lease,
        is_full: bool,
        now: impl FnOnce() -> Duration,
    ) -> Option<Record> {
        if self.lease(key) != lease {
            return Some(record);
        }
        let hash = key.short_hash();
        let Some((slot, old)) = self.find(key) else {
            if is_full && !self.order.admits(hash, record.cost()) {
                self.counts.rejected += 1;
                return Some(record);
            }
            let slot = self.table.insert(hash, record);
            self.order.push(&mut self.table.slab, slot);
            return None;
        };
        if old.expires().is_some_and(|at| at <= now()) {
            self.counts.expirations += 1;
        }
        Some(self.order.replace(&mut self.table.slab, slot, record))
    }

    /// Counts a record that is too large, and takes out the one that it would have replaced.
    pub(crate) fn reject(&mut self, key: &Key<'_>) -> Option<Record> {
        self.counts.rejected += 1;
        self.take_key(key)
    }

    /// The records in some slots below `end`, which is set to the first of these slots. Entries move
    /// to lower slots alone, so none is missed.
    pub(crate) fn records_below(&self, end: &mut usize) -> Vec<Record> {
        const SLOTS: usize = 256;
        let entries = self.table.slab.entries();
        let below = &entries[..entries.len().min(*end)];
        *end = below.len().saturating_sub(SLOTS);
        below[*end..].iter().filter_map(|entry| entry.record.clone()).collect()
    }

    /// Takes the entry out and ends the leases on its key.
    pub(crate) fn remove(&mut self, key: &Key<'_>) -> Option<Record> {
        let removals = &mut self.removals[Self::leased_as(key)];
        *removals = removals.wrapping_add(1);
        self.take_key(key)
    }

    /// Takes all entries out and ends all leases. Returns the entries, to be dropped.
    pub(crate) fn clear(&mut self, eviction: Eviction) -> Self {
        let mut empty = Self::new(eviction);
        empty.removals = self.removals.map(|removals| removals.wrapping_add(1));
        empty.counts = self.counts;
        std::mem::replace(self, empty)
    }

    /// Takes the entry out; the leases on its key stay.
    pub(crate) fn take_key(&mut self, key: &Key<'_>) -> Option<Record> {
        let (slot, _) = self.find(key)?;
        Some(self.take(slot))
    }

    fn leased_as(key: &Key<'_>) -> usize {
        (key.hash >> 24) as usize % REMOVAL_COUNTERS
    }

    /// Takes out the first entry in the order of eviction.
    #[doc(alias = "RemoveOldest")]
    pub(crate) fn evict(&mut self, now: impl FnOnce() -> Duration) -> Option<Record> {
        let now = LazyCell::new(now);
        let has_expired = |record: &Record| record.expires().is_some_and(|at| at <= *now);
        let slot = self.order.victim(&mut self.table.slab, has_expired)?;
        let evicted = self.take(slot);
        match has_expired(&evicted) {
            true => self.counts.expirations += 1,
            false => self.counts.evictions += 1,
        }
        Some(evicted)
    }

    fn take(&mut self, slot: u32) -> Record {
        self.order.remove(&mut self.table.slab, slot);
        let (record, moved_from) = self.table.take(slot);
        if let Some(from) = moved_from {
            self.order.relink(&mut self.table.slab, from, slot);
        }
        record
    }

    /// How many records the longest chain of the table has.
    #[cfg(test)]
    pub(crate) fn longest_chain(&self) -> usize {
        self.table.longest_chain()
    }

    /// Walks the whole structure and checks that its parts agree.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let filled = self.table.slots();
        let slab = &self.table.slab;
        let mut ordered = self.order.slots(slab);
        ordered.sort_unstable();
        assert_eq!(ordered, filled, "each record is in the order once");
        let records = || filled.iter().map(|&slot| (slot, slab.record(slot)));
        assert_eq!(self.bytes(), records().map(|(_, record)| record.cost()).sum::<usize>());
        for (slot, record) in records() {
            let found = self.table.find(slab[slot].hash(), record.key().as_bytes());
            assert_eq!(found.map(|(slot, _)| slot), Some(slot));
        }
    }
}
